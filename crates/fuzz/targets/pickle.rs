//! libFuzzer on `pickle`.
#![no_main]
fuzz::target!("pickle");
