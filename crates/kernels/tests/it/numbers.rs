//! Convolutions in 8-bit integers and in bfloat16 give the bits of a naive model on every
//! instruction set.

use imgclass_kernels::{
    Algorithm, BatchDims, ConvShape, Int8Weights, Isa, Numbers, PackedConv, ThreadPool,
    nchw_to_words, words_to_nchw,
};
use proptest::prelude::*;

use crate::convolution::{MIRI_WINDOWS, Row};
use crate::reference::{Case, guarded_words, numbers, to_bf16};
use crate::{long_tables, pool, short_tables, thread_counts};

fn shape_of((shape, dims): Row) -> (ConvShape, BatchDims) {
    let [in_channels, out_channels, kernel, stride, padding] = shape;
    let [n, h, w] = dims;
    let shape = ConvShape {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding,
    };
    (shape, BatchDims { n, h, w })
}

/// What is added to the sums.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Residual {
    None,
    /// Of the output's type, in the output's memory.
    Output,
    /// In bfloat16, in memory of its own.
    Bf16,
}

/// One layer in integers with its operands. Activations are NCHW and weights OIHW.
#[derive(Debug)]
struct Int8Case {
    shape: ConvShape,
    input: BatchDims,
    x: Vec<f32>,
    weights: Int8Weights,
    residual: Residual,
    skip: Vec<f32>,
    relu: bool,
}

impl Int8Case {
    fn new(row: Row, output: Numbers, residual: Residual, relu: bool) -> Self {
        let (shape, input) = shape_of(row);
        let bytes = |seed, len| {
            numbers(seed, len)
                .into_iter()
                .map(|x| (x * 128.0 + 128.0).floor())
        };
        let products = (shape.in_channels * shape.kernel * shape.kernel) as f32;
        // Outputs spread over the whole range of a byte and a little beyond it.
        let unit = 1.0 / (60.0 * products.sqrt());
        let outputs = shape.out_channels * shape.output_dims(input).pixels();
        let skip: Vec<f32> = match residual {
            Residual::None => Vec::new(),
            Residual::Output if output == Numbers::U8 => bytes(4, outputs).collect(),
            Residual::Output | Residual::Bf16 => numbers(4, outputs)
                .into_iter()
                .map(|x| f32::from_bits((x * 100.0).to_bits() & 0xffff_0000))
                .collect(),
        };
        Self {
            shape,
            input,
            x: bytes(1, shape.in_channels * input.pixels()).collect(),
            weights: Int8Weights {
                weight: bytes(2, shape.weight_len())
                    .map(|x| (x - 128.0) as i8)
                    .collect(),
                scale: numbers(5, shape.out_channels)
                    .into_iter()
                    .map(|x| unit * (1.5 + x))
                    .collect(),
                bias: numbers(3, shape.out_channels)
                    .into_iter()
                    .map(|x| 100.0 * x + 60.0)
                    .collect(),
                output,
                residual: match residual {
                    Residual::Bf16 => Numbers::Bf16,
                    Residual::None | Residual::Output => output,
                },
                residual_scale: 0.37,
            },
            residual,
            skip,
            relu,
        }
    }

