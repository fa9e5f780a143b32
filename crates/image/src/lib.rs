//! From the bytes of an encoded picture to the network's input, with Pillow's answer; it never fetches anything, never
//! trusts a file name or a header, and knows nothing of the model.
//!
//! The way through is [`inspect`] (what is it, how large, what would it cost) → [`decode`] (upright RGB) →
//! [`Preprocessor::apply`] (resize, crop, normalise). Everything that a stranger's bytes can cause comes back as an
//! [`ImageError`] whose text may be shown to the sender.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod decode;
mod error;
mod format;
mod gif;
mod heatmap;
mod jpeg;
mod pixels;
mod preprocessing;
mod preprocessor;
mod resample;

pub use decode::{Encoded, ImageInfo, Limits, decode, inspect};
pub use error::{ImageError, PreprocessingError};
pub use format::Format;
pub use heatmap::{HeatMap, RenderError, colour};
pub use pixels::RgbImage;
pub use preprocessing::{Channels, CropOffset, Filter, Preprocessing, Resize, Scale, Size};
pub use preprocessor::{Preprocessor, Region};
