//! What a Hydra user expects of `defaults`, packages, overrides and interpolation.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, path::Path};

use job_kit::{ConfigArgs, ConfigError, Resolved, Rules, compose, config::Info, exit::message};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Any configuration.
#[derive(Debug, Serialize, Deserialize)]
struct Config(Value);

impl Rules for Config {}

const FILES: [(&str, &str); 10] = [
    (
        "job.yaml",
        "defaults:\n  - model: small\n  - optional size: ${model}-big\n  - band: null\n  - _self_\nseed: 1\noutput: {dir: out}\n",
    ),
    ("model/small.yaml", "name: small\nlayers: 2\n"),
    ("model/large.yaml", "name: large\nlayers: 9\n"),
    ("size/large-big.yaml", "gib: 80\n"),
    ("band/tail.yaml", "upper: 20\n"),
    ("band/head.yaml", "lower: 3\n"),
    (
        "experiment/big.yaml",
        "# @package _global_\ndefaults:\n  - override /model: large\n  - override /band: [tail, head]\nseed: 5\nmodel: {layers: 7}\n",
    ),
    (
        "experiment/lost.yaml",
        "# @package _global_\ndefaults:\n  - override /modle: large\n",
    ),
    (
        "two.yaml",
        "defaults:\n  - model@first: small\n  - /model@first.inner: large\n  - model: large\n",
    ),
    ("open.yaml", "defaults:\n  - model: ???\n"),
];

struct Configs(TempDir);

