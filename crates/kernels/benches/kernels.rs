//! Measures every layer shape of ResNet-50 at 224 pixels on every instruction set: the time,
//! GFLOP/s, and the share of the measured peak. Operations are counted as those of a direct
//! convolution, so the share can be above 100 % where Winograd saves multiplications.
//!
//! `cargo bench -p imgclass-kernels` runs all of them, `cargo bench -p imgclass-kernels -- avx512`
//! those of one instruction set.

use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use imgclass_kernels::{
    BatchDims, ConvShape, Isa, PackedConv, PackedLinear, PackedStem, ThreadPool,
    measure_peak_gflops,
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

/// Benchmarks one layer and prints its GFLOP/s and share of `peak`, by its fastest sample.
fn bench<T>(
    criterion: &mut Criterion,
    group: &str,
    name: &str,
    (flops, peak): (u64, f64),
    layer: impl Fn() -> T,
) {
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
    let ramp = |len: usize| {
        (0..len)
            .map(|i| (i % 17) as f32 / 17.0 - 0.5)
            .collect::<Vec<_>>()
    };
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
    targets = layers
}
criterion_main!(benches);
