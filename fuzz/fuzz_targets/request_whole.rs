//! Fuzzes the way of a whole request through the routes: path, query, headers and body.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass::api::fuzzing::request(bytes));
