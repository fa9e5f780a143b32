//! The units of the features: centred and scaled for the training, and back.

use crate::examples::Examples;
use crate::product::dot;
use crate::rows::Parameters;

/// How features were centred and scaled.
pub(super) struct Scaling {
    /// The mean of the features.
    pub(super) mean: Vec<f32>,
    /// What they were divided by then.
    scale: f32,
}

impl Scaling {
    /// Centres the features and scales them to a mean squared length of 1.
    pub(super) fn apply(examples: &mut Examples) -> Self {
        let mut sums = vec![0f64; examples.dims()];
        for picture in 0..examples.len() {
            for (sum, x) in sums.iter_mut().zip(examples.row(picture)) {
                *sum += f64::from(*x);
            }
        }
        let count = examples.len().max(1) as f64;
        let mean: Vec<f32> = sums.into_iter().map(|sum| (sum / count) as f32).collect();
        examples.shift_and_scale(&mean, 1.0);
        let squares = (0..examples.len()).map(|picture| {
            let row = examples.row(picture);
            dot(row, row)
        });
        let scale = (squares.sum::<f64>() / count).sqrt() as f32;
        // All pictures are the same: there is nothing to scale.
        let scale = if scale > 0.0 && scale.is_finite() {
            scale
        } else {
            1.0
        };
        examples.shift_and_scale(&vec![0.0; examples.dims()], scale);
        Self { mean, scale }
    }

    /// Returns the square of the scale.
    pub(super) fn squared(&self) -> f64 {
        f64::from(self.scale).powi(2)
    }

    /// Returns the weights `[classes, dims]` and the biases of a classifier for the features as they
    /// were, with the logits divided by the temperature.
    pub(super) fn undo(&self, parameters: &Parameters, temperature: f32) -> (Vec<f32>, Vec<f32>) {
        let mut weights = parameters.weights();
        for weight in &mut weights {
            *weight = *weight / self.scale / temperature;
        }
        let bias = parameters.bias().iter();
        let bias = bias.zip(weights.chunks_exact(parameters.dims));
        let bias = bias.map(|(bias, weights)| {
            (f64::from(bias / temperature) - dot(weights, &self.mean)) as f32
        });
        let bias = bias.collect();
        (weights, bias)
    }
}
