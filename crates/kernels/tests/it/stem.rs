//! The stem is compared with a naive convolution and max-pool.

use imgclass_kernels::{
    BatchDims, ConvShape, Int8Stem, Isa, Numbers, PackedStem, Pixels, blocked_to_nchw,
    words_to_nchw,
};

use crate::reference::{Case, guarded, guarded_words, numbers, to_bf16};
use crate::{pool, thread_counts};

/// Returns the stem's output in double precision, NCHW, and the largest sum of absolute products.
fn exact(case: &Case) -> (Vec<f64>, f64) {
    let conv = case.shape.output_dims(case.input);
    let channels = case.shape.out_channels;
    let pixels: Vec<_> = (0..conv.pixels()).map(|pixel| case.exact(pixel)).collect();
    let largest = pixels
        .iter()
        .flatten()
        .map(|(_, size)| *size)
        .fold(0.0, f64::max);
    let (h, w) = (conv.h.div_ceil(2), conv.w.div_ceil(2));
    let mut out = Vec::with_capacity(conv.n * channels * h * w);
    for (image, channel) in (0..conv.n * channels).map(|i| (i / channels, i % channels)) {
        for (y, x) in (0..h * w).map(|i| (i / w, i % w)) {
            let rows = (2 * y).saturating_sub(1)..conv.h.min(2 * y + 2);
            let value = rows
                .flat_map(|row| {
                    ((2 * x).saturating_sub(1)..conv.w.min(2 * x + 2))
                        .map(move |column| (row, column))
                })
                .map(|(row, column)| pixels[(image * conv.h + row) * conv.w + column][channel].0)
                .fold(f64::NEG_INFINITY, f64::max);
            out.push(value);
        }
    }
    (out, largest)
}

#[test]
fn the_stem_is_right_for_every_size_and_channel_count() {
    let table: &[(usize, [usize; 3])] = if cfg!(miri) {
        &[(17, [1, 1, 2]), (3, [1, 3, 5])]
    } else {
        &[
            (64, [1, 32, 32]),
            (64, [2, 33, 34]),
            (64, [1, 35, 63]),
            (64, [1, 100, 20]),
            (64, [9, 16, 17]),
            (17, [1, 1, 1]),
            (48, [1, 2, 3]),
            (16, [2, 3, 2]),
            (7, [1, 4, 57]),
            (64, [1, 130, 131]),
        ]
    };
    for &(out_channels, [n, h, w]) in table {
        let shape = ConvShape {
            in_channels: 3,
            out_channels,
            kernel: 7,
            stride: 2,
            padding: 3,
        };
        let input = BatchDims { n, h, w };
        let case = Case::new(shape, input, false, true);
        let (expected, size) = exact(&case);
        for isa in Isa::available() {
            let stem = PackedStem::new(isa, &case.weight, &case.bias);
            let dims = stem.output_dims(input);
            for &threads in thread_counts(&[1, 2, 3]) {
                let y = guarded(dims.blocked_len(out_channels), |out| {
                    stem.forward_into(&pool(threads), &case.x, input, out);
                });
                let y = blocked_to_nchw(&y, out_channels, dims);
                assert_eq!(y.len(), expected.len());
                let bound = 150.0 * size / f64::from(1 << 24);
                for (at, (got, want)) in y.iter().zip(&expected).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= bound,
                        "{isa}, {threads} threads, {input:?}: {got} for {want} at {at}"
                    );
                }
            }
        }
    }
}

/// The output channels and the images, rows and columns on which the stem is compared with a model.
fn model_table() -> &'static [(usize, [usize; 3])] {
    if cfg!(miri) {
        &[(17, [1, 1, 2]), (3, [1, 3, 5])]
    } else {
        &[
            (64, [2, 33, 34]),
            (64, [1, 9, 63]),
            (64, [9, 16, 17]),
            (17, [1, 1, 1]),
            (48, [1, 2, 3]),
            (16, [2, 3, 2]),
            (7, [1, 4, 57]),
            (100, [1, 40, 41]),
        ]
    }
}

/// Pools an image's convolution, of `h` rows and `w` columns, of which `conv` returns the values.
fn pooled(h: usize, w: usize, conv: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let values: Vec<f32> = (0..h * w).map(|i| conv(i / w, i % w)).collect();
    let (rows, columns) = (h.div_ceil(2), w.div_ceil(2));
    let largest = |i: usize| {
        let (y, x) = (i / columns, i % columns);
        let around = (2 * y).saturating_sub(1)..h.min(2 * y + 2);
        let across = (2 * x).saturating_sub(1)..w.min(2 * x + 2);
        let window = around.flat_map(|row| across.clone().map(move |column| row * w + column));
        window
            .map(|at| values[at])
            .fold(f32::NEG_INFINITY, f32::max)
    };
    (0..rows * columns).map(largest).collect()
}

