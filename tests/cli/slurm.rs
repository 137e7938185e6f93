//! Sweeps and studies on a real Slurm, which the test sets up: two nodes of one core, all on this machine.
//!
//! It needs root and Slurm's daemons (`apt-get install slurmctld slurmd slurm-client`), and is skipped where they are missing.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{
    cell::RefCell,
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Without munge, systemd and accounting; tried with Slurm 22.05.
const CONF: &str = "\
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
StateSaveLocation=DIR/state
SlurmdSpoolDir=DIR/spool/%n
SlurmctldPidFile=DIR/ctld.pid
SlurmdPidFile=DIR/%n.pid
SlurmctldLogFile=DIR/ctld.log
SlurmdLogFile=DIR/%n.log
SlurmctldPort=PORT0
KillWait=5
MinJobAge=300
ReturnToService=2
MaxArraySize=8
JobRequeue=1
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=PORT1 CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=PORT2 CPUs=1 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
";

/// The longest that anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

struct Cluster {
    dir: TempDir,
    daemons: RefCell<Vec<Child>>,
}

impl Cluster {
    /// None where it cannot be, with the reason.
    fn start() -> Result<Self, String> {
        let uid = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if !uid.lines().any(|line| line.starts_with("Uid:\t0\t")) {
            return Err("the daemons need root".to_owned());
        }
        for program in ["slurmctld", "slurmd", "sbatch", "setpriv"] {
            let found = env::split_paths(&path()).any(|folder| folder.join(program).is_file());
            if !found {
                return Err(format!(
                    "`{program}` is not installed (apt-get install slurmctld slurmd slurm-client)"
                ));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        for folder in ["state", "spool/n1", "spool/n2"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        // All are held until each has its own.
        let ports = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let mut conf = CONF.replace("DIR", dir.path().to_str().unwrap());
        for (i, port) in ports.iter().enumerate() {
            let port = port.local_addr().unwrap().port().to_string();
            conf = conf.replace(&format!("PORT{i}"), &port);
        }
        drop(ports);
        fs::write(dir.path().join("slurm.conf"), conf).unwrap();
        let cluster = Self {
            dir,
            daemons: RefCell::default(),
        };
        cluster.daemon(&["slurmctld", "-c", "-D"]);
        cluster.until("the controller answers", || {
            cluster.said("scontrol", &["ping"]).contains(" is UP")
        });
        for node in ["n1", "n2"] {
            cluster.daemon(&["slurmd", "-c", "-D", "-N", node]);
        }
        cluster.until_idle();
        Ok(cluster)
    }

    fn daemon(&self, args: &[&str]) {
        // It goes when this thread does, whatever ends it.
        let daemon = self
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.daemons.borrow_mut().push(daemon.unwrap());
    }

    fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command
            .env("PATH", path())
            .env("SLURM_CONF", self.dir.path().join("slurm.conf"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        command
    }

    fn said(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() {
            let log = || fs::read_to_string(self.dir.path().join("ctld.log")).unwrap_or_default();
            assert!(
                since.elapsed() < PATIENCE,
                "not before long: {what}\n{}",
                log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn until_idle(&self) {
        self.until("both nodes are idle", || {
            let states = self.said("sinfo", &["-h", "-N", "-p", "low", "-o", "%T"]);
            states.lines().filter(|state| *state == "idle").count() == 2
        });
    }

    /// A sweep of select-longtail in a folder.
    fn sweep(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = self.command(program("select-longtail"));
        command
            .args(["-m", "-q", "tokenizer=tiny-neox", "frequency=tiny-neox"])
            .arg(format!("sweep.dir={}", dir.display()))
            .args(args);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.said("scancel", &["--me"]);
        thread::sleep(Duration::from_secs(1));
        for daemon in self.daemons.get_mut() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// With the folders of daemons.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Another program of ours, beside the one that this test is of.
fn program(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_run-study")).with_file_name(name);
    assert!(
        program.is_file(),
        "build `{name}` first: cargo build --workspace --bins"
    );
    program
}

/// What a command prints, and its exit code.
#[track_caller]
fn ran(command: &mut Command) -> (String, i32) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8([stdout, stderr].concat()).unwrap();
    (text, status.code().unwrap())
}

#[track_caller]
fn passes(command: &mut Command) -> String {
    let (text, code) = ran(command);
    assert_eq!(code, 0, "{text}");
    text
}

fn manifest(dir: &Path) -> Value {
    let json = fs::read(dir.join("manifest.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// A field of every job.
fn jobs(dir: &Path, field: &str) -> Vec<String> {
    let manifest = manifest(dir);
    let jobs = manifest["jobs"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    jobs.map(|job| text(&job[field])).collect()
}

/// The process of a job, once there is one.
fn process_of(job: &Path) -> Option<String> {
    process_with(&job.join("config.yaml"))
}

/// The process that was given a path.
fn process_with(path: &Path) -> Option<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut running = processes.filter(|entry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|&byte| byte == 0);
        words.any(|word| word == path.as_os_str().as_encoded_bytes())
    });
    Some(running.next()?.file_name().into_string().unwrap())
}

fn kill(process: &str) {
    assert!(
        Command::new("kill")
            .args(["-9", process])
            .status()
            .unwrap()
            .success()
    );
}

/// A text that a job waits for: a named pipe into which nobody writes.
struct Held(PathBuf);

impl Held {
    fn new(path: PathBuf) -> Self {
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        Self(path)
    }

    fn overrides(&self) -> [String; 2] {
        [
            format!("corpus.path={}", self.0.display()),
            "corpus.column=text".to_owned(),
        ]
    }

    /// Whoever opens it from now on reads a text.
    fn release(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = self.0.with_extension("there");
        fs::copy(root.join("examples/data/corpus/held-out.jsonl"), &text).unwrap();
        fs::rename(text, &self.0).unwrap();
    }
}

#[test]
fn sweeps_and_studies_on_a_real_slurm() {
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => {
            // Not by a macro, whose output a passing test keeps to itself.
            writeln!(io::stderr(), "SKIPPED: no test ran on Slurm: {why}").unwrap();
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, scenario) in [
        (
            "twelve",
            twelve_jobs_one_killed_and_one_failing as fn(&Cluster, &Path),
        ),
        ("left", a_submitting_process_that_was_killed_loses_nothing),
        ("packed", several_jobs_in_a_task_and_none_left_after_cancel),
        ("study", a_study_waits_for_its_steps),
        ("room", a_task_that_makes_room_goes_on_later),
        ("node", a_node_that_vanishes_is_told_from_an_error),
        ("setup", what_slurm_or_the_setup_refuses_is_told),
    ] {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        scenario(&cluster, &dir);
        cluster.until_idle();
    }
}

/// More tasks than an array may have; the killed one and the one that failed are complete after `--retry failed`.
fn twelve_jobs_one_killed_and_one_failing(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let held = Held::new(dir.join("held.jsonl"));
    let counts = dir.join("later.npy");
    let mut rows: Vec<Vec<String>> = (3..13)
        .map(|n| vec![format!("words.min_length={n}")])
        .collect();
    rows.insert(3, held.overrides().to_vec());
    rows.insert(7, vec![format!("frequency.counts={}", counts.display())]);
    let file = dir.join("twelve.yaml");
    let rows = serde_json::to_string(&rows).unwrap();
    fs::write(
        &file,
        format!("defaults: [/select-longtail]\nsweep: {{jobs: {rows}}}\n"),
    )
    .unwrap();
    let config = ["--config", file.to_str().unwrap(), "--launcher", "slurm"];

    let mut submitted = cluster.sweep(&sweep, &config);
    let submitted = submitted
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cluster.until("the held job runs", || {
        process_of(&sweep.join("3")).is_some()
    });
    let process = process_of(&sweep.join("3")).unwrap();
    kill(&process);
    let output = submitted.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains("12 jobs: 10 finished, 2 failed"),
        "{printed}"
    );
    let errors = jobs(&sweep, "error");
    assert!(errors[3].contains("signal: 9"), "{errors:?}");
    assert!(
        errors[7].starts_with("error: ") && errors[7].contains("later.npy"),
        "{errors:?}"
    );
    // Eight tasks are the most of this cluster.
    assert!(sweep.join("slurm/1.sh").is_file());

    held.release();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::copy(
        root.join("examples/data/tiny-neox/train-unigrams.npy"),
        &counts,
    )
    .unwrap();
    let printed = passes(&mut cluster.sweep(&sweep, &["--retry", "failed", "--launcher", "slurm"]));
    assert!(printed.contains("2 jobs: 2 finished"), "{printed}");
    assert_eq!(jobs(&sweep, "state"), ["finished"; 12]);
    let attempts = jobs(&sweep, "attempts");
    assert_eq!(
        attempts.iter().filter(|n| *n == "2").count(),
        2,
        "{attempts:?}"
    );

    // On Slurm as here.
    let local = dir.join("local");
    passes(&mut cluster.sweep(&local, &["--config", file.to_str().unwrap()]));
    for number in 0..12 {
        let words = |sweep: &Path| fs::read(sweep.join(format!("{number}/words.csv"))).unwrap();
        assert!(words(&local) == words(&sweep), "job {number}");
    }
}

fn a_submitting_process_that_was_killed_loses_nothing(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let held = Held::new(dir.join("held.jsonl"));
    let texts = held.overrides();
    let args = [
        &texts[0],
        &texts[1],
        "words.min_length=3,4,5",
        "--launcher=slurm",
    ];
    let mut submitting = cluster.sweep(&sweep, &args);
    let mut submitting = submitting
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cluster.until("a job runs", || process_of(&sweep.join("0")).is_some());
    submitting.kill().unwrap();
    submitting.wait().unwrap();
    // As if it had been killed before it knew the number of the array.
    let mut noted = manifest(&sweep);
    for job in noted["jobs"].as_array_mut().unwrap() {
        job["task"]["job"] = Value::Null;
    }
    fs::write(sweep.join("manifest.json"), noted.to_string()).unwrap();

    // The same command again submits nothing.
    let (printed, code) = ran(&mut cluster.sweep(&sweep, &[&args[..], &["--detach"]].concat()));
    assert!(
        code == 0 && printed.contains("3 jobs: 0 finished"),
        "{printed}"
    );
    assert!(sweep.join("slurm/0.sh").is_file() && !sweep.join("slurm/1.sh").exists());
    // Those that run wait for ever; so that they read the text they are stopped once.
    held.release();
    for number in ["0", "1"] {
        if let Some(process) = process_of(&sweep.join(number)) {
            kill(&process);
        }
    }
    let (printed, _) = ran(&mut cluster.sweep(&sweep, &["--wait"]));
    assert!(printed.contains("1 finished, 2 failed"), "{printed}");
    passes(&mut cluster.sweep(&sweep, &["--retry", "failed", "--launcher", "slurm"]));
    assert_eq!(jobs(&sweep, "state"), ["finished"; 3]);
    assert_eq!(jobs(&sweep, "attempts"), ["2", "2", "1"]);
}

fn several_jobs_in_a_task_and_none_left_after_cancel(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let held = Held::new(dir.join("held.jsonl"));
    let texts = held.overrides();
    let args = [
        "words.min_length=range(3,8)",
        "--launcher=slurm",
        "sweep.launcher.jobs_per_task=2",
        "sweep.launcher.throttle=1",
    ];
    passes(&mut cluster.sweep(&sweep, &args));
    let list = fs::read_to_string(sweep.join("slurm/0.json")).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["tasks"], serde_json::json!([[0, 1], [2, 3], [4]]));

    let more = [&args[..], &[&texts[0], &texts[1], "--detach"]].concat();
    let printed = passes(&mut cluster.sweep(&sweep, &more));
    assert!(printed.contains("5 jobs: 0 finished"), "{printed}");
    cluster.until("a job runs", || process_of(&sweep.join("5")).is_some());
    let (printed, code) = ran(&mut cluster.sweep(&sweep, &["--status"]));
    assert!(
        code == 1 && printed.contains("10 jobs: 5 finished, 1 running, 4 queued"),
        "{printed}"
    );
    let printed = passes(&mut cluster.sweep(&sweep, &["--cancel"]));
    assert!(
        printed.contains("10 jobs: 5 finished, 5 interrupted"),
        "{printed}"
    );
    assert_eq!(cluster.said("squeue", &["-h"]), "");
    assert_eq!(process_of(&sweep.join("5")), None);
}

fn a_study_waits_for_its_steps(cluster: &Cluster, dir: &Path) {
    let file = dir.join("study.yaml");
    fs::write(
        &file,
        "dir: nowhere\n\
         steps:\n\
         \x20 words:\n\
         \x20   job: select-longtail\n\
         \x20   overrides: [tokenizer=tiny-neox]\n\
         \x20   zip:\n\
         \x20     frequency: [tiny-neox, LATER]\n\
         \x20     words.min_length: [3, 4]\n\
         \x20   launcher: {jobs_per_task: 2}\n\
         \x20 contexts:\n\
         \x20   job: prepare-context\n\
         \x20   overrides: ['words.path=${step:words}/words.csv']\n"
            .replace("LATER", dir.join("later.yaml").to_str().unwrap()),
    )
    .unwrap();
    let counts = dir.join("later.npy");
    fs::write(
        dir.join("later.yaml"),
        format!("counts: {}\n", counts.display()),
    )
    .unwrap();
    let results = dir.join("results");
    let study_in = |dir: &Path, args: &[&str]| {
        let mut command = cluster.command(program("run-study"));
        command
            .arg("-q")
            .arg(&file)
            .arg("--dir")
            .arg(dir)
            .args(args);
        command
    };
    let study = |args: &[&str]| study_in(&results, args);
    let printed = passes(&mut study(&["--launcher", "slurm", "--detach"]));
    assert!(printed.contains("prepare-context  2 queued"), "{printed}");
    let (printed, code) = ran(&mut study(&["--wait"]));
    assert_eq!(code, 1, "{printed}");
    assert!(
        printed.contains("select-longtail  1 finished, 1 failed"),
        "{printed}"
    );
    assert!(
        printed.contains("prepare-context  1 finished, 1 pending"),
        "{printed}"
    );
    assert!(
        printed.contains("words/1`, which has not finished"),
        "{printed}"
    );

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::copy(
        root.join("examples/data/tiny-neox/train-unigrams.npy"),
        &counts,
    )
    .unwrap();
    passes(&mut study(&["--launcher", "slurm"]));
    let here = dir.join("here");
    passes(&mut study_in(&here, &[]));
    // What reads from a file that was not there is another job now that it is.
    for (there, file) in [
        ("words/0/words.csv", "words/0/words.csv"),
        ("words/2/words.csv", "words/1/words.csv"),
        ("contexts/2/contexts.json", "contexts/1/contexts.json"),
    ] {
        assert!(
            fs::read(results.join(there)).unwrap() == fs::read(here.join(file)).unwrap(),
            "{file}"
        );
    }
}

fn a_task_that_makes_room_goes_on_later(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let held = Held::new(dir.join("held.jsonl"));
    let texts = held.overrides();
    let args = [
        &texts[0],
        &texts[1],
        "words.min_length=3,4",
        "--launcher=slurm",
        "--detach",
        "sweep.launcher.partition=low",
        "sweep.launcher.notice=4",
    ];
    passes(&mut cluster.sweep(&sweep, &args));
    for number in ["0", "1"] {
        cluster.until("it runs", || process_of(&sweep.join(number)).is_some());
    }
    let urgent = [
        "--partition=high",
        "--nodes=2",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ];
    let said = cluster.said("sbatch", &urgent);
    assert!(said.starts_with("Submitted"), "{said}");
    for number in ["0", "1"] {
        cluster.until("it makes room", || {
            process_of(&sweep.join(number)).is_none()
        });
    }
    held.release();
    let printed = passes(&mut cluster.sweep(&sweep, &["--wait"]));
    assert!(printed.contains("2 jobs: 2 finished"), "{printed}");
    assert_eq!(jobs(&sweep, "attempts"), ["2", "2"]);
}

fn a_node_that_vanishes_is_told_from_an_error(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let held = Held::new(dir.join("held.jsonl"));
    let texts = held.overrides();
    // By itself Slurm would queue the task again on another node.
    let args = [
        &texts[0],
        &texts[1],
        "--launcher=slurm",
        "--detach",
        "sweep.launcher.options=[--nodelist=n1, --no-requeue]",
    ];
    passes(&mut cluster.sweep(&sweep, &args));
    cluster.until("it runs", || process_of(&sweep.join("0")).is_some());
    // As if the power had gone: the daemon of the node, that of the task, and the task; its job goes with it.
    let worker = process_with(&sweep.join("slurm/0.json")).unwrap();
    let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap();
    cluster.daemons.borrow_mut()[1].kill().unwrap();
    kill(parent);
    kill(&worker);
    cluster.until("the job is gone", || process_of(&sweep.join("0")).is_none());
    let set = |state: &str| {
        let state = format!("state={state}");
        let args = ["update", "nodename=n1", "reason=test", &state];
        cluster.said("scontrol", &args);
    };
    set("down");
    let (printed, code) = ran(&mut cluster.sweep(&sweep, &["--wait"]));
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("node `n1` vanished"), "{printed}");
    assert_eq!(jobs(&sweep, "state"), ["interrupted"]);
    cluster.daemon(&["slurmd", "-c", "-D", "-N", "n1"]);
    set("resume");
    held.release();
    passes(&mut cluster.sweep(&sweep, &["--retry", "failed", "--launcher", "slurm"]));
    assert_eq!(jobs(&sweep, "state"), ["finished"]);
}

fn what_slurm_or_the_setup_refuses_is_told(cluster: &Cluster, dir: &Path) {
    let sweep = dir.join("sweep");
    let args = ["words.min_length=3", "--launcher=slurm"];
    let wrong = [&args[..], &["sweep.launcher.partition=lwo"]].concat();
    let (printed, code) = ran(&mut cluster.sweep(&sweep, &wrong));
    assert!(
        code == 1 && printed.contains("invalid partition specified: lwo"),
        "{printed}"
    );
    assert_eq!(jobs(&sweep, "state"), ["pending"]);

    let wrong = [
        &args[..],
        &["sweep.launcher.setup=['echo ready', 'module load nothing']"],
    ]
    .concat();
    let (printed, code) = ran(&mut cluster.sweep(&sweep, &wrong));
    assert!(
        code == 1 && printed.contains("module: command not found"),
        "{printed}"
    );
    let setup = [
        "sweep.launcher.setup=['export RAYON_NUM_THREADS=1']",
        "--quiet",
    ];
    passes(&mut cluster.sweep(&sweep, &[&args[..], &setup[..1]].concat()));
}
