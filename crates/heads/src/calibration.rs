//! The temperature: one number by which logits are divided so that probabilities are deserved
//! (<https://arxiv.org/abs/1706.04599>).

use crate::softmax::scaled_loss;

/// Returns the temperature with the least logistic loss on held-out pictures, from 1/2 to 20.
///
/// `logits` is `[pictures, classes]`. The search is by golden section over the logarithm; the loss
/// has one minimum.
pub(crate) fn temperature(logits: &[f32], labels: &[usize], classes: usize) -> f64 {
    let mut space = Vec::with_capacity(classes);
    let mut loss = |log: f64| mean_loss(logits, labels, classes, log.exp(), &mut space);
    // Where every held-out picture is right, the loss falls for ever: certainty without evidence.
    let (mut low, mut high) = (0.5f64.ln(), 20f64.ln());
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let mut inner = [high - ratio * (high - low), low + ratio * (high - low)];
    let mut values = inner.map(&mut loss);
    for _ in 0..30 {
        if values[0] <= values[1] {
            high = inner[1];
            inner = [high - ratio * (high - low), inner[0]];
            values = [loss(inner[0]), values[0]];
        } else {
            low = inner[0];
            inner = [inner[1], low + ratio * (high - low)];
            values = [values[1], loss(inner[1])];
        }
    }
    ((low + high) / 2.0).exp()
}

/// Returns the mean logistic loss at a temperature. `space` is overwritten.
fn mean_loss(
    logits: &[f32],
    labels: &[usize],
    classes: usize,
    temperature: f64,
    space: &mut Vec<f32>,
) -> f64 {
    let scale = (1.0 / temperature) as f32;
    let rows = logits.chunks_exact(classes.max(1)).zip(labels);
    let losses = rows.map(|(row, &label)| scaled_loss(row, label, scale, space));
    losses.sum::<f64>() / labels.len().max(1) as f64
}

/// Returns the expected calibration error over 15 bins of equal width.
pub(crate) fn calibration_error(confidences: &[(f64, bool)]) -> f64 {
    let mut gaps = [0f64; 15];
    for &(confidence, right) in confidences {
        let bin = ((confidence * 15.0).ceil() as usize).clamp(1, 15) - 1;
        gaps[bin] += f64::from(u8::from(right)) - confidence;
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / confidences.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overconfident_logits_get_the_temperature_that_makes_them_right() {
        // Three of four are right with a logit of 10: the true logit is ln 3.
        let logits = [10.0, 0.0].repeat(4);
        let found = temperature(&logits, &[0, 0, 0, 1], 2);
        assert!((found - 10.0 / 3f64.ln()).abs() < 1e-2, "{found}");
    }
}
