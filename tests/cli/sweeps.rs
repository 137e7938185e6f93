//! Sweeps of jobs, on the quickest binary: what runs, what is kept, what is said when something goes wrong.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

const TINY: [&str; 2] = ["tokenizer=tiny-neox", "frequency=tiny-neox"];

struct Sweep(TempDir);

impl Sweep {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_select-longtail"));
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .args(["-m", "-q"])
            .arg(format!("sweep.dir={}", self.path("sweep").display()))
            .args(args);
        command
    }

    /// Runs it; what it prints, and its exit code.
    #[track_caller]
    fn run(&self, args: &[&str]) -> (String, i32) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(args).output().unwrap();
        let text = [stdout, stderr].concat();
        (String::from_utf8(text).unwrap(), status.code().unwrap())
    }

    #[track_caller]
    fn passes(&self, args: &[&str]) -> String {
        let (text, code) = self.run(&[&TINY[..], args].concat());
        assert_eq!(code, 0, "{text}");
        text
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(&[&TINY[..], args].concat());
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn manifest(&self) -> Value {
        let json = fs::read(self.path("sweep/manifest.json")).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    /// A field of every job.
    fn jobs(&self, field: &str) -> Vec<String> {
        let manifest = self.manifest();
        let jobs = manifest["jobs"].as_array().unwrap().iter();
        jobs.map(|job| match &job[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
        .collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("sweep").join(name)).unwrap()
    }
}

/// The tables of all jobs lie as parts of one, by the keys that differ; the report shows their figures beside each other.
#[test]
fn a_sweep_is_seen_as_one() {
    let sweep = Sweep::new();
    let part = |case: &str, job: usize| {
        let folder = format!("sweep/tables/words/sweep.words.case={case}/sweep.job={job}");
        fs::read(sweep.path(&folder).join("part.parquet"))
    };
    let own = |job: usize| fs::read(sweep.path(&format!("sweep/{job}/words.parquet"))).unwrap();
    sweep.passes(&["words.case=keep,lower", "output.plot=true"]);
    assert!(part("keep", 0).unwrap() == own(0) && part("lower", 1).unwrap() == own(1));
    assert_ne!(own(0), own(1));
    let report = || fs::read_to_string(sweep.path("sweep/report.html")).unwrap();
    assert_eq!(report().matches("<svg").count(), 2);
    assert!(
        report().contains("Job 1, <code>words.case=lower</code>"),
        "{}",
        report()
    );

    // Another value joins them; a job that is gone leaves them.
    sweep.passes(&["words.case=keep,lower_only", "output.plot=true"]);
    assert!(part("lower_only", 2).unwrap() == own(2) && part("keep", 0).unwrap() == own(0));
    assert_eq!(report().matches("<svg").count(), 3);
    fs::remove_dir_all(sweep.path("sweep/1")).unwrap();
    fs::remove_file(sweep.path("sweep/report.html")).unwrap();
    sweep.passes(&["words.case=keep,lower_only", "output.plot=true"]);
    assert!(part("keep", 0).is_ok() && part("lower", 1).is_err());
    assert_eq!(report().matches("<svg").count(), 2);
}

#[test]
fn what_is_finished_is_kept_and_what_is_new_runs() {
    let sweep = Sweep::new();
    let printed = sweep.passes(&["words.min_length=3,5"]);
    assert!(printed.contains("2 jobs: 2 finished\n"), "{printed}");
    let first = sweep.jobs("started");

    let printed = sweep.passes(&["words.min_length=4,5,3", "-j", "2"]);
    assert!(
        printed.contains("3 jobs: 3 finished (2 before)\n"),
        "{printed}"
    );
    assert_eq!(sweep.jobs("number"), ["0", "1", "2"]);
    assert_eq!(sweep.jobs("started")[..2], first);
    assert_eq!(sweep.jobs("attempts"), ["1", "1", "1"]);
    assert!(sweep.read("2/config.yaml").contains("min_length: 4\n"));
    assert!(
        sweep
            .read("2/overrides.yaml")
            .contains("- words.min_length=4\n")
    );

    // A job of a sweep writes what a run alone writes.
    let alone = sweep.path("alone");
    let ran = Command::new(env!("CARGO_BIN_EXE_select-longtail"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(TINY)
        .arg("words.min_length=4")
        .arg(format!("output.dir={}", alone.display()))
        .output()
        .unwrap();
    assert!(ran.status.success());
    let words = fs::read_to_string(alone.join("words.csv")).unwrap();
    assert_eq!(words, sweep.read("2/words.csv"));

    // What somebody removed is made again.
    fs::remove_dir_all(sweep.path("sweep/1")).unwrap();
    let printed = sweep.passes(&["words.min_length=3,5"]);
    assert!(
        printed.contains("2 jobs: 2 finished (1 before)\n"),
        "{printed}"
    );
    assert!(sweep.path("sweep/1/words.csv").is_file());
}

#[test]
fn one_failure_stops_no_other_unless_asked() {
    let sweep = Sweep::new();
    // Found when the job runs, not when it is composed.
    let args = ["corpus=held-out", "split.held_out=2,0,0.5"];
    let (printed, code) = sweep.run(&[&TINY[..], &args, &["--fail-fast"]].concat());
    assert_eq!(code, 1);
    assert_eq!(sweep.jobs("state"), ["failed", "pending", "pending"]);
    assert!(
        printed.contains("3 jobs: 0 finished, 1 failed, 2 pending"),
        "{printed}"
    );

    let (printed, code) = sweep.run(&[&TINY[..], &args].concat());
    assert_eq!(code, 1);
    assert_eq!(sweep.jobs("state"), ["failed", "finished", "finished"]);
    assert_eq!(sweep.jobs("exit_code"), ["1", "0", "0"]);
    assert_eq!(sweep.jobs("attempts"), ["2", "1", "1"]);
    let why = "error: `split.held_out` is 2, expected a share of at least 0 and below 1";
    assert!(sweep.jobs("error")[0].starts_with(why));
    assert!(
        printed.contains(why)
            && printed.contains("error: 1 of 3 jobs failed")
            && printed.contains("--retry failed"),
        "{printed}"
    );

    // The frozen configuration is what is run again.
    let config = sweep.read("0/config.yaml");
    assert!(config.contains("held_out: 2"), "{config}");
    fs::write(
        sweep.path("sweep/0/config.yaml"),
        config
            .replace("held_out: 2.0", "held_out: 0.25")
            .replace("held_out: 2\n", "held_out: 0.25\n"),
    )
    .unwrap();
    let (printed, code) = sweep.run(&["--retry", "failed"]);
    assert_eq!(code, 0, "{printed}");
    assert_eq!(sweep.jobs("attempts"), ["3", "1", "1"]);
    let (printed, code) = sweep.run(&["--retry", "failed"]);
    assert!(code == 0 && printed.contains("no job of"), "{printed}");
}

#[test]
fn a_changed_input_is_another_job_and_the_same_run_runs_once() {
    let sweep = Sweep::new();
    let counts = sweep.path("counts.npy");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::copy(
        root.join("examples/data/tiny-neox/train-unigrams.npy"),
        &counts,
    )
    .unwrap();
    let counts_key = format!("frequency.counts={}", counts.display());
    sweep.passes(&[&counts_key, "words.min_length=3,3.0"]);
    assert_eq!(sweep.jobs("state"), ["finished"]);

    let mut bytes = fs::read(&counts).unwrap();
    // In the count of an early token, behind the header.
    bytes[200] ^= 1;
    fs::write(&counts, bytes).unwrap();
    sweep.passes(&[&counts_key, "words.min_length=3"]);
    assert_eq!(sweep.jobs("state"), ["finished", "finished"]);
    assert_ne!(sweep.jobs("id")[0], sweep.jobs("id")[1]);
}

#[test]
fn a_sweep_may_be_written_in_a_file() {
    let sweep = Sweep::new();
    let file = sweep.path("mine.yaml");
    fs::write(
        &file,
        "defaults: [/select-longtail, {override /tokenizer: tiny-neox}, {override /frequency: tiny-neox}]\n\
         sweep:\n  params: {words.min_length: 'range(3,5)'}\n  zip: {words.case: [keep, lower], split.seed: [1, 2]}\n",
    )
    .unwrap();
    let config = ["--config", file.to_str().unwrap(), "--dry-run"];
    let (printed, code) = sweep.run(&config);
    assert_eq!(code, 2, "{printed}");
    assert!(
        printed.contains("`split.seed` is set, but nothing is held out"),
        "{printed}"
    );
    let more = [&config[..], &["corpus=train", "split.held_out=0.5"]].concat();
    let (printed, code) = sweep.run(&more);
    assert_eq!(code, 0, "{printed}");
    let values: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.trim().split_once("pending"))
        .map(|(_, values)| values.trim())
        .collect();
    assert_eq!(
        values,
        [
            "words.min_length=3 split.seed=1 words.case=keep",
            "words.min_length=3 split.seed=2 words.case=lower",
            "words.min_length=4 split.seed=1 words.case=keep",
            "words.min_length=4 split.seed=2 words.case=lower",
        ]
    );
    // Nothing was written.
    assert!(!sweep.path("sweep").exists());
    let (printed, _) = sweep.run(&[&more[..], &["words.min_length=7"]].concat());
    assert!(printed.contains("2 jobs, 0 of them finished"), "{printed}");
}

#[test]
fn what_is_wrong_is_told_before_anything_runs() {
    let sweep = Sweep::new();
    for (args, said) in [
        (
            &["words.min_length=3,x"][..],
            "job 1 of the sweep is refused (words.min_length=x)",
        ),
        (&["words.minlength=3,4"], "did you mean `words.min_length`?"),
        (
            &["output.dir=a,b"],
            "each job of a sweep has a folder of its own",
        ),
        (
            &["zip(words.min_length=3,4, split.seed=1)"],
            "lists of one length",
        ),
        (
            &["tokenizer=glob(gpt*)"],
            "no choice is like `gpt*`; there are `pythia`, `tiny-neox`",
        ),
        (
            &["words.min_length=range(3,9,0)"],
            "the step of `range` is 0",
        ),
        (&["sweep.prams={seed: 1}"], "did you mean `params`?"),
        (
            &["sweep.jobs=[words.min_length=3]"],
            "expected a list of overrides",
        ),
        (
            &["--launcher", "slrum"],
            "no such launcher; there are slurm, task-list",
        ),
        (
            &["--launcher", "slurm", "sweep.launcher.tme=3"],
            "unknown field `tme`",
        ),
        (
            &["--status", "words.min_length=3,4"],
            "leave the values out",
        ),
        (
            &["--retry", "failed", "words.min_length=3,4"],
            "leave the values out",
        ),
    ] {
        let (printed, code) = sweep.run(&[&TINY[..], args].concat());
        assert!(
            code == 2 && printed.contains(said),
            "{args:?}: {code} {printed}"
        );
    }
    let (printed, code) = sweep.run(&["--retry", "failed"]);
    assert!(
        code == 1 && printed.contains("no sweep was run in"),
        "{printed}"
    );
    assert!(!sweep.path("sweep/manifest.json").exists());
}

#[test]
#[cfg(unix)]
fn a_list_of_tasks_is_for_any_scheduler() {
    let sweep = Sweep::new();
    let printed = sweep.passes(&["words.min_length=3,4", "--launcher", "task-list"]);
    assert!(printed.starts_with("2 commands"), "{printed}");
    assert_eq!(sweep.jobs("state"), ["pending", "pending"]);
    for line in sweep.read("tasks.txt").lines() {
        // Anywhere, by any shell.
        let ran = Command::new("sh")
            .current_dir("/")
            .args(["-c", line])
            .status();
        assert!(ran.unwrap().success(), "{line}");
    }
    let (printed, code) = sweep.run(&["--status"]);
    assert!(
        code == 0 && printed.contains("2 jobs: 2 finished"),
        "{printed}"
    );
    assert_eq!(sweep.jobs("state"), ["finished", "finished"]);
}

#[test]
fn combinations_may_be_listed() {
    let sweep = Sweep::new();
    let file = sweep.path("mine.yaml");
    fs::write(
        &file,
        "defaults: [/select-longtail]\n\
         sweep:\n  overrides: [tokenizer=tiny-neox, frequency=tiny-neox]\n  jobs: [[words.min_length=3], ['words.min_length=5', words.case=lower]]\n",
    )
    .unwrap();
    let args = ["--config", file.to_str().unwrap()];
    let (printed, code) = sweep.run(&args);
    assert!(
        code == 0 && printed.contains("2 jobs: 2 finished"),
        "{printed}"
    );
    assert!(sweep.read("1/config.yaml").contains("case: lower"));
}

/// Waits until a first job has finished and not all have.
fn in_the_middle(sweep: &Sweep) {
    let since = Instant::now();
    while !sweep.path("sweep/0/run.json").is_file() {
        assert!(since.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
}

fn stop(child: &mut Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

const MANY: &str = "words.min_length=range(3,15)";

#[test]
#[cfg(unix)]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let sweep = Sweep::new();
    let mut child = sweep.start(&[MANY]);
    in_the_middle(&sweep);
    // Nobody else works in the folder meanwhile.
    let (printed, code) = sweep.run(&[&TINY[..], &[MANY]].concat());
    assert!(
        code == 1 && printed.contains("another program runs the jobs"),
        "{printed}"
    );
    stop(&mut child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let states = sweep.jobs("state");
    let count = |name: &str| states.iter().filter(|state| *state == name).count();
    assert!(
        count("finished") >= 1 && count("pending") >= 1,
        "{states:?}"
    );
    assert_eq!((count("running"), count("failed")), (0, 0), "{states:?}");

    let finished = count("finished");
    let printed = sweep.passes(&[MANY]);
    let said = format!("12 jobs: 12 finished ({finished} before)");
    assert!(printed.contains(&said), "{said}: {printed}");
}

#[test]
#[cfg(unix)]
fn a_killed_launcher_loses_nothing() {
    let sweep = Sweep::new();
    let mut child = sweep.start(&[MANY]);
    in_the_middle(&sweep);
    stop(&mut child, "-KILL");
    child.wait().unwrap();
    // Its job ends with it, so that the sweep goes on at once.
    let files = (0..12).map(|n| sweep.path(&format!("sweep/{n}/run.json")));
    let before = files.filter(|file| file.is_file()).count();
    let said = format!("12 jobs: 12 finished ({before} before)");
    let printed = sweep.passes(&[MANY]);
    assert!(printed.contains(&said), "{said}: {printed}");
}

/// A small disk of one's own, where this user may mount one.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let disk = Self(dir);
        disk.mount(&format!("size={size}"), &["-t", "tmpfs", "tmpfs"])
            .then_some(disk)
    }

    fn mount(&self, options: &str, what: &[&str]) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).args(what).arg(self.0.path());
        mount
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A disk that fills up in the middle, or that cannot be written to, is told; what had finished is kept, and the same command goes on.
#[test]
fn a_full_disk_loses_nothing() {
    let Some(disk) = Disk::new("600k") else {
        eprintln!("SKIPPED: mounting a small disk needs rights that this user does not have");
        return;
    };
    let sweep = Sweep::new();
    let folder = format!("sweep.dir={}", disk.0.path().join("sweep").display());
    let values = [&TINY[..], &["words.common=range(1,5)", &folder]].concat();
    let (text, code) = sweep.run(&values);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    let first = disk.0.path().join("sweep/0/words.csv");
    let written = fs::read(&first).unwrap();
    assert!(disk.mount("remount,size=60m", &[]));
    let (text, code) = sweep.run(&values);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("4 jobs: 4 finished (") && text.contains(" before)"),
        "{text}"
    );
    assert_eq!(fs::read(&first).unwrap(), written);
    assert!(disk.mount("remount,ro", &[]));
    let more = [&TINY[..], &["words.common=range(1,6)", &folder]].concat();
    let (text, code) = sweep.run(&more);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(fs::read(&first).unwrap(), written);
}

/// A group of processes with little memory, where this user may make one.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let of_memory = |line: &str| {
            let (kinds, path) = line.split_once(':')?.1.split_once(':')?;
            let path = path.trim_start_matches('/');
            match kinds {
                "memory" => Some((
                    Path::new("/sys/fs/cgroup/memory").join(path),
                    "memory.limit_in_bytes",
                )),
                "" => Some((Path::new("/sys/fs/cgroup").join(path), "memory.max")),
                _ => None,
            }
        };
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups
            .lines()
            .filter_map(of_memory)
            .find_map(|(parent, limit)| {
                let group = Self(parent.join(format!("longtail-test-{}", std::process::id())));
                fs::create_dir(&group.0).ok()?;
                fs::write(group.0.join(limit), bytes.to_string()).ok()?;
                Some(group)
            })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A job that the system ends to get memory is told apart from one that fails by itself; the others run, and with more memory it does.
#[test]
fn out_of_memory_is_told() {
    let Some(group) = Group::new(40 << 20) else {
        eprintln!(
            "SKIPPED: a group of processes with little memory needs rights that this user does not have"
        );
        return;
    };
    let sweep = Sweep::new();
    let text = |name: &str, times: usize| {
        fs::write(sweep.path(name), "the quick brown fox ".repeat(times)).unwrap();
        sweep.path(name).display().to_string()
    };
    let (small, large) = (text("small.txt", 40), text("large.txt", 4_000_000));
    let corpora = format!("corpus.path={small},{large}");
    let own = sweep.command(&[&TINY[..], &[&corpora]].concat());
    let mut inside = Command::new("sh");
    inside
        .args(["-c", r#"echo $$ > "$0"; exec "$@""#])
        .arg(group.0.join("cgroup.procs"))
        .arg(own.get_program())
        .args(own.get_args())
        .current_dir(own.get_current_dir().unwrap());
    let output = inside.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("out of memory: the system killed it"),
        "{said}"
    );
    assert_eq!(sweep.jobs("state"), ["finished", "failed"]);
    // With enough of it the same command goes on.
    let (said, code) = sweep.run(&[&TINY[..], &[&corpora]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("2 jobs: 2 finished (1 before)"), "{said}");
}
