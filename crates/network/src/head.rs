//! From logits to answers: probabilities, top-k and the class activation map. All are pure functions
//! over slices.

use std::cmp::Ordering;

use imgclass_checkpoint::Probabilities;

/// Returns the probabilities of some logits, one per class, as the checkpoint wants them made.
pub fn probabilities(logits: &[f32], kind: Probabilities) -> Vec<f32> {
    match kind {
        Probabilities::Exclusive => softmax(logits),
        Probabilities::Independent => logits.iter().copied().map(logistic).collect(),
    }
}

/// Returns the logistic function of a logit: the probability of a class that no other excludes.
fn logistic(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}

/// Returns the softmax of some logits: one probability per class. The maximum is subtracted first,
/// so that large logits do not overflow; the sum is an `f64`.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&x| f64::from(x - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| (e / sum) as f32).collect()
}

/// Scales a vector to length 1 (L2). A vector of zeros stays as it is. The sum is an `f64`.
pub fn unit_length(mut vector: Vec<f32>) -> Vec<f32> {
    let squares: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
    if squares > 0.0 {
        let scale = 1.0 / squares.sqrt();
        for x in &mut vector {
            *x = (f64::from(*x) * scale) as f32;
        }
    }
    vector
}

/// Returns the `k` largest scores with their indices, largest first; equal scores in the order of
/// their indices. A `k` beyond the number of scores returns all of them.
pub fn top_k(scores: &[f32], k: usize) -> Vec<(usize, f32)> {
    let falling = |a: &usize, b: &usize| -> Ordering {
        scores[*b].total_cmp(&scores[*a]).then_with(|| a.cmp(b))
    };
    let k = k.min(scores.len());
    let mut indices: Vec<usize> = (0..scores.len()).collect();
    if k > 0 && k < indices.len() {
        indices.select_nth_unstable_by(k - 1, falling);
    }
    indices.truncate(k);
    indices.sort_unstable_by(falling);
    indices.into_iter().map(|i| (i, scores[i])).collect()
}

/// Returns the class activation map (<https://arxiv.org/abs/1512.04150>) of one class: for every
/// position, the dot product of the class's row of the last layer's weights with the feature map.
///
/// `feature_map` is `[channels, height * width]`, `class_weights` is `[channels]`; the result is
/// `[height * width]`. The map is exact for this network: averaged over the positions and with the
/// bias added, it is the class's logit.
pub fn class_activation_map(feature_map: &[f32], class_weights: &[f32]) -> Vec<f32> {
    let positions = feature_map.len() / class_weights.len().max(1);
    let mut map = vec![0f32; positions];
    if positions > 0 {
        for (channel, weight) in feature_map.chunks_exact(positions).zip(class_weights) {
            for (sum, value) in map.iter_mut().zip(channel) {
                *sum += weight * value;
            }
        }
    }
    map
}
