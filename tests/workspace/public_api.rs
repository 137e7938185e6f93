//! What the library crates offer to others, as a list in `public_api.txt`, so that growth is seen in review.
//!
//! The compiler's lint `unreachable_pub` keeps `pub` for what can be reached from outside, so that the word itself is the measure.
//! `UPDATE_PUBLIC_API=1 cargo test --workspace --test public_api` writes the list anew.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const LIST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/workspace/public_api.txt"
);

/// What may stand between `pub` and the name of an item.
const KINDS: &[&str] = &[
    "const", "enum", "extern", "fn", "mod", "static", "struct", "trait", "type", "union", "unsafe",
    "\"C\"",
];

/// Names of the public items of a source file, in order; its tests at the end are none. Fields and re-exports are not counted.
fn public_items(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    code.lines().filter_map(public_item).collect()
}

/// The name of the item that a line makes public.
fn public_item(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub ")?;
    let mut words = rest.split(' ').peekable();
    let mut kinds = 0;
    while words.next_if(|word| KINDS.contains(word)).is_some() {
        kinds += 1;
    }
    let name = words.next()?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
    (kinds > 0).then(|| &name[..end.unwrap_or(name.len())])
}

/// All source files of a folder, in order.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The list: each crate with the number of its items, and those of each file.
fn list() -> Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(ROOT)
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut text = String::new();
    for package in metadata["packages"].as_array().ok_or("no packages")? {
        // `publish = false` is an empty list of registries.
        if package["publish"].as_array().is_some_and(Vec::is_empty) {
            continue;
        }
        let manifest = package["manifest_path"].as_str().ok_or("no manifest")?;
        let src = Path::new(manifest).with_file_name("src");
        let (mut count, mut lines) = (0, String::new());
        for path in sources(&src)? {
            let source = fs::read_to_string(&path)?;
            let items = public_items(&source);
            if !items.is_empty() {
                count += items.len();
                let file = path.strip_prefix(&src)?.display();
                writeln!(lines, "  {file}: {}", items.join(" "))?;
            }
        }
        writeln!(
            text,
            "{}: {count}",
            package["name"].as_str().ok_or("no name")?
        )?;
        text += &lines;
    }
    Ok(text)
}

#[test]
fn public_items_are_those_of_the_list() -> Result<()> {
    let found = list()?;
    if std::env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(LIST, &found)?;
    }
    let listed = fs::read_to_string(LIST)?;
    let new: Vec<&str> = found
        .lines()
        .filter(|l| !listed.lines().any(|o| o == *l))
        .collect();
    let gone: Vec<&str> = listed
        .lines()
        .filter(|l| !found.lines().any(|o| o == *l))
        .collect();
    assert!(
        found == listed,
        "the public items of the crates are not those of `tests/workspace/public_api.txt`: keep them private, or write the list anew \
         (UPDATE_PUBLIC_API=1)\nnow:\n{}\nlisted:\n{}",
        new.join("\n"),
        gone.join("\n")
    );
    Ok(())
}

#[test]
fn public_items_are_found() {
    let source = "pub use other::Name;\npub struct Point {\n    pub x: f64,\n}\nimpl Point {\n    pub const fn new(x: f64) -> Self {\n\
        pub(crate) fn hidden() {}\npub trait Shape<T> {}\npub const N: usize = 1;\nfn private() {}\n#[cfg(test)]\nmod tests {\n    pub fn no() {}";
    assert_eq!(public_items(source), ["Point", "new", "Shape", "N"]);
}
