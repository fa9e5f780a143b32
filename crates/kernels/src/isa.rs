//! Which instruction sets this processor has, and the kernels that are compiled for each.
//!
//! An [`Isa`] is the proof that the processor has an instruction set: nothing but detection makes
//! one. Whoever packs a layer's weights chooses it, and the layer keeps it. [`Isa::kernels`] leads
//! from it to the entry points that the macro `kernels` compiles, once for each set, from the
//! code that is generic over [`simd::Vector`].

use std::fmt;

use super::number::{self, Float32, Numbers, Stored, StoredBf16, StoredF32, StoredU8, WidenedBf16};
use super::pack::WeightNumbers;
use super::resample;
use super::simd;
use super::stem::{PoolRow, StemTile};
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
            (Arithmetic::Avx512F32, Numbers::F32) => &AVX512_F32_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2F32, Numbers::F32) => &AVX2_F32_TO_F32,
            (Arithmetic::PortableF32, Numbers::F32) => &PORTABLE_F32_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Bf16, Numbers::F32) => &AVX512_BF16_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Bf16, Numbers::Bf16) => &AVX512_BF16_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Widened, Numbers::F32) => &AVX512_WIDENED_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Widened, Numbers::Bf16) => &AVX512_WIDENED_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Bf16, Numbers::F32) => &AVX2_BF16_TO_F32,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Bf16, Numbers::Bf16) => &AVX2_BF16_TO_BF16,
            (Arithmetic::PortableBf16, Numbers::F32) => &PORTABLE_BF16_TO_F32,
            (Arithmetic::PortableBf16, Numbers::Bf16) => &PORTABLE_BF16_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::U8) => &AVX512_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::Bf16) if self.multiplies_bf16() => {
                &AVX512_INT8_TO_NATIVE_BF16
            }
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx512Int8, Numbers::Bf16) => &AVX512_INT8_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::AvxVnniInt8, Numbers::U8) => &AVXVNNI_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::AvxVnniInt8, Numbers::Bf16) => &AVXVNNI_INT8_TO_BF16,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Int8, Numbers::U8) => &AVX2_INT8_TO_U8,
            #[cfg(target_arch = "x86_64")]
            (Arithmetic::Avx2Int8, Numbers::Bf16) => &AVX2_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonF32, Numbers::F32) => &NEON_F32_TO_F32,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonBf16, Numbers::F32) => &NEON_BF16_TO_F32,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonBf16, Numbers::Bf16) => &NEON_BF16_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::I8mmInt8, Numbers::U8) => &I8MM_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::I8mmInt8, Numbers::Bf16) => &I8MM_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::DotprodInt8, Numbers::U8) => &DOTPROD_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::DotprodInt8, Numbers::Bf16) => &DOTPROD_INT8_TO_BF16,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonInt8, Numbers::U8) => &NEON_INT8_TO_U8,
            #[cfg(target_arch = "aarch64")]
            (Arithmetic::NeonInt8, Numbers::Bf16) => &NEON_INT8_TO_BF16,
            (Arithmetic::PortableInt8, Numbers::U8) => &PORTABLE_INT8_TO_U8,
            (Arithmetic::PortableInt8, Numbers::Bf16) => &PORTABLE_INT8_TO_BF16,
            _ => panic!("no kernel multiplies {weights:?} and stores {stored}"),
        }
    }

    /// Returns the stem's kernels for weights of type `weights`, chosen as by [`Self::tiles`].
    pub(crate) fn stem(self, weights: WeightNumbers) -> &'static StemKernels {
        match self.arithmetic(weights) {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512F32 => &AVX512_F32_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Bf16 => &AVX512_BF16_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Widened => &AVX512_WIDENED_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512Int8 => &AVX512_INT8_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2F32 => &AVX2_F32_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2Bf16 => &AVX2_BF16_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::AvxVnniInt8 => &AVXVNNI_INT8_STEM,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2Int8 => &AVX2_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonF32 => &NEON_F32_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonBf16 => &NEON_BF16_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::I8mmInt8 => &I8MM_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::DotprodInt8 => &DOTPROD_INT8_STEM,
            #[cfg(target_arch = "aarch64")]
            Arithmetic::NeonInt8 => &NEON_INT8_STEM,
            Arithmetic::PortableF32 => &PORTABLE_F32_STEM,
            Arithmetic::PortableBf16 => &PORTABLE_BF16_STEM,
            Arithmetic::PortableInt8 => &PORTABLE_INT8_STEM,
        }
    }

    /// Returns Winograd's transforms of activations of type `activations`.
    pub(crate) fn winograd(self, activations: Numbers) -> &'static WinogradKernels {
        match (self.0, activations) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::F32) => &AVX512_F32_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::Bf16) if self.multiplies_bf16() => &AVX512_NATIVE_BF16_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::U8) if self.multiplies_bf16() => &AVX512_NATIVE_U8_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::Bf16) => &AVX512_BF16_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Numbers::U8) => &AVX512_U8_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::F32) => &AVX2_F32_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::Bf16) => &AVX2_BF16_WINOGRAD,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Numbers::U8) => &AVX2_U8_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::F32) => &NEON_F32_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::Bf16) => &NEON_BF16_WINOGRAD,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Numbers::U8) => &NEON_U8_WINOGRAD,
            (Kind::Portable, Numbers::F32) => &PORTABLE_F32_WINOGRAD,
            (Kind::Portable, Numbers::Bf16) => &PORTABLE_BF16_WINOGRAD,
            (Kind::Portable, Numbers::U8) => &PORTABLE_U8_WINOGRAD,
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
            Kind::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => &AVX2,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => &NEON,
            Kind::Portable => &PORTABLE,
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
    /// [`super::stem::tile`] or [`super::stem::tile_by_lane`]: `tiles[r - 1]` computes tiles of `r`
    /// pixels.
    pub tiles: &'static [unsafe fn(&StemTile)],
    /// [`super::stem::max_pool`], which computes one row.
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

