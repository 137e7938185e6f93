//! libFuzzer on `counts`.
#![no_main]
fuzz::target!("counts");
