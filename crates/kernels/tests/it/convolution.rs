//! Convolutions are right around every edge of the tiling.

use imgclass_kernels::{Algorithm, BatchDims, ConvShape, Isa};

use crate::reference::{Case, Expected, run};
use crate::{pool, short_tables, thread_counts};

/// Input channels, output channels, kernel, stride, padding; then images, rows, columns.
pub(crate) type Row = ([usize; 5], [usize; 3]);

/// Windows for Miri. In this order: a tile of one pixel after one of two, whose pixels are read where
/// they lie; two pixels apart, as a stride of 2 puts them; pixels that are copied together, of two
/// rows and from outside the image; a padding that is wider than the kernel reaches.
pub(crate) const MIRI_WINDOWS: &[Row] = &[
    ([3, 5, 2, 1, 0], [1, 2, 4]),
    ([3, 5, 1, 2, 0], [1, 1, 3]),
    ([3, 5, 2, 1, 1], [1, 1, 2]),
    ([3, 5, 2, 3, 2], [1, 2, 1]),
];

fn case((shape, dims): Row, residual: bool, relu: bool) -> Case {
    let [in_channels, out_channels, kernel, stride, padding] = shape;
    let [n, h, w] = dims;
    let shape = ConvShape {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding,
    };
    Case::new(shape, BatchDims { n, h, w }, residual, relu)
}

fn check_all(rows: &[Row]) {
    let threads = thread_counts(&[1, 3]).iter();
    let pools: Vec<_> = threads.map(|&threads| pool(threads)).collect();
    for (index, &row) in rows.iter().enumerate() {
        // Each epilogue meets each kind of shape as the rows go by.
        let case = case(row, index % 2 == 0, index % 3 != 0);
        let expected = Expected::new(&case, 400);
        for isa in Isa::available() {
            for pool in &pools {
                let (y, algorithm) = run(&case, isa, pool);
                expected.check(
                    &case,
                    algorithm,
                    &y,
                    &format!("{isa}, {} threads, {algorithm}", pool.threads()),
                );
            }
        }
    }
}

#[test]
fn pointwise_convolutions_are_right_for_every_count_of_pixels_around_a_tile() {
    // Tiles are up to 14 pixels tall; two tiles and a remainder show every height.
    let last = if cfg!(miri) { 3 } else { 44 };
    let rows: Vec<Row> = (1..=last).map(|w| ([16, 32, 1, 1, 0], [1, 1, w])).collect();
    check_all(&rows);
}

#[test]
fn pointwise_convolutions_are_right_for_channels_around_blocks_and_panels() {
    let channels: &[usize] = if cfg!(miri) {
        return check_all(&[([1, 17, 1, 1, 0], [1, 1, 3]), ([17, 1, 1, 1, 0], [1, 3, 1])]);
    } else if short_tables() {
        &[1, 16, 17, 33, 64]
    } else {
        &[1, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100]
    };
    let rows: Vec<Row> = channels
        .iter()
        .flat_map(|&i| channels.iter().map(move |&o| ([i, o, 1, 1, 0], [1, 3, 5])))
        .collect();
    check_all(&rows);
}

#[test]
fn convolutions_are_right_for_every_kernel_stride_and_padding() {
    if cfg!(miri) {
        return check_all(MIRI_WINDOWS);
    }
    let mut rows: Vec<Row> = Vec::new();
    let (kernels, sides): (&[usize], &[[usize; 2]]) = if short_tables() {
        (&[1, 3, 7], &[[8, 9]])
    } else {
        (&[1, 2, 3, 5, 7], &[[7, 7], [8, 9], [15, 13], [9, 30]])
    };
    for &kernel in kernels {
        for stride in [1, 2, 3] {
            for padding in 0..=kernel / 2 + 1 {
                rows.extend(
                    sides
                        .iter()
                        .map(|&[h, w]| ([17, 33, kernel, stride, padding], [2, h, w])),
                );
            }
        }
    }
    check_all(&rows);
}

