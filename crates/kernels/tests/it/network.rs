//! Every convolution shape of ResNet-50 is right, and an image has the same bits in any batch and
//! with any number of threads.

use imgclass_kernels::{
    BatchDims, ConvShape, Isa, PackedConv, PackedLinear, PackedStem, blocked_to_nchw,
    global_average_pool, join_images, nchw_to_blocked,
};

use crate::reference::{Case, Expected, numbers, run};
use crate::{pool, thread_counts};

/// For each layer: input channels, output channels, kernel, stride, and how many times smaller the
/// input's side is than the image's.
const LAYERS: [[usize; 5]; 22] = [
    [64, 64, 1, 1, 4],
    [64, 64, 3, 1, 4],
    [64, 256, 1, 1, 4],
    [256, 64, 1, 1, 4],
    [256, 128, 1, 1, 4],
    [128, 128, 3, 2, 4],
    [256, 512, 1, 2, 4],
    [128, 512, 1, 1, 8],
    [512, 128, 1, 1, 8],
    [128, 128, 3, 1, 8],
    [512, 256, 1, 1, 8],
    [256, 256, 3, 2, 8],
    [512, 1024, 1, 2, 8],
    [256, 1024, 1, 1, 16],
    [1024, 256, 1, 1, 16],
    [256, 256, 3, 1, 16],
    [1024, 512, 1, 1, 16],
    [512, 512, 3, 2, 16],
    [1024, 2048, 1, 2, 16],
    [512, 2048, 1, 1, 32],
    [2048, 512, 1, 1, 32],
    [512, 512, 3, 1, 32],
];

fn shape([in_channels, out_channels, kernel, stride, _]: [usize; 5]) -> ConvShape {
    ConvShape {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding: kernel / 2,
    }
}

