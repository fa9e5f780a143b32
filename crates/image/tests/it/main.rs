//! Decoding and preprocessing through the crate's public interface.

#[cfg(feature = "avif")]
mod avif;
mod cases;
mod decode;
mod formats;
mod preprocess;
