//! What is done with one picture: read the header, decode, crop. A worker process and a decoding
//! thread do the same.

use imgclass_image::{Encoded, ImageError, ImageInfo, Limits, Preprocessor, RgbImage};
use serde::{Deserialize, Serialize};

/// What one exchange with a worker asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Size of the encoded picture, in bytes.
    pub(crate) encoded_bytes: u64,
    /// The most bytes that decoding may hold. A picture whose header announces more is not decoded.
    pub(crate) memory: u64,
    /// The longest side of the picture that comes back beside the crop, in pixels; `None` for no
    /// picture.
    pub(crate) keep_picture: Option<u32>,
}

/// What came of a [`Task`].
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The picture is decoded.
    Prepared(Prepared),
    /// The header announces more memory than the task allows. Nothing was decoded.
    Costly(ImageInfo),
    /// The picture is refused.
    Refused(ImageError),
}

/// A decoded picture, as a network takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The crop that the network sees: red, green, blue, `[crop height, crop width, 3]`.
    pub pixels: Vec<u8>,
    /// Width and height of the upright picture, in pixels; of the whole picture also where it was
    /// decoded at a reduced size.
    pub size: (u32, u32),
    /// The upright picture itself, shrunk, if it was asked for. One that was decoded at a reduced
    /// size has the pixels of that size.
    pub picture: Option<RgbImage>,
}

/// Decodes pictures one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) limits: Limits,
    pub(crate) preprocessor: Preprocessor,
    /// Whether large JPEGs are decoded at a reduced size.
    pub(crate) fast: bool,
}

impl Work {
    /// Carries a task out on the encoded picture `bytes`.
    pub(crate) fn perform(&self, bytes: &[u8], task: &Task) -> Outcome {
        self.try_perform(bytes, task)
            .unwrap_or_else(Outcome::Refused)
    }

    fn try_perform(&self, bytes: &[u8], task: &Task) -> Result<Outcome, ImageError> {
        let encoded = if self.fast {
            let least = |full| self.preprocessor.twice_resized(full);
            Encoded::open_at_least(bytes, &self.limits, least)?
        } else {
            Encoded::open(bytes, &self.limits)?
        };
        let info = *encoded.info();
        if info.decoded_bytes > task.memory {
            return Ok(Outcome::Costly(info));
        }
        let picture = encoded.decode()?;
        let size = (info.width, info.height);
        Ok(Outcome::Prepared(Prepared {
            pixels: self.preprocessor.pixels_of_reduced(&picture, size),
            size,
            picture: task.keep_picture.map(|longest| picture.fitted(longest)),
        }))
    }

    /// Returns the bytes of the crop that the network sees.
    #[cfg(unix)]
    pub(crate) fn crop_bytes(&self) -> usize {
        let (height, width) = self.preprocessor.settings().crop.dims();
        3 * height * width
    }
}
