//! libFuzzer on `yaml`.
#![no_main]
fuzz::target!("yaml");