    /// Computes the output, NCHW, pixel by pixel.
    fn exact(&self) -> Vec<f32> {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
        } = self.shape;
        let output = self.shape.output_dims(self.input);
        let mut out = Vec::new();
        for image in 0..output.n {
            for channel in 0..out_channels {
                for (oy, ox) in (0..output.h * output.w).map(|p| (p / output.w, p % output.w)) {
                    let mut sum = 0i32;
                    for input in 0..in_channels {
                        for (ky, kx) in (0..kernel * kernel).map(|t| (t / kernel, t % kernel)) {
                            let (y, x) = (oy * stride + ky, ox * stride + kx);
                            if y < padding
                                || x < padding
                                || y - padding >= self.input.h
                                || x - padding >= self.input.w
                            {
                                continue;
                            }
                            let at = ((image * in_channels + input) * self.input.h + y - padding)
                                * self.input.w
                                + x
                                - padding;
                            let weight = (channel * in_channels + input) * kernel * kernel
                                + ky * kernel
                                + kx;
                            sum += self.x[at] as i32 * i32::from(self.weights.weight[weight]);
                        }
                    }
                    let mut y =
                        sum as f32 * self.weights.scale[channel] + self.weights.bias[channel];
                    if self.residual != Residual::None {
                        y += self.skip[out.len()] * self.weights.residual_scale;
                    }
                    if self.relu {
                        y = y.max(0.0);
                    }
                    out.push(match self.weights.output {
                        Numbers::U8 => y.round_ties_even().clamp(0.0, 255.0),
                        _ => to_bf16(y),
                    });
                }
            }
        }
        out
    }

    /// Returns the kernels' output, NCHW.
    fn run(&self, isa: Isa, pool: &ThreadPool) -> Vec<f32> {
        let conv = PackedConv::int8(isa, self.shape, &self.weights);
        let (channels, output) = (self.shape.out_channels, conv.output_dims(self.input));
        let x = nchw_to_words(&self.x, self.shape.in_channels, self.input, Numbers::U8);
        let stored = conv.output_numbers();
        let skip = |numbers| nchw_to_words(&self.skip, channels, output, numbers);
        let y = guarded_words(output.words(channels, stored), |out| match self.residual {
            Residual::None => conv.forward_into(pool, &x, self.input, None, self.relu, out),
            Residual::Output => {
                out.copy_from_slice(&skip(stored));
                conv.forward_onto(pool, &x, self.input, self.relu, out);
            }
            Residual::Bf16 => {
                let skip = skip(Numbers::Bf16);
                conv.forward_into(pool, &x, self.input, Some(&skip), self.relu, out);
            }
        });
        words_to_nchw(&y, channels, output, stored, 1.0)
    }
}

fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let differs = (0..got.len()).find(|&i| got[i] != expected[i]);
    if let Some(i) = differs {
        panic!(
            "{what}: element {i} is {} instead of {}",
            got[i], expected[i]
        );
    }
}

fn check_int8(rows: &[Row]) {
    let threads = thread_counts(&[1, 3]).iter();
    let pools: Vec<_> = threads.map(|&threads| pool(threads)).collect();
    // Each epilogue meets each kind of shape as the rows go by.
    let epilogues = [
        (Numbers::U8, Residual::None, true),
        (Numbers::U8, Residual::Output, true),
        (Numbers::Bf16, Residual::None, false),
        (Numbers::U8, Residual::Bf16, true),
        (Numbers::Bf16, Residual::Output, true),
    ];
    for (index, &row) in rows.iter().enumerate() {
        let (output, residual, relu) = epilogues[index % epilogues.len()];
        let case = Int8Case::new(row, output, residual, relu);
        let expected = case.exact();
        let pool = &pools[index % pools.len()];
        for isa in Isa::available() {
            let what = format!(
                "{isa}, {} threads, {output}, {residual:?}, {row:?}",
                pool.threads()
            );
            assert_same(&case.run(isa, pool), &expected, &what);
        }
    }
}

#[test]
fn integers_are_exact_for_every_count_of_pixels_around_a_tile() {
    let (channels, last) = if cfg!(miri) { (5, 5) } else { (64, 30) };
    let row = |w| ([channels, channels, 1, 1, 0], [1, 1, w]);
    let rows: Vec<Row> = (1..=last).map(row).collect();
    check_int8(&rows);
}

#[test]
fn integers_are_exact_for_channels_around_words_blocks_and_panels() {
    if cfg!(miri) {
        return check_int8(&[([3, 65, 1, 1, 0], [1, 1, 2]), ([65, 3, 1, 1, 0], [1, 3, 1])]);
    }
    let channels: &[usize] = if short_tables() {
        &[1, 17, 64, 65]
    } else if long_tables() {
        &[1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130]
    } else {
        &[1, 3, 4, 16, 17, 33, 64, 65, 130]
    };
    let rows: Vec<Row> = channels
        .iter()
        .flat_map(|&i| channels.iter().map(move |&o| ([i, o, 1, 1, 0], [1, 3, 5])))
        .collect();
    check_int8(&rows);
}