/// Compiles the micro-kernels of products for operands of one type and results of one type, where a
/// tile is `$vectors` vectors wide and up to as many pixels tall as the last of `$rows` says. Its
/// accumulators (`$vectors` times that number), `$vectors` vectors of weights and a broadcast word
/// must fit the registers.
macro_rules! tile_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, [$($rows:literal)+]
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`tile::dense`].
            $(#[$feature])?
            pub(super) unsafe fn dense<const MR: usize>(t: &Tile) {
                // SAFETY: the tile is as `tile::dense` asks for, and this function enables the
                // operands' features.
                unsafe { tile::dense::<$operands, $stored, MR, $vectors>(t) }
            }
            /// # Safety
            /// As [`tile::indirect`].
            $(#[$feature])?
            pub(super) unsafe fn indirect<const MR: usize>(t: &Tile) {
                // SAFETY: the tile is as `tile::indirect` asks for, and this function enables the
                // operands' features.
                unsafe { tile::indirect::<$operands, $stored, MR, $vectors>(t) }
            }
        }
        static $name: TileKernels = TileKernels {
            width: $vectors * <<$operands as number::Operands>::Floats as simd::Vector>::LANES,
            stored: <$stored as Stored>::NUMBERS,
            pixel_offset: <$operands as number::Operands>::PIXEL_OFFSET,
            dense: &[$($module::dense::<$rows>),+],
            indirect: &[$($module::indirect::<$rows>),+],
        };
    };
}

