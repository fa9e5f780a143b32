//! The micro-kernel: one tile of `MR` pixels times one weight panel of `NV` vectors.
//!
//! ```text
//! sums[MR][NV] = bias
//! for each block of 16 input channels, for each tap of the convolution:
//!     for each of the 16 channels k:
//!         w[NV] = the panel's row for k
//!         for each pixel r:  sums[r] += pixel r's number for k, broadcast, * w
//! for each pixel r:  out[r] = relu(sums[r] + residual[r])
//! ```
//!
//! The sums and a row of weights stay in registers: `MR * NV` accumulators, `NV` weights and a
//! broadcast number. Two kernels differ in where a pixel's numbers come from. [`dense`] reads
//! pixels that lie side by side; [`indirect`] reads pixels that a table of offsets names, and zeros
//! outside the image.

use std::mem::MaybeUninit;

use super::simd::{Vector, prefetch, prefetch_read, prefetch_write};

/// Channels in one block of the activation layout `[C/16][pixels][16]`.
pub const BLOCK: usize = 16;

/// The entry of an offset table that means "outside the image".
pub(crate) const OUTSIDE: u32 = u32::MAX;

/// The line of zeros that is read for taps outside the image.
pub(crate) static ZERO_LINE: [f32; BLOCK] = [0.0; BLOCK];

/// The operands of one call of the micro-kernel, for a tile of `MR` pixels and a panel of `width`
/// output channels. All lengths are in floats, unless they say otherwise.
pub(crate) struct Tile {
    /// The input. Dense: the tile's first pixel in input channel block 0; in each of the `blocks`
    /// blocks `MR * 16` floats are read. Indirect: the first pixel of all images in block 0; in
    /// each block 16 floats are read from each offset of the table on.
    pub a: *const f32,
    /// Floats from one input channel block to the next.
    pub a_block: usize,
    /// Input channel blocks, at least 1.
    pub blocks: usize,
    /// Indirect only: `(taps - 1) * tap_stride + MR` entries. For each tap, then each of the tile's
    /// pixels, the float offset of its input pixel from `a`, or [`OUTSIDE`].
    pub offsets: *const u32,
    /// Indirect only: entries from one tap's offsets to the next tap's.
    pub tap_stride: usize,
    /// Indirect only: taps of the convolution, at least 1.
    pub taps: usize,
    /// The panel: `[blocks][taps][16][width]` floats; one tap if dense.
    pub panel: *const f32,
    /// `width` floats that the sums start from.
    pub bias: *const f32,
    /// The output: the tile's first pixel in the panel's first channel block. In each of the
    /// `out_blocks` blocks `MR * 16` floats are written.
    pub out: *mut f32,
    /// Floats from one output channel block to the next.
    pub out_block: usize,
    /// Output channel blocks that are stored: at least 1, at most `width / 16`.
    pub out_blocks: usize,
    /// The residual, which spans what `out` does. It may be null, or `out` itself.
    pub skip: *const f32,
    /// Whether sums below zero are stored as zero.
    pub relu: bool,
    /// What is asked into the second-level cache meanwhile: this layer's next panel, and the next
    /// layer's weights.
    pub prefetch: [Stream; 2],
}

/// Memory that is asked into the cache while a tile is computed.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    /// Where the first line lies. It is never read, so it may be any address.
    pub start: *const f32,
    /// Prefetches for each block of 16 input channels and each tap.
    pub count: usize,
    /// Floats from one prefetch to the next.
    pub step: usize,
}

impl Stream {
    /// No memory at all.
    pub(crate) const NONE: Self = Self {
        start: std::ptr::null(),
        count: 0,
        step: 0,
    };

    /// Asks for the next `count` lines.
    #[inline(always)]
    fn advance(&mut self) {
        for _ in 0..self.count {
            prefetch(self.start);
            self.start = self.start.wrapping_add(self.step);
        }
    }
}

/// A micro-kernel that was compiled for one instruction set and one number of pixels. Its contract
/// is that of [`dense`] or [`indirect`].
pub(crate) type TileFn = unsafe fn(&Tile);

