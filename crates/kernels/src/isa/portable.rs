//! The kernels compiled for any processor.

use super::*;

// 8 accumulators, 4 weights, a pixel and a product take 14 of SSE2's 16 registers: three rows would
// spill, and lose a third of the speed.
kernels!(PORTABLE, portable, , simd::portable::F32x4, resample::across);
tile_kernels!(
    PORTABLE_F32_TO_F32, portable_f32_to_f32, ,
    Float32<simd::portable::F32x4>, StoredF32, 4, [1 2]
);
stem_kernels!(
    PORTABLE_F32_STEM, portable_f32_stem, ,
    Float32<simd::portable::F32x4>, StoredF32, 4, [1 2]
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
tile_kernels!(
    PORTABLE_INT8_TO_U8, portable_int8_to_u8, ,
    number::portable::Int8, StoredU8, 4, [1 2]
);
tile_kernels!(
    PORTABLE_INT8_TO_BF16, portable_int8_to_bf16, ,
    number::portable::Int8, StoredBf16, 4, [1 2]
);
stem_kernels!(PORTABLE_INT8_STEM, portable_int8_stem, , number::portable::Int8, StoredU8, 4, [1 2]);
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
