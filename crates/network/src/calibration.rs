//! The ranges of activations for 8-bit integers, from generated pictures and without a data set.
//!
//! A fixed set of pictures ([`pictures`]) runs through the float32 network once. [`Recorder`] looks
//! at each layer's output on the way. A layer's range is midway between its largest value and the
//! limit of least squared error. The 8-bit network then runs the same pictures, and [`Fidelity`]
//! says how far its logits are from the float network's.
//!
//! Ranges and fidelity are kept in a file for the next start ([`cache`]).

mod cache;
mod pictures;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use imgclass_checkpoint::CheckpointInfo;
use imgclass_kernels::{Entered, PackedLinear};

use crate::backend::{Backend, ConvPlace, FoldedConv, ImagesTogether, LinearWeights, STEM};
use crate::cpu::{Activation, Conv, CpuBackend, Rows, Stem};
use crate::error::NetworkError;
use crate::input::Input;
use crate::quantise::Scales;
use crate::resnet::ResNet;
pub(crate) use cache::Cache;

/// The version of everything that ranges follow from: the pictures, and how ranges are chosen. It
/// goes up with each change of them, so that ranges that were kept before are not taken.
pub(crate) const RECIPE: u32 = 1;

/// The number of pictures that ranges are measured on.
const PICTURES: usize = 16;

/// How many of a layer's numbers are looked at for each picture, beside the largest.
const SAMPLES: usize = 4096;

/// How many pictures run together.
const TOGETHER: usize = 4;

/// The largest integer of an activation.
const TOP: f32 = 255.0;

/// Beyond this logit error the 8-bit network is refused. Trained networks lie far below it; at it,
/// the error is as large as half of what tells classes apart.
const LARGEST_ERROR: f64 = 0.5;

/// How far an 8-bit network is from the float32 network that it was made of, measured on the
/// generated pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// How many pictures were compared.
    pub pictures: usize,
    /// For how many of them both networks have the same first class.
    pub same_class: usize,
    /// The root mean square of the differences between the logits, as a share of the standard
    /// deviation of the float32 logits.
    pub logit_error: f64,
}

impl Fidelity {
    /// Compares logits of the same pictures.
    fn of(float: &[Vec<f32>], integer: &[Vec<f32>]) -> Self {
        let (mut squares, mut variance, mut same_class) = (0.0, 0.0, 0);
        for (float, integer) in float.iter().zip(integer) {
            let mean = float.iter().map(|&x| f64::from(x)).sum::<f64>() / float.len() as f64;
            for (x, y) in float.iter().zip(integer) {
                squares += (f64::from(*x) - f64::from(*y)).powi(2);
                variance += (f64::from(*x) - mean).powi(2);
            }
            same_class += usize::from(first_class(float) == first_class(integer));
        }
        Self {
            pictures: float.len(),
            same_class,
            logit_error: (squares / variance.max(f64::MIN_POSITIVE)).sqrt(),
        }
    }

    /// Refuses a network that is too far from the float32 network.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        if self.logit_error <= LARGEST_ERROR {
            return Ok(());
        }
        Err(NetworkError::Quantisation(format!(
            "the logits are off by {:.2} of their standard deviation on the generated pictures \
             (at most {LARGEST_ERROR} is taken), and {} of {} pictures keep their class",
            self.logit_error, self.same_class, self.pictures
        )))
    }
}

fn first_class(logits: &[f32]) -> Option<usize> {
    crate::head::top_k(logits, 1)
        .first()
        .map(|(class, _)| *class)
}

/// What the float32 network gave for the generated pictures.
pub(crate) struct Measured {
    pub(crate) scales: Scales,
    logits: Vec<Vec<f32>>,
}

impl Measured {
    /// Runs the generated pictures through the float32 network on `backend`.
    pub(crate) fn new(
        weights: &imgclass_checkpoint::Weights,
        info: &CheckpointInfo,
        backend: CpuBackend,
    ) -> Result<Self, NetworkError> {
        let recorder = Recorder {
            inner: backend,
            seen: Mutex::default(),
        };
        let (net, _) = crate::weights::build(weights, info, recorder)?;
        let logits = run(&net, info)?;
        let mut seen = net.backend().seen();
        let scales = seen
            .iter_mut()
            .map(|(name, seen)| (name.clone(), seen.scale()));
        Ok(Self {
            scales: Scales(scales.collect()),
            logits,
        })
    }

    /// Compares an 8-bit network with the float32 network.
    pub(crate) fn compare<B: Backend>(
        &self,
        net: &ResNet<B>,
        info: &CheckpointInfo,
    ) -> Result<Fidelity, NetworkError> {
        Ok(Fidelity::of(&self.logits, &run(net, info)?))
    }
}

/// Returns a network's logits for the generated pictures.
fn run<B: Backend>(net: &ResNet<B>, info: &CheckpointInfo) -> Result<Vec<Vec<f32>>, NetworkError> {
    let size = info.preprocessing.crop.dims();
    let pictures: Vec<Input> = (0..PICTURES)
        .map(|index| Input::Pixels(pictures::picture(index as u64, size)))
        .collect();
    let mut logits = Vec::with_capacity(PICTURES);
    let _place = net.backend().enter();
    for group in pictures.chunks(TOGETHER) {
        let images: Vec<&Input> = group.iter().collect();
        let rows = net.forward(&images, size)?.logits;
        let rows = net.backend().rows_to_vec(rows)?;
        logits.extend(rows.chunks_exact(info.classes.max(1)).map(<[f32]>::to_vec));
    }
    Ok(logits)
}

