//! The stem's micro-kernels: some pixels of one row of the 7x7 convolution, and one weight panel.

use super::STRIDE;
use super::{CHANNELS, KERNEL};
use crate::number::Operands;
use crate::simd::{ByLane, Vector};
use crate::tile::BLOCK;

/// The operands of one call of the stem's micro-kernel: `MR` convolution pixels of one row, and one
/// panel of `width` output channels.
pub(crate) struct StemTile {
    /// The padded input: the first tap of the first pixel in channel 0. In each of 3 channels, 7
    /// rows of `(MR - 1) * 2 + 7` numbers are read, rounded up to whole words.
    pub input: *const u8,
    /// Bytes from one padded input row to the next.
    pub row: usize,
    /// Bytes from one padded input channel to the next.
    pub channel: usize,
    /// The panel: `[3][7][steps][width]` words, in the order channel, ky, kx.
    pub panel: *const f32,
    /// The bias: `width` floats.
    pub bias: *const f32,
    /// Integers only, and only where the operands have a
    /// [`PIXEL_OFFSET`](Operands::PIXEL_OFFSET): `width` integers that the sums start from.
    pub start: *const f32,
    /// What integer sums are multiplied by: `width` floats. Null for floats.
    pub scale: *const f32,
    /// The output: the first pixel in the panel's first channel block. In each of the `out_blocks`
    /// blocks `MR * 16` floats are written.
    pub out: *mut f32,
    /// Floats from one output channel block to the next.
    pub out_block: usize,
    /// Output channel blocks that are stored: at least 1, at most `width / 16`.
    pub out_blocks: usize,
}

/// Returns `p`, and hides from the compiler where it points. The compiler would otherwise notice
/// that a pixel's tap is its neighbour's tap two columns on, keep those numbers in registers, and
/// spill accumulators for them, which costs a quarter of the speed.
#[inline(always)]
fn opaque(p: *const u8) -> *const u8 {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let mut p = p;
        // SAFETY: the assembly is a comment. It reads and writes nothing but the register of `p`.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, readonly, nostack, preserves_flags))
        };
        p
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    p
}

/// Computes `MR` pixels of a row of the convolution for a panel of `NV` vectors, with bias and
/// ReLU.
///
/// A word holds one to four neighbouring taps of a row. A pixel's word begins two numbers after its
/// neighbour's, whatever their size.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `input`, `panel`, `bias`, `start`, `scale` and `out` of `t` span what their fields say, with a
///   width of `NV * LANES`.
/// - `out` overlaps nothing that is read, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn tile<N: Operands, const MR: usize, const NV: usize>(t: &StemTile) {
    let lanes = N::Floats::LANES;
    let per_word = N::WEIGHTS.per_word();
    let bytes = size_of::<f32>() / per_word;
    // SAFETY: `v` is below NV, so bias, start and scale are read within their width. `weights`
    // moves on by that width for each of the `3 * 7 * steps` words of the panel. Pixel `r` below MR
    // is read at tap (`channel`, `ky`, `step * per_word`), which is among the columns that the
    // tile's input spans. Stores go to pixel `r` of a block below `out_blocks`.
    unsafe {
        let bias = |v| N::Floats::load(t.bias.add(v * lanes));
        let start: [N::Sums; NV] =
            std::array::from_fn(|v| N::start(bias(v), t.start.wrapping_add(v * lanes)));
        let mut acc = [start; MR];
        let mut weights = t.panel;
        for channel in 0..CHANNELS {
            for ky in 0..KERNEL {
                let line = t.input.add(channel * t.channel + ky * t.row);
                for step in 0..KERNEL.div_ceil(per_word) {
                    let pixels = opaque(line.add(step * size_of::<f32>()));
                    let w: [N::Weights; NV] =
                        std::array::from_fn(|v| N::weights(weights.add(v * lanes)));
                    weights = weights.add(NV * lanes);
                    for (r, sums) in acc.iter_mut().enumerate() {
                        let x = N::pixel(pixels.add(r * STRIDE * bytes).cast());
                        for v in 0..NV {
                            sums[v] = N::multiply_add(x, w[v], sums[v]);
                        }
                    }
                }
            }
        }
        for v in 0..NV {
            let block = v * lanes / BLOCK;
            if block >= t.out_blocks {
                continue;
            }
            for (r, sums) in acc.iter().enumerate() {
                let mut y = N::to_floats(sums[v]);
                if N::SCALED {
                    let scale = N::Floats::load(t.scale.add(v * lanes));
                    y = y.mul(scale).add(bias(v));
                }
                let at = block * t.out_block + r * BLOCK + v * lanes % BLOCK;
                N::Floats::zero().max(y).store(t.out.add(at));
            }
        }
    }
}

