//! The kernels compiled for the instruction sets of x86-64.

use super::*;

kernels!(
    AVX512, avx512, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, resample::avx512::across
);
kernels!(
    AVX2, avx2, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, resample::avx2::across
);

// Float32. With AVX-512, 28 accumulators, 2 weights and 2 pixels take all 32 registers; with AVX2,
// 12 accumulators, 2 weights and a pixel take 15 of 16.
tile_kernels!(
    AVX512_F32_TO_F32, avx512_f32_to_f32, #[target_feature(enable = "avx512f")],
    Float32<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
stem_kernels!(
    AVX512_F32_STEM, avx512_f32_stem, #[target_feature(enable = "avx512f")],
    Float32<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
tile_kernels!(
    AVX2_F32_TO_F32, avx2_f32_to_f32, #[target_feature(enable = "avx2,fma")],
    Float32<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4 5 6]
);
stem_kernels!(
    AVX2_F32_STEM, avx2_f32_stem, #[target_feature(enable = "avx2,fma")],
    Float32<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4 5 6]
);

// Bfloat16. Where it is widened, a vector of weights takes two registers, and so does a pixel.
tile_kernels!(
    AVX512_BF16_TO_BF16, avx512_bf16_to_bf16, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
tile_kernels!(
    AVX512_BF16_TO_F32, avx512_bf16_to_f32, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
stem_kernels!(
    AVX512_BF16_STEM, avx512_bf16_stem, #[target_feature(enable = "avx512f,avx512bf16")],
    number::avx512::Bf16, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
);
tile_kernels!(
    AVX512_WIDENED_TO_BF16, avx512_widened_to_bf16, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
tile_kernels!(
    AVX512_WIDENED_TO_F32, avx512_widened_to_f32, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredF32, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
stem_kernels!(
    AVX512_WIDENED_STEM, avx512_widened_stem, #[target_feature(enable = "avx512f")],
    WidenedBf16<simd::avx512::F32x16>, StoredBf16, 2, [1 2 3 4 5 6 7 8 9 10 11 12]
);
tile_kernels!(
    AVX2_BF16_TO_BF16, avx2_bf16_to_bf16, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredBf16, 2, [1 2 3 4]
);
tile_kernels!(
    AVX2_BF16_TO_F32, avx2_bf16_to_f32, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredF32, 2, [1 2 3 4]
);
stem_kernels!(
    AVX2_BF16_STEM, avx2_bf16_stem, #[target_feature(enable = "avx2,fma")],
    WidenedBf16<simd::avx2::F32x8>, StoredBf16, 2, [1 2 3 4]
);

// Integers. With AVX-512 a tile is 64 channels wide, so that it writes whole cache lines: 24
// accumulators, 4 weights and a pixel take 29 registers. Widened integers take two registers for a
// vector of weights, as widened bfloat16 does.
tile_kernels!(
    AVX512_INT8_TO_U8, avx512_int8_to_u8, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredU8, 4, [1 2 3 4 5 6]
);
tile_kernels!(
    AVX512_INT8_TO_BF16, avx512_int8_to_bf16, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredBf16, 4, [1 2 3 4 5 6]
);
tile_kernels!(
    AVX512_INT8_TO_NATIVE_BF16, avx512_int8_to_native_bf16,
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16")],
    number::avx512::Int8<true>, StoredBf16, 4, [1 2 3 4 5 6]
);
stem_kernels!(
    AVX512_INT8_STEM, avx512_int8_stem, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")],
    number::avx512::Int8<false>, StoredU8, 4, [1 2 3 4 5 6]
);
tile_kernels!(
    AVXVNNI_INT8_TO_U8, avxvnni_int8_to_u8, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredU8, 2, [1 2 3 4 5 6]
);
tile_kernels!(
    AVXVNNI_INT8_TO_BF16, avxvnni_int8_to_bf16, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredBf16, 2, [1 2 3 4 5 6]
);
stem_kernels!(
    AVXVNNI_INT8_STEM, avxvnni_int8_stem, #[target_feature(enable = "avx2,fma,avxvnni")],
    number::avx2::VnniInt8, StoredU8, 2, [1 2 3 4 5 6]
);
tile_kernels!(
    AVX2_INT8_TO_U8, avx2_int8_to_u8, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredU8, 2, [1 2 3 4]
);
tile_kernels!(
    AVX2_INT8_TO_BF16, avx2_int8_to_bf16, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredBf16, 2, [1 2 3 4]
);
stem_kernels!(
    AVX2_INT8_STEM, avx2_int8_stem, #[target_feature(enable = "avx2,fma")],
    number::avx2::Int8, StoredU8, 2, [1 2 3 4]
);

// Winograd's transforms. Products of integers are bfloat16.
winograd_kernels!(
    AVX512_F32_WINOGRAD, avx512_f32_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredF32, StoredF32
);
winograd_kernels!(
    AVX512_BF16_WINOGRAD, avx512_bf16_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredBf16, StoredBf16
);
winograd_kernels!(
    AVX512_U8_WINOGRAD, avx512_u8_winograd, #[target_feature(enable = "avx512f")],
    simd::avx512::F32x16, StoredU8, StoredBf16
);
winograd_kernels!(
    AVX512_NATIVE_BF16_WINOGRAD, avx512_native_bf16_winograd,
    #[target_feature(enable = "avx512f,avx512bf16")],
    simd::avx512::F32x16Bf16, StoredBf16, StoredBf16
);
winograd_kernels!(
    AVX512_NATIVE_U8_WINOGRAD, avx512_native_u8_winograd,
    #[target_feature(enable = "avx512f,avx512bf16")],
    simd::avx512::F32x16Bf16, StoredU8, StoredBf16
);
winograd_kernels!(
    AVX2_F32_WINOGRAD, avx2_f32_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredF32, StoredF32
);
winograd_kernels!(
    AVX2_BF16_WINOGRAD, avx2_bf16_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredBf16, StoredBf16
);
winograd_kernels!(
    AVX2_U8_WINOGRAD, avx2_u8_winograd, #[target_feature(enable = "avx2,fma")],
    simd::avx2::F32x8, StoredU8, StoredBf16
);
