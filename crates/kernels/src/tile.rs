//! The micro-kernel: one tile of `MR` pixels times one weight panel of `NV` vectors.
//!
//! ```text
//! sums[MR][NV] = bias, or zero for integers
//! for each block of input channels (16 words), for each tap of the convolution:
//!     for each of the 16 words k:
//!         w[NV] = the panel's row for k
//!         for each pixel r:  sums[r] += pixel r's word k, broadcast, * w
//! for each pixel r:  out[r] = relu(sums[r] + residual[r])
//!      for integers: out[r] = relu(sums[r] * scale + bias + residual[r] * its scale)
//! ```
//!
//! A word is one, two or four channels ([`super::number`]). The sums and a row of weights stay in
//! registers: `MR * NV` accumulators, `NV` weights and a broadcast word. Two kernels differ in where
//! a pixel's numbers come from. [`dense`] reads pixels that lie side by side; [`indirect`] reads
//! pixels that a table of offsets names, and zeros outside the image.

use std::mem::MaybeUninit;

use super::number::{Numbers, Operands, Stored};
use super::simd::{Vector, prefetch, prefetch_read, prefetch_write};

/// Words in one block of the activation layout `[blocks][pixels][16]`: a cache line. In float32 a
/// word is a channel.
pub const BLOCK: usize = 16;

/// The entry of an offset table that means "outside the image".
pub(crate) const OUTSIDE: u32 = u32::MAX;

/// The line of zeros that is read for taps outside the image.
pub(crate) static ZERO_LINE: [f32; BLOCK] = [0.0; BLOCK];

