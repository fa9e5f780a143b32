//! The ranges of activations for 8-bit integers, from generated pictures and without a data set.
//!
//! A fixed set of pictures ([`pictures`]), or pictures of the user's, runs through the network in
//! bfloat16 once. Its numbers are the same bits on every processor, so the ranges are too.
//! [`Recorder`] looks at each layer's output on the way. From what it saw follow:
//!
//! - the factors of channels: the square root of a channel's largest value as a share of the
//!   layer's, but no less than 0.7. A channel of small numbers keeps more of its bits. Smaller factors
//!   lose more than they gain: what is small on a few pictures may be large on the next;
//! - a layer's scale: between that of its largest value and that of least squared error;
//! - the means of channels, by which the rounding of weights is made up for on average.
//!
//! The 8-bit network then runs every second of these pictures, and [`Fidelity`] says how far its
//! logits are from those of the network in float32. Ranges and fidelity are kept in a file for the next start
//! ([`cache`]).

mod cache;
mod folder;
mod pictures;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use imgclass_checkpoint::{CheckpointInfo, Comparison};
use imgclass_image::Preprocessor;
use imgclass_kernels::{BLOCK, Entered, PackedLinear, ThreadPool};

use crate::backend::{
    Backend, ConvPlace, ConvRole, FoldedConv, ImagesTogether, LinearWeights, STEM,
};
use crate::cpu::{Activation, Conv, CpuBackend, Rows, Stem};
use crate::error::NetworkError;
use crate::input::Input;
use crate::noise::{LayerNoise, Twin, TwinLayers};
use crate::parallel::in_parallel;
use crate::plan::Plan;
use crate::quantise::{LARGEST_EXPONENT, LayerRange, Scales, factor};
use crate::quantised::QuantisedNetwork;
use crate::resnet::ResNet;
pub(crate) use cache::Cache;
pub(crate) use folder::read as read_folder;

/// The version of everything that ranges follow from: the pictures, and how ranges are chosen. It
/// goes up with each change of them, so that ranges that were kept before are not taken.
pub(crate) const RECIPE: u32 = 3;

/// How many sections of a drawn scene ranges are measured on.
const SECTIONS: usize = 16;

/// How many pictures of shapes over noise ranges are measured on.
const DRAWN: usize = 8;

/// How many words of a layer's output are kept for each picture, beside what is summed.
const SAMPLES: usize = 2048;

/// How many pictures run together.
const TOGETHER: usize = 4;

/// On how many pictures at most an 8-bit network is compared with the float32 network. A pass in
/// float32 takes twice the time of one in bfloat16. On the reference the error is 0.051 on twelve
/// pictures and 0.056 on twenty-four.
const COMPARED_PICTURES: usize = 12;

/// On how many pictures at most the noise of layers is measured.
const NOISE_PICTURES: usize = 8;

/// A limit is this part of the way from that of least squared error to the largest value.
const LARGEST_SHARE: f32 = 0.75;

/// The largest integer of an activation.
const TOP: f32 = 255.0;

/// Beyond this logit error layers are kept wide, and where that is not enough the network is
/// refused. Of the networks in docs/numbers.md those below it keep at least 194 of 200 photographs'
/// classes. One with an error of 0.14 keeps 190, and with more the classes go fast.
const LARGEST_ERROR: f64 = 0.1;

/// How far an 8-bit network is from the float32 network that it was made of, measured on the
/// generated pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// How many pictures were compared.
    pub pictures: usize,
    /// For how many of them both networks have the same first class.
    pub same_class: usize,
    /// The root mean square of the differences between the logits, as a share of the standard
    /// deviation of the float32 logits; with a single class, of their root mean square.
    pub logit_error: f64,
}

impl From<Comparison> for Fidelity {
    fn from(comparison: Comparison) -> Self {
        let Comparison {
            pictures,
            same_class,
            logit_error,
        } = comparison;
        Self {
            pictures,
            same_class,
            logit_error,
        }
    }
}

impl From<Fidelity> for Comparison {
    fn from(fidelity: Fidelity) -> Self {
        let Fidelity {
            pictures,
            same_class,
            logit_error,
        } = fidelity;
        Self {
            pictures,
            same_class,
            logit_error,
        }
    }
}

