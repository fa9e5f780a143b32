//! Untrained weights by a formula: every value follows from its tensor's name, its index and a
//! seed.
//!
//! `--weights random` and the golden tests use it; `tests/golden` holds the same formula in Python,
//! bit for bit. No state is carried from one value to the next, so the order of loading does not
//! matter.
//!
//! With `h = FNV-1a-64(name)`, element `i` takes `z = splitmix64(h ^ seed, i)`,
//! `u = (z >> 40) / 2^24` in `[0, 1)` and `v = 2u - 1`:
//!
//! | tensor | value |
//! |---|---|
//! | convolution `[o, i, k, k]` | `v * sqrt(6 / (i*k*k))` |
//! | `fc.weight` `[classes, features]` | `v * sqrt(3 / features)` |
//! | any bias, `running_mean` | `0.1 v` |
//! | `running_var` | `0.8 + 0.4 u` |
//! | batch norm scale | `0.8 + 0.4 u` |
//! | batch norm scale `bn3`, the last of a residual branch | `0.2 + 0.2 u` |
//!
//! Convolutions have He's uniform initialisation (<https://arxiv.org/abs/1502.01852>). The small
//! scale of `bn3` keeps the residual sums from growing.

use crate::error::CheckpointError;
use crate::tensors::TensorSource;

/// A source of tensors that computes each tensor from its name.
#[derive(Debug, Clone, Copy)]
pub struct FormulaWeights {
    /// The seed, which is mixed into the hash of every tensor's name: another seed, another
    /// network.
    pub seed: u64,
}

impl FormulaWeights {
    /// Returns the values of tensor `name` with dimensions `dims`, row-major.
    pub fn values(&self, name: &str, dims: &[usize]) -> Vec<f32> {
        let (scale, offset, signed) = distribution(name, dims);
        self.uniform(name, dims.iter().product())
            .map(|u| if signed { 2.0 * u - 1.0 } else { u })
            .map(|x| (offset + scale * x) as f32)
            .collect()
    }

    /// Returns the formula's `v` for the first `count` elements of tensor `name`: uniform in
    /// `[-1, 1)`. The golden tests make their input of it.
    pub fn symmetric(&self, name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
        self.uniform(name, count).map(|u| 2.0 * u - 1.0)
    }

    /// Returns the formula's `u`: uniform in `[0, 1)`, a multiple of 2^-24.
    fn uniform(&self, name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
        let start = fnv1a(name) ^ self.seed;
        (0..count as u64).map(move |i| (splitmix64(start, i) >> 40) as f64 / (1u64 << 24) as f64)
    }
}

/// Returns `(scale, offset, signed)` of a tensor's values: they are `offset + scale * v` where
/// `signed`, else `offset + scale * u`.
fn distribution(name: &str, dims: &[usize]) -> (f64, f64, bool) {
    let fan_in = dims.iter().skip(1).product::<usize>().max(1) as f64;
    if name.ends_with(".bias") || name.ends_with(".running_mean") {
        (0.1, 0.0, true)
    } else if name.ends_with(".running_var") {
        (0.4, 0.8, false)
    } else if dims.len() == 4 {
        ((6.0 / fan_in).sqrt(), 0.0, true)
    } else if dims.len() == 2 {
        ((3.0 / fan_in).sqrt(), 0.0, true)
    } else if name.ends_with("bn3.weight") {
        (0.2, 0.2, false)
    } else {
        (0.4, 0.8, false)
    }
}

/// Returns the FNV-1a hash in 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns the `i`-th output of SplitMix64 started at `state` (Steele, Lea, Flood 2014).
fn splitmix64(state: u64, i: u64) -> u64 {
    let z = state.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl TensorSource for FormulaWeights {
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.values(name, dims))
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}
