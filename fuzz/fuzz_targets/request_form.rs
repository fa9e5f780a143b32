//! Fuzzes the reading of forms, and of bodies whose `Content-Type` says nothing useful.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass::api::fuzzing::form(bytes));
