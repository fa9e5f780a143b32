//! Measures every layer shape of ResNet-50 at 224 pixels on every instruction set: the time,
//! GFLOP/s, and the share of the measured peak. Operations are counted as those of a direct
//! convolution, so the share can be above 100 % where Winograd saves multiplications.
//!
//! Then ResNet-50's convolutions in each number type on the fastest instruction set, on one thread,
//! and their sum over the network.
//!
//! `cargo bench -p imgclass-kernels` runs all of them, `cargo bench -p imgclass-kernels -- avx512`
//! those of one instruction set, `cargo bench -p imgclass-kernels -- numbers` the number types.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use imgclass_kernels::{
    BatchDims, ConvShape, Int8Weights, Isa, Numbers, PackedConv, PackedLinear, PackedStem,
    ThreadPool, measure_peak_gflops,
};

/// For each layer: input channels, output channels, kernel, stride, side of the input.
const LAYERS: [[usize; 5]; 22] = [
    [64, 64, 1, 1, 56],
    [64, 64, 3, 1, 56],
    [64, 256, 1, 1, 56],
    [256, 64, 1, 1, 56],
    [256, 128, 1, 1, 56],
    [128, 128, 3, 2, 56],
    [256, 512, 1, 2, 56],
    [128, 512, 1, 1, 28],
    [512, 128, 1, 1, 28],
    [128, 128, 3, 1, 28],
    [512, 256, 1, 1, 28],
    [256, 256, 3, 2, 28],
    [512, 1024, 1, 2, 28],
    [256, 1024, 1, 1, 14],
    [1024, 256, 1, 1, 14],
    [256, 256, 3, 1, 14],
    [1024, 512, 1, 1, 14],
    [512, 512, 3, 2, 14],
    [1024, 2048, 1, 2, 14],
    [512, 2048, 1, 1, 7],
    [2048, 512, 1, 1, 7],
    [512, 512, 3, 1, 7],
];

/// How often ResNet-50 has each of [`LAYERS`].
const TIMES: [usize; 22] = [
    1, 3, 4, 2, 1, 1, 1, 4, 3, 3, 1, 1, 1, 6, 5, 5, 1, 1, 1, 3, 2, 2,
];

/// Benchmarks one layer, prints its GFLOP/s and share of `peak` by its fastest sample, and returns
/// that sample's seconds.
fn bench<T>(
    criterion: &mut Criterion,
    group: &str,
    name: &str,
    (flops, peak): (u64, f64),
    layer: impl Fn() -> T,
) -> f64 {
    let best = Cell::new(f64::INFINITY);
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(flops));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations {
                black_box(layer());
            }
            let time = start.elapsed();
            best.set(best.get().min(time.as_secs_f64() / iterations as f64));
            time
        });
    });
    group.finish();
    if best.get().is_finite() {
        let gflops = flops as f64 / best.get() / 1e9;
        println!(
            "{name}: {gflops:.1} GFLOP/s, {:.0} % of the peak\n",
            100.0 * gflops / peak
        );
    }
    best.get()
}

/// How a convolution is packed for a number type.
type Pack = fn(Isa, ConvShape, &[f32], &[f32]) -> PackedConv;

