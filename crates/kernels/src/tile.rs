//! The micro-kernel: a tile of up to `MR` pixels times one weight panel, with bias, residual and ReLU in the store. It
//! never loops over more than one tile and never allocates.

use std::mem::MaybeUninit;

use super::simd::{Vector, prefetch, prefetch_read, prefetch_write};

/// Channels in one block of the activation layout `[C/16][pixels][16]`.
pub const BLOCK: usize = 16;

/// An entry of an offset table that means "outside the image".
pub(crate) const OUTSIDE: u32 = u32::MAX;

/// A line of zeros that taps outside the image read.
pub(crate) static ZERO_LINE: [f32; BLOCK] = [0.0; BLOCK];

/// Everything that one call of the micro-kernel needs. `NV` vectors make the panel's width.
pub(crate) struct Tile {
    /// First pixel of the tile (dense) or of the image (indirect) in channel block 0.
    pub a: *const f32,
    /// Floats from one input channel block to the next.
    pub a_block: usize,
    /// Input channel blocks.
    pub blocks: usize,
    /// Indirect only: for each tap, then each of the tile's pixels, the float offset of its input pixel, or [`OUTSIDE`].
    pub offsets: *const u32,
    /// Indirect only: entries from one tap's offsets to the next tap's.
    pub tap_stride: usize,
    /// Indirect only: taps of the kernel.
    pub taps: usize,
    /// The panel: `[blocks][taps][16][width]`.
    pub panel: *const f32,
    /// `width` floats that the accumulators start from.
    pub bias: *const f32,
    /// First output pixel in the panel's first channel block.
    pub out: *mut f32,
    /// Floats from one output channel block to the next.
    pub out_block: usize,
    /// Output channel blocks to store: at least 1, at most width / 16.
    pub out_blocks: usize,
    /// Residual in the output's geometry, which may be `out` itself, or null.
    pub skip: *const f32,
    /// Clamp at zero in the store.
    pub relu: bool,
    /// What to ask into the second-level cache meanwhile: this layer's next panel, and the next layer's weights.
    pub prefetch: [Stream; 2],
}

/// Memory that is read ahead.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub start: *const f32,
    /// Prefetches per 16 steps of k.
    pub count: usize,
    /// Floats from one prefetch to the next.
    pub step: usize,
}

impl Stream {
    /// Nothing.
    pub(crate) const NONE: Self = Self {
        start: std::ptr::null(),
        count: 0,
        step: 0,
    };

    /// Asks for the lines of the next 16 steps.
    #[inline(always)]
    fn advance(&mut self) {
        for _ in 0..self.count {
            prefetch(self.start);
            self.start = self.start.wrapping_add(self.step);
        }
    }
}

/// The signature of every micro-kernel instance.
pub(crate) type TileFn = unsafe fn(&Tile);

/// 16 steps of k: `acc[r] += a[r][k] * b[k]`, rows of `a` lie `ROW` floats apart.
#[inline(always)]
unsafe fn accumulate<V: Vector, const MR: usize, const NV: usize, const ROW: usize>(
    acc: &mut [[V; NV]; MR],
    a: *const f32,
    b: *const f32,
) {
    let mut k = 0;
    while k < BLOCK {
        // SAFETY: the caller's tile spans MR rows of 16 floats, ROW apart, and the panel 16 rows of NV vectors.
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

#[inline(always)]
unsafe fn start<V: Vector, const MR: usize, const NV: usize>(t: &Tile) -> [[V; NV]; MR] {
    // SAFETY: `bias` holds the panel's width.
    unsafe {
        let mut bias = [V::zero(); NV];
        for (v, lane) in bias.iter_mut().enumerate() {
            *lane = V::load(t.bias.add(v * V::LANES));
        }
        [bias; MR]
    }
}

/// Asks for the lines of one output channel block that the store will write and the residual's, long before their use.
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
            // SAFETY: `out` and `skip` span MR pixels in each of `out_blocks` blocks.
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

/// The micro-kernel over pixels that lie side by side (1x1 convolutions, Winograd products).
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - The pointers of `t` span what its fields say; `out` overlaps nothing that is read, unless `skip` is `out`.
#[inline(always)]
pub(crate) unsafe fn dense<V: Vector, const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: this function's contract.
    unsafe {
        let mut acc = start::<V, MR, NV>(t);
        let (mut a, mut b, [mut panel, mut layer]) = (t.a, t.panel, t.prefetch);
        // One block's lines after the other's: all at once, they would take every place where a miss can wait.
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

/// The micro-kernel over pixels named by an offset table (strides, borders, larger kernels).
///
/// # Safety
/// As [`dense`]; every offset plus `blocks - 1` steps of `a_block` plus 16 lies within the input.
#[inline(always)]
pub(crate) unsafe fn indirect<V: Vector, const MR: usize, const NV: usize>(t: &Tile) {
    for block in 0..t.out_blocks {
        announce::<MR>(t, block);
    }
    // SAFETY: this function's contract.
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

/// The bit of a tap in [`straight`]'s answer; taps beyond the 64th have none.
#[inline(always)]
fn tap_bit(tap: usize) -> u64 {
    if tap < 64 { 1 << tap } else { 0 }
}

/// The taps whose pixels all lie inside the image and two pixels apart, as those of a stride of 2 do within a row: they
/// are read where they lie.
#[inline(always)]
unsafe fn straight<const MR: usize>(t: &Tile) -> u64 {
    let mut found = 0;
    for tap in 0..t.taps {
        let offsets = t.offsets.wrapping_add(tap * t.tap_stride);
        // SAFETY: the table has MR entries for each tap.
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

/// Copies the `MR` lines that a tap's offsets name to `to`, zeros for those outside the image.
#[inline(always)]
unsafe fn gather<V: Vector, const MR: usize>(a: *const f32, offsets: *const u32, to: *mut f32) {
    for r in 0..MR {
        // SAFETY: the table has MR entries for each tap, they lie inside the input, and `to` holds MR lines.
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
