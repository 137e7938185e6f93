//! libFuzzer on `corpus`.
#![no_main]
fuzz::target!("corpus");