/// Compiles the kernels of the stem, with tiles as [`tile_kernels`] has them. `by lane` takes those
/// of [`crate::stem::tile_by_lane`].
macro_rules! stem_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, $rows:tt
    ) => {
        stem_kernels!(
            @ $name, $module, $(#[$feature])?, $operands, $stored, $vectors, $rows,
            tile, $operands
        );
    };
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, $rows:tt, by lane
    ) => {
        stem_kernels!(
            @ $name, $module, $(#[$feature])?, $operands, $stored, $vectors, $rows,
            tile_by_lane, <$operands as number::Operands>::Floats
        );
    };
    (
        @ $name:ident, $module:ident, $(#[$feature:meta])?,
        $operands:ty, $stored:ty, $vectors:literal, [$($rows:literal)+], $tile:ident, $of:ty
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`crate::stem::tile`].
            $(#[$feature])?
            pub(super) unsafe fn tile<const MR: usize>(t: &StemTile) {
                // SAFETY: the tile is as `stem::tile` asks for, and this function enables the
                // operands' features.
                unsafe { crate::stem::$tile::<$of, MR, $vectors>(t) }
            }
            /// # Safety
            /// As [`crate::stem::max_pool`].
            $(#[$feature])?
            pub(super) unsafe fn max_pool(row: &PoolRow) {
                // SAFETY: the row is as `stem::max_pool` asks for, and this function enables the
                // operands' features.
                unsafe {
                    crate::stem::max_pool::<<$operands as number::Operands>::Floats, $stored>(row)
                }
            }
        }
        static $name: StemKernels = StemKernels {
            width: $vectors * <<$operands as number::Operands>::Floats as simd::Vector>::LANES,
            stored: <$stored as Stored>::NUMBERS,
            pixel_offset: <$operands as number::Operands>::PIXEL_OFFSET,
            tiles: &[$($module::tile::<$rows>),+],
            max_pool: $module::max_pool,
        };
    };
}

/// Compiles Winograd's transforms of activations of one type, with products of another.
macro_rules! winograd_kernels {
    (
        $name:ident, $module:ident, $(#[$feature:meta])?,
        $vector:ty, $activations:ty, $factors:ty
    ) => {
        mod $module {
            use super::*;
            /// # Safety
            /// As [`transform::input`].
            $(#[$feature])?
            pub(super) unsafe fn input<const S: usize, const Y: bool, const X: bool>(t: &InputTile) {
                // SAFETY: the tile is as `transform::input` asks for, and this function enables the
                // vector's features.
                unsafe { transform::input::<$vector, $activations, $factors, S, Y, X>(t) }
            }
            /// # Safety
            /// As [`transform::output`].
            $(#[$feature])?
            pub(super) unsafe fn output<const S: usize, const M: usize, const Y: bool, const X: bool>(
                t: &OutputTile,
            ) {
                // SAFETY: the tile is as `transform::output` asks for, and this function enables
                // the vector's features.
                unsafe { transform::output::<$vector, $activations, S, M, Y, X>(t) }
            }
        }
        static $name: WinogradKernels = WinogradKernels {
            activations: <$activations as Stored>::NUMBERS,
            factors: <$factors as Stored>::NUMBERS,
            input: [
                [
                    $module::input::<4, false, false>,
                    $module::input::<4, false, true>,
                    $module::input::<4, true, false>,
                    $module::input::<4, true, true>,
                ],
                [
                    $module::input::<6, false, false>,
                    $module::input::<6, false, true>,
                    $module::input::<6, true, false>,
                    $module::input::<6, true, true>,
                ],
            ],
            output: [
                [
                    $module::output::<4, 2, false, false>,
                    $module::output::<4, 2, false, true>,
                    $module::output::<4, 2, true, false>,
                    $module::output::<4, 2, true, true>,
                ],
                [
                    $module::output::<6, 4, false, false>,
                    $module::output::<6, 4, false, true>,
                    $module::output::<6, 4, true, false>,
                    $module::output::<6, 4, true, true>,
                ],
            ],
        };
    };
}

/// Compiles the other kernels for one instruction set.
macro_rules! kernels {
    ($name:ident, $module:ident, $(#[$feature:meta])?, $vector:ty, $across:path) => {
        mod $module {
            use super::*;
            /// # Safety
            /// The processor has the target features.
            $(#[$feature])?
            pub(super) unsafe fn chains() -> (f32, u64) {
                // SAFETY: this function enables the vector's features, and its caller vouches for
                // their presence.
                unsafe { crate::peak::chains::<$vector>() }
            }
            $(#[$feature])?
            #[allow(
                clippy::missing_safety_doc,
                reason = "clippy takes a safe function with target features for an unsafe one"
            )]
            pub(super) fn down(
                samples: &[u8],
                row_bytes: usize,
                rows: &[resample::Taps],
                out: &mut [u8],
            ) {
                resample::down(samples, row_bytes, rows, out);
            }
        }
        static $name: Kernels = Kernels {
            chains: $module::chains,
            across: $across,
            down: $module::down,
        };
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(
    AVX512, avx512, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, resample::avx512::across
);
#[cfg(target_arch = "x86_64")]
kernels!(
    AVX2, avx2, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, resample::avx2::across
);
kernels!(PORTABLE, portable, , simd::portable::F32x4, resample::across);
#[cfg(target_arch = "aarch64")]
kernels!(NEON, neon, #[target_feature(enable = "neon")], simd::neon::F32x4, resample::neon::across);

// Float32. With AVX-512, 28 accumulators, 2 weights and 2 pixels take all 32 registers; with AVX2,
// 12 accumulators, 2 weights and a pixel take 15 of 16. Portable, 8 accumulators, 4 weights, a pixel
// and a product take 14 of SSE2's 16: three rows would spill, and lose a third of the speed.
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_F32_TO_F32, avx512_f32_to_f32, #[target_feature(enable = "avx512f")],
    Float32<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX512_F32_STEM, avx512_f32_stem, #[target_feature(enable = "avx512f")],
    Float32<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX2_F32_TO_F32, avx2_f32_to_f32, #[target_feature(enable = "avx2,fma")],
    Float32<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX2_F32_STEM, avx2_f32_stem, #[target_feature(enable = "avx2,fma")],
    Float32<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4 5 6]
);
tile_kernels!(
    PORTABLE_F32_TO_F32, portable_f32_to_f32, ,
    Float32<simd::portable::F32x4>, StoredF32, 4, [1 2]
);
stem_kernels!(
    PORTABLE_F32_STEM, portable_f32_stem, ,
    Float32<simd::portable::F32x4>, StoredF32, 4, [1 2]
);

// Bfloat16. Where it is widened, a vector of weights takes two registers, and so does a pixel.
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_BF16_TO_BF16, avx512_bf16_to_bf16, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_BF16_TO_F32, avx512_bf16_to_f32, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX512_BF16_STEM, avx512_bf16_stem, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_WIDENED_TO_BF16, avx512_widened_to_bf16, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_WIDENED_TO_F32, avx512_widened_to_f32, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX512_WIDENED_STEM, avx512_widened_stem, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX2_BF16_TO_BF16, avx2_bf16_to_bf16, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredBf16, 2, [1 2 3 4]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX2_BF16_TO_F32, avx2_bf16_to_f32, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX2_BF16_STEM, avx2_bf16_stem, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredBf16, 2, [1 2 3 4]
);
tile_kernels!(
    PORTABLE_BF16_TO_BF16, portable_bf16_to_bf16, ,
    WidenedBf16<simd::portable::F32x4>, StoredBf16, 4, [1 2]
);
tile_kernels!(
    PORTABLE_BF16_TO_F32, portable_bf16_to_f32, ,
    WidenedBf16<simd::portable::F32x4>, StoredF32, 4, [1 2]
);
stem_kernels!(
    PORTABLE_BF16_STEM, portable_bf16_stem, ,
    WidenedBf16<simd::portable::F32x4>, StoredBf16, 4, [1 2]
);

// Integers. With AVX-512 a tile is 64 channels wide, so that it writes whole cache lines: 24
// accumulators, 4 weights and a pixel take 29 registers. Widened integers take two registers for a
// vector of weights, as widened bfloat16 does.
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_INT8_TO_U8, avx512_int8_to_u8, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredU8, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_INT8_TO_BF16, avx512_int8_to_bf16, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredBf16, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX512_INT8_TO_NATIVE_BF16, avx512_int8_to_native_bf16,
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16")],
    number::avx512::Int8<true>, StoredBf16, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX512_INT8_STEM, avx512_int8_stem, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredU8, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVXVNNI_INT8_TO_U8, avxvnni_int8_to_u8, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredU8, 2, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVXVNNI_INT8_TO_BF16, avxvnni_int8_to_bf16, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredBf16, 2, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVXVNNI_INT8_STEM, avxvnni_int8_stem, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredU8, 2, [1 2 3 4 5 6]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX2_INT8_TO_U8, avx2_int8_to_u8, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredU8, 2, [1 2 3 4]
);
#[cfg(target_arch = "x86_64")]
tile_kernels!(
    AVX2_INT8_TO_BF16, avx2_int8_to_bf16, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredBf16, 2, [1 2 3 4]
);
#[cfg(target_arch = "x86_64")]
stem_kernels!(
    AVX2_INT8_STEM, avx2_int8_stem, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredU8, 2, [1 2 3 4]
);
tile_kernels!(
    PORTABLE_INT8_TO_U8, portable_int8_to_u8, ,
    number::portable::Int8, StoredU8, 4, [1 2]
);
tile_kernels!(
    PORTABLE_INT8_TO_BF16, portable_int8_to_bf16, ,
    number::portable::Int8, StoredBf16, 4, [1 2]
);
stem_kernels!(PORTABLE_INT8_STEM, portable_int8_stem, , number::portable::Int8, StoredU8, 4, [1 2]);

// 64-bit Arm multiplies by a lane of a register, so that four words of each pixel stay loaded. 24
// accumulators, 6 pixels and a vector of weights take 31 of 32 registers. `sdot` needs one more for
// what turns bytes into signed ones, and widened numbers take two for each vector.
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    NEON_F32_TO_F32, neon_f32_to_f32, #[target_feature(enable = "neon")],
    number::neon::Float32, StoredF32, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "aarch64")]
stem_kernels!(
    NEON_F32_STEM, neon_f32_stem, #[target_feature(enable = "neon")],
    number::neon::Float32, StoredF32, 4, [1 2 3 4 5 6], by lane
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    NEON_BF16_TO_BF16, neon_bf16_to_bf16, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredBf16, 4, [1 2 3]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    NEON_BF16_TO_F32, neon_bf16_to_f32, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredF32, 4, [1 2 3]
);
#[cfg(target_arch = "aarch64")]
stem_kernels!(
    NEON_BF16_STEM, neon_bf16_stem, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredBf16, 4, [1 2 3]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    I8MM_INT8_TO_U8, i8mm_int8_to_u8, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredU8, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    I8MM_INT8_TO_BF16, i8mm_int8_to_bf16, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredBf16, 4, [1 2 3 4 5 6]
);
#[cfg(target_arch = "aarch64")]
stem_kernels!(
    I8MM_INT8_STEM, i8mm_int8_stem, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredU8, 4, [1 2 3 4 5]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    DOTPROD_INT8_TO_U8, dotprod_int8_to_u8, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredU8, 4, [1 2 3 4 5]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    DOTPROD_INT8_TO_BF16, dotprod_int8_to_bf16, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredBf16, 4, [1 2 3 4 5]
);
#[cfg(target_arch = "aarch64")]
stem_kernels!(
    DOTPROD_INT8_STEM, dotprod_int8_stem, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredU8, 4, [1 2 3 4 5]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    NEON_INT8_TO_U8, neon_int8_to_u8, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredU8, 4, [1 2]
);
#[cfg(target_arch = "aarch64")]
tile_kernels!(
    NEON_INT8_TO_BF16, neon_int8_to_bf16, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredBf16, 4, [1 2]
);
#[cfg(target_arch = "aarch64")]
stem_kernels!(
    NEON_INT8_STEM, neon_int8_stem, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredU8, 4, [1 2]
);

// Winograd's transforms. Products of integers are bfloat16.
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX512_F32_WINOGRAD, avx512_f32_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredF32, StoredF32
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX512_BF16_WINOGRAD, avx512_bf16_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredBf16, StoredBf16
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX512_U8_WINOGRAD, avx512_u8_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredU8, StoredBf16
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX512_NATIVE_BF16_WINOGRAD, avx512_native_bf16_winograd,
    #[target_feature(enable = "avx512f,avx512bf16")],
    simd::avx512::F32x16Bf16, StoredBf16, StoredBf16
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX512_NATIVE_U8_WINOGRAD, avx512_native_u8_winograd,
    #[target_feature(enable = "avx512f,avx512bf16")],
    simd::avx512::F32x16Bf16, StoredU8, StoredBf16
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX2_F32_WINOGRAD, avx2_f32_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredF32, StoredF32
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX2_BF16_WINOGRAD, avx2_bf16_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredBf16, StoredBf16
);
#[cfg(target_arch = "x86_64")]
winograd_kernels!(
    AVX2_U8_WINOGRAD, avx2_u8_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredU8, StoredBf16
);
winograd_kernels!(
    PORTABLE_F32_WINOGRAD, portable_f32_winograd, ,
    simd::portable::F32x4, StoredF32, StoredF32
);
winograd_kernels!(
    PORTABLE_BF16_WINOGRAD, portable_bf16_winograd, ,
    simd::portable::F32x4, StoredBf16, StoredBf16
);
winograd_kernels!(
    PORTABLE_U8_WINOGRAD, portable_u8_winograd, ,
    simd::portable::F32x4, StoredU8, StoredBf16
);
#[cfg(target_arch = "aarch64")]
winograd_kernels!(
    NEON_F32_WINOGRAD, neon_f32_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredF32, StoredF32
);
#[cfg(target_arch = "aarch64")]
winograd_kernels!(
    NEON_BF16_WINOGRAD, neon_bf16_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredBf16, StoredBf16
);
#[cfg(target_arch = "aarch64")]
winograd_kernels!(
    NEON_U8_WINOGRAD, neon_u8_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredU8, StoredBf16
);
