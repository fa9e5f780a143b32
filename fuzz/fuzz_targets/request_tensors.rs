//! Fuzzes the reading of binary tensors behind JSON.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass::api::fuzzing::tensors(bytes));
