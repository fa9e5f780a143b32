//! What can be wrong with a picture or with a preprocessing configuration; it never carries anything that the sender of
//! the picture must not read.

use super::Format;
use thiserror::Error;

/// Why a picture was refused. Every text is safe to show to whoever sent the picture.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Not a picture that is decoded here (HTTP: 415). Decided from the bytes alone.
    #[error("{found} is not supported; send {}", Format::LIST)]
    Unsupported {
        /// What was sent, as far as its bytes tell: "a PDF document", "a TIFF with palette colour".
        found: String,
    },
    /// The picture is larger than a limit allows (HTTP: 413); found before anything of its size was allocated.
    #[error("the image's {what} is {found}, over the limit of {limit}; send a smaller one")]
    TooLarge {
        /// The measure, with its unit.
        what: &'static str,
        /// Its value for this picture.
        found: u64,
        /// The largest value allowed.
        limit: u64,
    },
    /// Decoding would need more working memory than allowed, beyond what its header told (HTTP: 413).
    #[error(
        "decoding the image would need more than the limit of {limit} bytes; send a smaller one"
    )]
    TooMuchMemory {
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes claim to be a picture but are damaged, cut off or contradict themselves (HTTP: 422).
    #[error("the {format} image cannot be decoded: {reason}")]
    Malformed {
        /// The format that the first bytes claim.
        format: Format,
        /// What the decoder met.
        reason: String,
    },
}

/// Why a preprocessing configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PreprocessingError {
    /// A side of the resize or the crop that is zero or absurd.
    #[error("preprocessing {what} is {found} pixels; it must be from 1 to {max}")]
    Side {
        /// Which side.
        what: &'static str,
        /// Its value in pixels.
        found: u64,
        /// The largest value allowed.
        max: u32,
    },
    /// A mean that is not finite, or a standard deviation that is not finite and positive.
    #[error(
        "channel {channel} has mean {mean} and std {std}; both must be finite and std positive"
    )]
    Normalisation {
        /// 0 is red, 1 green, 2 blue.
        channel: usize,
        /// Its mean, of values in 0 to 1.
        mean: f32,
        /// Its standard deviation.
        std: f32,
    },
}