#[test]
fn integers_are_exact_for_every_kernel_stride_and_padding() {
    if cfg!(miri) {
        return check_int8(MIRI_WINDOWS);
    }
    let mut rows: Vec<Row> = Vec::new();
    let (kernels, sides): (&[usize], &[[usize; 2]]) = if short_tables() {
        (&[1, 3], &[[8, 9]])
    } else if long_tables() {
        (&[1, 2, 3, 5, 9], &[[9, 9], [10, 11], [15, 13], [9, 30]])
    } else {
        (&[1, 2, 3, 5], &[[9, 9], [9, 30]])
    };
    for &kernel in kernels {
        for stride in [1, 2, 3] {
            for padding in 0..=kernel / 2 + 1 {
                rows.extend(
                    sides
                        .iter()
                        .map(|&[h, w]| ([19, 35, kernel, stride, padding], [2, h, w])),
                );
            }
        }
    }
    check_int8(&rows);
}

#[test]
#[cfg_attr(miri, ignore = "large, and its accesses are those of other tests")]
fn integers_at_their_extremes_do_not_saturate_between() {
    for (pixel, weight, scale, expected) in [
        (255.0, -128, -1.0, 255.0),
        (255.0, -128, 1.0, 0.0),
        (255.0, 127, 1.0, 255.0),
        (255.0, 127, 1e38, 255.0),
        (255.0, -128, 1e38, 0.0),
    ] {
        let row = ([512, 16, 3, 1, 1], [1, 3, 3]);
        let mut case = Int8Case::new(row, Numbers::U8, Residual::None, false);
        case.x.fill(pixel);
        case.weights.weight.fill(weight);
        case.weights.scale.fill(scale);
        case.weights.bias.fill(0.0);
        for isa in Isa::available() {
            let got = case.run(isa, &pool(1));
            assert!(
                got.iter().all(|&y| y == expected),
                "{isa}: {weight} times {scale}"
            );
        }
        // A sum of 255 times -128 in all places, scaled down to what bfloat16 holds.
        case.weights.output = Numbers::Bf16;
        case.weights.residual = Numbers::Bf16;
        case.weights.scale.fill(1.0);
        let expected = case.exact();
        for isa in Isa::available() {
            assert_same(
                &case.run(isa, &pool(1)),
                &expected,
                &format!("{isa}: {weight}"),
            );
        }
    }
}

/// One layer in bfloat16 with its operands.
#[derive(Debug)]
struct Bf16Case {
    shape: ConvShape,
    input: BatchDims,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    skip: Option<Vec<f32>>,
    relu: bool,
}

impl Bf16Case {
    fn new(row: Row, residual: bool, relu: bool) -> Self {
        let (shape, input) = shape_of(row);
        let rounded = |seed, len| {
            numbers(seed, len)
                .into_iter()
                .map(to_bf16)
                .collect::<Vec<_>>()
        };
        let outputs = shape.out_channels * shape.output_dims(input).pixels();
        Self {
            shape,
            input,
            x: rounded(1, shape.in_channels * input.pixels()),
            weight: rounded(2, shape.weight_len()),
            bias: numbers(3, shape.out_channels),
            skip: residual.then(|| rounded(4, outputs)),
            relu,
        }
    }

