//! The reduced sizes at which a JPEG can be decoded for a part of the work.

/// A size at which a picture is decoded, as a part of its full size.
///
/// JPEG stores blocks of eight by eight pixels as frequencies. The lower ones of them alone give the
/// block at a half, a quarter or an eighth of its size, and the rest is never computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reduction {
    /// The full size.
    Full,
    /// Half the width and half the height.
    Half,
    /// A quarter of both.
    Quarter,
    /// An eighth of both.
    Eighth,
}

impl Reduction {
    /// Returns the smallest size at which neither side of a picture of `size` pixels is shorter
    /// than that of `least` (width, height), or the full size. Pillow's `Image.draft` chooses the
    /// same.
    pub(crate) fn to_at_least(least: (u32, u32), size: (u32, u32)) -> Self {
        let times = (size.0 / least.0.max(1)).min(size.1 / least.1.max(1));
        match times {
            0 | 1 => Self::Full,
            2 | 3 => Self::Half,
            4..8 => Self::Quarter,
            8.. => Self::Eighth,
        }
    }

    /// Returns the pixels of the full size along a side for each one of this size.
    pub(crate) fn divisor(self) -> u32 {
        match self {
            Self::Full => 1,
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// Returns the samples that are left of the eight along a block's side.
    pub(crate) fn block_size(self) -> usize {
        8 / self.divisor() as usize
    }

    /// Returns the length at this size of a side that has `full` pixels.
    pub(crate) fn side(self, full: u32) -> u32 {
        full.div_ceil(self.divisor())
    }
}
