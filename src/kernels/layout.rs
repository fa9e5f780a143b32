//! The activation layout and its conversions: `[channels/16][images * height * width][16]`. It never computes anything.

use super::tile::BLOCK;

/// Images, height and width of an activation, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchDims {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl BatchDims {
    /// Pixels of all images.
    #[must_use]
    pub fn pixels(self) -> usize {
        self.n * self.h * self.w
    }

    /// Floats of a blocked activation with `channels` channels: whole blocks of 16.
    #[must_use]
    pub fn blocked_len(self, channels: usize) -> usize {
        channels.div_ceil(BLOCK) * BLOCK * self.pixels()
    }
}

/// From NCHW to `[channels/16][n * h * w][16]`; lanes past the last channel are zero.
///
/// # Panics
/// If `x` does not hold `n * channels * h * w` numbers.
#[must_use]
pub fn nchw_to_blocked(x: &[f32], channels: usize, dims: BatchDims) -> Vec<f32> {
    let plane = dims.h * dims.w;
    assert_eq!(
        x.len(),
        channels * dims.pixels(),
        "NCHW length for {channels} channels and {dims:?}"
    );
    let mut out = vec![0.0; dims.blocked_len(channels)];
    for (index, plane_values) in x.chunks_exact(plane.max(1)).enumerate() {
        let (image, channel) = (index / channels, index % channels);
        let first = (channel / BLOCK * dims.pixels() + image * plane) * BLOCK + channel % BLOCK;
        for (pixel, &value) in plane_values.iter().enumerate() {
            out[first + pixel * BLOCK] = value;
        }
    }
    out
}

/// From `[channels/16][n * h * w][16]` to NCHW.
///
/// # Panics
/// If `x` does not hold [`BatchDims::blocked_len`] numbers.
#[must_use]
pub fn blocked_to_nchw(x: &[f32], channels: usize, dims: BatchDims) -> Vec<f32> {
    let plane = dims.h * dims.w;
    assert_eq!(
        x.len(),
        dims.blocked_len(channels),
        "blocked length for {channels} channels and {dims:?}"
    );
    let mut out = vec![0.0; channels * dims.pixels()];
    for (index, plane_values) in out.chunks_exact_mut(plane.max(1)).enumerate() {
        let (image, channel) = (index / channels, index % channels);
        let first = (channel / BLOCK * dims.pixels() + image * plane) * BLOCK + channel % BLOCK;
        for (pixel, value) in plane_values.iter_mut().enumerate() {
            *value = x[first + pixel * BLOCK];
        }
    }
    out
}