impl Fidelity {
    /// Compares logits of the same pictures.
    fn of(float: &[Vec<f32>], integer: &[Vec<f32>]) -> Self {
        let (mut squares, mut variance, mut same_class) = (0.0, 0.0, 0);
        for (float, integer) in float.iter().zip(integer) {
            // A single logit does not deviate from the mean of its picture's.
            let mean = match float.as_slice() {
                [_] => 0.0,
                _ => float.iter().map(|&x| f64::from(x)).sum::<f64>() / float.len() as f64,
            };
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

    /// Whether the network is near enough to the float32 network.
    pub(crate) fn is_good(&self) -> bool {
        self.logit_error <= LARGEST_ERROR
    }

    /// Refuses a network that is too far from the float32 network.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        if self.is_good() {
            return Ok(());
        }
        Err(NetworkError::Quantisation(format!(
            "the logits are off by {:.2} of their standard deviation on the generated pictures \
             (at most {LARGEST_ERROR} is taken), although layers were kept in bfloat16, and {} of {} \
             pictures keep their class",
            self.logit_error, self.same_class, self.pictures
        )))
    }
}

fn first_class(logits: &[f32]) -> Option<usize> {
    crate::head::top_k(logits, 1)
        .first()
        .map(|(class, _)| *class)
}

/// The logits of a network for the pictures.
pub(crate) struct Logits(Vec<Vec<f32>>);

/// The pictures on which ranges are measured, and what the float network gives for them.
pub(crate) struct Calibration<'a> {
    weights: &'a imgclass_checkpoint::Weights,
    info: &'a CheckpointInfo,
    pictures: Vec<Input>,
}

impl<'a> Calibration<'a> {
    /// Draws the pictures on up to `threads` threads, or takes `own` ones, which have the network's
    /// input size.
    pub(crate) fn new(
        weights: &'a imgclass_checkpoint::Weights,
        info: &'a CheckpointInfo,
        own: Option<Vec<Input>>,
        threads: usize,
    ) -> Result<Self, NetworkError> {
        let pictures = match own {
            Some(own) => own,
            None => generated(info, threads)?,
        };
        Ok(Self {
            weights,
            info,
            pictures,
        })
    }

    /// Measures the ranges. `backend` computes in bfloat16.
    pub(crate) fn measure(&self, backend: CpuBackend) -> Result<Scales, NetworkError> {
        let recorder = Recorder {
            inner: backend,
            plan: Plan::of(&self.info.architecture),
            seen: Mutex::default(),
        };
        let (net, _) = crate::weights::build(self.weights, self.info, recorder)?;
        self.run(&net, self.pictures.len())?;
        Ok(net.backend().scales())
    }

    /// Returns the logits of the float network, which `backend` computes, for the pictures on which
    /// networks are compared.
    pub(crate) fn float_logits(&self, backend: CpuBackend) -> Result<Logits, NetworkError> {
        let (float, _) = crate::weights::build(self.weights, self.info, backend)?;
        Ok(Logits(self.run(&float, COMPARED_PICTURES)?))
    }

    /// Compares an 8-bit network with the float network.
    pub(crate) fn compare(
        &self,
        net: &ResNet<CpuBackend>,
        float: &Logits,
    ) -> Result<Fidelity, NetworkError> {
        Ok(Fidelity::of(&float.0, &self.run(net, COMPARED_PICTURES)?))
    }

    /// Measures what each layer of an 8-bit network loses, on some of the pictures. `exact` is the
    /// same network with all layers kept wide.
    pub(crate) fn noise(
        &self,
        exact: &QuantisedNetwork,
        integers: &QuantisedNetwork,
        backend: CpuBackend,
    ) -> Result<Vec<LayerNoise>, NetworkError> {
        let layers = TwinLayers { exact, integers };
        let architecture = &self.info.architecture;
        let net = ResNet::assemble(architecture, &layers, Twin::new(backend))?;
        let _place = net.backend().enter();
        for picture in self.some(NOISE_PICTURES) {
            net.forward(&[picture], self.info.preprocessing.crop.dims())?;
        }
        Ok(net.backend().noise())
    }

    /// Returns up to `most` of the pictures, at equal distances.
    fn some(&self, most: usize) -> Vec<&Input> {
        let step = self.pictures.len().div_ceil(most).max(1);
        self.pictures.iter().step_by(step).collect()
    }

