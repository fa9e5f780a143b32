//! The number types of activations and weights, and how a micro-kernel multiplies and stores them.
//!
//! All memory is counted in *words* of 32 bits. A word holds one float32, two bfloat16 numbers or
//! four 8-bit integers: neighbouring channels of one pixel, or neighbouring input channels of one
//! weight. So activations are `[channels/(16 * p)][pixels][16 words]` in every type, where `p`
//! channels fill a word: a block of channels of one pixel is always one cache line. Weight panels
//! are `[depth][width]` words. All that cuts a layer into tasks and tiles counts words, and serves
//! every type.
//!
//! | | a word of weights times a word of a pixel | sums |
//! |---|---|---|
//! | float32 | a multiply-add | float32 |
//! | bfloat16 | two multiply-adds, the upper halves' first (`vdpbf16ps`) | float32 |
//! | 8-bit integers | four products of u8 and s8 (`vpdpbusd`) | 32-bit integers |
//!
//! Words lie in memory of type `f32`, which serves as four bytes without a meaning.
//!
//! The 8-bit and bfloat16 sums are the same bits on every instruction set: integers are exact, and
//! a product of two bfloat16 numbers is exact in float32, so that a fused operation rounds as two
//! operations do.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use std::fmt;
use std::marker::PhantomData;

use super::pack::WeightNumbers;
use super::simd::Vector;
use super::tile::BLOCK;

/// A number type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// 32-bit floats.
    F32,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Integers from 0 to 255; their scale is kept beside them.
    U8,
}

impl Numbers {
    /// Returns how many numbers fill a 32-bit word.
    #[must_use]
    pub const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::U8 => 4,
        }
    }

    /// Returns how many channels a block has: those of one pixel that fill a cache line.
    #[must_use]
    pub const fn block(self) -> usize {
        BLOCK * self.per_word()
    }

    /// Returns how many blocks `channels` channels take.
    pub(crate) const fn blocks(self, channels: usize) -> usize {
        // Each type by itself divides by a constant, which is a shift.
        match self {
            Self::F32 => channels.div_ceil(Self::F32.block()),
            Self::Bf16 => channels.div_ceil(Self::Bf16.block()),
            Self::U8 => channels.div_ceil(Self::U8.block()),
        }
    }

    /// Returns where channel `channel` of a pixel lies: its block, and its word in the block.
    pub(crate) const fn place(self, channel: usize) -> (usize, usize) {
        // A word of a pixel, then its block: a division by a constant is a shift.
        let word = match self {
            Self::F32 => channel,
            Self::Bf16 => channel / Self::Bf16.per_word(),
            Self::U8 => channel / Self::U8.per_word(),
        };
        (word / BLOCK, word % BLOCK)
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
        })
    }
}

/// How words of pixels and weights are multiplied and summed. One implementation is one number type
/// on one instruction set.
///
/// # Safety
/// Every method has the same first condition: the caller runs in a function that enables the
/// target features of the instruction set, on a processor that has them. Those with a pointer have
/// a second one, which they state.
pub(crate) trait Operands {
    /// The registers of the epilogue. They have as many lanes as there are sums.
    type Floats: Vector;
    /// A pixel's word in all lanes, in the form in which it is multiplied.
    type Pixel: Copy;
    /// A word of weights in each lane, in the form in which it is multiplied.
    type Weights: Copy;
    /// A sum in each lane.
    type Sums: Copy;
    /// The type of the weights.
    const WEIGHTS: WeightNumbers;
    /// Whether sums are integers, which are scaled before bias and residual are added.
    const SCALED: bool = matches!(Self::WEIGHTS, WeightNumbers::I8);
    /// Whether instructions multiply by one word of a register of four. The micro-kernel then loads
    /// four words of each pixel once, and keeps them while it multiplies by each.
    const BY_LANE: bool = false;
    /// What is subtracted from each number of a pixel before it is multiplied. The sums start from
    /// what makes up for it: this number times the sum of the weights.
    const PIXEL_OFFSET: i32 = 0;

    /// Returns the word at `p` in all lanes. Words of integers and of bfloat16 numbers need no
    /// alignment.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans one initialised word.
    unsafe fn pixel(p: *const f32) -> Self::Pixel;

    /// Returns the words `p[0..LANES]`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` initialised words.
    unsafe fn weights(p: *const f32) -> Self::Weights;

    /// Returns word `J` of the four words at `p`, as [`Self::multiply_add_lane`] for `J` takes it.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans four initialised words, and `J` is below 4.
    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> Self::Pixel {
        // SAFETY: the caller vouches for four words at `p`, of which this is one.
        unsafe { Self::pixel(p.add(J as usize)) }
    }

    /// Returns what the sums start from: `bias`, or if they are scaled the integers at `integers`,
    /// which are zero without a [`Self::PIXEL_OFFSET`].
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - If there is a [`Self::PIXEL_OFFSET`], `integers` spans `LANES` initialised words.
    unsafe fn start(bias: Self::Floats, integers: *const f32) -> Self::Sums;

