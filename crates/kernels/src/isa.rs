//! Which instruction sets this processor has, and the kernels that are compiled for each.
//!
//! An [`Isa`] is the proof that the processor has an instruction set: nothing but detection makes
//! one. Whoever packs a layer's weights chooses it, and the layer keeps it. An [`Isa`] leads to the
//! entry points that the macros of [`compile`] make, once for each set and number type, from the code
//! that is generic over [`simd::Vector`] and over [`number::Operands`].

#[macro_use]
mod compile;
#[cfg(target_arch = "aarch64")]
mod arm;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

use super::number::{self, Float32, Numbers, Stored, StoredBf16, StoredF32, StoredU8, WidenedBf16};
use super::pack::WeightNumbers;
use super::resample;
use super::simd;
use super::stem::pool::PoolRow;
use super::stem::tile::StemTile;
use super::tile::{self, Tile, TileFn};
use super::winograd::transform::{self, InputTile, OutputTile};

/// An instruction set that this processor has. Only [`Isa::detect`], [`Isa::available`] and
/// [`Isa::named`] make one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

/// How numbers of one type are multiplied on one instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    #[cfg(target_arch = "x86_64")]
    Avx512F32,
    /// By AVX512_BF16's `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Bfloat16 as float32.
    #[cfg(target_arch = "x86_64")]
    Avx512Widened,
    /// By AVX512_VNNI's `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Avx512Int8,
    #[cfg(target_arch = "x86_64")]
    Avx2F32,
    #[cfg(target_arch = "x86_64")]
    Avx2Bf16,
    /// By AVX-VNNI's `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    AvxVnniInt8,
    #[cfg(target_arch = "x86_64")]
    Avx2Int8,
    #[cfg(target_arch = "aarch64")]
    NeonF32,
    /// Bfloat16 as float32.
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
    /// By `sudot`, which came with i8mm.
    #[cfg(target_arch = "aarch64")]
    I8mmInt8,
    /// By `sdot`, of the dot products.
    #[cfg(target_arch = "aarch64")]
    DotprodInt8,
    #[cfg(target_arch = "aarch64")]
    NeonInt8,
    PortableF32,
    PortableBf16,
    PortableInt8,
}

/// The error for an instruction set that is unknown, or that this processor lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedIsa {
    name: String,
}

impl fmt::Display for UnsupportedIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        write!(
            f,
            "instruction set {:?} is not available here; choose one of: {}",
            self.name,
            names.join(", ")
        )
    }
}

impl std::error::Error for UnsupportedIsa {}

