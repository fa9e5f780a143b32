//! Fuzzes the reader of PyTorch archives, pickles and HDF5 files, by their first bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgclass_checkpoint::fuzzing::convert(bytes));
