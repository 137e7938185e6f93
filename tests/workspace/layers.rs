//! Dependency arrows point down, as drawn in `docs/architecture.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::process::Command;

use serde_json::Value;

/// What each crate may use of ours. A binary may use every crate but `xtask`; jobs use no job.
const ARROWS: &[(&str, &[&str])] = &[
    ("batch-runs", &["job-kit"]),
    ("checkpoint-source", &["model-conventions"]),
    ("file-kind", &[]),
    ("input-files", &["file-kind"]),
    (
        "fuzz",
        &[
            "input-files",
            "job-inputs",
            "job-kit",
            "longtail-corpus",
            "neox-core",
        ],
    ),
    (
        "job-inputs",
        &[
            "checkpoint-source",
            "input-files",
            "job-kit",
            "longtail-corpus",
            "model-conventions",
            "neox-core",
            "neuron-ablate",
            "text-inputs",
        ],
    ),
    ("job-kit", &["input-files"]),
    ("longtail-corpus", &["input-files", "model-conventions"]),
    ("model-conventions", &["file-kind"]),
    ("neox-core", &["file-kind", "model-conventions"]),
    (
        "neuron-ablate",
        &[
            "model-conventions",
            "neox-core",
            "neuron-id",
            "surprisal-metrics",
            "vocabulary-sums",
        ],
    ),
    ("neuron-id", &[]),
    ("neuron-select", &["neuron-id", "surprisal-metrics"]),
    ("surprisal-metrics", &[]),
    ("text-inputs", &["job-kit", "longtail-corpus"]),
    ("vocabulary-sums", &[]),
    ("xtask", &[]),
];

/// The crates that may use libtorch, and with them every binary that is not listed below.
const LIBTORCH_CRATES: &[&str] = &["fuzz", "job-inputs", "neox-core", "neuron-ablate"];

/// Binaries that start without libtorch.
const LIGHT_BINS: &[&str] = &[
    "analyze-unigram",
    "longtail-neurons",
    "prepare-context",
    "run-study",
    "select-longtail",
];

/// Binaries that hold jobs, and nothing else: one program with several names.
const PROGRAMS: &[&str] = &["longtail-neurons", "longtail-neurons-torch"];

/// Command lines, layered configs and catch-all errors stay at the top.
const JOB_LIBRARIES: &[&str] = &["anyhow", "clap", "figment"];
const JOB_CRATES: &[&str] = &[
    "batch-runs",
    "job-inputs",
    "job-kit",
    "text-inputs",
    "xtask",
];

/// A workspace member.
struct Member {
    is_bin: bool,
    /// Names of all direct dependencies, those of tests and build scripts included.
    uses: BTreeSet<String>,
}

/// All members by name, as cargo sees them.
fn members() -> Result<BTreeMap<String, Member>, Box<dyn Error>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let mut members = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().ok_or("a package without a name")?;
        let path = package["manifest_path"]
            .as_str()
            .ok_or("no manifest path")?;
        let dependencies = package["dependencies"]
            .as_array()
            .ok_or("no dependencies")?;
        let uses = dependencies
            .iter()
            .filter_map(|dependency| dependency["name"].as_str());
        let member = Member {
            is_bin: path.ends_with(&format!("/bins/{name}/Cargo.toml")),
            uses: uses.map(str::to_owned).collect(),
        };
        members.insert(name.to_owned(), member);
    }
    Ok(members)
}

/// Every arrow that is not allowed, as `from -> to`.
fn forbidden(members: &BTreeMap<String, Member>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, member) in members {
        let arrows = ARROWS.iter().find(|(from, _)| from == name);
        for used in &member.uses {
            let allowed = if members.contains_key(used) {
                match arrows {
                    Some((_, to)) => to.contains(&used.as_str()),
                    None => {
                        let holds = PROGRAMS.contains(&name.as_str());
                        member.is_bin && used != "xtask" && (holds || !members[used].is_bin)
                    }
                }
            } else if JOB_LIBRARIES.contains(&used.as_str()) {
                member.is_bin || JOB_CRATES.contains(&name.as_str())
            } else {
                true
            };
            if !allowed {
                found.insert(format!("{name} -> {used}"));
            }
        }
        if !LIBTORCH_CRATES.contains(&name.as_str())
            && (!member.is_bin || LIGHT_BINS.contains(&name.as_str()))
            && reaches(members, name, &["tch", "torch-sys"])
        {
            found.insert(format!("{name} -> libtorch"));
        }
    }
    found
}

/// Whether one of the targets is used by `name` or by any of our crates below it.
fn reaches(members: &BTreeMap<String, Member>, name: &str, targets: &[&str]) -> bool {
    members.get(name).is_some_and(|member| {
        member
            .uses
            .iter()
            .any(|used| targets.contains(&used.as_str()) || reaches(members, used, targets))
    })
}

#[test]
fn arrows_point_down() {
    let members = members().unwrap();
    assert!(members.contains_key("neox-core") && members.contains_key("ablate-unigram"));
    assert_eq!(forbidden(&members), BTreeSet::new());
}

#[test]
fn every_crate_has_its_place() {
    let members = members().unwrap();
    for (name, member) in &members {
        let listed = ARROWS.iter().any(|(from, _)| from == name);
        assert!(listed != member.is_bin, "`{name}` is in no layer");
    }
    for name in LIGHT_BINS.iter().chain(PROGRAMS) {
        assert!(members[*name].is_bin, "`{name}` is no binary");
    }
    // Every job is in a program.
    let held = |job: &str| {
        PROGRAMS
            .iter()
            .any(|name| members[*name].uses.contains(job))
    };
    for (name, member) in &members {
        let is_job = member.is_bin && !PROGRAMS.contains(&name.as_str());
        assert!(!is_job || held(name), "`{name}` is in none of {PROGRAMS:?}");
    }
}

#[test]
fn arrows_not_drawn_are_found() {
    let member = |is_bin: bool, uses: &[&str]| Member {
        is_bin,
        uses: uses.iter().map(|name| (*name).to_owned()).collect(),
    };
    let members = BTreeMap::from([
        (
            "neox-core".to_owned(),
            member(false, &["tch", "longtail-corpus"]),
        ),
        (
            "longtail-corpus".to_owned(),
            member(false, &["clap", "arrow"]),
        ),
        (
            "select-longtail".to_owned(),
            member(true, &["clap", "neox-core"]),
        ),
        (
            "ablate-unigram".to_owned(),
            member(true, &["select-longtail", "tch"]),
        ),
    ]);
    let expected = [
        "ablate-unigram -> select-longtail",
        "longtail-corpus -> clap",
        "neox-core -> longtail-corpus",
        "select-longtail -> libtorch",
    ];
    assert_eq!(forbidden(&members), expected.map(str::to_owned).into());
}
