//! The average over all pixels of each image. The stem has its own max-pool, see [`super::stem`].

use super::buffer::Destination;
use super::layout::BatchDims;
use super::pool::ThreadPool;
use super::tile::BLOCK;

/// Up to this many floats, waking other threads costs more than it saves.
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
    assert_eq!(
        x.len(),
        dims.blocked_len(channels),
        "pooling input length for {channels} channels and {dims:?}"
    );
    let plane = dims.h * dims.w;
    assert!(plane > 0 || dims.n == 0, "pooling over no pixels: {dims:?}");
    let scale = 1.0 / plane as f32;
    let blocks = channels.div_ceil(BLOCK);
    let average = |image: usize, block: usize, out: Destination<'_>| {
        let start = (block * dims.n + image) * plane * BLOCK;
        let mut sums = [0.0f32; BLOCK];
        for pixel in x[start..start + plane * BLOCK].chunks_exact(BLOCK) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += value;
            }
        }
        for (lane, sum) in sums.iter().take(channels - block * BLOCK).enumerate() {
            // SAFETY: the output holds `n * channels` floats, of which each (image, block) has up
            // to 16 of its own: `lane` stays below the channels that are left from the block on.
            unsafe {
                out.at(image * channels + block * BLOCK + lane)
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
