//! libFuzzer on `lexicon`.
#![no_main]
fuzz::target!("lexicon");