    /// Returns `sums` plus the products of `pixel` and `weights`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn multiply_add(
        pixel: Self::Pixel,
        weights: Self::Weights,
        sums: Self::Sums,
    ) -> Self::Sums;

    /// Returns `sums` plus the products of a pixel from [`Self::pixel_lane`] for `J` and `weights`.
    ///
    /// # Safety
    /// - The target features are enabled and present, and `J` is below 4.
    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: Self::Pixel,
        weights: Self::Weights,
        sums: Self::Sums,
    ) -> Self::Sums {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add(pixel, weights, sums) }
    }

    /// Returns the sums as floats.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn to_floats(sums: Self::Sums) -> Self::Floats;
}

/// Float32 in registers `V`.
pub(crate) struct Float32<V>(PhantomData<V>);

impl<V: Vector> Operands for Float32<V> {
    type Floats = V;
    type Pixel = V;
    type Weights = V;
    type Sums = V;
    const WEIGHTS: WeightNumbers = WeightNumbers::F32;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::splat_at(p) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::load(p) }
    }

    #[inline(always)]
    unsafe fn start(bias: V, _: *const f32) -> V {
        bias
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: V, weights: V, sums: V) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { pixel.mul_add(weights, sums) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: V) -> V {
        sums
    }
}

/// Bfloat16 in registers `V`, for processors without an instruction for it: the same bits as
/// `vdpbf16ps` gives, as long as no product is a denormal number.
pub(crate) struct WidenedBf16<V>(PhantomData<V>);

impl<V: Vector> Operands for WidenedBf16<V> {
    type Floats = V;
    type Pixel = [V; 2];
    type Weights = [V; 2];
    type Sums = V;
    const WEIGHTS: WeightNumbers = WeightNumbers::Bf16;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> [V; 2] {
        // SAFETY: this method's contract is that of those that are called.
        unsafe {
            let words = V::splat_at(p);
            [words.lower_bf16(), words.upper_bf16()]
        }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> [V; 2] {
        // SAFETY: this method's contract is that of those that are called.
        unsafe {
            let words = V::load(p);
            [words.lower_bf16(), words.upper_bf16()]
        }
    }

    #[inline(always)]
    unsafe fn start(bias: V, _: *const f32) -> V {
        bias
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: [V; 2], weights: [V; 2], sums: V) -> V {
        // SAFETY: this method's contract is that of those that are called.
        unsafe {
            let sums = pixel[1].mul_add(weights[1], sums);
            pixel[0].mul_add(weights[0], sums)
        }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: V) -> V {
        sums
    }
}

/// How activations of one number type lie in memory.
pub(crate) trait Stored {
    const NUMBERS: Numbers;

    /// Returns `LANES` neighbouring channels as floats.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    /// - `p` spans `LANES` initialised numbers.
    unsafe fn load<V: Vector>(p: *const f32) -> V;

    /// Rounds and writes `LANES` neighbouring channels.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    /// - `p` spans `LANES` numbers that nobody else has access to.
    unsafe fn store<V: Vector>(values: V, p: *mut f32);

    /// Does what [`Self::store`] does with four registers, one after the other. If `bounded`, the
    /// values are no NaN and between -2^31 and 2^31.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    /// - `p` spans `4 * LANES` numbers that nobody else has access to.
    #[inline(always)]
    unsafe fn store_quad<V: Vector>(quad: [V; 4], p: *mut f32, bounded: bool) {
        let _ = bounded;
        let words = V::LANES / Self::NUMBERS.per_word();
        for (index, values) in quad.into_iter().enumerate() {
            // SAFETY: `index` is below 4, so the register's numbers are among those at `p`.
            unsafe { Self::store(values, p.add(index * words)) };
        }
    }

    /// Returns `values` clamped at zero where that is asked for, unless [`Self::store`] does so.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    #[inline(always)]
    unsafe fn activate<V: Vector>(values: V, relu: bool) -> V {
        if relu {
            // SAFETY: the caller vouches for the target features.
            unsafe { V::zero().max(values) }
        } else {
            values
        }
    }
}

/// Activations in float32.
pub(crate) struct StoredF32;

impl Stored for StoredF32 {
    const NUMBERS: Numbers = Numbers::F32;

    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const f32) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::load(p) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, p: *mut f32) {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { values.store(p) }
    }
}

/// Activations in bfloat16.
pub(crate) struct StoredBf16;

impl Stored for StoredBf16 {
    const NUMBERS: Numbers = Numbers::Bf16;

    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const f32) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::load_bf16(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, p: *mut f32) {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { values.store_bf16(p.cast()) }
    }
}

/// Activations as integers from 0 to 255.
pub(crate) struct StoredU8;

impl Stored for StoredU8 {
    const NUMBERS: Numbers = Numbers::U8;

    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const f32) -> V {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::load_u8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, p: *mut f32) {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { values.store_u8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_quad<V: Vector>(quad: [V; 4], p: *mut f32, bounded: bool) {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { V::store_u8_quad(quad, p.cast(), bounded) }
    }

    #[inline(always)]
    unsafe fn activate<V: Vector>(values: V, _: bool) -> V {
        values
    }
}
