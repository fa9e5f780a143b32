//! From float32 weights and the ranges of activations to layers in 8-bit integers.
//!
//! Activations follow a ReLU, so they are not negative: `value = scale * factor * integer` with
//! integers from 0 to 255, one scale for each layer's output and one factor for each of its channels
//! ([`LayerRange`]). The factors cost nothing at run time: a layer's own weights are divided by
//! them, and the next layer's multiplied. Weights have a scale for each output channel, from their
//! largest. What their rounding changes on average is taken off the bias.
//!
//! A residual is added in float32 before the one rounding of a block's output; that of a downsample
//! convolution, which has no ReLU, is kept in bfloat16. A block's output and its residual have the
//! same factors.
//!
//! A layer that is kept wide has weights and outputs in bfloat16: `value = factor * number`.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;
use imgclass_kernels::{ConvShape, Int8Stem};

use crate::backend::{ConvPlace, ConvRole, FoldedConv, LinearWeights, STEM};
use crate::error::NetworkError;
use crate::input::Normalisation;
use crate::plan::Plan;

/// The largest weight in integers. -128 is left out, so that weights of both signs have one scale.
const LARGEST: f32 = 127.0;

/// The smallest factor of a channel is 2 to the power of minus a quarter of this.
pub(crate) const LARGEST_EXPONENT: u8 = 2;

/// What is known of a layer's output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerRange {
    /// What an integer is multiplied by, beside its channel's factor.
    pub(crate) scale: f32,
    /// The factor of each channel: 2 to the power of minus a quarter of this. Channels beyond the
    /// last have factor 1.
    pub(crate) exponents: Vec<u8>,
    /// The mean of each channel. Those of channels beyond the last are taken for zero.
    pub(crate) means: Vec<f32>,
}

impl LayerRange {
    /// Returns the factor of a channel.
    pub(crate) fn factor(&self, channel: usize) -> f32 {
        self.exponents.get(channel).map_or(1.0, |&e| factor(e))
    }

    fn mean(&self, channel: usize) -> f32 {
        self.means.get(channel).copied().unwrap_or(0.0)
    }
}

/// Returns 2 to the power of minus a quarter of `exponent`, which is below 64.
pub(crate) fn factor(exponent: u8) -> f32 {
    // 2^-0.25, 2^-0.5 and 2^-0.75.
    const PARTS: [f32; 4] = [1.0, 0.840_896_4, 0.707_106_77, 0.594_603_54];
    PARTS[usize::from(exponent % 4)] / f32::from(1u16 << (exponent / 4))
}

/// The ranges of layers' outputs, by the layers' names, and the layers that are kept wide.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales {
    pub(crate) ranges: BTreeMap<String, LayerRange>,
    /// The names of layers whose weights and outputs are bfloat16.
    pub(crate) wide: BTreeSet<String>,
}

impl Scales {
    /// Returns ranges of the same scale for all channels of a layer's output, by the layers' names.
    /// The stem's is [`STEM`].
    ///
    /// [`STEM`]: crate::STEM
    #[must_use]
    pub fn new(scales: impl IntoIterator<Item = (String, f32)>) -> Self {
        let range = |(name, scale)| {
            let range = LayerRange {
                scale,
                exponents: Vec::new(),
                means: Vec::new(),
            };
            (name, range)
        };
        Self {
            ranges: scales.into_iter().map(range).collect(),
            wide: BTreeSet::new(),
        }
    }

    /// Returns the same ranges with all layers kept wide.
    pub(crate) fn all_wide(&self, plan: &Plan) -> Self {
        let convs = plan.convs().map(|conv| conv.place.name.clone());
        Self {
            ranges: self.ranges.clone(),
            wide: convs.chain([STEM.to_owned()]).collect(),
        }
    }

    /// Returns what an integer of a layer's output stands for, and whether the layer is kept wide.
    pub(crate) fn output_of(&self, name: &str) -> Result<(f32, bool), NetworkError> {
        Ok((self.of(name)?.scale, self.wide.contains(name)))
    }

    /// Returns the range of the output of layer `name`.
    pub(crate) fn of(&self, name: &str) -> Result<&LayerRange, NetworkError> {
        let range = self.ranges.get(name);
        range.ok_or_else(|| NetworkError::Quantisation(format!("no range is known of `{name}`")))
    }
}

/// Rounds one output channel's weights to integers. Returns them with their scale.
fn round(weight: &[f32]) -> (impl Iterator<Item = i8>, f32) {
    let largest = weight
        .iter()
        .fold(0.0f32, |largest, w| largest.max(w.abs()));
    // Numbers that are all smaller are as good as zero, and their scale would not be normal.
    let scale = if largest > 1e-30 {
        largest / LARGEST
    } else {
        1.0
    };
    (weight.iter().map(move |w| (w / scale).round() as i8), scale)
}

/// The weights of a quantised layer, `[outputs, ...]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum QuantisedWeights {
    /// Integers, and for each output channel what its sums are multiplied by.
    Integers { weight: Vec<i8>, scale: Vec<f32> },
    /// Numbers that bfloat16 has.
    Wide(Vec<f32>),
}

