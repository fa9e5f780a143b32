//! The forward pass, ours beside candle-transformers', on the formula's weights: `cargo bench --bench forward`.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use candle_nn::{Module, VarBuilder};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imgclass_checkpoint::Architecture;
use imgclass_checkpoint::formula::FormulaWeights;
use imgclass_image::Preprocessing;
use imgclass_kernels::{Isa, ThreadPool};
use imgclass_network::resnet::ResNet;
use imgclass_network::{CpuBackend, Input, Normalisation};

fn formula() -> VarBuilder<'static> {
    imgclass_network::variables(&FormulaWeights { seed: 0 })
}

fn images(n: usize) -> Tensor {
    Tensor::rand(-2f32, 2f32, (n, 3, 224, 224), &Device::Cpu).expect("images")
}

/// Images of the same kind for our network, one by one.
fn inputs(n: usize) -> Vec<Input> {
    let image = || {
        let numbers = images(1).flatten_all().and_then(|image| image.to_vec1());
        Input::Planar(numbers.expect("f32 numbers"))
    };
    (0..n).map(|_| image()).collect()
}

/// Ours, for every instruction set of this processor.
fn ours(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward/imgclass");
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool = Arc::new(
                ThreadPool::new(NonZeroUsize::new(threads).expect("threads")).expect("threads"),
            );
            let net = ResNet::load(
                &FormulaWeights { seed: 0 },
                &Architecture::RESNET50,
                1000,
                CpuBackend::new(isa, pool, Normalisation::of(&Preprocessing::default())),
            )
            .expect("loads");
            for n in [1, 8] {
                let inputs = inputs(n);
                let x: Vec<&Input> = inputs.iter().collect();
                group.throughput(Throughput::Elements(n as u64));
                group.bench_with_input(
                    BenchmarkId::new(format!("{isa}, {threads} threads"), n),
                    &x,
                    |bencher, x| {
                        bencher.iter(|| {
                            black_box(net.forward(x, (224, 224)).expect("a forward pass"))
                        });
                    },
                );
            }
        }
    }
    group.finish();
}

/// The yardstick, on as many threads as rayon takes by itself.
fn candle_transformers(criterion: &mut Criterion) {
    let net = candle_transformers::models::resnet::resnet50(1000, formula()).expect("loads");
    let mut group = criterion.benchmark_group("forward/candle-transformers");
    for n in [1, 8] {
        let x = images(n);
        group.throughput(Throughput::Elements(n as u64));
        group.bench_with_input(BenchmarkId::from_parameter(n), &x, |bencher, x| {
            bencher.iter(|| black_box(net.forward(x).expect("a forward pass")));
        });
    }
    group.finish();
}

criterion_group! {
    name = forward;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(5));
    targets = ours, candle_transformers
}
criterion_main!(forward);
