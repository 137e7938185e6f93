//! libFuzzer on `words`.
#![no_main]
fuzz::target!("words");