/// The columns of one input row that a tile reads, of which whole registers are loaded once.
#[derive(Clone, Copy)]
struct Columns<V> {
    line: *const f32,
    loaded: [V; 4],
    /// How many columns lie in the registers.
    count: usize,
}

impl<V: ByLane> Columns<V> {
    /// Loads the columns that `pixels` convolution pixels read.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    /// - `line` spans `(pixels - 1) * 2 + 7` floats.
    #[inline(always)]
    unsafe fn load(line: *const f32, pixels: usize) -> Self {
        // SAFETY: no more whole registers are loaded than lie within the columns.
        unsafe {
            let mut loaded = [V::zero(); 4];
            let whole = loaded
                .len()
                .min(((pixels - 1) * STRIDE + KERNEL) / V::LANES);
            for (index, columns) in loaded.iter_mut().enumerate().take(whole) {
                *columns = V::load(line.add(index * V::LANES));
            }
            let count = whole * V::LANES;
            Self {
                line,
                loaded,
                count,
            }
        }
    }

    /// Returns column `x` in all lanes.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present. It has four lanes.
    /// - `x` is among the columns.
    #[inline(always)]
    unsafe fn splat(&self, x: usize) -> V {
        // SAFETY: lanes are below 4, and a column that is not in a register is read from the line.
        unsafe {
            if x >= self.count {
                return V::splat_at(self.line.add(x));
            }
            let columns = self.loaded[x / 4];
            match x % 4 {
                0 => columns.lane::<0>(),
                1 => columns.lane::<1>(),
                2 => columns.lane::<2>(),
                _ => columns.lane::<3>(),
            }
        }
    }
}

/// Computes what [`tile`] does in float32, for vectors of four lanes of which each can be multiplied
/// by. All columns of an input row are loaded once, and not once for each tap and pixel.
///
/// # Safety
/// As [`tile`].
#[cfg_attr(
    not(target_arch = "aarch64"),
    expect(dead_code, reason = "NEON alone takes it")
)]
#[inline(always)]
pub(crate) unsafe fn tile_by_lane<V: ByLane, const MR: usize, const NV: usize>(t: &StemTile) {
    const { assert!(V::LANES == 4 && MR <= 6 && NV <= 4) };
    // SAFETY: `v` is below NV, so the bias is read within its width. `weights` moves on by that
    // width for each of the `3 * 7 * 7` taps of the panel. `line` spans the columns that MR pixels
    // read. Stores go to pixel `r` of a block below `out_blocks`.
    unsafe {
        let bias: [V; NV] = std::array::from_fn(|v| V::load(t.bias.add(v * V::LANES)));
        let mut acc = [bias; MR];
        let mut weights = t.panel;
        for channel in 0..CHANNELS {
            for ky in 0..KERNEL {
                let line = t.input.add(channel * t.channel + ky * t.row).cast();
                let columns = Columns::load(line, MR);
                // The compiler would keep a loop over the taps, and its lanes would be no constants.
                add_tap::<V, MR, NV, 0>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 1>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 2>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 3>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 4>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 5>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 6>(&mut acc, &columns, weights);
                weights = weights.add(KERNEL * NV * V::LANES);
            }
        }
        for (r, sums) in acc.into_iter().enumerate() {
            for (v, y) in sums.into_iter().enumerate() {
                let block = v * V::LANES / BLOCK;
                if block < t.out_blocks {
                    let at = block * t.out_block + r * BLOCK + v * V::LANES % BLOCK;
                    V::zero().max(y).store(t.out.add(at));
                }
            }
        }
    }
}

/// Adds the products of tap `KX` of an input row to the sums of each pixel.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `columns` are those that MR pixels read.
/// - `weights` spans those of the row's 7 taps, `NV * V::LANES` floats each.
#[inline(always)]
unsafe fn add_tap<V: ByLane, const MR: usize, const NV: usize, const KX: usize>(
    acc: &mut [[V; NV]; MR],
    columns: &Columns<V>,
    weights: *const f32,
) {
    // SAFETY: `v` is below NV and KX below 7, so the weights are among the row's. Pixel `r` reads
    // column `2 * r + KX`, which is among those of MR pixels.
    unsafe {
        macro_rules! pixels {
            ($w:ident, $v:literal, $($r:literal)+) => {$(
                if $r < MR {
                    acc[$r][$v] = columns.splat($r * STRIDE + KX).mul_add($w, acc[$r][$v]);
                }
            )+};
        }
        macro_rules! vectors {
            ($($v:literal)+) => {$(
                if $v < NV {
                    let w = V::load(weights.add((KX * NV + $v) * V::LANES));
                    pixels!(w, $v, 0 1 2 3 4 5);
                }
            )+};
        }
        vectors!(0 1 2 3);
    }
}
