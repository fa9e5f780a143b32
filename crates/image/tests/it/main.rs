//! Decoding and preprocessing through the crate's public interface.

mod cases;
mod decode;
mod formats;
mod preprocess;
