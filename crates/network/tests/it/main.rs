//! Networks against others' logits and against each other: parity, architectures, backends.

mod architectures;
#[cfg(feature = "fake-gpu")]
mod fake_gpu;
mod gpu;
mod numbers;
mod parity;

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use imgclass_checkpoint::formula::FormulaWeights;
use imgclass_checkpoint::{Architecture, Overrides, TensorSource, WeightsSource};
use imgclass_image::Preprocessing;
use imgclass_kernels::{Isa, ThreadPool};
use imgclass_network::resnet::{Forward, ResNet};
use imgclass_network::{
    Backend, CandleBackend, Classifier, CpuBackend, DeviceChoice, GpuPath, Input, ModelOptions,
    NetworkError, Normalisation,
};

/// Options for two threads on the CPU.
pub(crate) fn options() -> ModelOptions {
    ModelOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        gpu_path: GpuPath::Auto,
        isa: None,
        threads: NonZeroUsize::new(2).expect("2 is not 0"),
        cache: None,
        calibrate: None,
        overrides: Overrides::default(),
    }
}

/// The formula's network, seed 0.
pub(crate) fn untrained() -> Classifier {
    Classifier::load(&WeightsSource::random(Architecture::RESNET50), &options())
        .expect("the formula always loads")
}

/// The formula's weights, seed 0.
pub(crate) const FORMULA: FormulaWeights = FormulaWeights { seed: 0 };

/// The formula's weights for candle's networks.
pub(crate) fn formula() -> VarBuilder<'static> {
    imgclass_network::variables(&FORMULA)
}

/// Planar images of one size, each in its own `Input`.
pub(crate) struct Images {
    pub(crate) images: Vec<Input>,
    pub(crate) size: (usize, usize),
}

impl Images {
    /// `n` images whose numbers stand in `values` one after the other.
    pub(crate) fn new(values: &[f32], n: usize, size: (usize, usize)) -> Self {
        assert_eq!(values.len(), n * 3 * size.0 * size.1);
        let images = values
            .chunks_exact(3 * size.0 * size.1)
            .map(|image| image.to_vec().into())
            .collect();
        Self { images, size }
    }

    /// The golden tests' input: twice the formula's symmetric value of a tensor named `input`, so
    /// in [-2, 2).
    pub(crate) fn formula(n: usize, h: usize, w: usize) -> Self {
        // A two-dimensional tensor of one feature has scale sqrt(3); the golden file's scale is 2.
        let values = FormulaWeights { seed: 0 }.symmetric("input", n * 3 * h * w);
        let values: Vec<f32> = values.map(|v| (2.0 * v) as f32).collect();
        Self::new(&values, n, (h, w))
    }

    pub(crate) fn narrow(&self, first: usize, n: usize) -> Self {
        Self {
            images: self.images[first..first + n].to_vec(),
            size: self.size,
        }
    }

    /// All numbers, as one tensor `(n, 3, h, w)`.
    pub(crate) fn tensor(&self) -> candle_core::Tensor {
        let (h, w) = self.size;
        let values: Vec<&[f32]> = self.images.iter().filter_map(Input::planar).collect();
        let shape = (values.len(), 3, h, w);
        candle_core::Tensor::from_vec(values.concat(), shape, &Device::Cpu).expect("images")
    }
}

/// Features and logits of all images, one row after the other.
pub(crate) struct Rows {
    pub(crate) features: Vec<f32>,
    pub(crate) logits: Vec<f32>,
}

/// A network on any backend.
pub(crate) trait AnyResNet {
    fn run(&self, images: &Images) -> Rows;
    fn run_with_taps(&self, images: &Images, tap: &mut dyn FnMut(&str, Vec<f32>)) -> Rows;
}

impl<B: Backend> AnyResNet for ResNet<B> {
    fn run(&self, images: &Images) -> Rows {
        let inputs: Vec<&Input> = images.images.iter().collect();
        rows(self, self.forward(&inputs, images.size))
    }

    fn run_with_taps(&self, images: &Images, tap: &mut dyn FnMut(&str, Vec<f32>)) -> Rows {
        let inputs: Vec<&Input> = images.images.iter().collect();
        rows(self, self.forward_with_taps(&inputs, images.size, tap))
    }
}

fn rows<B: Backend>(net: &ResNet<B>, result: Result<Forward<B>, NetworkError>) -> Rows {
    let result = result.expect("a forward pass");
    let to_vec = |rows| net.backend().rows_to_vec(rows).expect("f32 numbers");
    Rows {
        features: to_vec(result.features),
        logits: to_vec(result.logits),
    }
}

/// What computes a network's layers.
#[derive(Clone, Copy)]
pub(crate) enum Computes {
    /// Our kernels with so many threads.
    Kernels(Isa, usize),
    /// What runs on a GPU, on the CPU.
    Candle(DType),
}

/// A network on the backend of that name.
pub(crate) fn load(
    tensors: &dyn TensorSource,
    architecture: &Architecture,
    classes: usize,
    by: Computes,
) -> Box<dyn AnyResNet> {
    let normalisation = Normalisation::of(&Preprocessing::default());
    match by {
        Computes::Kernels(isa, threads) => {
            let threads = NonZeroUsize::new(threads).expect("threads");
            let threads = Arc::new(ThreadPool::new(threads).expect("threads"));
            let backend = CpuBackend::new(isa, threads, normalisation);
            Box::new(ResNet::load(tensors, architecture, classes, backend).expect("loads"))
        }
        Computes::Candle(dtype) => {
            let backend =
                CandleBackend::new(Device::Cpu, dtype, &normalisation).expect("a backend");
            Box::new(ResNet::load(tensors, architecture, classes, backend).expect("loads"))
        }
    }
}