/// Adds 16 products to each sum: `acc[r] += a[r][k] * b[k]` for `k` from 0 to 15.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `a` spans `(MR - 1) * ROW + 16` floats: row `r` is 16 floats from `r * ROW` on.
/// - `b` spans `16 * NV * V::LANES` floats.
#[inline(always)]
unsafe fn accumulate<V: Vector, const MR: usize, const NV: usize, const ROW: usize>(
    acc: &mut [[V; NV]; MR],
    a: *const f32,
    b: *const f32,
) {
    let mut k = 0;
    while k < BLOCK {
        // SAFETY: `k + j` is below 16 and `r` below MR, so the float of `a` lies in row `r`, and
        // the NV vectors lie in row `k + j` of the 16 rows that `b` spans.
        unsafe {
            let mut j = 0;
            while j < 4 {
                let row = b.add((k + j) * NV * V::LANES);
                let mut bv = [V::zero(); NV];
                for (v, lanes) in bv.iter_mut().enumerate() {
                    *lanes = V::load(row.add(v * V::LANES));
                }
                for (r, sums) in acc.iter_mut().enumerate() {
                    let x = V::splat_at(a.add(r * ROW + k + j));
                    for (sum, lanes) in sums.iter_mut().zip(bv) {
                        *sum = x.mul_add(lanes, *sum);
                    }
                }
                j += 1;
            }
        }
        k += 4;
    }
}

/// Returns the sums as they are before the first product: the bias, for each pixel.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `t.bias` spans `NV * V::LANES` floats.
#[inline(always)]
unsafe fn start<V: Vector, const MR: usize, const NV: usize>(t: &Tile) -> [[V; NV]; MR] {
    // SAFETY: `v` is below NV, so each vector lies within the `NV * LANES` floats of `bias`.
    unsafe {
        let mut bias = [V::zero(); NV];
        for (v, lane) in bias.iter_mut().enumerate() {
            *lane = V::load(t.bias.add(v * V::LANES));
        }
        [bias; MR]
    }
}

/// Asks for the lines of one output channel block that the store will write, and for the
/// residual's, long before they are used.
#[inline(always)]
fn announce<const MR: usize>(t: &Tile, block: usize) {
    for r in 0..MR {
        let at = block * t.out_block + r * BLOCK;
        prefetch_write(t.out.wrapping_add(at));
        // A residual in the output's own place is on its way already.
        if !t.skip.is_null() && !std::ptr::eq(t.skip, t.out) {
            prefetch_read(t.skip.wrapping_add(at));
        }
    }
}

/// Adds the residual to the sums, clamps them at zero where that is asked for, and stores them.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `t.out` spans `(t.out_blocks - 1) * t.out_block + MR * 16` floats, and nobody else has access
///   to those that are written. `t.skip` spans as many, or is null.
#[inline(always)]
unsafe fn finish<V: Vector, const MR: usize, const NV: usize>(t: &Tile, acc: [[V; NV]; MR]) {
    let per_block = BLOCK / V::LANES;
    for (r, sums) in acc.into_iter().enumerate() {
        for (v, mut y) in sums.into_iter().enumerate() {
            let block = v / per_block;
            if block >= t.out_blocks {
                continue;
            }
            let at = block * t.out_block + v % per_block * V::LANES;
            // SAFETY: `block` is below `out_blocks` and `r` below MR, and the vector lies within
            // the 16 floats of pixel `r` in that block, of which `out` and `skip` hold MR.
            unsafe {
                if !t.skip.is_null() {
                    y = y.add(V::load(t.skip.add(at + r * BLOCK)));
                }
                if t.relu {
                    y = V::zero().max(y);
                }
                y.store(t.out.add(at + r * BLOCK));
            }
        }
    }
}

/// Computes a tile of pixels that lie side by side: of a 1x1 convolution or of a Winograd product.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `a`, `panel`, `bias`, `out` and `skip` of `t` span what their fields say, with a width of
///   `NV * V::LANES`.
/// - `out` overlaps nothing that is read, unless `skip` is `out`, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn dense<V: Vector, const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the bias, the output and the residual are as `start` and `finish` ask for, by this
    // function's contract. In step `step`, `a` is at input block `step`, of which the input holds
    // MR pixels of 16 floats one after the other, and `b` at the 16 rows of the panel for it.
    unsafe {
        let mut acc = start::<V, MR, NV>(t);
        let (mut a, mut b, [mut panel, mut layer]) = (t.a, t.panel, t.prefetch);
        // The lines of one output block are asked for after those of the other. All at once, they
        // would take every place in which a miss can wait.
        let every = t.blocks.div_ceil(t.out_blocks);
        let mut announced = 0;
        for step in 0..t.blocks {
            if step == announced * every {
                announce::<MR>(t, announced);
                announced += 1;
            }
            panel.advance();
            layer.advance();
            accumulate::<V, MR, NV, BLOCK>(&mut acc, a, b);
            a = a.wrapping_add(t.a_block);
            b = b.add(BLOCK * NV * V::LANES);
        }
        finish::<V, MR, NV>(t, acc);
    }
}