impl Configs {
    fn new() -> Self {
        let configs = Self(TempDir::new().unwrap());
        for (name, text) in FILES {
            configs.file(name, text);
        }
        configs
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn try_compose(
        &self,
        start: &str,
        overrides: &[&str],
    ) -> Result<Resolved<Config>, ConfigError> {
        let args = ConfigArgs {
            overrides: overrides.iter().map(|&text| text.to_owned()).collect(),
            config_dir: self.path().to_owned(),
            ..ConfigArgs::default()
        };
        compose(start, &args)
    }

    #[track_caller]
    fn value(&self, start: &str, overrides: &[&str]) -> Value {
        match self.try_compose(start, overrides) {
            Ok(resolved) => resolved.value().clone(),
            Err(error) => unreachable!("{}", message(&error.into())),
        }
    }

    /// The values that a file with this text has.
    #[track_caller]
    fn of(&self, text: &str) -> Value {
        self.file("text.yaml", text);
        self.value("text", &[])
    }

    /// What the user reads.
    #[track_caller]
    fn error(&self, start: &str, overrides: &[&str]) -> String {
        let error = self.try_compose(start, overrides).unwrap_err();
        message(&error.into()).replace(&self.path().display().to_string(), "configs")
    }
}

#[test]
fn an_experiment_overrides_choices_and_values() {
    let configs = Configs::new();
    assert_eq!(
        configs.value("job", &["+experiment=big"]),
        json!({
            "model": {"name": "large", "layers": 7},
            "size": {"gib": 80},
            "band": {"upper": 20, "lower": 3},
            "seed": 5,
            "output": {"dir": "out"},
        })
    );
    // A choice that is typed takes the place of the experiment's; its values lie under those of the experiment.
    let typed = configs.value("job", &["+experiment=big", "model=small", "seed=6"]);
    assert_eq!(typed["model"], json!({"name": "small", "layers": 7}));
    assert_eq!((&typed["seed"], typed.get("size")), (&json!(6), None));
}

#[test]
fn choices_name_other_choices_and_may_be_optional() {
    let configs = Configs::new();
    assert_eq!(configs.value("job", &[]).get("size"), None);
    assert_eq!(
        configs.value("job", &["model=large"])["size"],
        json!({"gib": 80})
    );
    configs.file(
        "strict.yaml",
        "defaults:\n  - size: ${model}-big\n  - model: small\n",
    );
    let error = configs.error("strict", &[]);
    assert!(
        error.contains("group `size` has no choice `small-big`"),
        "{error}"
    );
    configs.file(
        "stray.yaml",
        "defaults:\n  - size: ${modl}-big\n  - model: small\n",
    );
    let error = configs.error("stray", &[]);
    assert!(error.contains("did you mean `model`?"), "{error}");
}

#[test]
fn several_choices_lie_over_each_other_in_their_order() {
    let configs = Configs::new();
    configs.file("both.yaml", "defaults:\n  - model: [large, small]\n");
    assert_eq!(configs.value("both", &[])["model"]["name"], "small");
    let typed = configs.value("both", &["model=[small,large]", "+band=[tail, head]"]);
    assert_eq!(typed["model"], json!({"name": "large", "layers": 9}));
    assert_eq!(typed["band"], json!({"upper": 20, "lower": 3}));
    // A list that names no choice is a value.
    let typed = configs.value("job", &["band=[\"3.1\"]"]);
    assert_eq!(typed["band"], json!(["3.1"]));
}

#[test]
fn a_group_stands_at_its_package() {
    let configs = Configs::new();
    assert_eq!(
        configs.value("two", &[]),
        json!({
            "first": {"name": "small", "layers": 2, "inner": {"name": "large", "layers": 9}},
            "model": {"name": "large", "layers": 9},
        })
    );
    let typed = configs.value("two", &["model@first=large", "+band@tail.of=tail"]);
    assert_eq!(typed["first"]["layers"], 9);
    assert_eq!(typed["model"]["layers"], 9);
    assert_eq!(typed["tail"]["of"], json!({"upper": 20}));
    configs.file("model/elsewhere.yaml", "# @package here.there\nx: 1\n");
    assert_eq!(
        configs.value("job", &["model=elsewhere"])["here"]["there"]["x"],
        1
    );
    configs.file(
        "top.yaml",
        "defaults:\n  - model@_global_: small\n  - band@_here_: tail\n",
    );
    assert_eq!(
        configs.value("top", &[]),
        json!({"name": "small", "layers": 2, "upper": 20})
    );
}

#[test]
fn overrides_add_replace_and_remove() {
    let configs = Configs::new();
    assert_eq!(configs.value("job", &["+new.key=3"])["new"]["key"], 3);
    assert_eq!(configs.value("job", &["++seed=3"])["seed"], 3);
    assert_eq!(configs.value("job", &["+band=tail"])["band"]["upper"], 20);
    assert_eq!(
        configs.value("job", &["band=null", "band=tail"])["band"]["upper"],
        20
    );
    assert_eq!(configs.value("job", &["~seed"]).get("seed"), None);
    assert_eq!(configs.value("job", &["~seed=1"]).get("seed"), None);
    assert_eq!(configs.value("job", &["~model=small"]).get("model"), None);
    for (override_, said) in [
        (
            "+seed=3",
            "it is there already, as the number 1; write `++` to replace it",
        ),
        ("+model=large", "it is there already, as `small`"),
        ("~seed=2", "its value is `1`"),
        ("~model=large", "its value is `small`"),
        ("~sed", "there is no such key"),
        ("=1", "a key is names joined by dots"),
    ] {
        let error = configs.error("job", &[override_]);
        assert!(error.contains(said), "{override_}: {error}");
    }
}

#[test]
fn values_survive_a_shell() {
    let configs = Configs::new();
    for (typed, value) in [
        ("x=a=b", json!("a=b")),
        ("x=a,b", json!("a,b")),
        ("x='a, b'", json!("a, b")),
        ("x=[a,b]", json!(["a", "b"])),
        ("x=['a,b', c]", json!(["a,b", "c"])),
        ("x={a: 1, b: [2]}", json!({"a": 1, "b": [2]})),
        ("x=größe 漢字", json!("größe 漢字")),
        ("x=\"two words\"", json!("two words")),
        ("x='7'", json!("7")),
        ("x=(a)", json!("(a)")),
        ("x=it's", json!("it's")),
    ] {
        assert_eq!(configs.value("job", &[typed])["x"], value, "{typed}");
    }
}

#[test]
fn interpolations_take_values_as_they_are_or_into_texts() {
    let configs = Configs::new();
    // SAFETY: no other thread of this test program reads or writes the environment's variable.
    #[expect(unsafe_code, reason = "the environment is what is tested")]
    unsafe {
        std::env::set_var("JOB_KIT_TEST", "7");
    }
    let value = configs.of(
        "a: {b: 3, c: '${.b}', d: {e: '${..b}', f: '${a.list[1]}'}, list: [x, 'y${a.b}', '${a.b}']}\n\
         text: 'b is ${a.b}, ${a.${name}}'\nname: b\ncopy: ${a.d}\nthrough: ${copy.e}\n\
         env: ${oc.env:JOB_KIT_TEST}\nnumber: ${oc.decode:${oc.env:JOB_KIT_TEST}}\n\
         default: ${oc.env:JOB_KIT_NOT_SET,a b}\nnone: ${oc.env:JOB_KIT_NOT_SET,null}\n\
         escaped: '\\${a.b} $ {x}'\n",
    );
    assert_eq!(
        value,
        json!({
            "a": {"b": 3, "c": 3, "d": {"e": 3, "f": "y3"}, "list": ["x", "y3", 3]},
            "text": "b is 3, 3", "name": "b", "copy": {"e": 3, "f": "y3"}, "through": 3,
            "env": "7", "number": 7, "default": "a b", "none": null,
            "escaped": "${a.b} $ {x}",
        })
    );
    let value = configs.value(
        "job",
        &[
            "model=large",
            "output.dir=out/${hydra:runtime.choices.model}/${hydra:job.name}/${hydra:job.override_dirname}",
            "day=${now:%Y-%m-%d}",
        ],
    );
    assert_eq!(
        value["output"]["dir"],
        "out/large/job/day=${now:%Y-%m-%d},model=large"
    );
    let day = value["day"].as_str().unwrap();
    assert_eq!((day.len(), day.matches('-').count()), (10, 2), "{day}");
}

#[test]
fn interpolations_without_a_value_are_explained() {
    let configs = Configs::new();
    for (value, said) in [
        ("${sed}", "no file and no override sets `sed`"),
        ("${sed}", "did you mean `seed`?"),
        ("${x}", "it comes back to itself (`x`)"),
        ("${model", "a `${` is not closed by `}`"),
        (
            "a ${model}",
            "`model` is a mapping, which is no part of a text",
        ),
        (
            "${oc.env:JOB_KIT_NOT_SET}",
            "the environment variable `JOB_KIT_NOT_SET` is not set",
        ),
        ("${oc.evn:HOME}", "there is no resolver `oc.evn`"),
        ("${now:%Q}", "`%Q` is no format of a time"),
        ("${hydra:job.id}", "`hydra` knows no `job.id` here"),
        ("${...x}", "it names no key"),
    ] {
        let error = configs.error("job", &[&format!("x={value}")]);
        assert!(error.contains(said), "{value}: {error}");
        assert!(
            error.contains("in `x` has no value") && error.contains("(command line)"),
            "{error}"
        );
    }
}

#[test]
fn what_is_shown_reads_back() {
    let configs = Configs::new();
    configs.file(
        "job2.yaml",
        "defaults: [job]\nname: 'm-${model.name}'\nescaped: '\\${x}'\n",
    );
    let resolved = configs.try_compose("job2", &[]).unwrap();
    let shown = |cfg: ConfigArgs| resolved.shown(&cfg).unwrap().unwrap();
    let cfg = |package: Option<&str>, resolve| ConfigArgs {
        cfg: Some(job_kit::config::Shown::Job),
        package: package.map(str::to_owned),
        resolve,
        ..ConfigArgs::default()
    };
    assert!(shown(cfg(None, false)).contains("name: m-${model.name}\n"));
    assert!(shown(cfg(None, true)).contains("name: m-small\n"));
    assert_eq!(shown(cfg(Some("model.layers"), false)), "2\n");
    let missing = resolved
        .shown(&cfg(Some("model.layer"), false))
        .unwrap_err();
    assert_eq!(
        message(&missing.into()),
        "error: the configuration has no key `model.layer`\nhint: did you mean `layers`?"
    );
    for again in [
        shown(cfg(None, false)),
        shown(cfg(None, true)),
        resolved.to_yaml_with_origins().to_owned(),
    ] {
        configs.file("again.yaml", &again);
        assert_eq!(&configs.value("again", &[]), resolved.value(), "{again}");
    }
}

#[test]
fn the_lists_are_shown() {
    let configs = Configs::new();
    let resolved = configs.try_compose("job", &["+experiment=big"]).unwrap();
    let shown = |info| {
        let args = ConfigArgs {
            info: Some(info),
            ..ConfigArgs::default()
        };
        let text = resolved.shown(&args).unwrap().unwrap();
        let text = text.replace(&configs.path().display().to_string(), "configs");
        // Columns are as wide as the folder's name.
        let lines = text.lines().map(|line| {
            let indent = line.len() - line.trim_start().len();
            let words: Vec<&str> = line
                .split("  ")
                .filter(|part| !part.trim().is_empty())
                .collect();
            format!(
                "{}{}\n",
                " ".repeat(indent),
                words
                    .iter()
                    .map(|w| w.trim())
                    .collect::<Vec<_>>()
                    .join(" | ")
            )
        });
        lines.collect::<String>()
    };
    insta::assert_snapshot!(shown(Info::Defaults), @r"
    config file | package | named in
    configs/model/large.yaml | model | configs/job.yaml
    configs/size/large-big.yaml | size | configs/job.yaml
    configs/band/tail.yaml | band | configs/job.yaml
    configs/band/head.yaml | band | configs/job.yaml
    configs/job.yaml | _global_ | command line
    configs/experiment/big.yaml | _global_ | command line
    ");
    insta::assert_snapshot!(shown(Info::DefaultsTree), @r"
    configs/job.yaml
      model: large
      configs/model/large.yaml
        _self_
      size: large-big
      configs/size/large-big.yaml
        _self_
      band: [tail, head]
      configs/band/tail.yaml
        _self_
      configs/band/head.yaml
        _self_
      _self_
    configs/experiment/big.yaml
      override model: large
      override band: [tail, head]
      _self_
    ");
}

#[test]
fn wrong_lists_are_explained() {
    let configs = Configs::new();
    let error = configs.error("job", &["+experiment=lost"]);
    assert!(
        error.contains("override the group `modle`, which no `defaults` name")
            && error.contains("did you mean `model`?"),
        "{error}"
    );
    let error = configs.error("open", &[]);
    assert!(
        error.contains("nothing is chosen of the group `model`")
            && error.contains("choices: `large`, `small`"),
        "{error}"
    );
    assert_eq!(
        configs.value("open", &["model=large"])["model"]["layers"],
        9
    );
    configs.file(
        "swing.yaml",
        "defaults:\n  - model: ${band}x\n  - band: ${model}x\n",
    );
    let error = configs.error("swing", &[]);
    assert!(
        error.contains("nothing is chosen of the group") || error.contains("without end"),
        "{error}"
    );
}
