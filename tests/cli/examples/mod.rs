//! Runs the examples of the documents and of `--help` as they are printed, in a folder of their own: what a reader copies has
//! to work.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// The bundled text.
const TEXT: &str = "examples/data/corpus/held-out.jsonl";

/// The bundled words with their contexts, in `examples/data`.
const WORDS: &str = "contexts/words.json";

/// The widest line of `--help` that no terminal breaks.
const COLUMNS: &str = "80";

/// The part of a selection.csv of analyze-unigram that other jobs read.
pub(crate) const SELECTION: &str =
    "step,top_neurons\n4000,\"[\"\"3.193\"\", \"\"3.105\"\", \"\"3.19\"\", \"\"3.8\"\"]\"\n";

/// A working folder that looks like the root of the repository to a binary.
pub(crate) struct Work {
    dir: TempDir,
    /// The binary under test, by its name.
    name: String,
    exe: PathBuf,
    endpoint: String,
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

impl Work {
    /// A folder with the configs, the bundled data, and this binary as `target/release/NAME` and on the path.
    pub(crate) fn new(exe: &str) -> Self {
        let exe = PathBuf::from(exe);
        let name = exe.file_stem().unwrap().to_str().unwrap().to_owned();
        let dir = tempfile::tempdir().unwrap();
        let programs = dir.path().join("target/release");
        fs::create_dir_all(&programs).unwrap();
        symlink(&exe, programs.join(&name)).unwrap();
        symlink(root().join("configs"), dir.path().join("configs")).unwrap();
        let data = dir.path().join("examples/data");
        fs::create_dir_all(data.join("corpus")).unwrap();
        for part in ["hunspell", "pythia", "tiny-neox", "corpus/train.jsonl.gz"] {
            symlink(root().join("examples/data").join(part), data.join(part)).unwrap();
        }
        // A quarter of the bundled text: a debug build takes its time over the whole.
        let text = fs::read_to_string(root().join(TEXT)).unwrap();
        let rows: Vec<&str> = text.lines().take(160).collect();
        fs::write(dir.path().join(TEXT), rows.join("\n")).unwrap();
        // And an eighth of the words.
        let words = fs::read(root().join("examples/data").join(WORDS)).unwrap();
        let words: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&words).unwrap();
        let few: serde_json::Map<_, _> = words.into_iter().take(12).collect();
        fs::create_dir_all(data.join("contexts")).unwrap();
        fs::write(data.join(WORDS), serde_json::to_vec(&few).unwrap()).unwrap();
        Self {
            dir,
            name,
            exe,
            // Nothing answers there: no example reaches the network by accident.
            endpoint: "http://127.0.0.1:9".into(),
        }
    }

    /// The address of a hub that answers.
    pub(crate) fn hub(mut self, endpoint: &str) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A file that an example takes for granted: the reader's own, or what another job has written.
    pub(crate) fn put(self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    /// Another job that an example calls before this one; what it writes has been [`put`](Self::put) there.
    pub(crate) fn after(self, job: &str) -> Self {
        let work = self.put(&format!("target/release/{job}"), "#!/bin/sh\n");
        let path = work.path("target/release").join(job);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        work
    }

    /// Runs the examples of `--help`, then those of the documents, each list in its order.
    #[track_caller]
    pub(crate) fn run(&self) {
        let examples = [self.examples_of_help(), documented(&self.name)].concat();
        let failed: Vec<String> = examples
            .iter()
            .filter_map(|example| self.failure(example))
            .collect();
        assert!(
            failed.is_empty(),
            "{} of {} examples of `{}` fail:\n\n{}",
            failed.len(),
            examples.len(),
            self.name,
            failed.join("\n")
        );
    }

    /// What goes wrong with one example, if anything.
    fn failure(&self, example: &str) -> Option<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-c", example])
            .current_dir(self.dir.path())
            .env(
                "PATH",
                format!("{}:{path}", self.path("target/release").display()),
            )
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.path("huggingface"));
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        (!output.status.success()).then(|| format!("$ {example}\n{}: {stderr}", output.status))
    }

    /// The examples of `--help`, on a terminal of [`COLUMNS`]: a line that is indented by two is a command, one that is indented further
    /// goes on with it after a backslash, or explains it. The parser breaks a line that is too long, and indents both parts alike.
    fn examples_of_help(&self) -> Vec<String> {
        let output = Command::new(&self.exe)
            .arg("--help")
            .env("COLUMNS", COLUMNS)
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let lines = help
            .lines()
            .skip_while(|line| !line.starts_with("Examples"));
        let lines: Vec<&str> = lines.skip(1).filter(|line| !line.is_empty()).collect();
        let examples = commands(lines.into_iter().filter_map(|line| {
            let command = line.strip_prefix("  ")?;
            Some((command, !command.starts_with(' ')))
        }));
        assert!(!examples.is_empty(), "no examples in\n{help}");
        for example in &examples {
            assert!(
                example.contains(&self.name),
                "whose example is `{example}`?"
            );
        }
        examples
    }
}

/// Commands of lines of which some begin one; a backslash at the end takes the next line in.
fn commands<'a>(lines: impl Iterator<Item = (&'a str, bool)>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = false;
    for (line, begins) in lines {
        if open {
            if let Some(command) = found.last_mut() {
                command.push('\n');
                command.push_str(line);
            }
        } else if begins {
            found.push(line.to_owned());
        } else {
            continue;
        }
        open = line.ends_with('\\');
    }
    found
}

/// The commands of a job in the documents: blocks marked `console`, lines that begin with `$`. One of no known kind fails.
fn documented(job: &str) -> Vec<String> {
    let mut documents = vec![root().join("README.md")];
    for folder in ["configs", "docs", "examples/data"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        documents.extend(entries.map(|entry| entry.unwrap().path()));
    }
    documents.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    documents[1..].sort();
    let mut found = Vec::new();
    for path in documents {
        let text = fs::read_to_string(&path).unwrap();
        for block in text.split("```console\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let lines = block.lines().map(|line| match line.strip_prefix("$ ") {
                Some(command) => (command, true),
                None => (line, false),
            });
            for command in commands(lines) {
                if belongs(&command, &path) == Some(job) {
                    found.push(command);
                }
            }
        }
    }
    found
}

/// The job that a command runs; nothing where cargo is called, for set-up, chores (their own tests run them) and the examples
/// of the crates (which every test run compiles).
fn belongs<'a>(command: &'a str, document: &Path) -> Option<&'a str> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let known = match words[..] {
        ["cargo", "xtask" | "build" | "install" | "test", ..] => true,
        ["cargo", "run", "-p", package, "--example", example] => {
            let manifest = root().join("crates").join(package).join("Cargo.toml");
            fs::read_to_string(manifest)
                .is_ok_and(|text| text.contains(&format!("examples/{example}.rs")))
        }
        [program, ..] => {
            let job = program.strip_prefix("target/release/");
            if let Some(job) = job.filter(|job| root().join("bins").join(job).is_dir()) {
                return Some(job);
            }
            false
        }
        [] => false,
    };
    assert!(known, "`{}`: what runs `{command}`?", document.display());
    None
}