/// Computes a tile of pixels that an offset table names: of a convolution with a stride, with
/// borders or with more than one tap.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `a`, `offsets`, `panel`, `bias`, `out` and `skip` of `t` span what their fields say, with a
///   width of `NV * V::LANES`. In particular the input holds 16 floats from
///   `offset + block * a_block` on, for every offset that is not [`OUTSIDE`] and every block.
/// - `out` overlaps nothing that is read, unless `skip` is `out`, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn indirect<V: Vector, const MR: usize, const NV: usize>(t: &Tile) {
    for block in 0..t.out_blocks {
        announce::<MR>(t, block);
    }
    // SAFETY: the bias, the output and the residual are as `start` and `finish` ask for, by this
    // function's contract, and `offsets` has MR entries for each tap, as `straight` and `gather`
    // ask for. A straight tap's pixels all lie in the input, each `2 * 16` floats after the one
    // before. The copied lines are MR times 16 floats, which `gather` has written. `b` is at the 16
    // rows of the panel for this block and tap.
    unsafe {
        let mut acc = start::<V, MR, NV>(t);
        let (mut a, mut b, [mut panel, mut layer]) = (t.a, t.panel, t.prefetch);
        let straight = straight::<MR>(t);
        for _ in 0..t.blocks {
            let mut offsets = t.offsets;
            for tap in 0..t.taps {
                panel.advance();
                layer.advance();
                if straight & tap_bit(tap) != 0 {
                    let pixels = a.wrapping_add(*offsets as usize);
                    accumulate::<V, MR, NV, { 2 * BLOCK }>(&mut acc, pixels, b);
                } else {
                    let mut lines = [const { MaybeUninit::<[f32; BLOCK]>::uninit() }; MR];
                    let lines = lines.as_mut_ptr().cast();
                    gather::<V, MR>(a, offsets, lines);
                    accumulate::<V, MR, NV, BLOCK>(&mut acc, lines, b);
                }
                offsets = offsets.wrapping_add(t.tap_stride);
                b = b.add(BLOCK * NV * V::LANES);
            }
            a = a.wrapping_add(t.a_block);
        }
        finish::<V, MR, NV>(t, acc);
    }
}

/// Returns the bit of a tap in what [`straight`] returns. Taps beyond the 64th have none.
#[inline(always)]
fn tap_bit(tap: usize) -> u64 {
    if tap < 64 { 1 << tap } else { 0 }
}

/// Returns the taps whose pixels all lie inside the image and two pixels apart, as those of a
/// stride of 2 do within a row. They are read where they lie; the pixels of other taps are copied
/// together first.
///
/// # Safety
/// - `t.offsets` spans `(t.taps - 1) * t.tap_stride + MR` entries.
#[inline(always)]
unsafe fn straight<const MR: usize>(t: &Tile) -> u64 {
    let mut found = 0;
    for tap in 0..t.taps {
        let offsets = t.offsets.wrapping_add(tap * t.tap_stride);
        // SAFETY: `tap` is below `taps` and `r` below MR, so the entries are among the tap's MR.
        let is_straight = unsafe {
            let first = *offsets;
            // An entry that is OUTSIDE is no multiple of 16, so it fails as a neighbour.
            first != OUTSIDE
                && (1..MR).all(|r| *offsets.add(r) == first.wrapping_add((r * 2 * BLOCK) as u32))
        };
        if is_straight {
            found |= tap_bit(tap);
        }
    }
    found
}

/// Copies the `MR` lines that a tap's offsets name to `to`, and zeros for those outside the image.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `offsets` spans `MR` entries. From each that is not [`OUTSIDE`] on, `a` holds 16 floats.
/// - `to` spans `MR * 16` floats that nobody else has access to; they may be uninitialised.
#[inline(always)]
unsafe fn gather<V: Vector, const MR: usize>(a: *const f32, offsets: *const u32, to: *mut f32) {
    for r in 0..MR {
        // SAFETY: `r` is below MR, so the entry is among the MR that `offsets` has. The 16 floats
        // that are read are those of the input that the entry names, or the line of zeros; the 16
        // that are written are line `r` of the MR that `to` holds.
        unsafe {
            let offset = *offsets.add(r);
            let from = if offset == OUTSIDE {
                ZERO_LINE.as_ptr()
            } else {
                a.wrapping_add(offset as usize)
            };
            for v in 0..BLOCK / V::LANES {
                V::load(from.add(v * V::LANES)).store(to.add(r * BLOCK + v * V::LANES));
            }
        }
    }
}
