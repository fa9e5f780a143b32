//! The stem is compared with a naive convolution and max-pool.

use imgclass_kernels::{BatchDims, ConvShape, Isa, PackedStem, blocked_to_nchw};

use crate::pool;
use crate::reference::{Case, guarded, numbers};

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
        &[(17, [1, 5, 6])]
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
            for threads in [1, 2, 3] {
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

#[test]
#[should_panic(expected = "stem input length")]
fn a_stem_input_of_the_wrong_length_is_refused() {
    let stem = PackedStem::new(Isa::detect(), &numbers(1, 16 * 147), &[0.0; 16]);
    let _ = stem.forward(&pool(1), &[0.0; 3], BatchDims { n: 1, h: 2, w: 2 });
}
