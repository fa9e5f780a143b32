//! Fuzzes the reader of safetensors files.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass_checkpoint::fuzzing::safetensors(bytes));
