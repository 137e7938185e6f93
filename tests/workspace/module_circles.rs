//! No modules of a crate use each other in a circle, so that each can be read before those that use it. A module and the ones inside it
//! are one for this.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{File, Item, ItemMod, ItemUse, UseTree};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A module by its names from the root of the crate, which has none.
type Module = Vec<String>;

/// The paths that a module names, as they are written, segment by segment; those of its tests are not counted.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn of_use(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.of_use(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => self.0.push(with(&name.ident)),
            UseTree::Rename(name) => self.0.push(with(&name.ident)),
            UseTree::Glob(_) => self.0.push(before.to_vec()),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.of_use(tree, before);
                }
            }
        }
    }
}

impl Visit<'_> for Paths {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.of_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|s| s.ident.to_string());
        self.0.push(names.collect());
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        let is_test = item.attrs.iter().any(|a| a.path().is_ident("cfg"));
        if !is_test {
            visit::visit_item_mod(self, item);
        }
    }
}

/// The modules of a crate that are files of their own.
fn modules(src: &Path, inside: &Module, found: &mut BTreeMap<Module, File>) -> Result<()> {
    for entry in fs::read_dir(src)? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let module = match name.as_str() {
            "lib" | "mod" => inside.clone(),
            _ => [inside.as_slice(), std::slice::from_ref(&name)].concat(),
        };
        if path.is_dir() {
            modules(&path, &module, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") && name != "main" {
            let file = syn::parse_file(&fs::read_to_string(&path)?);
            let file = file.map_err(|err| format!("`{}`: {err}", path.display()))?;
            found.insert(module, file);
        }
    }
    Ok(())
}

/// Names that each module hands on from others (`use`), with their paths from the root.
fn handed_on(modules: &BTreeMap<Module, File>) -> BTreeMap<(Module, String), Vec<String>> {
    let mut names = BTreeMap::new();
    for (module, file) in modules {
        for item in &file.items {
            let Item::Use(item) = item else { continue };
            let mut paths = Paths::default();
            paths.of_use(&item.tree, &[]);
            for path in paths.0 {
                if let (Some(path), Some(name)) = (from_root(module, &path, modules), path.last()) {
                    names.insert((module.clone(), name.clone()), path);
                }
            }
        }
    }
    names
}

/// A path of a module as one from the root; none where it leaves the crate.
fn from_root(
    module: &Module,
    path: &[String],
    modules: &BTreeMap<Module, File>,
) -> Option<Vec<String>> {
    let (mut base, mut rest) = (module.clone(), path);
    match path.first()?.as_str() {
        "crate" => (base, rest) = (vec![], &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while let [first, others @ ..] = rest
                && first == "super"
            {
                base.pop();
                rest = others;
            }
        }
        // A child by its name alone.
        first if modules.contains_key(&[module.as_slice(), &[first.to_owned()]].concat()) => {}
        _ => return None,
    }
    Some([base.as_slice(), rest].concat())
}

/// The module in which what a path from the root names is made.
fn home(
    mut path: Vec<String>,
    modules: &BTreeMap<Module, File>,
    handed_on: &BTreeMap<(Module, String), Vec<String>>,
) -> Module {
    // Names are handed on a few times at most.
    for _ in 0..8 {
        let end = (0..=path.len())
            .rev()
            .find(|&end| modules.contains_key(&path[..end]));
        let end = end.unwrap_or(0);
        let next = path
            .get(end)
            .and_then(|name| handed_on.get(&(path[..end].to_vec(), name.clone())));
        match next {
            Some(next) if *next != path => path = [next, &path[end + 1..]].concat(),
            _ => return path[..end].to_vec(),
        }
    }
    path
}

/// Modules that use each other, through any number of others.
fn circles(src: &Path) -> Result<BTreeSet<Vec<String>>> {
    let mut all = BTreeMap::new();
    modules(src, &vec![], &mut all)?;
    let handed_on = handed_on(&all);
    let is_inside = |one: &Module, other: &Module| one.starts_with(other) || other.starts_with(one);
    let mut uses: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (module, file) in &all {
        let mut paths = Paths::default();
        paths.visit_file(file);
        let of_module = uses.entry(module).or_default();
        for path in paths.0 {
            let Some(path) = from_root(module, &path, &all) else {
                continue;
            };
            let used = home(path, &all, &handed_on);
            if let Some((used, _)) = all.get_key_value(&used)
                && !is_inside(module, used)
            {
                of_module.insert(used);
            }
        }
    }
    let reached = |from: &Module| {
        let mut reached: BTreeSet<&Module> = BTreeSet::new();
        let mut next: Vec<&Module> = uses[from].iter().copied().collect();
        while let Some(module) = next.pop() {
            if reached.insert(module) {
                next.extend(&uses[module]);
            }
        }
        reached
    };
    let reach: BTreeMap<&Module, BTreeSet<&Module>> = uses
        .keys()
        .map(|module| (*module, reached(module)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, reached) in &reach {
        let back = reached
            .iter()
            .filter(|other| reach[**other].contains(module));
        let circle: Vec<String> = back.map(|module| module.join("::")).collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    Ok(circles)
}

#[test]
fn no_modules_use_each_other_in_a_circle() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut crates, mut found) = (0, String::new());
    for folder in ["crates", "bins"] {
        for entry in fs::read_dir(root.join(folder))? {
            let src = entry?.path().join("src");
            if !src.is_dir() {
                continue;
            }
            crates += 1;
            for circle in circles(&src)? {
                found += &format!("{}: {}\n", src.display(), circle.join(", "));
            }
        }
    }
    assert!(crates > 20, "{crates} crates were looked at");
    assert!(found.is_empty(), "modules that use each other:\n{found}");
    Ok(())
}

#[test]
fn a_circle_is_seen_through_names_that_are_handed_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text);
    write("lib.rs", "mod one; mod two; mod three; pub use one::One;")?;
    write("one.rs", "pub struct One(crate::two::Two);")?;
    write("two.rs", "pub struct Two; fn f(_: super::three::Three) {}")?;
    write("three.rs", "pub struct Three;")?;
    assert_eq!(circles(dir.path())?, BTreeSet::new());
    write("three.rs", "use crate::One; pub struct Three(One);")?;
    let expected = ["one", "three", "two"].map(str::to_owned).to_vec();
    assert_eq!(circles(dir.path())?, BTreeSet::from([expected]));
    // What tests use is not counted.
    write(
        "three.rs",
        "pub struct Three; #[cfg(test)] mod tests { use crate::One; }",
    )?;
    assert_eq!(circles(dir.path())?, BTreeSet::new());
    Ok(())
}
