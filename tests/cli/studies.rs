//! Studies on the quickest binaries: what runs in which order, what is kept, what is said when something goes wrong.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const TWO: &str = "\
dir: results
steps:
  contexts:
    job: prepare-context
    overrides: ['words.path=${step:words}/words.csv', 'output.dir=unused']
    sweep:
      contexts.per_word: [1, 2]
  words:
    job: select-longtail
    overrides: [tokenizer=tiny-neox, frequency=tiny-neox]
    sweep:
      words.min_length: range(3,5)
";

struct Study(TempDir);

impl Study {
    fn new(yaml: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("study.yaml"), yaml).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_run-study"));
        for other in ["select-longtail", "prepare-context"] {
            let there = program.with_file_name(other).is_file();
            assert!(
                there,
                "build `{other}` first: cargo build --workspace --bins"
            );
        }
        let mut command = Command::new(program);
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .arg("-q")
            .arg(self.path("study.yaml"))
            .arg("--dir")
            .arg(self.path("results"))
            .args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> (String, i32) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(args).output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        (text, status.code().unwrap())
    }

    #[track_caller]
    fn passes(&self, args: &[&str]) -> String {
        let (text, code) = self.run(args);
        assert_eq!(code, 0, "{text}");
        text
    }

    #[track_caller]
    fn refused(&self, args: &[&str], said: &str) {
        let (text, code) = self.run(args);
        assert!(code != 0 && text.contains(said), "{code} {text}");
    }
}

#[test]
fn steps_run_in_the_order_of_their_inputs_and_what_is_finished_is_kept() {
    let study = Study::new(TWO);
    let shown = study.passes(&["--dry-run"]);
    assert!(
        shown.contains("select-longtail  2 pending\ncontexts  prepare-context  4 pending"),
        "{shown}"
    );
    assert!(!study.path("results").exists());

    let printed = study.passes(&[]);
    assert!(
        printed.contains("select-longtail  2 finished\ncontexts  prepare-context  4 finished"),
        "{printed}"
    );
    // The second job reads the second words.
    let config = fs::read_to_string(study.path("results/contexts/1/config.yaml")).unwrap();
    assert!(
        config.contains("words/1/words.csv") && config.contains("per_word: 1"),
        "{config}"
    );
    let times = || {
        let record = |n| study.path(&format!("results/contexts/{n}/run.json"));
        [0, 1, 2, 3].map(|n| record(n).metadata().unwrap().modified().unwrap())
    };
    let first = times();
    study.passes(&[]);
    assert_eq!(times(), first);
    study.passes(&["--status"]);

    // One value more: what reads from the new job is new, the rest is kept.
    let printed = study.passes(&["words.words.min_length=3,4,5"]);
    assert!(
        printed.contains("6 jobs: 6 finished (4 before)"),
        "{printed}"
    );
    assert_eq!(times(), first);
    // One value alone takes the place of those in the file.
    let shown = study.passes(&["words.words.min_length=4", "--dry-run"]);
    assert!(
        shown.contains("select-longtail  1 finished\ncontexts  prepare-context  2 finished"),
        "{shown}"
    );
}

