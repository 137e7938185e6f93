//! Configurations from files and the command line, and what is said when they are wrong.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use job_kit::{ConfigArgs, Resolved, Rule, Rules, compose, exit::message};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: Model,
    corpus: Corpus,
    #[serde(default)]
    band: Option<Band>,
    #[serde(default = "forty_two")]
    seed: u64,
    output: Output,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default)]
    repo: Option<String>,
    #[serde(default)]
    revision: Option<String>,
    #[serde(default)]
    dtype: Dtype,
    #[serde(default)]
    tokenizer: Option<Tokenizer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tokenizer {
    kind: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    #[default]
    F32,
    F16,
    Bf16,
}

/// Without `deny_unknown_fields`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Corpus {
    path: PathBuf,
    #[serde(default)]
    context_length: Option<usize>,
    #[serde(default)]
    sequences: Option<Sequences>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number or a list of numbers")]
enum Sequences {
    Draw(usize),
    List(Vec<usize>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Band {
    upper: f64,
    #[serde(default)]
    names: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    dir: PathBuf,
    #[serde(default, deserialize_with = "job_kit::switch")]
    positions: bool,
}

impl Rules for Config {
    fn rules() -> Vec<Rule> {
        vec![
            Rule::one_of(&["model.path", "model.repo"]),
            Rule::made_for("model.tokenizer", &["model.path", "model.repo"]),
            Rule::belongs("model.revision", &["model.path", "model.repo"]),
            Rule::unused(
                "corpus.context_length",
                |config, _| config["corpus"]["sequences"].is_null(),
                "nothing is cut into sequences",
            ),
        ]
    }
}

fn forty_two() -> u64 {
    42
}

const FILES: [(&str, &str); 9] = [
    (
        "job.yaml",
        "defaults:\n  - common\n  - model: small\n  - corpus: held-out\n  - _self_\noutput:\n  dir: out/job\n  positions: on\n",
    ),
    ("common.yaml", "seed: 1\noutput:\n  dir: out/common\n"),
    ("model/small.yaml", "path: models/small\n"),
    (
        "model/large.yaml",
        "defaults:\n  - small\n  - tokenizer: bpe\nrevision: main\ndtype: f16\n",
    ),
    ("model/tokenizer/bpe.yaml", "kind: bpe\n"),
    ("model/tokenizer/words.yaml", "kind: words\n"),
    (
        "corpus/held-out.yaml",
        "path: text.jsonl\nsequences: [0, 9]\n",
    ),
    ("band/tail.yaml", "upper: 20\nnames: {a: 1e-6}\n"),
    ("empty.yaml", "# nothing yet\n"),
];

/// A folder of configs.
struct Configs(TempDir);

impl Configs {
    fn new() -> Self {
        let configs = Self(TempDir::new().unwrap());
        for (name, text) in FILES {
            configs.file(name, text);
        }
        configs
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn try_compose(&self, overrides: &[&str]) -> Result<Resolved<Config>, job_kit::ConfigError> {
        let mut args = self.args();
        for text in overrides {
            match text.strip_prefix("--config ") {
                Some(config) => {
                    args.config = Some(
                        config
                            .replace("DIR", &self.0.path().display().to_string())
                            .into(),
                    )
                }
                None => args
                    .overrides
                    .push(text.replace("DIR", &self.0.path().display().to_string())),
            }
        }
        compose("job", &args)
    }

    fn args(&self) -> ConfigArgs {
        ConfigArgs {
            config_dir: self.0.path().to_owned(),
            ..ConfigArgs::default()
        }
    }

    #[track_caller]
    fn compose(&self, overrides: &[&str]) -> Config {
        match self.try_compose(overrides) {
            Ok(resolved) => resolved.config,
            Err(error) => {
                let error = self.shorten(&message(&error.into()));
                unreachable!("{error}")
            }
        }
    }

    /// What the user reads.
    #[track_caller]
    fn error(&self, overrides: &[&str]) -> String {
        self.shorten(&message(&self.try_compose(overrides).unwrap_err().into()))
    }

    fn shorten(&self, text: &str) -> String {
        text.replace(&self.0.path().display().to_string(), "configs")
    }
}

#[test]
fn later_layers_win() {
    let configs = Configs::new();
    let config = configs.compose(&[]);
    assert_eq!(config.seed, 1); // common.yaml
    assert_eq!(
        config.output,
        Output {
            dir: "out/job".into(),
            positions: true
        }
    ); // over common.yaml
    assert_eq!(
        config.model,
        Model {
            path: Some("models/small".into()),
            repo: None,
            revision: None,
            dtype: Dtype::F32,
            tokenizer: None
        }
    );
    assert_eq!(config.corpus.sequences, Some(Sequences::List(vec![0, 9])));
    assert_eq!(config.band, None);
}

#[test]
fn without_self_the_own_keys_come_last() {
    let configs = Configs::new();
    configs.file("other.yaml", "defaults: [job]\nseed: 9\n");
    assert_eq!(configs.compose(&["--config other"]).seed, 9);
    configs.file("first.yaml", "defaults: [_self_, job]\nseed: 9\n");
    assert_eq!(configs.compose(&["--config first"]).seed, 1);
}

#[test]
fn groups_swap_nest_and_can_be_added() {
    let configs = Configs::new();
    let model = configs.compose(&["model=large"]).model;
    assert_eq!(
        (model.path, model.revision.as_deref(), model.dtype),
        (Some("models/small".into()), Some("main"), Dtype::F16)
    );
    assert_eq!(model.tokenizer.unwrap().kind, "bpe");
    let model = configs
        .compose(&["model=large", "model.tokenizer=words"])
        .model;
    assert_eq!(model.tokenizer.unwrap().kind, "words");
    let band = configs
        .compose(&["band=tail", "band.upper=30"])
        .band
        .unwrap();
    assert_eq!((band.upper, band.names["a"]), (30.0, 1e-6));
    assert_eq!(configs.compose(&["band=tail", "band=null"]).band, None);
}

#[test]
fn a_choice_can_be_a_path() {
    let configs = Configs::new();
    configs.file("mine/model.yml", "path: mine\n");
    assert_eq!(
        configs.compose(&["model=DIR/mine/model.yml"]).model.path,
        Some(PathBuf::from("mine"))
    );
    configs.file("mine/run.yaml", "defaults: [/job]\nseed: 77\n");
    assert_eq!(configs.compose(&["--config DIR/mine/run.yaml"]).seed, 77);
}

#[test]
fn values_on_the_command_line_are_yaml() {
    let configs = Configs::new();
    let config = configs.compose(&[
        "corpus.sequences=[4, 5]",
        "seed=7",
        "+corpus.context_length=128",
        "output.positions=off",
        "model.path=a=b",
    ]);
    assert_eq!(config.corpus.sequences, Some(Sequences::List(vec![4, 5])));
    assert_eq!(
        (
            config.seed,
            config.corpus.context_length,
            config.output.positions
        ),
        (7, Some(128), false)
    );
    assert_eq!(config.model.path, Some(PathBuf::from("a=b")));
    assert_eq!(
        configs.compose(&["~corpus.sequences"]).corpus.sequences,
        None
    );
    assert_eq!(configs.compose(&["seed=1", "seed=2"]).seed, 2);
}

#[test]
fn a_number_is_a_text_where_a_text_is_wanted() {
    let configs = Configs::new();
    let config = configs.compose(&["output.dir=2026", "model.revision=1e3", "model.path=true"]);
    assert_eq!(config.output.dir, PathBuf::from("2026"));
    assert_eq!(config.model.revision.as_deref(), Some("1e3"));
    assert_eq!(config.model.path, Some(PathBuf::from("true")));
}

#[test]
fn the_resolved_config_names_origins_and_reads_back() {
    let configs = Configs::new();
    let resolved = configs
        .try_compose(&[
            "model=large",
            "band=tail",
            "seed=7",
            "model.revision='a: b'",
        ])
        .unwrap();
    insta::assert_snapshot!(configs.shorten(resolved.to_yaml_with_origins()));
    configs.file("again.yaml", resolved.to_yaml_with_origins());
    let again = configs.try_compose(&["--config again"]).unwrap();
    assert_eq!(again.config, resolved.config);
    assert_eq!(again.value(), resolved.value());
}

#[test]
fn wrong_input_is_explained() {
    let configs = Configs::new();
    configs.file("typo.yaml", "defaults: [job]\nmodel:\n  revison: main\n");
    configs.file(
        "deep.yaml",
        "defaults: [job]\ncorpus:\n  contxt_length: 3\n",
    );
    configs.file("type.yaml", "defaults: [job]\nseed: many\n");
    configs.file("list.yaml", "- a\n");
    configs.file("broken.yaml", "a: [1,\nb: 2\n");
    configs.file("twice.yaml", "seed: 1\nseed: 2\n");
    configs.file(
        "entry.yaml",
        "defaults:\n  - {model: small, corpus: held-out}\n",
    );
    configs.file("circle.yaml", "defaults: [round]\n");
    configs.file("round.yaml", "defaults: [circle]\n");
    configs.file("stray.yaml", "defaults: [job, comon]\n");
    let cases: [&[&str]; 24] = [
        &["--config typo"],
        &["--config deep"],
        &["--config type"],
        &["--config list"],
        &["--config broken"],
        &["--config twice"],
        &["--config entry"],
        &["--config circle"],
        &["--config stray"],
        &["--config jb"],
        &["--config /nowhere/job.yaml"],
        &["--config empty"],
        &["model=smal"],
        &["sed=3"],
        &["context_length=3"],
        &["dtype=f16", "model=large"],
        &["model.dtype=f64"],
        &["corpus.sequences=true"],
        &["output.positions=maybe"],
        &["seed=-1"],
        &["model=[1]"],
        &["seed"],
        &["seed="],
        &["~nothing"],
    ];
    let text: String = cases
        .iter()
        .map(|case| format!("$ job {}\n{}\n\n", case.join(" "), configs.error(case)))
        .collect();
    insta::assert_snapshot!(text);
}

#[test]
fn a_missing_folder_is_explained() {
    let configs = Configs::new();
    let args = ConfigArgs {
        config_dir: "/nowhere/configs".into(),
        ..configs.args()
    };
    insta::assert_snapshot!(message(&compose::<Config>("job", &args).unwrap_err().into()), @r"
    error: config folder `/nowhere/configs` not found
    hint: run from the folder that holds it, or name it with `--config-dir DIR`
    ");
}

#[test]
fn a_text_is_what_was_typed() {
    let configs = Configs::new();
    for text in [
        "out/run #2",
        "*.jsonl",
        "@x",
        "%x",
        "&x",
        "!x",
        "`x`",
        "a: b",
        "- a",
        "? a",
        "| a",
        "> a",
        "x ",
        " x",
        "2026",
        "1e3",
        "0x10",
        "null",
        "true",
        "yes",
        "[ab]*.jsonl",
        "[a",
        "[a, b]",
        "{a}",
        "{a: 1}",
        "{a",
        "\"a\" b",
        "'tis",
        "[a] #b",
        "\"a\" # \"",
        "a\nb",
        "---",
        "...",
        "#",
        ".",
        "<<",
        "=",
        "a,b",
        "x: [",
        "./~x",
    ] {
        let config = configs.compose(&[&format!("output.dir={text}")]);
        assert_eq!(config.output.dir, PathBuf::from(text), "{text:?}");
        let printed = configs
            .try_compose(&[&format!("output.dir={text}")])
            .unwrap();
        configs.file("again.yaml", printed.to_yaml_with_origins());
        let again = configs.compose(&["--config again"]);
        assert_eq!(
            again.output.dir,
            PathBuf::from(text),
            "{text:?}, printed and read"
        );
    }
    for (quoted, text) in [
        ("'a: b'", "a: b"),
        ("\"x # y\"", "x # y"),
        ("'it''s'", "it's"),
        ("'2026'", "2026"),
    ] {
        let config = configs.compose(&[&format!("output.dir={quoted}")]);
        assert_eq!(config.output.dir, PathBuf::from(text));
    }
    // Only a group takes a config file.
    configs.file("list.yaml", "path: not this\n");
    let config = configs.compose(&["corpus.path=DIR/list.yaml"]);
    assert!(config.corpus.path.ends_with("list.yaml"));
    let list = configs.error(&["corpus.sequences=[1, 2"]);
    assert!(
        list.contains("expected a number or a list of numbers"),
        "{list}"
    );
}

#[test]
fn a_path_below_the_home_folder_is_found() {
    let configs = Configs::new();
    let home = std::env::home_dir().unwrap();
    for override_ in ["output.dir=~/out", "output.dir='~/out'"] {
        assert_eq!(configs.compose(&[override_]).output.dir, home.join("out"));
    }
    configs.file("home.yaml", "defaults: [job]\ncorpus: {path: ~/text}\n");
    assert_eq!(
        configs.compose(&["--config home"]).corpus.path,
        home.join("text")
    );
    assert_eq!(configs.compose(&["output.dir=~"]).output.dir, home);
    let other = configs.error(&["output.dir=~other/x"]);
    assert!(
        other.contains("`output.dir` is `~other/x`") && other.contains("./~"),
        "{other}"
    );
    // No path, no home.
    let revision = configs.compose(&["model.revision=~/x"]).model.revision;
    assert_eq!(revision.as_deref(), Some("~/x"));
}

#[test]
fn of_keys_that_exclude_each_other_the_later_wins() {
    let configs = Configs::new();
    configs.file("model/hub.yaml", "repo: a/b\nrevision: main\n");
    configs.file("mine.yaml", "defaults: [job]\nmodel: {repo: c/d}\n");
    let model = configs.compose(&["model=large", "model.repo=a/b"]).model;
    // The tokenizer was of the other model; the revision of the other place.
    assert_eq!((model.path, model.repo.as_deref()), (None, Some("a/b")));
    assert_eq!((model.revision, model.tokenizer), (None, None));
    assert_eq!(
        configs.compose(&["--config mine"]).model.repo.as_deref(),
        Some("c/d")
    );
    assert_eq!(
        configs
            .compose(&["--config mine", "model.path=x"])
            .model
            .repo,
        None
    );
    let model = configs.compose(&["model=hub", "model.repo=e/f"]).model;
    assert_eq!(model.revision.as_deref(), Some("main"));
    let model = configs
        .compose(&[
            "model=large",
            "model.path=x",
            "model.tokenizer={kind: mine}",
        ])
        .model;
    assert_eq!(model.tokenizer.map(|t| t.kind).as_deref(), Some("mine"));
    let both = configs.error(&["model.path=x", "model.repo=a/b"]);
    assert!(
        both.contains(
            "`model.path` and `model.repo` exclude each other, and both are set (command line)"
        ),
        "{both}"
    );
    // A choice that is typed lies over what the start file says itself.
    configs.file("own.yaml", "defaults: [job, _self_]\nmodel: {path: own}\n");
    assert_eq!(
        configs
            .compose(&["--config own", "model=hub"])
            .model
            .repo
            .as_deref(),
        Some("a/b")
    );
    let printed = configs
        .try_compose(&["model=large", "model.path=x"])
        .unwrap();
    let note = "# `model.tokenizer` (configs/model/tokenizer/bpe.yaml) is left out: it was set for another `model.path` than the one now set (command line)";
    assert!(
        configs
            .shorten(printed.to_yaml_with_origins())
            .contains(note),
        "{}",
        printed.to_yaml_with_origins()
    );
}

#[test]
fn what_would_not_be_used_is_refused_where_the_user_set_it() {
    let configs = Configs::new();
    configs.file("corpus/cut.yaml", "path: a\ncontext_length: 9\n");
    let config = configs.compose(&["corpus=cut", "corpus.sequences=null"]);
    assert_eq!(config.corpus.context_length, None);
    let refused = configs.error(&["corpus=cut", "corpus.context_length=8"]);
    assert!(
        refused.contains(
            "`corpus.context_length` is set, but nothing is cut into sequences (command line)"
        ),
        "{refused}"
    );
    assert!(
        configs
            .try_compose(&["corpus=cut", "corpus.context_length=null"])
            .is_ok()
    );
}

#[test]
fn files_are_read_in_their_encoding_or_not_at_all() {
    let configs = Configs::new();
    configs.file("bom.yaml", "\u{feff}defaults: [job]\r\nseed: 3.0\r\n");
    assert_eq!(configs.compose(&["--config bom"]).seed, 3);
    configs.file("short.yml", "defaults: [job]\nseed: 4\n");
    assert_eq!(configs.compose(&["--config short"]).seed, 4);
    let utf16: Vec<u8> = "\u{feff}seed: 1"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    fs::write(configs.0.path().join("wide.yaml"), utf16).unwrap();
    let wide = configs.error(&["--config wide"]);
    assert!(
        wide.contains("holds UTF-16 text, expected UTF-8 text"),
        "{wide}"
    );
    configs.file(
        "twice.yaml",
        "defaults: [job]\nband: {upper: 3, names: {1: 2, '1': 3}}\n",
    );
    assert!(
        configs
            .error(&["--config twice"])
            .contains("duplicate entry with key \"1\"")
    );
    configs.file("tag.yaml", "defaults: [job]\nseed: !share 4\n");
    assert!(
        configs
            .error(&["--config tag"])
            .contains("write `{share: ...}`")
    );
}

#[test]
fn a_whole_number_may_be_written_with_a_point() {
    let configs = Configs::new();
    assert_eq!(configs.compose(&["seed=7.0"]).seed, 7);
    let config = configs.compose(&["corpus.sequences=[4.0, 1e2]"]);
    assert_eq!(config.corpus.sequences, Some(Sequences::List(vec![4, 100])));
    assert!(
        configs
            .error(&["seed=7.5"])
            .contains("the number 7.5, expected a whole number, 0 or more")
    );
}