    /// Returns a network's logits for up to `most` of the pictures.
    fn run<B: Backend>(&self, net: &ResNet<B>, most: usize) -> Result<Vec<Vec<f32>>, NetworkError> {
        let (size, classes) = (self.info.preprocessing.crop.dims(), self.info.classes);
        let pictures = self.some(most);
        let mut logits = Vec::with_capacity(pictures.len());
        let _place = net.backend().enter();
        for images in pictures.chunks(TOGETHER) {
            let rows = net.forward(images, size)?.logits;
            let rows = net.backend().rows_to_vec(rows)?;
            logits.extend(rows.chunks_exact(classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(logits)
    }
}

/// Returns the generated pictures, prepared for a network.
fn generated(info: &CheckpointInfo, threads: usize) -> Result<Vec<Input>, NetworkError> {
    let fault = |error: &dyn std::fmt::Display| {
        NetworkError::Quantisation(format!(
            "the generated pictures cannot be prepared: {error}"
        ))
    };
    let size = info.preprocessing.crop.dims();
    let preprocessor =
        Preprocessor::new(info.preprocessing.clone()).map_err(|error| fault(&error))?;
    let sections = pictures::sections(SECTIONS).map_err(|error| fault(&error))?;
    in_parallel(threads, sections.len() + DRAWN, |index| {
        Ok(Input::Pixels(match sections.get(index) {
            Some(section) => preprocessor.pixels(section),
            None => pictures::picture((index - sections.len()) as u64, size),
        }))
    })
}

/// What was seen of one layer's output.
#[derive(Default)]
struct Seen {
    /// The largest number of each channel.
    largest: Vec<f32>,
    /// The sum of each channel.
    sums: Vec<f64>,
    /// How many pixels were seen.
    pixels: usize,
    /// Some numbers with their channels.
    samples: Vec<(u16, f32)>,
}

/// The two bfloat16 numbers of a word.
fn pair(word: f32) -> [f32; 2] {
    let bits = word.to_bits();
    [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
}

/// What was seen of a block of channels: for each channel the largest number and the sum.
struct BlockSeen {
    largest: [[f32; 2]; BLOCK],
    sums: [[f32; 2]; BLOCK],
}

impl BlockSeen {
    /// Looks at the words of a block.
    fn of(words: &[f32]) -> Self {
        let (mut largest, mut sums) = ([[0.0f32; 2]; BLOCK], [[0.0f32; 2]; BLOCK]);
        for line in words.chunks_exact(BLOCK) {
            for ((word, largest), sums) in line.iter().zip(&mut largest).zip(&mut sums) {
                for ((number, largest), sum) in pair(*word).into_iter().zip(largest).zip(sums) {
                    *largest = largest.max(number);
                    *sum += number;
                }
            }
        }
        Self { largest, sums }
    }
}

impl Seen {
    /// Looks at an activation in bfloat16.
    fn look(&mut self, activation: &Activation, threads: &ThreadPool) {
        let (channels, pixels) = (activation.channels(), activation.pixels());
        self.largest.resize(channels, 0.0);
        self.sums.resize(channels, 0.0);
        self.pixels += pixels;
        let words = activation.words();
        let blocks: Vec<&[f32]> = words.chunks_exact(pixels * BLOCK).collect();
        let seen: Vec<Mutex<Option<BlockSeen>>> = blocks.iter().map(|_| Mutex::default()).collect();
        threads.for_each(blocks.len(), |block| {
            *lock(&seen[block]) = Some(BlockSeen::of(blocks[block]));
        });
        for (block, seen) in seen.iter().enumerate() {
            let Some(BlockSeen { largest, sums }) = lock(seen).take() else {
                continue;
            };
            let first = block * BLOCK * 2;
            let lanes = largest
                .into_iter()
                .flatten()
                .zip(sums.into_iter().flatten());
            for (channel, (largest, sum)) in (first..channels).zip(lanes) {
                self.largest[channel] = self.largest[channel].max(largest);
                self.sums[channel] += f64::from(sum);
            }
        }
        // An odd step meets all channels of a block.
        let step = (words.len() / (SAMPLES * TOGETHER)) | 1;
        for at in (0..words.len()).step_by(step) {
            let channel = (at / (pixels * BLOCK) * BLOCK + at % BLOCK) * 2;
            for (channel, number) in (channel..channels).zip(pair(words[at])) {
                self.samples.push((channel as u16, number));
            }
        }
    }

    /// Returns each channel's largest number as a share of the layer's.
    fn shares(&self) -> Vec<f32> {
        let all = self.largest.iter().fold(0.0f32, |all, &x| all.max(x));
        let share = |x: &f32| if all > 0.0 { x / all } else { 1.0 };
        self.largest.iter().map(share).collect()
    }

    /// Returns the range with these factors of channels.
    fn range(&self, exponents: &[u8]) -> LayerRange {
        let factors: Vec<f32> = exponents.iter().map(|&e| factor(e)).collect();
        let of = |channel: usize| factors.get(channel).copied().unwrap_or(1.0);
        let numbers = self.largest.iter().enumerate();
        let largest = numbers.fold(0.0f32, |largest, (channel, x)| largest.max(x / of(channel)));
        let samples = self
            .samples
            .iter()
            .map(|&(channel, x)| x / of(channel.into()));
        let pixels = self.pixels.max(1) as f64;
        LayerRange {
            scale: if largest > 0.0 && largest.is_finite() {
                (LARGEST_SHARE * largest + (1.0 - LARGEST_SHARE) * least_error(largest, samples))
                    / TOP
            } else {
                1.0
            },
            exponents: exponents.to_vec(),
            means: self.sums.iter().map(|sum| (sum / pixels) as f32).collect(),
        }
    }
}

/// Returns the exponent of a channel's factor, [`LayerRange::exponents`]: the factor is near the
/// square root of `share`.
fn exponent(share: f32) -> u8 {
    // Factor `e` serves shares from the square of factor `e + 1/2` on, which is 2^-(e / 2 + 1 / 4).
    let least = |e: u8| factor(2 * e + 1);
    (0..LARGEST_EXPONENT)
        .find(|&e| share >= least(e))
        .unwrap_or(LARGEST_EXPONENT)
}

/// Returns the upper limit by which integers have the least squared error.
fn least_error(largest: f32, samples: impl Iterator<Item = f32>) -> f32 {
    const BINS: usize = 2048;
    const LIMITS: usize = 50;
    // A limit below a twentieth of the largest value was never the best: each is 0.94 times the one
    // before.
    const STEP: f32 = 0.94;
    let width = largest / BINS as f32;
    let mut counts = [0u32; BINS];
    for sample in samples {
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
    let limits = std::iter::successors(Some(largest), |limit| Some(limit * STEP)).take(LIMITS);
    limits
        .map(|limit| (error(limit), limit))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(largest, |(_, limit)| limit)
}

/// Computes in bfloat16 and looks at the output of each layer that has a ReLU.
struct Recorder {
    inner: CpuBackend,
    /// The network's convolutions.
    plan: Plan,
    /// What was seen of each layer's output, by the layer's name.
    seen: Mutex<BTreeMap<String, Seen>>,
}

/// Locks what a recorder has seen, which is whole even where a thread panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    fn look(&self, name: &str, activation: Activation) -> Activation {
        let mut seen = lock(&self.seen);
        let seen = seen.entry(name.to_owned()).or_default();
        seen.look(&activation, self.inner.threads());
        activation
    }

    /// Returns the ranges of all layers.
    ///
    /// Outputs of blocks are added to one another, from a stage's first to its last, so they have
    /// the same factors. Those of the last stage have none, because features are read from them.
    fn scales(&self) -> Scales {
        let seen = lock(&self.seen);
        // The first layer of those that are added to one another, by their names.
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        let mut last = STEM;
        for place in self.plan.convs().map(|plan| &plan.place) {
            if let ConvRole::Last { residual } = &place.role {
                let added = residual
                    .as_deref()
                    .map(|name| first.get(name).copied().unwrap_or(name));
                first.insert(&place.name, added.unwrap_or(&place.name));
                last = &place.name;
            }
        }
        let root = |name: &str| (*first.get(name).unwrap_or(&name)).to_owned();
        let mut shares: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (name, seen) in seen.iter() {
            let own = seen.shares();
            let all = shares.entry(root(name)).or_insert_with(|| own.clone());
            for (all, own) in all.iter_mut().zip(own) {
                *all = all.max(own);
            }
        }
        let range = |(name, seen): (&String, &Seen)| {
            let exponents: Vec<u8> = if root(name) == root(last) {
                Vec::new()
            } else {
                shares[&root(name)]
                    .iter()
                    .map(|&share| exponent(share))
                    .collect()
            };
            (name.clone(), seen.range(&exponents))
        };
        Scales {
            ranges: seen.iter().map(range).collect(),
            ..Scales::default()
        }
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

    fn loading_threads(&self) -> usize {
        self.inner.loading_threads()
    }
}