    /// Computes the output as `vdpbf16ps` does: in each block of 32 channels, tap by tap and word
    /// by word, the upper half of a word first. A product is exact, each sum is rounded.
    fn model(&self) -> Vec<f32> {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
        } = self.shape;
        let output = self.shape.output_dims(self.input);
        let mut out = Vec::new();
        for image in 0..output.n {
            for channel in 0..out_channels {
                for (oy, ox) in (0..output.h * output.w).map(|p| (p / output.w, p % output.w)) {
                    let mut sum = self.bias[channel];
                    for block in 0..in_channels.div_ceil(32) {
                        for (ky, kx) in (0..kernel * kernel).map(|t| (t / kernel, t % kernel)) {
                            let (y, x) = (oy * stride + ky, ox * stride + kx);
                            if y < padding
                                || x < padding
                                || y - padding >= self.input.h
                                || x - padding >= self.input.w
                            {
                                continue;
                            }
                            for input in (0..32).map(|i| block * 32 + (i ^ 1)) {
                                if input >= in_channels {
                                    continue;
                                }
                                let at = ((image * in_channels + input) * self.input.h + y
                                    - padding)
                                    * self.input.w
                                    + x
                                    - padding;
                                let weight = (channel * in_channels + input) * kernel * kernel
                                    + ky * kernel
                                    + kx;
                                sum += self.x[at] * self.weight[weight];
                            }
                        }
                    }
                    if let Some(skip) = &self.skip {
                        sum += skip[out.len()];
                    }
                    out.push(to_bf16(if self.relu { sum.max(0.0) } else { sum }));
                }
            }
        }
        out
    }

    fn run(&self, isa: Isa, pool: &ThreadPool) -> Vec<f32> {
        let conv = PackedConv::bf16(isa, self.shape, &self.weight, &self.bias);
        let (channels, output) = (self.shape.out_channels, conv.output_dims(self.input));
        let x = nchw_to_words(&self.x, self.shape.in_channels, self.input, Numbers::Bf16);
        let y = guarded_words(output.words(channels, Numbers::Bf16), |out| {
            if let Some(skip) = &self.skip {
                out.copy_from_slice(&nchw_to_words(skip, channels, output, Numbers::Bf16));
                conv.forward_onto(pool, &x, self.input, self.relu, out);
            } else {
                conv.forward_into(pool, &x, self.input, None, self.relu, out);
            }
        });
        words_to_nchw(&y, channels, output, Numbers::Bf16, 1.0)
    }
}

fn check_bf16(rows: &[Row]) {
    let threads = thread_counts(&[1, 3]).iter();
    let pools: Vec<_> = threads.map(|&threads| pool(threads)).collect();
    for (index, &row) in rows.iter().enumerate() {
        let case = Bf16Case::new(row, index % 2 == 0, index % 3 != 0);
        let expected = case.model();
        let pool = &pools[index % pools.len()];
        for isa in Isa::available() {
            let what = format!("{isa}, {} threads, {row:?}", pool.threads());
            assert_same(&case.run(isa, pool), &expected, &what);
        }
    }
}

#[test]
fn bfloat16_gives_the_bits_of_its_model_around_tiles_blocks_and_panels() {
    if cfg!(miri) {
        return check_bf16(&[([3, 33, 1, 1, 0], [1, 1, 2]), ([33, 3, 1, 1, 0], [1, 3, 1])]);
    }
    let mut rows: Vec<Row> = (1..=30).map(|w| ([32, 32, 1, 1, 0], [1, 1, w])).collect();
    let channels: &[usize] = if short_tables() {
        &[1, 31, 33]
    } else if long_tables() {
        &[1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 100]
    } else {
        &[1, 16, 17, 31, 33, 65]
    };
    rows.extend(
        channels
            .iter()
            .flat_map(|&i| channels.iter().map(move |&o| ([i, o, 1, 1, 0], [1, 3, 5]))),
    );
    check_bf16(&rows);
}

#[test]
fn bfloat16_gives_the_bits_of_its_model_for_strides_and_paddings() {
    if cfg!(miri) {
        return check_bf16(MIRI_WINDOWS);
    }
    let mut rows: Vec<Row> = Vec::new();
    for kernel in [1, 2, 5, 7] {
        for stride in [1, 2, 3] {
            for padding in 0..=kernel / 2 + 1 {
                // A 1x1 kernel of stride 1 is among the rows of the other test.
                rows.push(([37, 35, kernel, stride, padding], [2, 8, 9]));
            }
        }
    }
    rows.push(([64, 64, 3, 2, 1], [2, 15, 30]));
    check_bf16(&rows);
}

#[test]
fn numbers_convert_to_words_and_back() {
    let dims = BatchDims { n: 2, h: 2, w: 3 };
    for numbers_type in [Numbers::F32, Numbers::Bf16, Numbers::U8] {
        for channels in [1, 3, 16, 33, 65] {
            let x: Vec<f32> = (0..channels * dims.pixels())
                .map(|i| (i % 256) as f32)
                .collect();
            let words = nchw_to_words(&x, channels, dims, numbers_type);
            let scale = if numbers_type == Numbers::U8 {
                0.5
            } else {
                1.0
            };
            let back = words_to_nchw(&words, channels, dims, numbers_type, scale);
            assert_eq!(
                back,
                x.iter().map(|x| x * scale).collect::<Vec<_>>(),
                "{numbers_type}"
            );
        }
    }
}

