//! Manifests are ready to publish, and the top level holds only what belongs there.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Everything at the top level that does not start with a dot.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "bins",
    "configs",
    "crates",
    "docs",
    "examples",
    "rust-toolchain.toml",
    "tests",
];

fn metadata() -> Result<Value, Box<dyn Error>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(ROOT)
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The paths that git keeps, or nothing where this is no git checkout.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files"])
        .current_dir(ROOT)
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Whether a crate is for others; `publish = false` is an empty list of registries.
fn is_published(package: &Value) -> bool {
    !package["publish"].as_array().is_some_and(Vec::is_empty)
}

/// What a manifest lacks before it can be published.
fn lacks(package: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    if text("description").len() < 20 || text("description").contains("TODO") {
        found.push("description".to_owned());
    }
    if text("license") != "MIT OR Apache-2.0" {
        found.push("license".to_owned());
    }
    for key in ["repository", "rust_version"] {
        if text(key).is_empty() {
            found.push(key.to_owned());
        }
    }
    if !is_published(package) {
        return found;
    }
    for key in ["documentation", "homepage", "readme"] {
        if text(key).is_empty() {
            found.push(key.to_owned());
        }
    }
    for key in ["keywords", "categories"] {
        // The registry takes one to five.
        if !matches!(package[key].as_array().map_or(0, Vec::len), 1..=5) {
            found.push(key.to_owned());
        }
    }
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    let mut uses_tch = false;
    for dependency in dependencies {
        uses_tch |= dependency["name"] == "tch";
        if dependency["req"] == "*" {
            found.push(format!("version of {}", dependency["name"]));
        }
    }
    // docs.rs has no libtorch.
    if uses_tch {
        let features = package["metadata"]["docs"]["rs"]["features"].as_array();
        if !features.is_some_and(|features| features.contains(&"doc-only".into())) {
            found.push("package.metadata.docs.rs.features = [\"doc-only\"]".to_owned());
        }
        let doc_only = package["features"]["doc-only"].as_array();
        let feeds = |feature: &Value| {
            feature
                .as_str()
                .is_some_and(|name| name.ends_with("/doc-only"))
        };
        if !doc_only.is_some_and(|list| list.iter().any(feeds)) {
            found.push("feature doc-only".to_owned());
        }
    }
    found
}

#[test]
fn manifests_are_ready_to_publish() {
    let metadata = metadata().unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut problems = Vec::new();
    for package in packages {
        for lack in lacks(package) {
            problems.push(format!("{}: {lack}", package["name"].as_str().unwrap()));
        }
    }
    assert!(packages.len() >= 8);
    assert!(
        problems.is_empty(),
        "missing or unfit:\n{}",
        problems.join("\n")
    );
}

#[test]
fn what_a_manifest_lacks_is_found() {
    let package = serde_json::json!({
        "description": "TODO: say what this crate is for",
        "license": "MIT OR Apache-2.0",
        "repository": "https://example.org",
        "rust_version": "1.95",
        "publish": null,
        "keywords": [],
        "categories": ["science"],
        "dependencies": [{ "name": "tch", "req": "^0.26.0" }],
        "features": { "doc-only": ["tch/doc-only"] },
        "metadata": null,
    });
    let docs_rs = "package.metadata.docs.rs.features = [\"doc-only\"]";
    assert_eq!(
        lacks(&package),
        [
            "description",
            "documentation",
            "homepage",
            "readme",
            "keywords",
            docs_rs
        ]
    );
}

/// `cargo package` makes an archive of every library crate, each with its page and its licences. Compiling them from there is left out: it
/// takes as long as compiling the workspace.
#[test]
fn library_crates_can_be_packaged() {
    let metadata = metadata().unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |package: &&Value| package["name"].as_str().unwrap().to_owned();
    let (published, others): (Vec<&Value>, Vec<&Value>) =
        packages.iter().partition(|package| is_published(package));
    let target = tempfile::tempdir().unwrap();
    let package = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["package", "--offline", "--allow-dirty", "--no-verify"]);
        command.arg("--target-dir").arg(target.path());
        let output = command.args(args).current_dir(ROOT).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let others: Vec<String> = others.iter().map(name).collect();
    let excluded = others.iter().flat_map(|name| ["--exclude", name]);
    package(
        &["--workspace"]
            .into_iter()
            .chain(excluded)
            .collect::<Vec<_>>(),
    );
    for name in published.iter().map(name) {
        let archive = format!("package/{name}-0.1.0.crate");
        assert!(target.path().join(&archive).exists(), "no {archive}");
        let list = package(&["--list", "--package", &name]);
        for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"] {
            let there = list.lines().any(|line| line == file);
            assert!(there, "the package of `{name}` has no `{file}`");
        }
    }
    assert!(published.len() >= 8);
}

#[test]
fn every_binary_is_named_as_its_folder() {
    let metadata = metadata().unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().file_name().unwrap();
        assert_eq!(package["name"].as_str(), folder.to_str());
    }
}

#[test]
fn top_level_holds_what_belongs_there() {
    for path in tracked() {
        let top = path.split('/').next().unwrap_or_default();
        let belongs = top.starts_with('.') || TOP_LEVEL.contains(&top);
        assert!(belongs, "`{path}` does not belong at the top level");
    }
}

#[test]
fn no_tracked_text_names_a_home_folder() {
    // Split, so that this file passes itself.
    let homes = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
    ];
    for path in tracked() {
        // Data and files that only git still knows are skipped.
        let Ok(text) = std::fs::read_to_string(Path::new(ROOT).join(&path)) else {
            continue;
        };
        if path.starts_with("tests/golden/") || path.starts_with("examples/data/") {
            continue;
        }
        for home in homes {
            assert!(!text.contains(home), "`{path}` contains `{home}`");
        }
    }
}