/// The operands of one call of the micro-kernel, for a tile of `MR` pixels and a panel of `width`
/// output channels. All lengths are in words of 32 bits, unless they say otherwise.
pub(crate) struct Tile {
    /// The input. Dense: the tile's first pixel in input block 0; in each of the `blocks` blocks
    /// `MR * 16` words are read. Indirect: the first pixel of all images in block 0; in each block
    /// 16 words are read from each offset of the table on.
    pub a: *const f32,
    /// Words from one input block to the next.
    pub a_block: usize,
    /// Input blocks, at least 1.
    pub blocks: usize,
    /// Indirect only: `(taps - 1) * tap_stride + MR` entries. For each tap, then each of the tile's
    /// pixels, the offset of its input pixel from `a`, or [`OUTSIDE`].
    pub offsets: *const u32,
    /// Indirect only: entries from one tap's offsets to the next tap's.
    pub tap_stride: usize,
    /// Indirect only: taps of the convolution, at least 1.
    pub taps: usize,
    /// The panel: `[blocks][taps][16][width]` words; one tap if dense.
    pub panel: *const f32,
    /// `width` floats that are added to the sums.
    pub bias: *const f32,
    /// Integers only, and only where the operands have a
    /// [`PIXEL_OFFSET`](Operands::PIXEL_OFFSET): `width` integers that the sums start from.
    pub start: *const f32,
    /// `width` floats that integer sums are multiplied by. Null for floats.
    pub scale: *const f32,
    /// The output: the panel's first channel of the tile's first pixel. From there on each pixel's
    /// channels of the panel are written, pixels 16 words and blocks `out_block` apart.
    pub out: *mut f32,
    /// Words from one output block to the next.
    pub out_block: usize,
    /// Output blocks that are stored: at least 1, at most those that the panel's channels take.
    pub out_blocks: usize,
    /// The residual, which has the output's form, or null. It may be `out` itself.
    pub skip: *const f32,
    /// Words from one block of the residual to the next.
    pub skip_block: usize,
    /// Blocks of the residual. Channels of the panel beyond them have none.
    pub skip_blocks: usize,
    /// Integers only: what the residual is multiplied by.
    pub skip_scale: f32,
    /// Integers only: whether the residual is bfloat16 and not of the output's type.
    pub skip_is_bf16: bool,
    /// Integers only: whether what is stored is between -2^31 and 2^31 before it is limited to the
    /// output's type, whatever the pixels are.
    pub bounded: bool,
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
    /// Prefetches for each input block and each tap.
    pub count: usize,
    /// Words from one prefetch to the next.
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

/// Adds the products of 16 words to each sum: `acc[r] += a[r][k] * b[k]` for `k` from 0 to 15.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `a` spans `(MR - 1) * ROW + 16` words: row `r` is 16 words from `r * ROW` on.
/// - `b` spans `16 * NV * LANES` words.
#[inline(always)]
unsafe fn accumulate<N: Operands, const MR: usize, const NV: usize, const ROW: usize>(
    acc: &mut [[N::Sums; NV]; MR],
    a: *const f32,
    b: *const f32,
) {
    let row = NV * N::Floats::LANES;
    let mut k = 0;
    while k < BLOCK {
        // SAFETY: `k + 3` is below 16, so the four words from `k` on lie in each row of `a`, and the
        // rows `k` to `k + 3` are among the 16 rows that `b` spans.
        unsafe {
            let (a, b) = (a.add(k), b.add(k * row));
            accumulate_word::<N, MR, NV, ROW, 0>(acc, a, b);
            accumulate_word::<N, MR, NV, ROW, 1>(acc, a, b.add(row));
            accumulate_word::<N, MR, NV, ROW, 2>(acc, a, b.add(2 * row));
            accumulate_word::<N, MR, NV, ROW, 3>(acc, a, b.add(3 * row));
        }
        k += 4;
    }
}

/// Adds the products of one word to each sum: `acc[r] += a[r][J] * b`.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `a` spans `(MR - 1) * ROW + 4` words: the four of row `r` lie from `r * ROW` on. `J` is below
///   4.
/// - `b` spans `NV * LANES` words.
#[inline(always)]
unsafe fn accumulate_word<
    N: Operands,
    const MR: usize,
    const NV: usize,
    const ROW: usize,
    const J: i32,
>(
    acc: &mut [[N::Sums; NV]; MR],
    a: *const f32,
    b: *const f32,
) {
    let lanes = N::Floats::LANES;
    // SAFETY: `r` is below MR, so its four words lie within the rows of `a`. `v` is below NV, so the
    // vector lies in the row that `b` spans.
    unsafe {
        if N::BY_LANE {
            const { assert!(!N::BY_LANE || MR <= 6 && NV <= 4) };
            // The four words of all pixels take MR registers. So one vector of weights is loaded at
            // a time, and used up. The compiler would keep loops here as loops, and the sums in
            // memory.
            macro_rules! rows {
                ($weights:ident, $v:literal, $($r:literal)+) => {$(
                    if $r < MR {
                        let x = N::pixel_lane::<J>(a.add($r * ROW));
                        acc[$r][$v] = N::multiply_add_lane::<J>(x, $weights, acc[$r][$v]);
                    }
                )+};
            }
            macro_rules! vectors {
                ($($v:literal)+) => {$(
                    if $v < NV {
                        let weights = N::weights(b.add($v * lanes));
                        rows!(weights, $v, 0 1 2 3 4 5);
                    }
                )+};
            }
            vectors!(0 1 2 3);
        } else {
            let mut bv = [N::weights(b); NV];
            for (v, weights) in bv.iter_mut().enumerate().skip(1) {
                *weights = N::weights(b.add(v * lanes));
            }
            for (r, sums) in acc.iter_mut().enumerate() {
                let x = N::pixel_lane::<J>(a.add(r * ROW));
                for (sum, weights) in sums.iter_mut().zip(bv) {
                    *sum = N::multiply_add_lane::<J>(x, weights, *sum);
                }
            }
        }
    }
}

/// Returns the sums as they are before the first product, for each pixel.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `bias` and `start` of `t` span what their fields say, with a width of `NV * LANES`.
#[inline(always)]
unsafe fn start<N: Operands, const MR: usize, const NV: usize>(t: &Tile) -> [[N::Sums; NV]; MR] {
    // SAFETY: `v` is below NV, so each vector lies within the `NV * LANES` floats of `bias`, and
    // within the words of `start` where there are any.
    unsafe {
        let sums = std::array::from_fn(|v| {
            let at = v * N::Floats::LANES;
            N::start(N::Floats::load(t.bias.add(at)), t.start.wrapping_add(at))
        });
        [sums; MR]
    }
}

/// Asks for the lines of one output block that the store will write, and for the residual's, long
/// before they are used.
#[inline(always)]
fn announce<const MR: usize>(t: &Tile, block: usize) {
    for r in 0..MR {
        prefetch_write(t.out.wrapping_add(block * t.out_block + r * BLOCK));
        // A residual in the output's own place is on its way already.
        if !t.skip.is_null() && !std::ptr::eq(t.skip, t.out) {
            prefetch_read(t.skip.wrapping_add(block * t.skip_block + r * BLOCK));
        }
    }
}

/// Turns the sums into numbers, adds the residual, clamps them at zero where that is asked for, and
/// stores them.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `bias`, `scale`, `out` and `skip` of `t` span what their fields say, and nobody else has access
///   to what is written.
#[inline(always)]
unsafe fn finish<N: Operands, S: Stored, const MR: usize, const NV: usize>(
    t: &Tile,
    acc: [[N::Sums; NV]; MR],
) {
    let lanes = N::Floats::LANES;
    if NV == 4 && S::NUMBERS.block() == NV * lanes {
        // The panel's channels are one block: a pixel's are written at once.
        const { assert!(NV != 4 || MR <= 6) };
        // The compiler would keep a loop here as a loop, and the sums in memory.
        macro_rules! pixels {
            ($($r:literal)+) => {$(
                if $r < MR {
                    // SAFETY: vector `v` of the panel and pixel `r` are among the tile's, and the
                    // block's channels of pixel `r` lie at `r * 16`, within the output.
                    unsafe {
                        // Not by a closure: it would not be sure to have the target features.
                        let sums = acc[$r % MR];
                        let quad = [
                            value::<N, S>(t, sums[0], 0, $r),
                            value::<N, S>(t, sums[1 % NV], lanes, $r),
                            value::<N, S>(t, sums[2 % NV], 2 * lanes, $r),
                            value::<N, S>(t, sums[3 % NV], 3 * lanes, $r),
                        ];
                        S::store_quad(quad, t.out.add($r * BLOCK), t.bounded);
                    }
                }
            )+};
        }
        pixels!(0 1 2 3 4 5);
        return;
    }
    for v in 0..NV {
        let (block, word) = S::NUMBERS.place(v * lanes);
        if block >= t.out_blocks {
            continue;
        }
        let at = block * t.out_block + word;
        for (r, sums) in acc.iter().enumerate() {
            // SAFETY: vector `v` of the panel and pixel `r` are among the tile's, and `block` is
            // below `out_blocks`, so the vector's channels of pixel `r` lie within the output.
            unsafe {
                let value = value::<N, S>(t, sums[v], v * lanes, r);
                S::store(value, t.out.add(at + r * BLOCK));
            }
        }
    }
}

/// Returns what `sums` become for the channels from `channel` of the panel on of the tile's pixel
/// `r`.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `bias`, `scale` and `skip` of `t` span what their fields say.
/// - The channels are among the panel's, and `r` among the tile's pixels. If the residual is of the
///   output's type, their block is below `out_blocks`.
#[inline(always)]
unsafe fn value<N: Operands, S: Stored>(
    t: &Tile,
    sums: N::Sums,
    channel: usize,
    r: usize,
) -> N::Floats {
    let is_bf16 = N::SCALED && t.skip_is_bf16;
    let numbers = if is_bf16 { Numbers::Bf16 } else { S::NUMBERS };
    let (skip_block, skip_word) = numbers.place(channel);
    // SAFETY: the channels are among the panel's, so `bias` and `scale` have floats for them.
    // `skip_block` is below `skip_blocks`, so the residual holds the channels of pixel `r`.
    unsafe {
        let mut y = N::to_floats(sums);
        if N::SCALED {
            // A fused operation would give other bits than processors without one.
            y = y.mul(N::Floats::load(t.scale.add(channel)));
            y = y.add(N::Floats::load(t.bias.add(channel)));
        }
        if !t.skip.is_null() && skip_block < t.skip_blocks {
            let skip = t
                .skip
                .add(skip_block * t.skip_block + skip_word + r * BLOCK);
            let residual = if is_bf16 {
                N::Floats::load_bf16(skip.cast())
            } else {
                S::load::<N::Floats>(skip)
            };
            y = y.add(if N::SCALED {
                residual.mul(N::Floats::splat(t.skip_scale))
            } else {
                residual
            });
        }
        S::activate(y, t.relu)
    }
}

/// Computes a tile of pixels that lie side by side: of a 1x1 convolution or of a Winograd product.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `a`, `panel`, `bias`, `start`, `scale`, `out` and `skip` of `t` span what their fields say, with
///   a width of `NV * LANES`.
/// - `out` overlaps nothing that is read, unless `skip` is `out`, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn dense<N: Operands, S: Stored, const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the bias, the output and the residual are as `start` and `finish` ask for, by this
    // function's contract. In step `step`, `a` is at input block `step`, of which the input holds
    // MR pixels of 16 words one after the other, and `b` at the 16 rows of the panel for it.
    unsafe {
        let mut acc = start::<N, MR, NV>(t);
        let (mut a, mut b, [mut panel, mut layer]) = (t.a, t.panel, t.prefetch);
        // The lines of one output block are asked for after those of the other. All at once, they
        // would take every place in which a miss can wait.
        let every = match t.out_blocks {
            1 => t.blocks,
            2 => t.blocks.div_ceil(2),
            blocks => t.blocks.div_ceil(blocks),
        };
        let mut announced = 0;
        for step in 0..t.blocks {
            if step == announced * every {
                announce::<MR>(t, announced);
                announced += 1;
            }
            panel.advance();
            layer.advance();
            accumulate::<N, MR, NV, BLOCK>(&mut acc, a, b);
            a = a.wrapping_add(t.a_block);
            b = b.add(BLOCK * NV * N::Floats::LANES);
        }
        finish::<N, S, MR, NV>(t, acc);
    }
}

