//! Fuzzes the reader of answers of the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass_checkpoint::fuzzing::hub(bytes));
