//! The binary `longtail-check`, on the CPU.

use assert_cmd::Command;
use serde_json::Value;

fn check(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longtail-check"));
    command.args(args);
    command
}

#[test]
fn golden_values_hold_and_are_reported() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("check.json");
    let output = check(&["--quick", "--only", "golden,scoring"])
        .arg("--out")
        .arg(&file)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("OLMo 2, bf16"), "{printed}");
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["complete"], true);
    assert_eq!(json["machine"]["device"], "cpu");
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["result"] == "ok"));
    assert!(checks.iter().any(|check| check["check"] == "golden"));
    assert!(checks.iter().any(|check| check["check"] == "scoring"));
    // The only file in its folder: nothing partial is left.
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    for (device, said) in [
        ("gpu", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:999", "cuda:999"),
    ] {
        let output = check(&["--device", device, "--only", "golden"])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(said), "{error}");
    }
}
