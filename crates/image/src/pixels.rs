//! The upright 8-bit RGB picture.

use crate::preprocessing::Filter;
use crate::resample::{Span, window};

/// A picture as 8-bit RGB, `[height, width, 3]`: rows from the top, without padding. It has at
/// least one pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl RgbImage {
    /// Wraps `data` of layout `[height, width, 3]`. Returns `None` if its length differs or a side
    /// is zero.
    #[must_use]
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let bytes = (u64::from(width) * u64::from(height)).saturating_mul(3);
        (bytes > 0 && data.len() as u64 == bytes).then_some(Self {
            width,
            height,
            data,
        })
    }

    /// Returns the width in pixels, at least 1.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the samples, `[height, width, 3]`.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the picture shrunk in proportion so that no side is longer than `longest` (at least
    /// 1). A picture that is no larger is returned as it is.
    #[must_use]
    pub fn fitted(self, longest: u32) -> Self {
        let (width, height) = (self.width, self.height);
        let side = width.max(height);
        if side <= longest {
            return self;
        }
        let fit = |n: u32| {
            let scaled =
                (u64::from(n) * u64::from(longest) + u64::from(side) / 2) / u64::from(side);
            // At most `longest`, so it fits.
            scaled.max(1) as u32
        };
        let whole = |source: u32| Span {
            source,
            resized: u64::from(fit(source)),
            offset: 0,
            length: fit(source),
        };
        let data = window(&self, whole(width), whole(height), Filter::Bilinear);
        Self {
            width: fit(width),
            height: fit(height),
            data,
        }
    }
}
