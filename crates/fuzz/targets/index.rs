//! libFuzzer on `index`.
#![no_main]
fuzz::target!("index");
