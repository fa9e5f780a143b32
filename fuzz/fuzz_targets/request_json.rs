//! Fuzzes the reading of JSON bodies, by each route that takes them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass::api::fuzzing::json(bytes));