/// Returns the number under tap (`ky`, `kx`) of convolution pixel (`y`, `x`) in `plane`, or `border`.
fn under<T: Copy>(
    plane: &[T],
    (h, w): (usize, usize),
    (y, x): (usize, usize),
    (ky, kx): (usize, usize),
    border: T,
) -> T {
    let (row, column) = (2 * y + ky, 2 * x + kx);
    if row < 3 || column < 3 || row - 3 >= h || column - 3 >= w {
        border
    } else {
        plane[(row - 3) * w + column - 3]
    }
}

/// Returns the images of planes `[n, 3, h, w]` with their pixels interleaved. Plane `p` becomes byte
/// `channels[p]`.
fn interleaved<T: Copy + Default>(
    planes: &[T],
    input: BatchDims,
    channels: [usize; 3],
) -> Vec<Vec<T>> {
    let pixels = input.h * input.w;
    let image = |planes: &[T]| {
        let mut image = vec![T::default(); 3 * pixels];
        for (plane, numbers) in planes.chunks_exact(pixels).enumerate() {
            for (pixel, number) in numbers.iter().enumerate() {
                image[3 * pixel + channels[plane]] = *number;
            }
        }
        image
    };
    planes.chunks_exact(3 * pixels).map(image).collect()
}

#[test]
fn the_stem_makes_the_same_bits_of_pixels_and_of_the_numbers_that_they_stand_for() {
    let values: [[f32; 256]; 3] = std::array::from_fn(|plane| {
        numbers(7 + plane as u64, 256)
            .try_into()
            .expect("256 numbers")
    });
    for &(out_channels, [n, h, w]) in model_table() {
        let input = BatchDims { n, h, w };
        let bytes: Vec<u8> = numbers(1, 3 * input.pixels())
            .into_iter()
            .map(|x| (x * 128.0 + 128.0) as u8)
            .collect();
        let planar: Vec<f32> = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| values[at / (h * w) % 3][usize::from(*byte)])
            .collect();
        let (weight, bias) = (numbers(2, out_channels * 147), numbers(3, out_channels));
        for channels in [[0, 1, 2], [2, 1, 0]] {
            let images = interleaved(&bytes, input, channels);
            let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
            let pixels = Pixels {
                images: &images,
                channels,
                values: &values,
            };
            for isa in Isa::available() {
                for stem in [
                    PackedStem::new(isa, &weight, &bias),
                    PackedStem::bf16(isa, &weight, &bias),
                ] {
                    let words = stem
                        .output_dims(input)
                        .words(out_channels, stem.output_numbers());
                    let pool = pool(2);
                    let expected =
                        guarded_words(words, |out| stem.forward_into(&pool, &planar, input, out));
                    let found = guarded_words(words, |out| {
                        stem.forward_pixels_into(&pool, pixels, input, out);
                    });
                    let bits =
                        |words: &[f32]| words.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&found) == bits(&expected),
                        "{isa}, {input:?}, {out_channels} channels, {channels:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_stem_in_integers_is_exact_with_its_border_values() {
    for &(out_channels, [n, h, w]) in model_table() {
        let input = BatchDims { n, h, w };
        let byte = |x: f32| (x * 128.0 + 128.0) as u8;
        let x: Vec<u8> = numbers(1, 3 * input.pixels())
            .into_iter()
            .map(byte)
            .collect();
        let stem = Int8Stem {
            weight: numbers(2, out_channels * 147)
                .into_iter()
                .map(|w| (w * 128.0) as i8)
                .collect(),
            scale: numbers(3, out_channels)
                .into_iter()
                .map(|x| 1e-3 * (1.5 + x))
                .collect(),
            bias: numbers(4, out_channels)
                .into_iter()
                .map(|x| 100.0 * x)
                .collect(),
            border: [124, 0, 255],
        };
        let mut expected = Vec::new();
        for (image, channel) in (0..n * out_channels).map(|i| (i / out_channels, i % out_channels))
        {
            let planes = &x[image * 3 * h * w..(image + 1) * 3 * h * w];
            let kernel = &stem.weight[channel * 147..(channel + 1) * 147];
            let conv = |y, x| {
                let mut sum = 0;
                for (tap, weight) in kernel.iter().enumerate() {
                    let plane = &planes[tap / 49 * h * w..][..h * w];
                    let at = (tap % 49 / 7, tap % 7);
                    let byte = under(plane, (h, w), (y, x), at, stem.border[tap / 49]);
                    sum += i32::from(byte) * i32::from(*weight);
                }
                (sum as f32 * stem.scale[channel] + stem.bias[channel]).max(0.0)
            };
            let pooled = pooled(h.div_ceil(2), w.div_ceil(2), conv);
            expected.extend(pooled.iter().map(|x| x.round_ties_even().clamp(0.0, 255.0)));
        }
        let images = interleaved(&x, input, [2, 0, 1]);
        let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        for isa in Isa::available() {
            let packed = PackedStem::int8(isa, &stem);
            let dims = packed.output_dims(input);
            for &threads in thread_counts(&[1, 3]) {
                let y = guarded_words(dims.words(out_channels, Numbers::U8), |out| {
                    let pixels = Pixels {
                        images: &images,
                        channels: [2, 0, 1],
                        values: &[[f32::NAN; 256]; 3],
                    };
                    packed.forward_pixels_into(&pool(threads), pixels, input, out);
                });
                let y = words_to_nchw(&y, out_channels, dims, Numbers::U8, 1.0);
                assert!(
                    y == expected,
                    "{isa}, {threads} threads, {input:?}, {out_channels} channels"
                );
            }
        }
    }
}

#[test]
fn the_stem_in_bfloat16_gives_the_bits_of_its_model() {
    for &(out_channels, [n, h, w]) in model_table() {
        let input = BatchDims { n, h, w };
        let x = numbers(1, 3 * input.pixels());
        let weight = numbers(2, out_channels * 147);
        let bias = numbers(3, out_channels);
        let mut expected = Vec::new();
        for (image, channel) in (0..n * out_channels).map(|i| (i / out_channels, i % out_channels))
        {
            let planes = &x[image * 3 * h * w..(image + 1) * 3 * h * w];
            let kernel = &weight[channel * 147..(channel + 1) * 147];
            // In each row of taps, pair by pair, the second of a pair first.
            let conv = |y, x| {
                let mut sum = bias[channel];
                for row in 0..21 {
                    for column in (0..8).map(|i| i ^ 1).filter(|column| *column < 7) {
                        let plane = &planes[row / 7 * h * w..][..h * w];
                        let number = under(plane, (h, w), (y, x), (row % 7, column), 0.0);
                        sum += to_bf16(number) * to_bf16(kernel[row * 7 + column]);
                    }
                }
                sum.max(0.0)
            };
            let pooled = pooled(h.div_ceil(2), w.div_ceil(2), conv);
            expected.extend(pooled.into_iter().map(to_bf16));
        }
        for isa in Isa::available() {
            let packed = PackedStem::bf16(isa, &weight, &bias);
            let dims = packed.output_dims(input);
            for &threads in thread_counts(&[1, 3]) {
                let y = guarded_words(dims.words(out_channels, Numbers::Bf16), |out| {
                    packed.forward_into(&pool(threads), &x, input, out);
                });
                let y = words_to_nchw(&y, out_channels, dims, Numbers::Bf16, 1.0);
                assert!(
                    y == expected,
                    "{isa}, {threads} threads, {input:?}, {out_channels} channels"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "a stem in integers reads bytes")]
fn a_stem_in_integers_refuses_numbers() {
    let stem = Int8Stem {
        weight: vec![1; 16 * 147],
        scale: vec![1.0; 16],
        bias: vec![0.0; 16],
        border: [0; 3],
    };
    let stem = PackedStem::int8(Isa::detect(), &stem);
    let _ = stem.forward(&pool(1), &[0.0; 12], BatchDims { n: 1, h: 2, w: 2 });
}

#[test]
#[should_panic(expected = "stem input length")]
fn pixels_of_the_wrong_length_are_refused() {
    let stem = PackedStem::new(Isa::detect(), &numbers(1, 16 * 147), &[0.0; 16]);
    let pixels = Pixels {
        images: &[&[0; 12], &[0; 11]],
        channels: [0, 1, 2],
        values: &[[0.0; 256]; 3],
    };
    let input = BatchDims { n: 2, h: 2, w: 2 };
    stem.forward_pixels_into(&pool(1), pixels, input, &mut [0.0; 32]);
}

#[test]
#[should_panic(expected = "stem input length")]
fn a_stem_input_of_the_wrong_length_is_refused() {
    let stem = PackedStem::new(Isa::detect(), &numbers(1, 16 * 147), &[0.0; 16]);
    let _ = stem.forward(&pool(1), &[0.0; 3], BatchDims { n: 1, h: 2, w: 2 });
}