/// Returns a layer's output in double precision, NCHW.
fn exact_nchw(case: &Case) -> Vec<f64> {
    let output = case.shape.output_dims(case.input);
    let (channels, plane) = (case.shape.out_channels, output.h * output.w);
    let mut out = vec![0.0; channels * output.pixels()];
    for pixel in 0..output.pixels() {
        for (channel, (value, _)) in case.exact(pixel).into_iter().enumerate() {
            out[(pixel / plane * channels + channel) * plane + pixel % plane] = value;
        }
    }
    out
}

/// How far the numbers that were `got` are from the ones `expected`: the root mean square, as a share
/// of that of the expected ones, and the most.
fn distance(got: &[f32], expected: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), expected.len());
    let errors = || got.iter().zip(expected).map(|(a, b)| f64::from(*a) - b);
    let squares: f64 = errors().map(|e| e * e).sum();
    let size: f64 = expected.iter().map(|x| x * x).sum();
    let most = errors().fold(0.0, |most, e| e.abs().max(most));
    ((squares / size).sqrt(), most)
}

/// Input and output channels, images, rows and columns of layers for Winograd's filtering.
fn winograd_rows() -> Vec<[usize; 5]> {
    if cfg!(miri) {
        return vec![[32, 1, 1, 2, 3]];
    }
    let last = if short_tables() { 4 } else { 9 };
    let sides = (1..=last).flat_map(|h| (1..=last).map(move |w| [33, 17, 1, h, w]));
    let mut rows: Vec<_> = sides.collect();
    rows.extend([1, 2, 7].map(|side| [512, 70, 2, side, side + 1]));
    // These are cut into chunks, which a thread computes alone or all threads share.
    rows.extend([[64, 64, 3, 56, 56], [100, 130, 5, 14, 15]]);
    rows
}

#[test]
fn winograd_in_bfloat16_is_near_and_the_same_bits_on_every_instruction_set() {
    for [inputs, outputs, n, h, w] in winograd_rows() {
        let (shape, input) = shape_of(([inputs, outputs, 3, 1, 1], [n, h, w]));
        let mut case = Case::new(shape, input, true, false);
        case.x = case.x.into_iter().map(to_bf16).collect();
        case.skip = case
            .skip
            .map(|skip| skip.into_iter().map(to_bf16).collect());
        let expected = exact_nchw(&case);
        let x = nchw_to_words(&case.x, inputs, input, Numbers::Bf16);
        let skip = nchw_to_words(
            case.skip.as_deref().expect("a residual"),
            outputs,
            input,
            Numbers::Bf16,
        );
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let conv = PackedConv::bf16(isa, shape, &case.weight, &case.bias);
            let allowed = match conv.algorithm() {
                Algorithm::Winograd2 => 0.01,
                Algorithm::Winograd4 => 0.03,
                other => panic!("{other} for {shape:?}"),
            };
            for &threads in thread_counts(&[1, 3]) {
                let y = guarded_words(input.words(outputs, Numbers::Bf16), |out| {
                    out.copy_from_slice(&skip);
                    conv.forward_onto(&pool(threads), &x, input, false, out);
                });
                let y = words_to_nchw(&y, outputs, input, Numbers::Bf16, 1.0);
                let (error, _) = distance(&y, &expected);
                assert!(error < allowed, "{isa}, {shape:?}, {input:?}: {error}");
                let first = first.get_or_insert_with(|| y.clone());
                assert_same(&y, first, &format!("{isa}, {threads} threads, {shape:?}"));
            }
        }
    }
}

