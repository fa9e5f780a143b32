//! The layout of activations, `[channels/16][images * height * width][16]`, and conversions to and
//! from it.
//!
//! Sixteen channels of a pixel lie side by side: one cache line, and one AVX-512 register. Pixels
//! of all images follow one another, so a matrix product's rows span the whole batch.

use super::buffer::Destination;
use super::number::Numbers;
use super::pool::ThreadPool;
use super::simd::portable::round_to_bf16;
use super::tile::BLOCK;

/// The images, rows and columns of an activation.
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
    /// Returns the number of pixels of all images.
    #[must_use]
    pub fn pixels(self) -> usize {
        self.n * self.h * self.w
    }

    /// Returns the floats of a blocked activation with `channels` channels, which takes whole
    /// blocks of 16.
    #[must_use]
    pub fn blocked_len(self, channels: usize) -> usize {
        self.words(channels, Numbers::F32)
    }

    /// Returns the 32-bit words of a blocked activation of type `numbers` with `channels` channels,
    /// which takes whole blocks of 16 words a pixel.
    #[must_use]
    pub fn words(self, channels: usize, numbers: Numbers) -> usize {
        numbers.blocks(channels) * BLOCK * self.pixels()
    }
}

/// Converts from NCHW to `[channels/16][n * h * w][16]`. Lanes past the last channel are zero.
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

/// Converts from `[channels/16][n * h * w][16]` to NCHW.
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

/// Converts from NCHW to blocks of words of type `numbers`. Bfloat16 numbers are rounded to nearest;
/// for [`Numbers::U8`] the numbers are integers from 0 to 255. Lanes past the last channel are zero.
///
/// # Panics
/// If `x` does not hold `n * channels * h * w` numbers.
#[must_use]
pub fn nchw_to_words(x: &[f32], channels: usize, dims: BatchDims, numbers: Numbers) -> Vec<f32> {
    let plane = dims.h * dims.w;
    assert_eq!(
        x.len(),
        channels * dims.pixels(),
        "NCHW length for {channels} channels and {dims:?}"
    );
    let mut out = vec![0u32; dims.words(channels, numbers)];
    for (index, &value) in x.iter().enumerate() {
        let (image, channel, pixel) = (
            index / plane / channels,
            index / plane % channels,
            index % plane,
        );
        let (block, word) = numbers.place(channel);
        let at = (block * dims.pixels() + image * plane + pixel) * BLOCK + word;
        let part = channel % numbers.per_word();
        out[at] |= match numbers {
            Numbers::F32 => value.to_bits(),
            Numbers::Bf16 => u32::from(round_to_bf16(value)) << (16 * part),
            Numbers::U8 => u32::from(value as u8) << (8 * part),
        };
    }
    out.into_iter().map(f32::from_bits).collect()
}

/// Converts from blocks of words of type `numbers` to NCHW. Integers are multiplied by `scale`;
/// other numbers are not.
///
/// # Panics
/// If `x` does not hold [`BatchDims::words`] words.
#[must_use]
pub fn words_to_nchw(
    x: &[f32],
    channels: usize,
    dims: BatchDims,
    numbers: Numbers,
    scale: f32,
) -> Vec<f32> {
    let plane = dims.h * dims.w;
    assert_eq!(
        x.len(),
        dims.words(channels, numbers),
        "length in words for {channels} channels and {dims:?}"
    );
    let mut out = vec![0.0; channels * dims.pixels()];
    for (index, plane_values) in out.chunks_exact_mut(plane.max(1)).enumerate() {
        let (image, channel) = (index / channels, index % channels);
        let (block, word) = numbers.place(channel);
        let first = (block * dims.pixels() + image * plane) * BLOCK + word;
        let part = channel % numbers.per_word();
        for (pixel, value) in plane_values.iter_mut().enumerate() {
            let bits = x[first + pixel * BLOCK].to_bits();
            *value = match numbers {
                Numbers::F32 => f32::from_bits(bits),
                Numbers::Bf16 => f32::from_bits(bits >> (16 * part) << 16),
                Numbers::U8 => f32::from(bits.to_le_bytes()[part]) * scale,
            };
        }
    }
    out
}

/// Joins parts of a batch to one batch. Block `b` of the result is block `b` of every part, one
/// after the other. Blocked activations have `channels/16` blocks; planar images are one block.
///
/// # Panics
/// If a part does not divide into `blocks`.
#[must_use]
pub fn join_images(pool: &ThreadPool, parts: &[&[f32]], blocks: usize) -> Vec<f32> {
    let mut out = vec![0.0; parts.iter().map(|part| part.len()).sum()];
    join_images_into(pool, parts, blocks, &mut out);
    out
}

/// Joins parts as [`join_images`] does, and writes the result over every element of `out`.
///
/// # Panics
/// Panics as [`join_images`] does, or if `out` has another length than all parts together.
pub fn join_images_into(pool: &ThreadPool, parts: &[&[f32]], blocks: usize, out: &mut [f32]) {
    for part in parts {
        assert_eq!(part.len() % blocks, 0, "a part of {blocks} blocks");
    }
    let total: usize = parts.iter().map(|part| part.len()).sum();
    assert_eq!(out.len(), total, "output length for {} parts", parts.len());
    let out = Destination::new(out);
    pool.for_each(blocks * parts.len(), |task| {
        let (block, part) = (task / parts.len(), task % parts.len());
        let before: usize = parts[..part].iter().map(|part| part.len()).sum();
        let len = parts[part].len() / blocks;
        let from = &parts[part][block * len..(block + 1) * len];
        let to = out.at(block * (total / blocks) + before / blocks);
        // SAFETY: block `block` of the output holds `total / blocks` floats, in which each part has
        // `len` of its own after those of the parts before it: all within `out`, and no two tasks
        // share any.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), len) };
    });
}