/// Computes a tile of pixels that an offset table names: of a convolution with a stride, with
/// borders or with more than one tap.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `a`, `offsets`, `panel`, `bias`, `start`, `scale`, `out` and `skip` of `t` span what their
///   fields say, with a width of `NV * LANES`. In particular the input holds 16 words from
///   `offset + block * a_block` on, for every offset that is not [`OUTSIDE`] and every block.
/// - `out` overlaps nothing that is read, unless `skip` is `out`, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn indirect<N: Operands, S: Stored, const MR: usize, const NV: usize>(t: &Tile) {
    for block in 0..t.out_blocks {
        announce::<MR>(t, block);
    }
    // SAFETY: the bias, the output and the residual are as `start` and `finish` ask for, by this
    // function's contract, and `offsets` has MR entries for each tap, as `apart` and `gather` ask
    // for. The pixels of a tap that is read in place all lie in the input, each one or two pixels
    // after the one before. The copied lines are MR times 16 words, which `gather` has written. `b`
    // is at the 16 rows of the panel for this block and tap.
    unsafe {
        let mut acc = start::<N, MR, NV>(t);
        let (mut a, mut b, [mut panel, mut layer]) = (t.a, t.panel, t.prefetch);
        let (next, second) = (apart::<MR, 1>(t), apart::<MR, 2>(t));
        for _ in 0..t.blocks {
            let mut offsets = t.offsets;
            for tap in 0..t.taps {
                panel.advance();
                layer.advance();
                if next & tap_bit(tap) != 0 {
                    let pixels = a.wrapping_add(*offsets as usize);
                    accumulate::<N, MR, NV, BLOCK>(&mut acc, pixels, b);
                } else if second & tap_bit(tap) != 0 {
                    let pixels = a.wrapping_add(*offsets as usize);
                    accumulate::<N, MR, NV, { 2 * BLOCK }>(&mut acc, pixels, b);
                } else {
                    let mut lines = [const { MaybeUninit::<[f32; BLOCK]>::uninit() }; MR];
                    let lines = lines.as_mut_ptr().cast();
                    gather::<N::Floats, MR>(a, offsets, lines);
                    accumulate::<N, MR, NV, BLOCK>(&mut acc, lines, b);
                }
                offsets = offsets.wrapping_add(t.tap_stride);
                b = b.add(BLOCK * NV * N::Floats::LANES);
            }
            a = a.wrapping_add(t.a_block);
        }
        finish::<N, S, MR, NV>(t, acc);
    }
}

