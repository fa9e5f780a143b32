//! Decoding and preprocessing through the crate's public interface.

mod decode;
mod preprocess;
