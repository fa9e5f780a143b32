//! The errors of pictures and of preprocessing. An [`ImageError`] holds nothing that the sender of
//! the picture must not read.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Format;

/// A picture is refused. Every text may be shown to whoever sent the picture.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ImageError {
    /// The bytes are in no format that is decoded here (HTTP: 415).
    #[error("{found} is not supported; send {}", Format::LIST)]
    Unsupported {
        /// What was sent, as far as its bytes tell, such as "a PDF document".
        found: String,
    },
    /// The picture is larger than a limit allows (HTTP: 413). This is found out before anything of
    /// its size is allocated.
    #[error("the image's {what} is {found}, over the limit of {limit}; send a smaller one")]
    TooLarge {
        /// The measure that is too large, with its unit.
        what: Cow<'static, str>,
        /// The value of that measure for this picture.
        found: u64,
        /// The largest value allowed.
        limit: u64,
    },
    /// Decoding would need more working memory than is allowed, beyond what the header told (HTTP:
    /// 413).
    #[error(
        "decoding the image would need more than the limit of {limit} bytes; send a smaller one"
    )]
    TooMuchMemory {
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes begin like a picture, but are damaged, cut off or contradict themselves (HTTP:
    /// 422).
    #[error("the {format} image cannot be decoded: {reason}")]
    Malformed {
        /// The format that the first bytes tell.
        format: Format,
        /// What the decoder found.
        reason: String,
    },
}

/// Why a decoder refuses a file, before the format is added to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The file is damaged, for this reason.
    Malformed(String),
    /// The file is of a kind that is not decoded: this.
    Unsupported(String),
    /// The decoder would need more memory than it may have.
    TooMuchMemory,
}

impl Refusal {
    const CUT_OFF: &str = "the file ends before the picture does";

    /// Refuses a damaged file. The reason becomes one line of limited length: some decoders quote
    /// the file, which may hold anything.
    pub(crate) fn malformed(reason: &str) -> Self {
        const LONGEST: usize = 200;
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        Self::Malformed(reason.chars().map(printable).take(LONGEST).collect())
    }

    /// Refuses a file that ends before its picture does.
    pub(crate) fn cut_off() -> Self {
        Self::malformed(Self::CUT_OFF)
    }

    /// Returns whether this is [`Refusal::cut_off`].
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(self, Self::Malformed(reason) if reason == Self::CUT_OFF)
    }

    /// Returns the error for a file of `format` under a limit of `limit` bytes.
    pub(crate) fn of(self, format: Format, limit: u64) -> ImageError {
        match self {
            Self::Malformed(reason) => ImageError::Malformed { format, reason },
            Self::Unsupported(found) => ImageError::Unsupported { found },
            Self::TooMuchMemory => ImageError::TooMuchMemory { limit },
        }
    }
}

/// A preprocessing cannot be carried out.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PreprocessingError {
    /// A side of the resize or the crop is zero or absurdly long.
    #[error("preprocessing {what} is {found} pixels; it must be from 1 to {max}")]
    Side {
        /// The side, such as "crop height".
        what: &'static str,
        /// The length of the side in pixels.
        found: u64,
        /// The largest value allowed.
        max: u32,
    },
    /// A mean is not finite, or a standard deviation is not finite and positive.
    #[error(
        "channel {channel} has mean {mean} and std {std}; both must be finite and std positive"
    )]
    Normalisation {
        /// The index of the channel, from 0 to 2 in the order of the preprocessing's channels.
        channel: usize,
        /// The mean of the channel, on the preprocessing's scale.
        mean: f32,
        /// The standard deviation of the channel, on the preprocessing's scale.
        std: f32,
    },
}
