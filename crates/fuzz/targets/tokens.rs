//! libFuzzer on `tokens`.
#![no_main]
fuzz::target!("tokens");
