//! Turns the bytes of an encoded picture into a network's input, as Pillow and torchvision do it.
//!
//! ```text
//! bytes
//!   │ Encoded::open          reads the header: format, size, memory that decoding needs
//!   ▼
//! Encoded
//!   │ Encoded::decode        decodes to upright RGB
//!   ▼
//! RgbImage
//!   │ Preprocessor::apply    resizes, crops and normalises as a Preprocessing says
//!   ▼
//! planar f32 values
//! ```
//!
//! The format is judged by the bytes alone, never by a file name or an HTTP header. Whatever a
//! stranger's bytes cause comes back as an [`ImageError`], whose text may be shown to the sender.
//! [`Encoded::open_at_least`] lets a large JPEG be decoded at a part of its size.
//! [`HeatMap`] draws a grid of numbers over a picture.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(feature = "avif")]
mod avif;
mod bmp;
mod bytes;
mod decode;
mod error;
mod format;
mod gif;
mod heatmap;
mod jpeg;
mod orientation;
mod pixels;
mod png;
mod preprocessing;
mod preprocessor;
mod reduction;
mod resample;
mod tiff;
mod webp;

pub use decode::{Encoded, ImageInfo, Limits, decode, inspect};
pub use error::{ImageError, PreprocessingError};
pub use format::Format;
pub use heatmap::{HeatMap, RenderError, colour};
pub use pixels::RgbImage;
pub use preprocessing::{Channels, CropOffset, Filter, Preprocessing, Resize, Scale, Size};
pub use preprocessor::{Preprocessor, Region};
