//! What the results were found on.

use std::fs;
use std::process::Command;

use serde_json::{Map, Value, json};
use tch::Device;

use crate::{Setting, VERSION};

/// Program, libtorch, CPU and GPU, in the order they are printed.
pub(crate) fn describe(setting: &Setting) -> Map<String, Value> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into());
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let mut machine = Map::new();
    let mut put = |name: &str, value: Value| machine.insert(name.to_owned(), value);
    put("program", json!(format!("longtail-check {VERSION}")));
    put("libtorch", json!(neox_core::LIBTORCH_VERSION));
    put("device", json!(device_name(setting.device)));
    if let Device::Cuda(index) = setting.device {
        put(
            "gpu",
            json!(
                ask_driver(index, "name,driver_version,memory.total")
                    .unwrap_or_else(|| "unknown: nvidia-smi does not tell".into())
            ),
        );
    }
    put("cpu", json!(cpu));
    put(
        "cores",
        json!(std::thread::available_parallelism().map_or(0, usize::from)),
    );
    put("memory", json!(memory.unwrap_or_else(|| "unknown".into())));
    put("quick", json!(setting.quick));
    machine
}

/// As on the command line.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// How the driver calls a GPU, which may be another number than libtorch's.
fn driver_id(index: usize) -> String {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let id = visible.split(',').nth(index).map(str::trim);
    id.filter(|id| !id.is_empty())
        .map_or_else(|| index.to_string(), str::to_owned)
}

/// What the driver says of a GPU: its fields, without units.
pub(crate) fn ask_driver(index: usize, fields: &str) -> Option<String> {
    let output = Command::new("nvidia-smi")
        .arg(format!("--query-gpu={fields}"))
        .arg("--format=csv,noheader,nounits")
        .arg(format!("--id={}", driver_id(index)))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
