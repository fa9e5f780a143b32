//! Activations from 8-bit integers to bfloat16 and back, where a layer that is kept wide meets one
//! that is not.
//!
//! Both are `[blocks][pixels][16]` words. A word of integers holds four channels and a word of
//! bfloat16 numbers two, so a block of integers has the channels of two blocks of bfloat16 numbers:
//! its word `w` has those of the words `2 * (w % 8)` and the next of block `w / 8`.

use half::bf16;
use imgclass_kernels::BLOCK;

/// Writes integers times `scale` as bfloat16 numbers.
pub(super) fn integers_to_bf16(integers: &[f32], pixels: usize, scale: f32, out: &mut [f32]) {
    let word = |low: u32, high: u32| {
        let bits = |integer: u32| {
            let number = bf16::from_f32((integer & 0xff) as f32 * scale);
            u32::from(number.to_bits())
        };
        f32::from_bits(bits(low) | bits(high) << 16)
    };
    for (block, lines) in out.chunks_exact_mut(pixels * BLOCK).enumerate() {
        let from = &integers[block / 2 * pixels * BLOCK..];
        let half = block % 2 * (BLOCK / 2);
        for (line, from) in lines.chunks_exact_mut(BLOCK).zip(from.chunks_exact(BLOCK)) {
            let (pairs, _) = line.as_chunks_mut::<2>();
            for (pair, integers) in pairs.iter_mut().zip(&from[half..]) {
                let bits = integers.to_bits();
                *pair = [word(bits, bits >> 8), word(bits >> 16, bits >> 24)];
            }
        }
    }
}

/// Writes bfloat16 numbers divided by `scale` as integers: rounded to nearest, ties to even, and
/// limited to 0 to 255, as the kernels store them.
pub(super) fn bf16_to_integers(numbers: &[f32], pixels: usize, scale: f32, out: &mut [f32]) {
    let byte = |bits: u32| {
        let number = f32::from_bits(bits);
        // The cast limits the number. It makes 0 of a NaN, where the kernels make 255; finite
        // weights give none.
        u32::from((number / scale).round_ties_even() as u8)
    };
    let two = |word: f32| byte(word.to_bits() << 16) | byte(word.to_bits() & 0xffff_0000) << 8;
    let blocks: Vec<&[f32]> = numbers.chunks_exact(pixels * BLOCK).collect();
    for (block, lines) in out.chunks_exact_mut(pixels * BLOCK).enumerate() {
        for (pixel, line) in lines.chunks_exact_mut(BLOCK).enumerate() {
            for (half, words) in line.chunks_exact_mut(BLOCK / 2).enumerate() {
                // The upper half of the last block may have no channels.
                let Some(from) = blocks.get(2 * block + half) else {
                    words.fill(0.0);
                    continue;
                };
                let (pairs, _) = from[pixel * BLOCK..][..BLOCK].as_chunks::<2>();
                for (word, [low, high]) in words.iter_mut().zip(pairs) {
                    *word = f32::from_bits(two(*low) | two(*high) << 16);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgclass_kernels::{BatchDims, Numbers, nchw_to_words, words_to_nchw};

    #[test]
    fn numbers_keep_their_places_and_integers_come_back_as_they_were() {
        for channels in [1, 31, 32, 33, 64, 96, 100, 192] {
            let dims = BatchDims { n: 2, h: 2, w: 3 };
            let count = channels * dims.pixels();
            let values: Vec<f32> = (0..count).map(|i| (i * 37 % 256) as f32).collect();
            let integers = nchw_to_words(&values, channels, dims, Numbers::U8);
            let words = |numbers| vec![f32::NAN; dims.words(channels, numbers)];
            let mut wide = words(Numbers::Bf16);
            integers_to_bf16(&integers, dims.pixels(), 0.5, &mut wide);
            let found = words_to_nchw(&wide, channels, dims, Numbers::Bf16, 1.0);
            let expected: Vec<f32> = values.iter().map(|x| x * 0.5).collect();
            assert_eq!(found, expected, "{channels}");
            let mut back = words(Numbers::U8);
            bf16_to_integers(&wide, dims.pixels(), 0.5, &mut back);
            let bits = |words: &[f32]| words.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&back), bits(&integers), "{channels}");
        }
    }

    #[test]
    fn numbers_beyond_a_byte_are_limited_and_halves_go_to_the_even_integer() {
        let values = [-3.0, 0.5, 1.5, 2.5, 254.0, 255.0, 300.0, 1e30];
        let dims = BatchDims { n: 1, h: 1, w: 1 };
        let wide = nchw_to_words(&values, values.len(), dims, Numbers::Bf16);
        let mut words = vec![f32::NAN; dims.words(values.len(), Numbers::U8)];
        bf16_to_integers(&wide, 1, 1.0, &mut words);
        let found = words_to_nchw(&words, values.len(), dims, Numbers::U8, 1.0);
        assert_eq!(found, [0.0, 0.0, 2.0, 2.0, 254.0, 255.0, 255.0, 255.0]);
    }
}
