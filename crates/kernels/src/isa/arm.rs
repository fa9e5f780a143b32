//! The kernels compiled for 64-bit Arm.

use super::*;
kernels!(NEON, neon, #[target_feature(enable = "neon")], simd::neon::F32x4, resample::neon::across);

// 64-bit Arm multiplies by a lane of a register, so that four words of each pixel stay loaded. 24
// accumulators, 6 pixels and a vector of weights take 31 of 32 registers. `sdot` needs one more for
// what turns bytes into signed ones, and widened numbers take two for each vector.
tile_kernels!(
    NEON_F32_TO_F32, neon_f32_to_f32, #[target_feature(enable = "neon")],
    number::neon::Float32, StoredF32, 4, [1 2 3 4 5 6]
);
stem_kernels!(
    NEON_F32_STEM, neon_f32_stem, #[target_feature(enable = "neon")],
    number::neon::Float32, StoredF32, 4, [1 2 3 4 5 6], by lane
);
tile_kernels!(
    NEON_BF16_TO_BF16, neon_bf16_to_bf16, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredBf16, 4, [1 2 3]
);
tile_kernels!(
    NEON_BF16_TO_F32, neon_bf16_to_f32, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredF32, 4, [1 2 3]
);
stem_kernels!(
    NEON_BF16_STEM, neon_bf16_stem, #[target_feature(enable = "neon")],
    number::neon::Bf16, StoredBf16, 4, [1 2 3]
);
tile_kernels!(
    I8MM_INT8_TO_U8, i8mm_int8_to_u8, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredU8, 4, [1 2 3 4 5 6]
);
tile_kernels!(
    I8MM_INT8_TO_BF16, i8mm_int8_to_bf16, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredBf16, 4, [1 2 3 4 5 6]
);
stem_kernels!(
    I8MM_INT8_STEM, i8mm_int8_stem, #[target_feature(enable = "neon,i8mm")],
    number::neon::MixedInt8, StoredU8, 4, [1 2 3 4 5]
);
tile_kernels!(
    DOTPROD_INT8_TO_U8, dotprod_int8_to_u8, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredU8, 4, [1 2 3 4 5]
);
tile_kernels!(
    DOTPROD_INT8_TO_BF16, dotprod_int8_to_bf16, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredBf16, 4, [1 2 3 4 5]
);
stem_kernels!(
    DOTPROD_INT8_STEM, dotprod_int8_stem, #[target_feature(enable = "neon,dotprod")],
    number::neon::SignedInt8, StoredU8, 4, [1 2 3 4 5]
);
tile_kernels!(
    NEON_INT8_TO_U8, neon_int8_to_u8, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredU8, 4, [1 2]
);
tile_kernels!(
    NEON_INT8_TO_BF16, neon_int8_to_bf16, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredBf16, 4, [1 2]
);
stem_kernels!(
    NEON_INT8_STEM, neon_int8_stem, #[target_feature(enable = "neon")],
    number::neon::WidenedInt8, StoredU8, 4, [1 2]
);
winograd_kernels!(
    NEON_F32_WINOGRAD, neon_f32_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredF32, StoredF32
);
winograd_kernels!(
    NEON_BF16_WINOGRAD, neon_bf16_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredBf16, StoredBf16
);
winograd_kernels!(
    NEON_U8_WINOGRAD, neon_u8_winograd, #[target_feature(enable = "neon")],
    simd::neon::F32x4, StoredU8, StoredBf16
);