#[test]
fn winograd_is_right_for_every_remainder_of_its_tiles() {
    if cfg!(miri) {
        // Tiles that are a column short, a row short, both, and that reach beyond the image; one that
        // lies inside it with all that it reads; and the smaller tile. Every second row has a
        // residual, with which a layer is computed twice: the larger ones have none.
        return check_all(&[
            ([16, 1, 3, 1, 1], [1, 1, 3]),
            ([16, 1, 3, 1, 1], [1, 12, 12]),
            ([16, 1, 3, 1, 1], [1, 3, 2]),
            ([512, 1, 3, 1, 1], [1, 1, 2]),
            ([16, 1, 3, 1, 1], [1, 3, 7]),
        ]);
    }
    let last = if short_tables() { 6 } else { 10 };
    let sides = (1..=last).flat_map(|h| (1..=last).map(move |w| ([16, 17, 3, 1, 1], [1, h, w])));
    let mut rows: Vec<Row> = sides.collect();
    rows.extend([1, 2, 3, 4, 7, 8].map(|side| ([512, 40, 3, 1, 1], [2, side, side + 1])));
    // These are cut into chunks, which a thread computes alone or all threads share.
    rows.extend([
        ([64, 64, 3, 1, 1], [3, 56, 56]),
        ([40, 24, 3, 1, 1], [5, 33, 35]),
    ]);
    if !short_tables() {
        rows.extend([
            ([64, 64, 3, 1, 1], [2, 61, 47]),
            ([256, 32, 3, 1, 1], [20, 14, 14]),
            ([130, 20, 3, 1, 1], [9, 28, 28]),
        ]);
    }
    check_all(&rows);
}

#[test]
fn images_of_one_pixel_are_right() {
    let rows: &[Row] = if cfg!(miri) {
        &[
            ([16, 16, 1, 1, 0], [1, 1, 1]),
            ([16, 2, 3, 1, 1], [1, 1, 1]),
            ([5, 5, 3, 2, 1], [1, 1, 1]),
            ([16, 5, 1, 2, 0], [3, 1, 1]),
        ]
    } else {
        &[
            ([16, 16, 1, 1, 0], [1, 1, 1]),
            ([512, 48, 3, 1, 1], [1, 1, 1]),
            ([32, 32, 3, 1, 1], [1, 1, 1]),
            ([32, 32, 3, 2, 1], [1, 1, 1]),
            ([32, 32, 1, 2, 0], [3, 1, 1]),
            ([5, 5, 7, 2, 3], [1, 1, 1]),
        ]
    };
    check_all(rows);
}

#[test]
#[cfg_attr(miri, ignore = "large")]
fn the_algorithm_follows_from_the_shape() {
    let algorithm = |row: Row| {
        let case = case(row, false, false);
        run(&case, Isa::detect(), &pool(1)).1
    };
    let table = [
        ([64, 64, 1, 1, 0], Algorithm::Gemm),
        ([64, 64, 1, 2, 0], Algorithm::ImplicitGemm),
        ([64, 64, 3, 2, 1], Algorithm::ImplicitGemm),
        ([64, 64, 3, 1, 1], Algorithm::Winograd4),
        ([512, 64, 3, 1, 1], Algorithm::Winograd2),
    ];
    for (shape, expected) in table {
        for n in [1, 2] {
            assert_eq!(
                algorithm((shape, [n, 2, 2])),
                expected,
                "{shape:?}, batch {n}"
            );
        }
    }
    let names = [
        Algorithm::Gemm,
        Algorithm::ImplicitGemm,
        Algorithm::Winograd2,
        Algorithm::Winograd4,
    ];
    assert_eq!(
        names.map(|a| a.to_string()),
        ["gemm", "implicit-gemm", "winograd-2x2", "winograd-4x4"]
    );
}

#[test]
fn a_nan_in_the_input_stays_visible_through_relu() {
    for isa in Isa::available() {
        let conv = imgclass_kernels::PackedConv::new(
            isa,
            ConvShape {
                in_channels: 16,
                out_channels: 16,
                kernel: 1,
                stride: 1,
                padding: 0,
            },
            &[0.5; 256],
            &[0.0; 16],
        );
        let dims = BatchDims { n: 1, h: 1, w: 2 };
        let mut x = vec![1.0; 32];
        x[3] = f32::NAN;
        let y = conv.forward(&pool(1), &x, dims, None, true);
        assert!(y[..16].iter().all(|v| v.is_nan()), "{isa}");
        assert!(y[16..].iter().all(|&v| v == 8.0), "{isa}");
    }
}

#[test]
#[should_panic(expected = "input length")]
fn an_input_of_the_wrong_length_is_refused() {
    let outputs = if cfg!(miri) { 1 } else { 16 };
    let case = case(([16, outputs, 3, 1, 1], [1, 4, 4]), false, false);
    let conv =
        imgclass_kernels::PackedConv::new(Isa::detect(), case.shape, &case.weight, &case.bias);
    let _ = conv.forward(&pool(1), &[0.0; 16], case.input, None, false);
}

#[test]
#[should_panic(expected = "residual length")]
fn a_residual_of_the_wrong_length_is_refused() {
    let case = case(([16, 16, 1, 1, 0], [1, 2, 2]), false, false);
    let conv =
        imgclass_kernels::PackedConv::new(Isa::detect(), case.shape, &case.weight, &case.bias);
    let _ = conv.forward(&pool(1), &[0.0; 64], case.input, Some(&[0.0; 16]), false);
}
