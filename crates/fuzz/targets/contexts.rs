//! libFuzzer on `contexts`.
#![no_main]
fuzz::target!("contexts");