#[test]
fn winograd_between_integers_is_near_and_the_same_on_every_instruction_set() {
    for [inputs, outputs, n, h, w] in winograd_rows() {
        if inputs == 512 && (h, w) != (7, 8) {
            continue;
        }
        let (shape, input) = shape_of(([inputs, outputs, 3, 1, 1], [n, h, w]));
        let mut case = Case::new(shape, input, false, true);
        let byte = |x: &mut f32| *x = (*x * 128.0 + 128.0).floor();
        case.x.iter_mut().for_each(byte);
        // Outputs spread over the whole range of a byte and a little beyond it.
        let unit = 1.0 / (2.0 * (inputs as f32).sqrt());
        case.weight.iter_mut().for_each(|w| *w *= unit);
        case.bias.iter_mut().for_each(|b| *b = 90.0 * *b + 90.0);
        let expected: Vec<f64> = exact_nchw(&case)
            .into_iter()
            .map(|x| x.min(255.0))
            .collect();
        let x = nchw_to_words(&case.x, inputs, input, Numbers::U8);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let conv = PackedConv::winograd_u8(isa, shape, &case.weight, &case.bias);
            assert_eq!(
                (conv.input_numbers(), conv.output_numbers()),
                (Numbers::U8, Numbers::U8)
            );
            for &threads in thread_counts(&[1, 3]) {
                let y = guarded_words(input.words(outputs, Numbers::U8), |out| {
                    conv.forward_into(&pool(threads), &x, input, None, true, out);
                });
                let y = words_to_nchw(&y, outputs, input, Numbers::U8, 1.0);
                let (error, most) = distance(&y, &expected);
                assert!(
                    error < 0.015 && most < 30.0,
                    "{isa}, {shape:?}, {input:?}: {error}, {most}"
                );
                let first = first.get_or_insert_with(|| y.clone());
                assert_same(&y, first, &format!("{isa}, {threads} threads, {shape:?}"));
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "large")]
fn the_algorithm_follows_from_the_shape_and_the_number_type() {
    let algorithm = |bf16: bool, inputs, stride| {
        let (shape, _) = shape_of(([inputs, 32, 3, stride, 1], [1, 4, 4]));
        let (weight, bias) = (vec![0.5; shape.weight_len()], [0.0; 32]);
        if bf16 {
            return PackedConv::bf16(Isa::detect(), shape, &weight, &bias).algorithm();
        }
        let weights = Int8Weights {
            weight: vec![1; shape.weight_len()],
            scale: vec![1.0; 32],
            bias: bias.to_vec(),
            output: Numbers::U8,
            residual: Numbers::U8,
            residual_scale: 1.0,
        };
        PackedConv::int8(Isa::detect(), shape, &weights).algorithm()
    };
    for (bf16, inputs, stride, expected) in [
        (true, 64, 1, Algorithm::Winograd4),
        (true, 512, 1, Algorithm::Winograd2),
        (true, 31, 1, Algorithm::ImplicitGemm),
        (true, 64, 2, Algorithm::ImplicitGemm),
        (false, 64, 1, Algorithm::ImplicitGemm),
        (false, 512, 1, Algorithm::ImplicitGemm),
    ] {
        assert_eq!(
            algorithm(bf16, inputs, stride),
            expected,
            "{inputs} channels"
        );
    }
}

#[test]
#[should_panic(expected = "no layer for Winograd's filtering")]
fn winograd_between_integers_refuses_a_layer_of_another_shape() {
    let (shape, _) = shape_of(([64, 1, 3, 2, 1], [1, 4, 4]));
    let _ = PackedConv::winograd_u8(Isa::detect(), shape, &[0.5; 576], &[0.0]);
}

prop_compose! {
    fn rows()(
        in_channels in 1usize..150,
        out_channels in 1usize..150,
        kernel in prop_oneof![3 => Just(3usize), 2 => Just(1usize), 1 => 1usize..6],
        stride in 1usize..3,
        padding in 0usize..3,
        n in 1usize..3,
        h in 1usize..12,
        w in 1usize..12,
    ) -> Row {
        // A kernel larger than the padded image has no output.
        let side = kernel.saturating_sub(2 * padding);
        ([in_channels, out_channels, kernel, stride, padding], [n, h.max(side), w.max(side)])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else if long_tables() { 200 } else { 20 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "large")]
    fn any_convolution_in_integers_is_exact(
        row in rows(),
        output in prop_oneof![Just(Numbers::U8), Just(Numbers::Bf16)],
        residual in prop_oneof![Just(Residual::None), Just(Residual::Output), Just(Residual::Bf16)],
        relu in any::<bool>(),
        threads in 1usize..4,
    ) {
        let case = Int8Case::new(row, output, residual, relu);
        let expected = case.exact();
        for isa in Isa::available() {
            assert_same(&case.run(isa, &pool(threads)), &expected, &format!("{isa}, {row:?}"));
        }
    }
}
