//! From float32 weights and the scales of activations to layers in 8-bit integers.
//!
//! Activations follow a ReLU, so they are not negative: `value = scale * integer` with integers from
//! 0 to 255 and one scale for each layer's output ([`Scales`]). Weights have a scale for each output
//! channel, from their largest. A residual is added in float32 before the one rounding of a block's
//! output; that of a downsample convolution, which has no ReLU, is kept in bfloat16.

use std::collections::BTreeMap;

use imgclass_kernels::{Int8Stem, Int8Weights, Numbers};

use crate::backend::{ConvPlace, ConvRole, FoldedConv};
use crate::error::NetworkError;
use crate::input::Normalisation;

/// The largest weight in integers. -128 is left out, so that weights of both signs have one scale.
const LARGEST: f32 = 127.0;

/// The scale of each layer's output, by the layer's name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales(pub(crate) BTreeMap<String, f32>);

impl Scales {
    /// Returns the scales of layers' outputs by the layers' names. The stem's is [`STEM`].
    ///
    /// [`STEM`]: crate::STEM
    #[must_use]
    pub fn new(scales: impl IntoIterator<Item = (String, f32)>) -> Self {
        Self(scales.into_iter().collect())
    }

    /// Returns the scale of the output of layer `name`.
    pub(crate) fn of(&self, name: &str) -> Result<f32, NetworkError> {
        let scale = self.0.get(name).copied();
        scale.ok_or_else(|| NetworkError::Quantisation(format!("no range is known of `{name}`")))
    }
}

/// Rounds one output channel's weights to integers. Returns them with their scale.
fn channel(weight: &[f32]) -> (impl Iterator<Item = i8>, f32) {
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
    let (output, scale) = match place.role {
        ConvRole::Downsample => (Numbers::Bf16, 1.0),
        ConvRole::Relu | ConvRole::Last { .. } => (Numbers::U8, scales.of(&place.name)?),
    };
    let (residual, residual_scale) = match &place.role {
        ConvRole::Last {
            residual: Some(name),
        } => (Numbers::U8, scales.of(name)? / scale),
        ConvRole::Last { residual: None } => (Numbers::Bf16, 1.0 / scale),
        ConvRole::Relu | ConvRole::Downsample => (output, 1.0),
    };
    let mut weights = Int8Weights {
        weight: Vec::with_capacity(folded.weight.len()),
        scale: Vec::with_capacity(folded.bias.len()),
        bias: folded.bias.iter().map(|bias| bias / scale).collect(),
        output,
        residual,
        residual_scale,
    };
    let length = folded.weight.len() / folded.bias.len().max(1);
    for numbers in folded.weight.chunks_exact(length.max(1)) {
        let (integers, weight_scale) = channel(numbers);
        weights.weight.extend(integers);
        weights.scale.push(input * weight_scale / scale);
    }
    Ok((weights, scale))
}

/// Quantises the stem, which reads bytes: the normalisation is folded into its weights. `scale` is
/// that of its output.
///
/// A normalised number is `factor * (byte - mean)`. Outside the image it is zero, so the border's
/// byte is the mean's nearest. What the mean contributes is taken off by the bias, with the rounded
/// weights, so that an image of one colour loses nothing by their rounding.
pub(crate) fn stem(folded: &FoldedConv, normalisation: &Normalisation, scale: f32) -> Int8Stem {
    let mean: [f32; 3] =
        std::array::from_fn(|plane| -normalisation.addend[plane] / normalisation.factor[plane]);
    let mut stem = Int8Stem {
        weight: Vec::with_capacity(folded.weight.len()),
        scale: Vec::with_capacity(folded.bias.len()),
        bias: Vec::with_capacity(folded.bias.len()),
        border: mean.map(|mean| mean.round() as u8),
    };
    let length = folded.weight.len() / folded.bias.len().max(1);
    for (kernel, bias) in folded.weight.chunks_exact(length.max(1)).zip(&folded.bias) {
        let plane = (length / 3).max(1);
        let for_bytes: Vec<f32> = kernel
            .iter()
            .enumerate()
            .map(|(tap, weight)| weight * normalisation.factor[(tap / plane).min(2)])
            .collect();
        let (integers, weight_scale) = channel(&for_bytes);
        let first = stem.weight.len();
        stem.weight.extend(integers);
        let mut of_mean = 0.0f32;
        for (taps, mean) in stem.weight[first..].chunks_exact(plane).zip(mean) {
            let sum: i32 = taps.iter().map(|&tap| i32::from(tap)).sum();
            of_mean += sum as f32 * mean;
        }
        stem.scale.push(weight_scale / scale);
        stem.bias.push((bias - weight_scale * of_mean) / scale);
    }
    stem
}
