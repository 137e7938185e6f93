//! libFuzzer on `safetensors`.
#![no_main]
fuzz::target!("safetensors");
