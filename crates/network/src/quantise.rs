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

use std::collections::BTreeMap;

use imgclass_kernels::{ConvShape, Int8Stem, Int8Weights, Numbers};

use crate::backend::{ConvPlace, ConvRole, FoldedConv};
use crate::error::NetworkError;
use crate::input::Normalisation;

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

/// The ranges of layers' outputs, by the layers' names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales(pub(crate) BTreeMap<String, LayerRange>);

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
        Self(scales.into_iter().map(range).collect())
    }

    /// Returns the range of the output of layer `name`.
    pub(crate) fn of(&self, name: &str) -> Result<&LayerRange, NetworkError> {
        let range = self.0.get(name);
        range.ok_or_else(|| NetworkError::Quantisation(format!("no range is known of `{name}`")))
    }
}

/// Rounds one output channel's weights to integers. Returns them with their scale.
fn round(weight: &[f32]) -> (impl Iterator<Item = i8>, f32) {
    let largest = weight
        .iter()
        .fold(0.0f32, |largest, w| largest.max(w.abs()));
    let scale = if largest > 0.0 {
        largest / LARGEST
    } else {
        1.0
    };
    (weight.iter().map(move |w| (w / scale).round() as i8), scale)
}

/// Quantises a convolution. Returns it with the scale of its output.
pub(crate) fn conv(
    place: &ConvPlace,
    folded: &FoldedConv,
    scales: &Scales,
) -> Result<(Int8Weights, f32), NetworkError> {
    let input = scales.of(&place.input)?;
    // A downsample convolution's output has no scale, but the factors of what it is added to.
    let (output, scale, of) = match &place.role {
        ConvRole::Downsample(sum) => (Numbers::Bf16, 1.0, scales.of(sum)?),
        ConvRole::Relu | ConvRole::Last { .. } => {
            let of = scales.of(&place.name)?;
            (Numbers::U8, of.scale, of)
        }
    };
    let (residual, residual_scale) = match &place.role {
        ConvRole::Last {
            residual: Some(name),
        } => (Numbers::U8, scales.of(name)?.scale / scale),
        ConvRole::Last { residual: None } => (Numbers::Bf16, 1.0 / scale),
        ConvRole::Relu | ConvRole::Downsample(_) => (output, 1.0),
    };
    let mut weights = Int8Weights {
        weight: Vec::with_capacity(folded.weight.len()),
        scale: Vec::with_capacity(folded.bias.len()),
        bias: Vec::with_capacity(folded.bias.len()),
        output,
        residual,
        residual_scale,
    };
    let taps = folded.shape.kernel * folded.shape.kernel;
    let factors: Vec<f32> = (0..folded.shape.in_channels)
        .map(|channel| input.factor(channel))
        .collect();
    let means: Vec<f32> = (0..folded.shape.in_channels)
        .map(|channel| input.mean(channel) / input.factor(channel))
        .collect();
    let length = (folded.weight.len() / folded.bias.len().max(1)).max(1);
    let mut scaled = vec![0.0; length];
    let kernels = folded.weight.chunks_exact(length).zip(&folded.bias);
    for (channel, (kernel, bias)) in kernels.enumerate() {
        let own = of.factor(channel);
        let inputs = scaled.chunks_exact_mut(taps).zip(kernel.chunks_exact(taps));
        for ((to, from), factor) in inputs.zip(&factors) {
            for (to, weight) in to.iter_mut().zip(from) {
                *to = weight * factor / own;
            }
        }
        let (integers, weight_scale) = round(&scaled);
        let first = weights.weight.len();
        weights.weight.extend(integers);
        // What rounding the weights takes from the sums on average.
        let mut lost = 0.0f32;
        let rounded = weights.weight[first..].chunks_exact(taps);
        for ((exact, rounded), mean) in scaled.chunks_exact(taps).zip(rounded).zip(&means) {
            let errors = exact.iter().zip(rounded);
            lost += mean
                * errors
                    .map(|(exact, rounded)| exact - f32::from(*rounded) * weight_scale)
                    .sum::<f32>();
        }
        weights.scale.push(input.scale * weight_scale / scale);
        weights.bias.push((bias / own + lost) / scale);
    }
    Ok((weights, scale))
}

/// Whether a convolution between 8-bit integers multiplies in bfloat16, by Winograd's filtering: a 3x3
/// layer of stride 1 that no residual is added to. That takes 0.65 to 0.85 of the time of 8-bit
/// products. With 512 channels it would take longer, as the transformed weights are large.
pub(crate) fn multiplies_in_bf16(place: &ConvPlace, shape: &ConvShape) -> bool {
    place.role == ConvRole::Relu
        && (shape.kernel, shape.stride, shape.padding) == (3, 1, 1)
        && (32..512).contains(&shape.in_channels)
}

/// Returns the weights and biases of a convolution between integers as numbers, and the scale of its
/// output.
pub(crate) fn between_integers(
    place: &ConvPlace,
    folded: &FoldedConv,
    scales: &Scales,
) -> Result<(Vec<f32>, Vec<f32>, f32), NetworkError> {
    let (input, output) = (scales.of(&place.input)?, scales.of(&place.name)?);
    let taps = folded.shape.kernel * folded.shape.kernel;
    let inputs = folded.shape.in_channels;
    let step = |channel: usize| output.scale * output.factor(channel);
    let kernels = folded.weight.chunks_exact(taps).enumerate();
    let weight = kernels.flat_map(|(index, kernel)| {
        let factor = input.scale * input.factor(index % inputs) / step(index / inputs);
        kernel.iter().map(move |weight| weight * factor)
    });
    let bias = folded.bias.iter().enumerate();
    let bias = bias.map(|(channel, bias)| bias / step(channel));
    Ok((weight.collect(), bias.collect(), output.scale))
}

/// Quantises the stem, which reads bytes: the normalisation is folded into its weights. `output` is
/// the range of its output.
///
/// A normalised number is `factor * (byte - mean)`. Outside the image it is zero, so the border's
/// byte is the mean's nearest. What the mean contributes is taken off by the bias, with the rounded
/// weights, so that an image of one colour loses nothing by their rounding.
pub(crate) fn stem(
    folded: &FoldedConv,
    normalisation: &Normalisation,
    output: &LayerRange,
) -> Int8Stem {
    let scale = output.scale;
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
    stem
}
