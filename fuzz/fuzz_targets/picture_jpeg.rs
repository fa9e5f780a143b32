//! A Jpeg file from a stranger.

#![no_main]

mod picture;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| picture::read(bytes, imgclass_image::Format::Jpeg));
