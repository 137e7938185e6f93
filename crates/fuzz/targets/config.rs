//! libFuzzer on `config`.
#![no_main]
fuzz::target!("config");