/// Packs a convolution in 8-bit integers, with a residual of their type.
fn int8(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> PackedConv {
    let weights = Int8Weights {
        weight: weight.iter().map(|w| (w * 200.0) as i8).collect(),
        scale: vec![0.001; bias.len()],
        bias: bias.to_vec(),
        output: Numbers::U8,
        residual: Numbers::U8,
        residual_scale: 0.7,
    };
    PackedConv::int8(isa, shape, &weights)
}

/// Packs a convolution as a network in 8-bit integers has it: 3x3 layers of stride 1 with fewer than
/// 512 channels multiply in bfloat16, by Winograd's filtering.
fn int8_with_winograd(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> PackedConv {
    if shape.kernel == 3 && shape.stride == 1 && shape.in_channels < 512 {
        PackedConv::winograd_u8(isa, shape, weight, bias)
    } else {
        int8(isa, shape, weight, bias)
    }
}

/// Benchmarks the convolutions in each number type. The last of each block adds its residual, except
/// the first block's of a stage.
fn numbers(c: &mut Criterion) {
    let isa = Isa::detect();
    let pool = ThreadPool::new(NonZeroUsize::MIN).expect("threads");
    let peak = measure_peak_gflops(isa, &pool);
    let types: [(&str, Pack); 4] = [
        ("f32", PackedConv::new),
        ("bf16", PackedConv::bf16),
        ("int8, all 8-bit", int8),
        ("int8", int8_with_winograd),
    ];
    for (name, pack) in types {
        let group = format!("numbers: {name}, {isa}, 1 thread");
        let mut sum = 0.0;
        for ([in_channels, out_channels, kernel, stride, side], times) in
            LAYERS.into_iter().zip(TIMES)
        {
            let shape = ConvShape {
                in_channels,
                out_channels,
                kernel,
                stride,
                padding: kernel / 2,
            };
            let conv = pack(isa, shape, &ramp(shape.weight_len()), &ramp(out_channels));
            let dims = BatchDims {
                n: 1,
                h: side,
                w: side,
            };
            let x = vec![0.0; dims.words(in_channels, conv.input_numbers())];
            let output = conv.output_dims(dims);
            let words = output.words(out_channels, conv.output_numbers());
            let out = RefCell::new(vec![0.0; words]);
            let has_residual = kernel == 1 && stride == 1 && out_channels == 4 * in_channels;
            let name = format!(
                "{kernel}x{kernel} stride {stride}, {in_channels} to {out_channels} at {side}"
            );
            let seconds = bench(c, &group, &name, (conv.flops(dims), peak), || {
                let mut out = out.borrow_mut();
                if has_residual {
                    conv.forward_onto(&pool, &x, dims, true, &mut out);
                } else {
                    conv.forward_into(&pool, &x, dims, None, true, &mut out);
                }
            });
            sum += seconds * times as f64;
        }
        if sum.is_finite() {
            println!("{group}: {:.1} ms for all convolutions\n", 1e3 * sum);
        }
    }
}

/// Returns `len` numbers between -0.5 and 0.5.
fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect()
}

fn layers(criterion: &mut Criterion) {
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool =
                ThreadPool::new(NonZeroUsize::new(threads).expect("not 0")).expect("threads");
            let peak = measure_peak_gflops(isa, &pool);
            let group = format!("{isa}, {threads} threads, peak {peak:.0} GFLOP/s");
            for n in [1, 8] {
                every_layer(criterion, &group, isa, &pool, n, peak);
            }
        }
    }
}

fn every_layer(c: &mut Criterion, group: &str, isa: Isa, pool: &ThreadPool, n: usize, peak: f64) {
    let input = BatchDims { n, h: 224, w: 224 };
    let stem = PackedStem::new(isa, &ramp(64 * 147), &ramp(64));
    let x = ramp(3 * input.pixels());
    let name = format!("batch {n}, stem and max-pool");
    bench(c, group, &name, (stem.flops(input), peak), || {
        stem.forward(pool, &x, input)
    });
    for [in_channels, out_channels, kernel, stride, side] in LAYERS {
        let padding = kernel / 2;
        let shape = ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
        };
        let conv = PackedConv::new(isa, shape, &ramp(shape.weight_len()), &ramp(out_channels));
        let dims = BatchDims {
            n,
            h: side,
            w: side,
        };
        let x = ramp(dims.blocked_len(in_channels));
        let name = format!(
            "batch {n}, {kernel}x{kernel} stride {stride}, {in_channels} to {out_channels} at {side}, {}",
            conv.algorithm()
        );
        bench(c, group, &name, (conv.flops(dims), peak), || {
            conv.forward(pool, &x, dims, None, true)
        });
    }
    let linear = PackedLinear::new(isa, 2048, &ramp(2048 * 1000), &ramp(1000));
    let x = ramp(n * 2048);
    let name = format!("batch {n}, last layer");
    bench(c, group, &name, (linear.flops(n), peak), || {
        linear.forward(pool, &x, n)
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = layers, numbers
}
criterion_main!(benches);
