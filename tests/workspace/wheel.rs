//! The wheel without its programs: what `cargo xtask wheel` packs installs with pip, and its commands find torch without importing it.
//! A small C program stands in for ours, and a folder for torch.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use tempfile::TempDir;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wheel");

/// Says what it was called by and with, and where the loader looks first.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("%s ", argv[i]);
    const char *path = getenv("LD_LIBRARY_PATH");
    printf("[%s]\n", path ? path : "");
    return 3;
}
"#;

/// An environment into which the wheel is installed.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(TempDir::new().unwrap());
        site.write("source.c", PROGRAM);
        site.write("root/configs/band/tail.yaml", "lower: elbow\n");
        site.write("root/examples/data/README.md", "data\n");
        site.write("root/docs/LICENSE-MIT", "MIT\n");
        let programs = ["longtail-neurons", "longtail-neurons-torch"].map(|name| site.path(name));
        for program in &programs {
            let mut cc = Command::new("cc");
            cc.arg(site.path("source.c")).arg("-o").arg(program);
            assert!(cc.status().unwrap().success(), "no C compiler");
            // What versions of symbols look like in a program.
            let mut bytes = fs::read(program).unwrap();
            bytes.extend(b"\0GLIBC_2.99\0GLIBC_2.4\0GLIBCXX_3.4.9\0GLIBCXX_3.4.29\0");
            fs::write(program, bytes).unwrap();
        }
        let spec = json!({
            "root": site.path("root"),
            "package": Path::new(SOURCES).join("longtail_neurons"),
            "programs": programs,
            "share": ["configs", "examples/data"],
            "out": site.path("out"),
            "version": "0.1.0+torch2.11",
            "torch": "2.11",
            "license": "MIT",
            "homepage": "https://example.org",
            "jobs": {
                "ablate-unigram": "longtail-neurons-torch",
                "select-longtail": "longtail-neurons",
            },
        });
        let make = Path::new(SOURCES).join("make.py");
        let made = site.python(&[make.to_str().unwrap(), &spec.to_string()], &[]);
        let made: serde_json::Value = serde_json::from_str(&made.0).unwrap();
        let name = "longtail_neurons-0.1.0+torch2.11-py3-none-manylinux_2_99_x86_64.whl";
        let wheel = site.path("out").join(name);
        assert_eq!(made["wheel"], wheel.to_str().unwrap());
        assert_eq!(made["glibcxx"], "3.4.29");

        // The tag is made up, so pip gets the wheel under another.
        let renamed = site.path("longtail_neurons-0.1.0+torch2.11-py3-none-any.whl");
        fs::copy(wheel, &renamed).unwrap();
        let installed = site.path("site");
        let pip = [
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            installed.to_str().unwrap(),
            renamed.to_str().unwrap(),
        ];
        let (said, code) = site.python(&pip, &[]);
        assert_eq!(code, 0, "{said}");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A package torch that fails if it is imported.
    fn torch(&self, folder: &str, version: &str) {
        self.write(
            &format!("{folder}/torch/__init__.py"),
            "raise SystemExit('imported')\n",
        );
        let version = format!("from typing import Optional\n__version__ = '{version}'\n");
        self.write(&format!("{folder}/torch/version.py"), &version);
        self.write(&format!("{folder}/torch/lib/libtorch_cpu.so"), "");
    }

    /// What Python prints, on both streams, and its exit code; it sees these folders of packages first.
    fn python(&self, args: &[&str], folders: &[&str]) -> (String, i32) {
        let folders = env::join_paths(folders.iter().map(|folder| self.path(folder))).unwrap();
        let output = Command::new("python3")
            .args(args)
            .env("PYTHONPATH", folders)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("LD_LIBRARY_PATH")
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            String::from_utf8(text).unwrap(),
            output.status.code().unwrap(),
        )
    }

    /// A command of the wheel; no package of the machine is seen.
    fn command(&self, name: &str, folders: &[&str]) -> (String, i32) {
        let script = self.path("site/bin").join(name);
        self.python(&["-S", script.to_str().unwrap(), "a b", "--c"], folders)
    }
}

#[test]
fn the_wheel_installs_and_finds_torch() {
    let site = Site::new();
    assert!(
        site.path("site/longtail_neurons/share/configs/band/tail.yaml")
            .is_file()
    );
    let info = site.path("site/longtail_neurons-0.1.0+torch2.11.dist-info");
    let metadata = fs::read_to_string(info.join("METADATA")).unwrap();
    for line in [
        "Name: longtail-neurons\n",
        "Version: 0.1.0+torch2.11\n",
        "Requires-Dist: torch==2.11.*\n",
        "GLIBCXX_3.4.29",
    ] {
        assert!(metadata.contains(line), "{line}: {metadata}");
    }
    assert!(info.join("licenses/LICENSE-MIT").is_file());

    // What needs no torch runs without one, by its own name.
    let ran = ("select-longtail a b --c []\n".to_owned(), 3);
    assert_eq!(site.command("select-longtail", &["site"]), ran);
    let (text, code) = site.command("ablate-unigram", &["site"]);
    assert_eq!(code, 1);
    assert!(
        text.starts_with("error: torch 2.11 is needed, and none is installed for "),
        "{text}"
    );
    assert!(
        text.contains("\nhint: `pip install 'torch==2.11.*'`"),
        "{text}"
    );

    // One that does not lie beside the package is named to the loader.
    site.torch("elsewhere", "2.11.3+cu130");
    let lib = site.path("elsewhere/torch/lib");
    let ran = (format!("ablate-unigram a b --c [{}]\n", lib.display()), 3);
    assert_eq!(site.command("ablate-unigram", &["site", "elsewhere"]), ran);

    // One beside it is found by the program itself.
    site.torch("site", "2.11.0");
    let ran = ("ablate-unigram a b --c []\n".to_owned(), 3);
    assert_eq!(site.command("ablate-unigram", &["site"]), ran);
    let (text, code) = site.python(&["-S", "-m", "longtail_neurons", "--where"], &["site"]);
    assert_eq!(code, 0, "{text}");
    let package = site.path("site").canonicalize().unwrap();
    let package = package.display();
    let expected = format!(
        "programs  {package}/longtail_neurons/bin\nshare     {package}/longtail_neurons/share\n\
         torch     {}/torch\nversion   2.11.0 (made for 2.11: ok)\n",
        site.path("site").display()
    );
    assert_eq!(text, expected);

    // Another minor version is no libtorch of ours: 2.1 is not 2.11.
    site.torch("site", "2.1.1");
    let (text, code) = site.command("ablate-unigram", &["site"]);
    let (stands, _) = site.python(&["-S", "-m", "longtail_neurons", "--where"], &["site"]);
    let told = format!("version   2.1.1 (made for 2.11)\n{text}");
    assert!(stands.ends_with(&told), "{stands}");
    assert_eq!(code, 1);
    assert!(
        text.contains("made for torch 2.11, but `") && text.contains("` is 2.1.1\n"),
        "{text}"
    );
}
