//! An AVIF file from a stranger. A panic of the AV1 decoder ends the run: it cannot unwind.

#![no_main]

mod picture;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| picture::read(bytes, imgclass_image::Format::Avif));