#[test]
fn what_jobs_say_is_shown_while_they_run_one_at_a_time() {
    let study = Study::new(&TWO.replace(
        "job: select-longtail",
        "title: find rare words\n    job: select-longtail",
    ));
    let shown = study.passes(&["--dry-run"]);
    assert!(
        shown.contains("words (select-longtail): find rare words\n"),
        "{shown}"
    );
    let heard = |more: &[&str]| {
        let quiet = study.command(more);
        let output = Command::new(quiet.get_program())
            .args(quiet.get_args().filter(|&arg| arg != "-q"))
            .current_dir(quiet.get_current_dir().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = heard(&[]);
    assert!(
        said.contains("step 1 of 2: words (select-longtail): find rare words"),
        "{said}"
    );
    for n in [0, 1] {
        let log = fs::read_to_string(study.path(&format!("results/words/{n}/job.log"))).unwrap();
        assert!(
            log.contains("Band: ") && said.contains(&log),
            "{log} {said}"
        );
    }
    // Several at once are not.
    fs::remove_dir_all(study.path("results/contexts")).unwrap();
    let said = heard(&["--jobs", "2"]);
    assert!(!said.contains("Contexts: "), "{said}");
    let log = fs::read_to_string(study.path("results/contexts/0/job.log")).unwrap();
    assert!(log.contains("Contexts: "), "{log}");
}

#[test]
fn what_reads_from_a_job_that_failed_waits_for_it() {
    let study = Study::new(&TWO.replace("'output.dir=unused'", "corpus.rows=0..50"));
    // Found when the job runs, not when it is composed.
    let args = ["words.corpus=held-out", "words.split.held_out=0.5,2"];
    let one = [
        &args[..],
        &["words.words.min_length=3", "contexts.contexts.per_word=1"],
    ]
    .concat();
    let (printed, code) = study.run(&one);
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
        printed.contains("it reads from `") && printed.contains("2 of 4 jobs of the study"),
        "{printed}"
    );
    study.refused(
        &[&one[..], &["--status"]].concat(),
        "2 of 4 jobs of the study have finished",
    );

    // Mended where it was frozen.
    let config = study.path("results/words/1/config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("held_out: 2.0", "held_out: 0.25")).unwrap();
    let sweep = format!("sweep.dir={}", study.path("results/words").display());
    let program = Path::new(env!("CARGO_BIN_EXE_run-study")).with_file_name("select-longtail");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let retried = Command::new(program)
        .current_dir(root)
        .args(["-q", "-m", "--retry", "failed", &sweep])
        .stdout(Stdio::null())
        .status();
    assert!(retried.unwrap().success());
    study.passes(&one);
}

/// Composed by all programs, on whatever this machine has of their inputs.
#[test]
fn shipped_studies_can_be_composed() {
    let programs = Path::new(env!("CARGO_BIN_EXE_run-study"));
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/study");
    let files: Vec<PathBuf> = fs::read_dir(configs)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert!(files.len() >= 2);
    for file in files {
        let study = Study::new(&fs::read_to_string(&file).unwrap());
        let bins = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for bin in fs::read_dir(bins).unwrap() {
            let program = programs.with_file_name(bin.unwrap().file_name());
            assert!(
                program.is_file(),
                "build `{}` first: cargo build --workspace --bins",
                program.display()
            );
        }
        let shown = study.passes(&["--dry-run"]);
        if file.ends_with("liu2025.yaml") {
            for jobs in [
                "ablate-unigram     4 pending",
                "analyze-unigram    16 pending",
                "compute-surprisal  16 pending",
            ] {
                assert!(shown.contains(jobs), "{shown}");
            }
        }
    }
}

#[test]
fn jobs_go_together_where_their_values_agree() {
    let study = Study::new(&TWO.replace(
        "words.path=${step:words}/words.csv",
        "words.path=${step:words}/${step:words.words.min_length}.csv",
    ));
    let shown = study.passes(&["--dry-run"]);
    assert!(
        shown.contains("words/1/4.csv") && !shown.contains("words/1/3.csv"),
        "{shown}"
    );
    // A key that both are swept over is one value for both.
    let study = Study::new(
        "dir: results\n\
         steps:\n\
         \x20 words: {job: select-longtail, overrides: [corpus=train, split.held_out=0.5, tokenizer=tiny-neox, frequency=tiny-neox], sweep: {split.seed: [1, 2, 3]}}\n\
         \x20 contexts: {job: prepare-context, overrides: ['words.path=${step:words}/words.csv', split.held_out=0.5], sweep: {split.seed: [2, 3, 4]}}\n",
    );
    let shown = study.passes(&["--dry-run"]);
    assert!(shown.contains("prepare-context  2 pending"), "{shown}");
    assert!(
        shown.contains("split.seed=2") && shown.contains("words/1/words.csv"),
        "{shown}"
    );
}

/// A value that names a step is handed on as what it has become there.
#[test]
fn values_that_name_steps_are_handed_on() {
    let study = Study::new(
        "\
dir: results
steps:
  words:
    job: select-longtail
    overrides: [tokenizer=tiny-neox, frequency=tiny-neox]
  contexts:
    job: prepare-context
    sweep:
      words.path: ['${step:words}/words.csv', other.csv]
  more:
    job: prepare-context
    overrides: ['words.path=${step:contexts.words.path}', contexts.per_word=2]
  again:
    job: prepare-context
    overrides: ['words.path=${step:more.words.path}', contexts.per_word=3]
",
    );
    let shown = study.passes(&["--dry-run"]);
    let again = shown.split("again (prepare-context)").nth(1).unwrap();
    let first = format!(
        "words.path=\"{}/results/words/0/words.csv",
        study.0.path().display()
    );
    let paths: Vec<&str> = again.lines().filter(|l| l.contains("pending  ")).collect();
    assert!(
        paths[0].contains(&first) || paths[0].contains(&first.replace('"', "")),
        "{again}"
    );
    assert!(paths[1].contains("words.path=other.csv"), "{again}");
}

#[test]
fn what_is_wrong_is_told_before_anything_runs() {
    for (yaml, said) in [
        (
            TWO.replace("step:words}", "step:wrods}"),
            "step `wrods`, which is not there; there are contexts, words",
        ),
        (
            TWO.replace(
                "[tokenizer=tiny-neox",
                "['tokenizer.path=${step:contexts}/x'",
            ),
            "read from each other in a circle",
        ),
        (
            TWO.replace("${step:words}", "${step:words.seed}"),
            "it sets words.min_length, frequency, tokenizer",
        ),
        (
            TWO.replace("job: select-longtail", "job: select-lognail"),
            "there is no program",
        ),
        (
            TWO.replace("per_word: [1, 2]", "per_word: [1, x]"),
            "step `contexts` is refused",
        ),
        (
            TWO.replace("sweep:\n      words", "sweeps:\n      words"),
            "step `words` of",
        ),
        (TWO.replace("steps:", "stesp:"), "is no study"),
    ] {
        let study = Study::new(&yaml);
        study.refused(&[], said);
        assert!(!study.path("results").exists(), "{said}");
    }
    let study = Study::new(TWO);
    study.refused(
        &["wrods.seed=3"],
        "no step is named `wrods`; there are `contexts`, `words`",
    );
}

#[test]
#[cfg(unix)]
fn a_killed_study_goes_on_at_once() {
    let study = Study::new(TWO);
    let args = ["words.words.min_length=range(3,15)"];
    let mut child = study
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !study.path("results/words/1/run.json").is_file() {
        assert!(since.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let printed = study.passes(&args);
    assert!(
        printed.contains("select-longtail  12 finished"),
        "{printed}"
    );
    assert!(
        printed.contains("prepare-context  24 finished"),
        "{printed}"
    );
    assert!(!printed.contains("12 jobs: 12 finished\n"), "{printed}");
}

/// Kills at any moment, of the study, the program of a step or a job, change no result. `KILLS=200` does it for longer than a test may take.
#[test]
#[cfg(target_os = "linux")]
fn kills_at_any_moment_change_no_result() {
    let kills: u32 = env::var("KILLS").map_or(8, |kills| kills.parse().unwrap());
    let calm = Study::new(TWO);
    calm.passes(&[]);
    let study = Study::new(TWO);
    let results = study.path("results");
    // The moments are others each time, as the machine is.
    let mut random = 42u64;
    let mut below = |end: u64| {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) % end
    };
    let mut done = 0;
    while done < kills {
        let mut child = study
            .command(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(below(700)));
        let of_step = format!("{}/", results.display());
        let victim = match below(3) {
            0 => Some(child.id()),
            // The program of a step, or one of its jobs.
            1 => process_with(|word| {
                word.starts_with(&of_step)
                    && word.ends_with(".yaml")
                    && !word.ends_with("/config.yaml")
            }),
            _ => process_with(|word| word.starts_with(&of_step) && word.ends_with("/config.yaml")),
        };
        if let Some(victim) = victim {
            let killed = Command::new("kill")
                .args(["-9", &victim.to_string()])
                .stderr(Stdio::null())
                .status();
            done += u32::from(killed.unwrap().success());
        }
        child.wait().unwrap();
        if study.run(&["--status"]).1 == 0 {
            // All is done: something is to be done again.
            fs::remove_dir_all(results.join(format!("words/{}", below(2)))).unwrap();
            fs::remove_dir_all(results.join(format!("contexts/{}", below(4)))).unwrap();
        }
    }
    study.passes(&[]);
    for file in ["words/0/words.csv", "words/1/words.csv"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..4).map(|n| format!("contexts/{n}/contexts.json")))
    {
        let read = |study: &Study| fs::read(study.path("results").join(&file)).unwrap();
        assert!(read(&study) == read(&calm), "{file}");
    }
}

/// A process that was given a word of a kind.
#[cfg(target_os = "linux")]
fn process_with(is_one: impl Fn(&str) -> bool) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.into_iter().find(|id: &u32| {
        let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).split('\0').any(&is_one)
    })
}