/// What was seen of one layer's output.
#[derive(Default)]
struct Seen {
    largest: f32,
    samples: Vec<f32>,
}

impl Seen {
    /// Looks at the output for some images.
    fn look(&mut self, numbers: &[f32], images: usize) {
        self.largest = numbers
            .iter()
            .fold(self.largest, |largest, &x| largest.max(x));
        // An odd step meets all channels of a block.
        let step = (numbers.len() / (SAMPLES * images.max(1))) | 1;
        self.samples.extend(numbers.iter().step_by(step));
    }

    /// Returns the scale: midway between that of the largest value and that of least squared error.
    fn scale(&mut self) -> f32 {
        if self.largest <= 0.0 || !self.largest.is_finite() {
            return 1.0;
        }
        round_up((self.least_error() + self.largest) / (2.0 * TOP))
    }

    /// Returns the upper limit by which integers have the least squared error.
    fn least_error(&self) -> f32 {
        const BINS: usize = 2048;
        const LIMITS: usize = 50;
        // A limit below a twentieth of the largest value was never the best.
        const LEAST: f32 = 0.05;
        let width = self.largest / BINS as f32;
        let mut counts = [0u32; BINS];
        for sample in &self.samples {
            counts[((sample / width) as usize).min(BINS - 1)] += 1;
        }
        let error = |limit: f32| -> f64 {
            let step = limit / TOP;
            let of_bin = |(bin, &count): (usize, &u32)| {
                let value = (bin as f32 + 0.5) * width;
                let rounded = (value / step).round().min(TOP) * step;
                f64::from(count) * f64::from(rounded - value).powi(2)
            };
            // The first bin holds the zeros, which lose nothing.
            counts.iter().enumerate().skip(1).map(of_bin).sum()
        };
        let limits = (0..LIMITS).map(|i| self.largest * LEAST.powf(i as f32 / (LIMITS - 1) as f32));
        limits
            .map(|limit| (error(limit), limit))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(self.largest, |(_, limit)| limit)
    }
}

/// Rounds a scale up to seven bits. The float32 network's last bits differ between instruction sets,
/// and the scales should not.
fn round_up(scale: f32) -> f32 {
    const DROPPED: u32 = (1 << 17) - 1;
    f32::from_bits((scale.to_bits() + DROPPED) & !DROPPED)
}

/// Computes in float32 and looks at the output of each layer that has a ReLU.
struct Recorder {
    inner: CpuBackend,
    /// What was seen of each layer's output, by the layer's name.
    seen: Mutex<BTreeMap<String, Seen>>,
}

impl Recorder {
    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Seen>> {
        // What a panicking thread has seen is whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, name: &str, activation: Activation) -> Activation {
        let mut seen = self.seen();
        let images = activation.images();
        seen.entry(name.to_owned())
            .or_default()
            .look(activation.words(), images);
        activation
    }
}

impl Backend for Recorder {
    type Activation = Activation;
    type Conv = Conv;
    type Stem = Stem;
    type Linear = PackedLinear;
    type Rows = Rows;

    fn load_conv(&self, place: ConvPlace, folded: FoldedConv) -> Result<Conv, NetworkError> {
        self.inner.load_conv(place, folded)
    }

    fn load_stem(&self, folded: FoldedConv) -> Result<Stem, NetworkError> {
        self.inner.load_stem(folded)
    }

    fn load_linear(&self, weights: LinearWeights) -> Result<PackedLinear, NetworkError> {
        self.inner.load_linear(weights)
    }

    fn stem(
        &self,
        stem: &Stem,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Activation, NetworkError> {
        Ok(self.look(STEM, self.inner.stem(stem, images, size)?))
    }

    fn conv(&self, conv: &Conv, x: &Activation) -> Result<Activation, NetworkError> {
        self.inner.conv(conv, x)
    }

    fn conv_relu(&self, conv: &Conv, x: &Activation) -> Result<Activation, NetworkError> {
        Ok(self.look(conv.name(), self.inner.conv_relu(conv, x)?))
    }

    fn conv_add_relu(
        &self,
        conv: &Conv,
        x: &Activation,
        residual: Activation,
    ) -> Result<Activation, NetworkError> {
        let y = self.inner.conv_add_relu(conv, x, residual)?;
        Ok(self.look(conv.name(), y))
    }

    fn concatenate(&self, parts: Vec<Activation>) -> Result<Activation, NetworkError> {
        self.inner.concatenate(parts)
    }

    fn average_pool(&self, x: &Activation) -> Result<Rows, NetworkError> {
        self.inner.average_pool(x)
    }

    fn linear(&self, linear: &PackedLinear, features: &Rows) -> Result<Rows, NetworkError> {
        self.inner.linear(linear, features)
    }

    fn rows_to_vec(&self, rows: Rows) -> Result<Vec<f32>, NetworkError> {
        self.inner.rows_to_vec(rows)
    }

    fn activation_to_nchw(
        &self,
        x: &Activation,
        images: Range<usize>,
    ) -> Result<Vec<f32>, NetworkError> {
        self.inner.activation_to_nchw(x, images)
    }

    fn images_together(&self) -> ImagesTogether {
        self.inner.images_together()
    }

    fn enter(&self) -> Option<Entered<'_>> {
        self.inner.enter()
    }

    fn passes(&self) -> NonZeroUsize {
        self.inner.passes()
    }
}