/// A convolution in 8-bit integers. Integers are input and output of one with [integer
/// weights](QuantisedWeights::Integers), but for that of a downsample convolution.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuantisedConv {
    pub(crate) weights: QuantisedWeights,
    /// What is added to each output channel.
    pub(crate) bias: Vec<f32>,
    /// What an output's integer is multiplied by; 1 for a downsample convolution.
    pub(crate) output_scale: f32,
}

/// The weights of a quantised stem.
#[derive(Debug, Clone)]
pub(crate) enum StemWeights {
    /// Integers, for the picture's bytes.
    Integers(Int8Stem),
    /// Numbers that bfloat16 has, for normalised pictures, and biases.
    Wide { weight: Vec<f32>, bias: Vec<f32> },
}

/// The stem in 8-bit integers.
#[derive(Debug, Clone)]
pub(crate) struct QuantisedStem {
    pub(crate) weights: StemWeights,
    /// What an output's integer is multiplied by.
    pub(crate) output_scale: f32,
}

/// The last layer, whose weights are 8-bit integers with a scale for each class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuantisedLinear {
    pub(crate) weight: Vec<i8>,
    pub(crate) scale: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl QuantisedLinear {
    /// Returns the weights as numbers, `[outputs, inputs]`.
    pub(crate) fn numbers(&self) -> Vec<f32> {
        as_numbers(&self.weight, &self.scale)
    }
}

/// Returns integers as numbers: each times the scale of its output channel.
pub(crate) fn as_numbers(weight: &[i8], scale: &[f32]) -> Vec<f32> {
    let length = (weight.len() / scale.len().max(1)).max(1);
    let rows = weight.chunks_exact(length).zip(scale);
    rows.flat_map(|(row, scale)| row.iter().map(move |&w| f32::from(w) * scale))
        .collect()
}

/// Quantises a convolution.
pub(crate) fn conv(
    place: &ConvPlace,
    folded: &FoldedConv,
    scales: &Scales,
) -> Result<QuantisedConv, NetworkError> {
    let input = scales.of(&place.input)?;
    // A downsample convolution's output has no scale, but the factors of what it is added to.
    let (scale, of) = match &place.role {
        ConvRole::Downsample(sum) => (1.0, scales.of(sum)?),
        ConvRole::Relu | ConvRole::Last { .. } => {
            let of = scales.of(&place.name)?;
            (of.scale, of)
        }
    };
    let channels = folded.shape.in_channels;
    let factors: Vec<f32> = (0..channels).map(|channel| input.factor(channel)).collect();
    let means: Vec<f32> = (0..channels)
        .map(|channel| input.mean(channel) / input.factor(channel))
        .collect();
    let taps = folded.shape.kernel * folded.shape.kernel;
    let length = (folded.weight.len() / folded.bias.len().max(1)).max(1);
    let kernels = || folded.weight.chunks_exact(length).zip(&folded.bias);
    // Writes an output channel's weights for inputs and outputs that have their factors.
    let scale_kernel = |to: &mut [f32], kernel: &[f32], own: f32| {
        let inputs = to.chunks_exact_mut(taps).zip(kernel.chunks_exact(taps));
        for ((to, from), factor) in inputs.zip(&factors) {
            for (to, weight) in to.iter_mut().zip(from) {
                *to = weight * factor / own;
            }
        }
    };
    if scales.wide.contains(&place.name) {
        let mut wide = vec![0.0; folded.weight.len()];
        let mut biases = Vec::with_capacity(folded.bias.len());
        let rows = wide.chunks_exact_mut(length).zip(kernels());
        for (channel, (to, (kernel, bias))) in rows.enumerate() {
            let own = of.factor(channel);
            scale_kernel(to, kernel, own);
            to.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
            biases.push(bias / own);
        }
        return Ok(QuantisedConv {
            weights: QuantisedWeights::Wide(wide),
            bias: biases,
            output_scale: scale,
        });
    }
    let mut weights = Vec::with_capacity(folded.weight.len());
    let mut weight_scales = Vec::with_capacity(folded.bias.len());
    let mut biases = Vec::with_capacity(folded.bias.len());
    let mut scaled = vec![0.0; length];
    for (channel, (kernel, bias)) in kernels().enumerate() {
        let own = of.factor(channel);
        scale_kernel(&mut scaled, kernel, own);
        let (integers, weight_scale) = round(&scaled);
        let first = weights.len();
        weights.extend(integers);
        let lost = lost_by_rounding(&scaled, &weights[first..], weight_scale, &means);
        weight_scales.push(input.scale * weight_scale / scale);
        biases.push((bias / own + lost) / scale);
    }
    Ok(QuantisedConv {
        weights: QuantisedWeights::Integers {
            weight: weights,
            scale: weight_scales,
        },
        bias: biases,
        output_scale: scale,
    })
}