/// Returns the bit of a tap in what [`apart`] returns. Taps beyond the 64th have none.
#[inline(always)]
fn tap_bit(tap: usize) -> u64 {
    if tap < 64 { 1 << tap } else { 0 }
}

/// Returns the taps whose pixels all lie inside the image and `STEP` pixels apart, as those of that
/// stride do within a row. They are read where they lie; the pixels of other taps are copied
/// together first.
///
/// # Safety
/// - `t.offsets` spans `(t.taps - 1) * t.tap_stride + MR` entries.
#[inline(always)]
unsafe fn apart<const MR: usize, const STEP: usize>(t: &Tile) -> u64 {
    let mut found = 0;
    for tap in 0..t.taps {
        let offsets = t.offsets.wrapping_add(tap * t.tap_stride);
        // SAFETY: `tap` is below `taps` and `r` below MR, so the entries are among the tap's MR.
        let is_apart = unsafe {
            let first = *offsets;
            // An entry that is OUTSIDE is no multiple of 16, so it fails as a neighbour. Without a
            // branch for each entry, the compiler compares them all at once.
            let others = (0..MR).fold(0, |others, r| {
                others | (*offsets.add(r) ^ first.wrapping_add((r * STEP * BLOCK) as u32))
            });
            first != OUTSIDE && others == 0
        };
        if is_apart {
            found |= tap_bit(tap);
        }
    }
    found
}

/// Copies the `MR` lines that a tap's offsets name to `to`, and zeros for those outside the image.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `offsets` spans `MR` entries. From each that is not [`OUTSIDE`] on, `a` holds 16 words.
/// - `to` spans `MR * 16` words that nobody else has access to; they may be uninitialised.
#[inline(always)]
unsafe fn gather<V: Vector, const MR: usize>(a: *const f32, offsets: *const u32, to: *mut f32) {
    for r in 0..MR {
        // SAFETY: `r` is below MR, so the entry is among the MR that `offsets` has. The 16 words
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
