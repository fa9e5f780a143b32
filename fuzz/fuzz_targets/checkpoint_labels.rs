//! Fuzzes the reader of files of labels.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| imgclass_checkpoint::fuzzing::labels(text));