/// Returns what the rounding of an output channel's weights takes from its sums on average. Each
/// input has a mean and as many weights as a kernel has taps.
fn lost_by_rounding(exact: &[f32], rounded: &[i8], weight_scale: f32, means: &[f32]) -> f32 {
    let taps = (exact.len() / means.len().max(1)).max(1);
    let inputs = exact.chunks_exact(taps).zip(rounded.chunks_exact(taps));
    let mut lost = 0.0f32;
    for ((exact, rounded), mean) in inputs.zip(means) {
        let errors = exact.iter().zip(rounded);
        lost += mean
            * errors
                .map(|(exact, rounded)| exact - f32::from(*rounded) * weight_scale)
                .sum::<f32>();
    }
    lost
}

/// Quantises the last layer. `input` is the range of the last convolution's output, whose channels
/// have no factors: their means over pixels and pictures are those of the pooled features.
pub(crate) fn linear(folded: &LinearWeights, input: &LayerRange) -> QuantisedLinear {
    let means: Vec<f32> = (0..folded.inputs)
        .map(|channel| input.mean(channel))
        .collect();
    let mut linear = QuantisedLinear {
        weight: Vec::with_capacity(folded.weight.len()),
        scale: Vec::with_capacity(folded.bias.len()),
        bias: Vec::with_capacity(folded.bias.len()),
    };
    let rows = folded.weight.chunks_exact(folded.inputs.max(1));
    for (row, bias) in rows.zip(&folded.bias) {
        let (integers, scale) = round(row);
        let first = linear.weight.len();
        linear.weight.extend(integers);
        let lost = lost_by_rounding(row, &linear.weight[first..], scale, &means);
        linear.scale.push(scale);
        linear.bias.push(bias + lost);
    }
    linear
}

/// Whether a convolution between 8-bit integers multiplies in bfloat16, by Winograd's filtering: a 3x3
/// layer of stride 1 that no residual is added to. That takes 0.65 to 0.85 of the time of 8-bit
/// products. With 512 channels it would take longer, as the transformed weights are large.
pub(crate) fn multiplies_in_bf16(place: &ConvPlace, shape: &ConvShape) -> bool {
    place.role == ConvRole::Relu
        && (shape.kernel, shape.stride, shape.padding) == (3, 1, 1)
        && (32..512).contains(&shape.in_channels)
}

/// Quantises the stem, which reads bytes: the normalisation is folded into its weights. `output` is
/// the range of its output. One that is kept wide reads normalised numbers.
///
/// A normalised number is `factor * (byte - mean)`. Outside the image it is zero, so the border's
/// byte is the mean's nearest. What the mean contributes is taken off by the bias, with the rounded
/// weights, so that an image of one colour loses nothing by their rounding.
pub(crate) fn stem(
    folded: &FoldedConv,
    normalisation: &Normalisation,
    output: &LayerRange,
    is_wide: bool,
) -> QuantisedStem {
    let scale = output.scale;
    if is_wide {
        let length = (folded.weight.len() / folded.bias.len().max(1)).max(1);
        let rows = folded.weight.chunks_exact(length).enumerate();
        let weight = rows.flat_map(|(channel, row)| {
            let own = output.factor(channel);
            row.iter().map(move |w| bf16::from_f32(w / own).to_f32())
        });
        let bias = folded.bias.iter().enumerate();
        return QuantisedStem {
            weights: StemWeights::Wide {
                weight: weight.collect(),
                bias: bias
                    .map(|(channel, bias)| bias / output.factor(channel))
                    .collect(),
            },
            output_scale: scale,
        };
    }
    let mean: [f32; 3] =
        std::array::from_fn(|plane| -normalisation.addend[plane] / normalisation.factor[plane]);
    let mut stem = Int8Stem {
        weight: Vec::with_capacity(folded.weight.len()),
        scale: Vec::with_capacity(folded.bias.len()),
        bias: Vec::with_capacity(folded.bias.len()),
        border: mean.map(|mean| mean.round() as u8),
    };
    let length = folded.weight.len() / folded.bias.len().max(1);
    let kernels = folded.weight.chunks_exact(length.max(1)).zip(&folded.bias);
    for (channel, (kernel, bias)) in kernels.enumerate() {
        let own = output.factor(channel);
        let plane = (length / 3).max(1);
        let for_bytes: Vec<f32> = kernel
            .iter()
            .enumerate()
            .map(|(tap, weight)| weight * normalisation.factor[(tap / plane).min(2)] / own)
            .collect();
        let (integers, weight_scale) = round(&for_bytes);
        let first = stem.weight.len();
        stem.weight.extend(integers);
        let mut of_mean = 0.0f32;
        for (taps, mean) in stem.weight[first..].chunks_exact(plane).zip(mean) {
            let sum: i32 = taps.iter().map(|&tap| i32::from(tap)).sum();
            of_mean += sum as f32 * mean;
        }
        stem.scale.push(weight_scale / scale);
        stem.bias
            .push((bias / own - weight_scale * of_mean) / scale);
    }
    QuantisedStem {
        weights: StemWeights::Integers(stem),
        output_scale: scale,
    }
}
