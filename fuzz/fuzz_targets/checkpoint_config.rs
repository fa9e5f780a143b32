//! Fuzzes the reader of `config.json` and `preprocessor_config.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| imgclass_checkpoint::fuzzing::config(text));
