//! The last layers, the layout, and the choice of an instruction set.

use imgclass_kernels::{
    BLOCK, BatchDims, Isa, Numbers, PackedLinear, UnsupportedIsa, average_words, blocked_to_nchw,
    global_average_pool, nchw_to_blocked, nchw_to_words,
};

use crate::reference::{numbers, to_bf16};
use crate::{pool, thread_counts};

#[test]
fn the_fully_connected_layer_is_right_for_every_size() {
    let table: &[[usize; 3]] = if cfg!(miri) {
        &[[2, 5, 3]]
    } else {
        &[
            [1, 2048, 1000],
            [8, 2048, 1000],
            [64, 64, 10],
            [3, 100, 17],
            [1, 1, 1],
            [15, 33, 2],
            [2, 16, 21_841],
        ]
    };
    for &[n, inputs, outputs] in table {
        let (weight, bias, x) = (
            numbers(1, inputs * outputs),
            numbers(2, outputs),
            numbers(3, n * inputs),
        );
        for isa in Isa::available() {
            let linear = PackedLinear::new(isa, inputs, &weight, &bias);
            for &threads in thread_counts(&[1, 3]) {
                let y = linear.forward(&pool(threads), &x, n);
                assert_eq!(y.len(), n * outputs);
                for (at, got) in y.iter().enumerate() {
                    let row = &x[at / outputs * inputs..][..inputs];
                    let column = &weight[at % outputs * inputs..][..inputs];
                    let start = f64::from(bias[at % outputs]);
                    let products = row
                        .iter()
                        .zip(column)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let (sum, size) = products.fold((start, start.abs()), |(sum, size), p| {
                        (sum + p, size + p.abs())
                    });
                    let bound = (inputs + 2) as f64 * size / f64::from(1 << 24);
                    assert!(
                        (f64::from(*got) - sum).abs() <= bound,
                        "{isa}, [{n}, {inputs}, {outputs}] at {at}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_average_pool_is_right_for_every_size() {
    let table: &[(usize, [usize; 3])] = if cfg!(miri) {
        &[(17, [2, 2, 3])]
    } else {
        &[
            (2048, [1, 7, 7]),
            (2048, [9, 9, 9]),
            (17, [3, 1, 1]),
            (1, [1, 5, 2]),
        ]
    };
    for &(channels, [n, h, w]) in table {
        let dims = BatchDims { n, h, w };
        let x = numbers(1, channels * dims.pixels());
        let blocked = nchw_to_blocked(&x, channels, dims);
        for &threads in thread_counts(&[1, 4]) {
            let y = global_average_pool(&pool(threads), &blocked, channels, dims);
            let plane = h * w;
            assert_eq!(y.len(), n * channels);
            for (got, plane_values) in y.iter().zip(x.chunks_exact(plane)) {
                let sum: f64 = plane_values.iter().map(|v| f64::from(*v)).sum();
                let error = (f64::from(*got) - sum / plane as f64).abs();
                assert!(
                    error <= (plane + 2) as f64 / f64::from(1 << 24),
                    "{channels} channels, {dims:?}"
                );
            }
        }
    }
}

#[test]
fn the_fully_connected_layer_in_bfloat16_gives_the_bits_of_its_model() {
    let table: &[[usize; 3]] = if cfg!(miri) {
        &[[2, 5, 3]]
    } else {
        &[[2, 2048, 100], [3, 100, 17], [1, 1, 1], [15, 33, 2]]
    };
    for &[n, inputs, outputs] in table {
        let (weight, bias, x) = (
            numbers(1, inputs * outputs),
            numbers(2, outputs),
            numbers(3, n * inputs),
        );
        let expected: Vec<f32> = (0..n * outputs)
            .map(|at| {
                let row = &x[at / outputs * inputs..][..inputs];
                let column = &weight[at % outputs * inputs..][..inputs];
                // The second of each pair comes first.
                let order = (0..inputs.next_multiple_of(2)).map(|i| i ^ 1);
                order
                    .filter(|i| *i < inputs)
                    .fold(bias[at % outputs], |sum, i| {
                        sum + to_bf16(row[i]) * to_bf16(column[i])
                    })
            })
            .collect();
        for isa in Isa::available() {
            let linear = PackedLinear::bf16(isa, inputs, &weight, &bias);
            for &threads in thread_counts(&[1, 3]) {
                let y = linear.forward(&pool(threads), &x, n);
                assert!(y == expected, "{isa}, [{n}, {inputs}, {outputs}]");
            }
        }
    }
}

#[test]
fn the_average_pool_of_bfloat16_and_of_integers_is_right() {
    let table: &[(usize, [usize; 3])] = if cfg!(miri) {
        &[(17, [2, 2, 3])]
    } else {
        &[
            (2048, [9, 7, 7]),
            (100, [3, 1, 1]),
            (1, [1, 5, 2]),
            (70, [1, 20, 31]),
        ]
    };
    for &(channels, [n, h, w]) in table {
        let dims = BatchDims { n, h, w };
        for (kind, scale) in [(Numbers::Bf16, 1.0), (Numbers::U8, 0.25)] {
            let x: Vec<f32> = numbers(1, channels * dims.pixels())
                .into_iter()
                .map(|x| (x * 100.0 + 101.0).floor())
                .collect();
            let words = nchw_to_words(&x, channels, dims, kind);
            let y = average_words(&pool(3), &words, channels, dims, kind, scale);
            assert_eq!(y.len(), n * channels);
            // The numbers are integers, so that their sums are exact.
            for (got, plane) in y.iter().zip(x.chunks_exact(h * w)) {
                let expected = plane.iter().sum::<f32>() * (scale / (h * w) as f32);
                assert_eq!(*got, expected, "{kind}, {channels} channels, {dims:?}");
            }
        }
    }
}

#[test]
fn the_layout_puts_sixteen_channels_of_a_pixel_side_by_side_and_back() {
    let dims = BatchDims { n: 2, h: 3, w: 5 };
    for channels in [1, 15, 16, 17, 40] {
        let x = numbers(9, channels * dims.pixels());
        let blocked = nchw_to_blocked(&x, channels, dims);
        assert_eq!(blocked.len(), dims.blocked_len(channels));
        for (at, value) in blocked.iter().enumerate() {
            let (block, pixel, lane) = (
                at / BLOCK / dims.pixels(),
                at / BLOCK % dims.pixels(),
                at % BLOCK,
            );
            let channel = block * BLOCK + lane;
            let (image, place) = (pixel / 15, pixel % 15);
            let expected = if channel < channels {
                x[(image * channels + channel) * 15 + place]
            } else {
                0.0
            };
            assert_eq!(*value, expected, "{channels} channels at {at}");
        }
        assert_eq!(blocked_to_nchw(&blocked, channels, dims), x);
    }
}

#[test]
fn instruction_sets_are_found_by_name_and_the_portable_one_always_is() -> Result<(), UnsupportedIsa>
{
    let available = Isa::available();
    assert_eq!(available.first().copied(), Some(Isa::detect()));
    assert_eq!(available.last().map(|isa| isa.name()), Some("portable"));
    for isa in available {
        assert_eq!(Isa::named(isa.name())?, isa);
        assert_eq!(isa.to_string(), isa.name());
    }
    Ok(())
}

#[test]
fn an_unknown_instruction_set_is_refused_with_the_choices() {
    let text = Isa::named("sse9")
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        text.contains("\"sse9\"") && text.contains("portable"),
        "{text}"
    );
}
