//! The average over all pixels of each image. The stem has its own max-pool, see [`super::stem`].

use super::buffer::Destination;
use super::layout::BatchDims;
use super::number::Numbers;
use super::pool::ThreadPool;
use super::tile::BLOCK;

/// Up to this many words, waking other threads costs more than it saves.
const ALONE: usize = 1 << 16;

/// Returns the mean over the pixels of each image of the blocked activation `x`: `[n, channels]`,
/// row-major. The sums run in the order of the pixels.
///
/// # Panics
/// If `x` does not have the length of `dims`, or an image has no pixels.
#[must_use]
pub fn global_average_pool(
    pool: &ThreadPool,
    x: &[f32],
    channels: usize,
    dims: BatchDims,
) -> Vec<f32> {
    average_words(pool, x, channels, dims, Numbers::F32, 1.0)
}

/// Returns what [`global_average_pool`] does for an activation in words of type `numbers`. The means
/// are multiplied by `scale`, the scale of integers.
///
/// # Panics
/// As [`global_average_pool`].
#[must_use]
pub fn average_words(
    pool: &ThreadPool,
    x: &[f32],
    channels: usize,
    dims: BatchDims,
    numbers: Numbers,
    scale: f32,
) -> Vec<f32> {
    assert_eq!(
        x.len(),
        dims.words(channels, numbers),
        "pooling input length for {channels} channels and {dims:?}"
    );
    let plane = dims.h * dims.w;
    assert!(plane > 0 || dims.n == 0, "pooling over no pixels: {dims:?}");
    let scale = scale / plane as f32;
    let (blocks, per_word) = (numbers.blocks(channels), numbers.per_word());
    let average = |image: usize, block: usize, out: Destination<'_>| {
        let start = (block * dims.n + image) * plane * BLOCK;
        let pixels = &x[start..start + plane * BLOCK];
        // The sums of the first number of each word, then those of the second, and so on.
        let mut sums = [[0.0f32; BLOCK]; 4];
        if numbers == Numbers::U8 {
            add_bytes(pixels, &mut sums);
        } else {
            for pixel in pixels.chunks_exact(BLOCK) {
                for (part, sums) in sums.iter_mut().enumerate().take(per_word) {
                    for (sum, word) in sums.iter_mut().zip(pixel) {
                        *sum += number(*word, part, numbers);
                    }
                }
            }
        }
        for lane in 0..numbers.block().min(channels - block * numbers.block()) {
            let sum = sums[lane % per_word][lane / per_word];
            // SAFETY: the output holds `n * channels` floats, of which each (image, block) has as
            // many of its own as the block has channels: `lane` stays below those.
            unsafe {
                out.at(image * channels + block * numbers.block() + lane)
                    .write(sum * scale)
            };
        }
    };
    let mut means = vec![0.0; dims.n * channels];
    let out = Destination::new(&mut means);
    let all = blocks * dims.n;
    if x.len() <= ALONE {
        (0..all).for_each(|task| average(task / blocks, task % blocks, out));
    } else {
        // A task takes a group of blocks: one block is too little work.
        let groups = all.min(4 * pool.available());
        pool.for_each(groups, |group| {
            (group * all / groups..(group + 1) * all / groups)
                .for_each(|task| average(task / blocks, task % blocks, out));
        });
    }
    means
}

/// Adds the bytes of one block of some pixels to their sums.
fn add_bytes(pixels: &[f32], sums: &mut [[f32; BLOCK]; 4]) {
    // Each half of a word holds the sum of a byte over 256 pixels: 256 * 255 is below 2^16.
    for pixels in pixels.chunks(256 * BLOCK) {
        let mut even = [0u32; BLOCK];
        let mut odd = [0u32; BLOCK];
        for pixel in pixels.chunks_exact(BLOCK) {
            for ((even, odd), word) in even.iter_mut().zip(&mut odd).zip(pixel) {
                let bits = word.to_bits();
                *even += bits & 0x00ff_00ff;
                *odd += bits >> 8 & 0x00ff_00ff;
            }
        }
        for (part, sums) in sums.iter_mut().enumerate() {
            let halves = if part % 2 == 0 { &even } else { &odd };
            for (sum, halves) in sums.iter_mut().zip(halves) {
                *sum += (halves >> (16 * (part / 2)) & 0xffff) as f32;
            }
        }
    }
}

/// Returns number `part` of a word.
#[inline(always)]
fn number(word: f32, part: usize, numbers: Numbers) -> f32 {
    let bits = word.to_bits();
    match numbers {
        Numbers::F32 => word,
        Numbers::Bf16 => f32::from_bits(bits >> (16 * part) << 16),
        Numbers::U8 => (bits >> (8 * part) & 0xff) as f32,
    }
}