impl Isa {
    /// Returns the fastest instruction set of this processor.
    #[must_use]
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// Returns every instruction set that this processor has, the fastest first. `portable` is
    /// always the last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            // Only Xeon Phi has the first without the second, which the resize needs.
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
            {
                found.push(Self(Kind::Avx512));
            }
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                found.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Self(Kind::Neon));
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// Returns the instruction set called `name`: `avx512`, `avx2`, `neon` or `portable`.
    ///
    /// # Errors
    /// Returns [`UnsupportedIsa`] if there is none of that name, or this processor lacks it.
    pub fn named(name: &str) -> Result<Self, UnsupportedIsa> {
        let found = Self::available().into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| UnsupportedIsa {
            name: name.to_owned(),
        })
    }

    /// Returns `avx512`, `avx2`, `neon` or `portable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            Kind::Portable => "portable",
        }
    }

    /// Returns the micro-kernels for weights of type `weights` and results of type `stored`. They
    /// are of this instruction set, or of a lesser one where the processor lacks the instructions
    /// for the type.
    ///
    /// # Panics
    /// If no layer multiplies and stores such numbers.
    pub(crate) fn tiles(self, weights: WeightNumbers, stored: Numbers) -> &'static TileKernels {
        let multiplies = self.arithmetic(weights);
        match (multiplies, stored) {
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512F32, Numbers::F32) => &x86::AVX512_F32_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2F32, Numbers::F32) => &x86::AVX2_F32_TO_F32,
            (Arithmetic::PortableF32, Numbers::F32) => &portable::PORTABLE_F32_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Bf16, Numbers::F32) => &x86::AVX512_BF16_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Bf16, Numbers::Bf16) => &x86::AVX512_BF16_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Widened, Numbers::F32) => &x86::AVX512_WIDENED_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Widened, Numbers::Bf16) => &x86::AVX512_WIDENED_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Bf16, Numbers::F32) => &x86::AVX2_BF16_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Bf16, Numbers::Bf16) => &x86::AVX2_BF16_TO_BF16,
            (Arithmetic::PortableBf16, Numbers::F32) => &portable::PORTABLE_BF16_TO_F32,
            (Arithmetic::PortableBf16, Numbers::Bf16) => &portable::PORTABLE_BF16_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::U8) => &x86::AVX512_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::Bf16) if self.multiplies_bf16() => {
                &x86::AVX512_INT8_TO_NATIVE_BF16
            }
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::Bf16) => &x86::AVX512_INT8_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::AvxVnniInt8, Numbers::U8) => &x86::AVXVNNI_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::AvxVnniInt8, Numbers::Bf16) => &x86::AVXVNNI_INT8_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Int8, Numbers::U8) => &x86::AVX2_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Int8, Numbers::Bf16) => &x86::AVX2_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonF32, Numbers::F32) => &arm::NEON_F32_TO_F32,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonBf16, Numbers::F32) => &arm::NEON_BF16_TO_F32,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonBf16, Numbers::Bf16) => &arm::NEON_BF16_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::I8mmInt8, Numbers::U8) => &arm::I8MM_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::I8mmInt8, Numbers::Bf16) => &arm::I8MM_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::DotprodInt8, Numbers::U8) => &arm::DOTPROD_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::DotprodInt8, Numbers::Bf16) => &arm::DOTPROD_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonInt8, Numbers::U8) => &arm::NEON_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonInt8, Numbers::Bf16) => &arm::NEON_INT8_TO_BF16,
            (Arithmetic::PortableInt8, Numbers::U8) => &portable::PORTABLE_INT8_TO_U8,
            (Arithmetic::PortableInt8, Numbers::Bf16) => &portable::PORTABLE_INT8_TO_BF16,
            _ => panic!("no kernel multiplies {weights:?} and stores {stored}"),
        }
    }

    /// Returns the stem's kernels for weights of type `weights`, chosen as by [`Self::tiles`].
    pub(crate) fn stem(self, weights: WeightNumbers) -> &'static StemKernels {
        match self.arithmetic(weights) {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512F32 => &x86::AVX512_F32_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Bf16 => &x86::AVX512_BF16_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Widened => &x86::AVX512_WIDENED_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Int8 => &x86::AVX512_INT8_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2F32 => &x86::AVX2_F32_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2Bf16 => &x86::AVX2_BF16_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::AvxVnniInt8 => &x86::AVXVNNI_INT8_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2Int8 => &x86::AVX2_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonF32 => &arm::NEON_F32_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonBf16 => &arm::NEON_BF16_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::I8mmInt8 => &arm::I8MM_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::DotprodInt8 => &arm::DOTPROD_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonInt8 => &arm::NEON_INT8_STEM,
            Arithmetic::PortableF32 => &portable::PORTABLE_F32_STEM,
            Arithmetic::PortableBf16 => &portable::PORTABLE_BF16_STEM,
            Arithmetic::PortableInt8 => &portable::PORTABLE_INT8_STEM,
        }
    }

    /// Returns Winograd's transforms of activations of type `activations`.
    pub(crate) fn winograd(self, activations: Numbers) -> &'static WinogradKernels {
        match (self.0, activations) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::F32) => &x86::AVX512_F32_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::Bf16) if self.multiplies_bf16() => {
                &x86::AVX512_NATIVE_BF16_WINOGRAD
            }
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::U8) if self.multiplies_bf16() => {
                &x86::AVX512_NATIVE_U8_WINOGRAD
            }
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::Bf16) => &x86::AVX512_BF16_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::U8) => &x86::AVX512_U8_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::F32) => &x86::AVX2_F32_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::Bf16) => &x86::AVX2_BF16_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::U8) => &x86::AVX2_U8_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::F32) => &arm::NEON_F32_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::Bf16) => &arm::NEON_BF16_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::U8) => &arm::NEON_U8_WINOGRAD,
            (Kind::Portable, Numbers::F32) => &portable::PORTABLE_F32_WINOGRAD,
            (Kind::Portable, Numbers::Bf16) => &portable::PORTABLE_BF16_WINOGRAD,
            (Kind::Portable, Numbers::U8) => &portable::PORTABLE_U8_WINOGRAD,
        }
    }

    /// Returns by which instructions numbers of this type are multiplied: the best that this set
    /// and the processor have.
    fn arithmetic(self, weights: WeightNumbers) -> Arithmetic {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = self.0 == Kind::Avx512;
            let avx2 = self.0 == Kind::Avx2 || avx512 && has!("avx2") && has!("fma");
            match weights {
                WeightNumbers::F32 if avx512 => return Arithmetic::Avx512F32,
                WeightNumbers::F32 if avx2 => return Arithmetic::Avx2F32,
                WeightNumbers::Bf16 if avx512 && has!("avx512bf16") => {
                    return Arithmetic::Avx512Bf16;
                }
                WeightNumbers::Bf16 if avx512 => return Arithmetic::Avx512Widened,
                WeightNumbers::Bf16 if avx2 => return Arithmetic::Avx2Bf16,
                WeightNumbers::I8 if avx512 && has!("avx512vnni") => {
                    return Arithmetic::Avx512Int8;
                }
                WeightNumbers::I8 if avx2 && has!("avxvnni") => return Arithmetic::AvxVnniInt8,
                WeightNumbers::I8 if avx2 => return Arithmetic::Avx2Int8,
                _ => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self.0 == Kind::Neon {
            use std::arch::is_aarch64_feature_detected as has;
            return match weights {
                WeightNumbers::F32 => Arithmetic::NeonF32,
                WeightNumbers::Bf16 => Arithmetic::NeonBf16,
                WeightNumbers::I8 if has!("i8mm") => Arithmetic::I8mmInt8,
                WeightNumbers::I8 if has!("dotprod") => Arithmetic::DotprodInt8,
                WeightNumbers::I8 => Arithmetic::NeonInt8,
            };
        }
        match weights {
            WeightNumbers::F32 => Arithmetic::PortableF32,
            WeightNumbers::Bf16 => Arithmetic::PortableBf16,
            WeightNumbers::I8 => Arithmetic::PortableInt8,
        }
    }

    /// Whether the processor has an instruction of this set for products of bfloat16 numbers.
    /// Without one they are as fast as float32 at best.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        match self.arithmetic(WeightNumbers::Bf16) {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// Whether the processor has an instruction of this set for products of 8-bit integers. Without
    /// one they are about as fast as float32.
    #[must_use]
    pub fn multiplies_int8(self) -> bool {
        match self.arithmetic(WeightNumbers::I8) {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Int8 | Arithmetic::AvxVnniInt8 => true,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::I8mmInt8 | Arithmetic::DotprodInt8 => true,
            _ => false,
        }
    }

    /// Returns the kernels compiled for this instruction set.
    pub(crate) fn kernels(self) -> &'static Kernels {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => &x86::AVX512,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => &x86::AVX2,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => &arm::NEON,
            Kind::Portable => &portable::PORTABLE,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The micro-kernels of products, compiled for one number type on one instruction set.
pub(crate) struct TileKernels {
    /// Output channels of a weight panel: the vectors of a tile times their lanes, a multiple of
    /// 16.
    pub width: usize,
    /// The type of what is stored.
    pub stored: Numbers,
    /// [`Operands::PIXEL_OFFSET`](number::Operands::PIXEL_OFFSET).
    pub pixel_offset: i32,
    /// [`tile::dense`]: `dense[r - 1]` computes tiles of `r` pixels, so its length is the tallest
    /// tile.
    pub dense: &'static [TileFn],
    /// [`tile::indirect`], likewise.
    pub indirect: &'static [TileFn],
}

/// The kernels of the stem, compiled for one number type on one instruction set.
pub(crate) struct StemKernels {
    /// Output channels of a weight panel.
    pub width: usize,
    /// The type of what is stored.
    pub stored: Numbers,
    /// [`Operands::PIXEL_OFFSET`](number::Operands::PIXEL_OFFSET).
    pub pixel_offset: i32,
    /// [`super::stem::tile::tile`] or [`super::stem::tile::tile_by_lane`]: `tiles[r - 1]` computes tiles of `r`
    /// pixels.
    pub tiles: &'static [unsafe fn(&StemTile)],
    /// [`super::stem::pool::max_pool`], which computes one row.
    pub max_pool: unsafe fn(&PoolRow),
}

/// Winograd's transforms, compiled for one type of activations on one instruction set.
pub(crate) struct WinogradKernels {
    /// The type of the input and of the output.
    pub activations: Numbers,
    /// The type of the transformed input.
    pub factors: Numbers,
    /// [`transform::input`] of F(2x2, 3x3) and F(4x4, 3x3): each for full tiles, those a column
    /// short, those a row short, and those short by both.
    pub input: [[unsafe fn(&InputTile); 4]; 2],
    /// [`transform::output`], likewise.
    pub output: [[unsafe fn(&OutputTile); 4]; 2],
}

/// The entry points compiled for one instruction set.
///
/// Calling one is `unsafe`, because its arguments carry raw pointers: each has the contract of the
/// generic function that it is compiled from. That the processor has the target features is
/// settled, since only an [`Isa`] leads here.
pub(crate) struct Kernels {
    /// [`super::peak::chains`], which measures the peak.
    pub chains: unsafe fn() -> (f32, u64),
    /// The pass of a resize across rows.
    pub across: resample::Pass,
    /// The pass of a resize down columns.
    pub down: resample::Pass,
}