fn check_every_layer(image: usize) {
    let pool = pool(2);
    for (index, layer) in LAYERS.into_iter().enumerate() {
        let side = image / layer[4];
        let case = Case::new(
            shape(layer),
            BatchDims {
                n: 1,
                h: side,
                w: side,
            },
            index % 2 == 0,
            index % 3 != 0,
        );
        let expected = Expected::new(&case, 16);
        for isa in Isa::available() {
            let (y, algorithm) = run(&case, isa, &pool);
            expected.check(&case, algorithm, &y, &format!("{isa}, {algorithm}"));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn every_layer_of_the_network_is_right_at_224() {
    check_every_layer(224);
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn every_layer_of_the_network_is_right_at_288() {
    check_every_layer(288);
}

/// Asserts that each image's output bits in a batch, on any number of threads, are those of the
/// image alone on one.
fn same_bits(what: &str, n: usize, forward: impl Fn(usize, &[usize]) -> Vec<f32>) {
    let images: Vec<usize> = (0..n).collect();
    let alone: Vec<Vec<u32>> = images.iter().map(|&i| bits(&forward(1, &[i]))).collect();
    let batches = [&images[..], &images[1..], &images[..1]];
    for &threads in thread_counts(&[1, 2, 3, 4]) {
        for batch in &batches[..if cfg!(miri) { 1 } else { 3 }] {
            let together = bits(&forward(threads, batch));
            for (at, &image) in batch.iter().enumerate() {
                let len = together.len() / batch.len();
                let one = &together[at * len..(at + 1) * len];
                assert!(
                    one == alone[image],
                    "{what}: image {image} of {batch:?} on {threads} threads"
                );
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Returns the chosen images of a set, one after the other. Each is `len` floats long.
fn pick(images: &[f32], len: usize, chosen: &[usize]) -> Vec<f32> {
    chosen
        .iter()
        .flat_map(|&i| images[i * len..(i + 1) * len].iter().copied())
        .collect()
}

#[test]
fn an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads() {
    let n = if cfg!(miri) { 2 } else { 5 };
    for isa in Isa::available() {
        let layers: &[([usize; 5], usize)] = if cfg!(miri) {
            &[([16, 2, 3, 1, 0], 3)]
        } else {
            &[
                ([64, 64, 3, 1, 0], 29),
                ([128, 128, 3, 1, 0], 14),
                ([512, 32, 3, 1, 0], 7),
                ([32, 48, 3, 2, 0], 15),
                ([64, 128, 1, 1, 0], 13),
                ([64, 32, 1, 2, 0], 8),
                ([256, 512, 1, 1, 0], 3),
            ]
        };
        for &(layer, side) in layers {
            let shape = shape(layer);
            let weight = numbers(5, shape.weight_len());
            let conv = PackedConv::new(isa, shape, &weight, &numbers(6, shape.out_channels));
            let len = shape.in_channels * side * side;
            let all = numbers(7, n * len);
            same_bits(&format!("{isa} {shape:?}"), n, |threads, chosen| {
                let dims = BatchDims {
                    n: chosen.len(),
                    h: side,
                    w: side,
                };
                let x = nchw_to_blocked(&pick(&all, len, chosen), shape.in_channels, dims);
                let y = conv.forward(&pool(threads), &x, dims, None, true);
                blocked_to_nchw(&y, shape.out_channels, conv.output_dims(dims))
            });
        }
    }
}

#[test]
fn entry_and_exit_have_the_same_bits_in_any_batch_and_with_any_number_of_threads() {
    let n = if cfg!(miri) { 2 } else { 5 };
    let (side, channels) = if cfg!(miri) { (3, 16) } else { (70, 64) };
    let classes = if cfg!(miri) { 5 } else { 100 };
    for isa in Isa::available() {
        let stem = PackedStem::new(isa, &numbers(1, channels * 147), &numbers(2, channels));
        let linear = PackedLinear::new(
            isa,
            channels,
            &numbers(3, classes * channels),
            &numbers(4, classes),
        );
        let len = 3 * side * side;
        let all = numbers(5, n * len);
        same_bits(
            &format!("{isa} stem to last layer"),
            n,
            |threads, chosen| {
                let pool = pool(threads);
                let input = BatchDims {
                    n: chosen.len(),
                    h: side,
                    w: side,
                };
                let x = stem.forward(&pool, &pick(&all, len, chosen), input);
                let x = global_average_pool(&pool, &x, channels, stem.output_dims(input));
                linear.forward(&pool, &x, chosen.len())
            },
        );
    }
}

#[test]
fn knowing_the_next_layers_weights_changes_no_bit() {
    let (channels, side) = if cfg!(miri) { (16, 3) } else { (96, 14) };
    let dims = BatchDims {
        n: 2,
        h: side,
        w: side,
    };
    let x = numbers(1, dims.blocked_len(channels));
    for isa in Isa::available() {
        let conv = |kernel| {
            let shape = shape([channels, channels, kernel, 1, 1]);
            PackedConv::new(
                isa,
                shape,
                &numbers(2, shape.weight_len()),
                &numbers(3, channels),
            )
        };
        // Under Miri, packing a 3x3 layer takes longer than all the rest.
        let kernels: &[usize] = if cfg!(miri) { &[1] } else { &[1, 3] };
        for &kernel in kernels {
            let (alone, linked) = (conv(kernel), conv(kernel));
            linked.precede(conv(kernels[kernels.len() - 1]).weights());
            for &threads in thread_counts(&[1, 2, 3]) {
                let run = |conv: &PackedConv| {
                    bits(&conv.forward(&pool(threads), &x, dims, Some(&x), true))
                };
                assert!(
                    run(&alone) == run(&linked),
                    "{isa}, kernel {kernel}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn images_joined_are_the_batch_that_they_came_from() {
    let (channels, blocks) = (40, 3);
    for sizes in [vec![1], vec![2, 1], vec![1, 1, 3]] {
        let part = |n: usize, seed| {
            let dims = BatchDims { n, h: 3, w: 5 };
            nchw_to_blocked(&numbers(seed, channels * dims.pixels()), channels, dims)
        };
        let parts: Vec<_> = sizes
            .iter()
            .zip(1..)
            .map(|(&n, seed)| part(n, seed))
            .collect();
        let slices: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        let n = sizes.iter().sum();
        let all: Vec<f32> = sizes
            .iter()
            .zip(1..)
            .flat_map(|(&n, seed)| numbers(seed, channels * n * 15))
            .collect();
        let whole = nchw_to_blocked(&all, channels, BatchDims { n, h: 3, w: 5 });
        for &threads in thread_counts(&[1, 3]) {
            assert_eq!(
                join_images(&pool(threads), &slices, blocks),
                whole,
                "{sizes:?}"
            );
        }
    }
}
