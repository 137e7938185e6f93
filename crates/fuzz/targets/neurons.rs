//! libFuzzer on `neurons`.
#![no_main]
fuzz::target!("neurons");
