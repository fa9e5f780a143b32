//! A trained head: from a picture's features to the scores of its classes.

use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::familiarity::Familiarity;
use crate::product::dots;

/// A linear classifier on a network's features, with what it knows of its training.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    pub(crate) labels: Vec<String>,
    pub(crate) dims: usize,
    /// `[classes, dims]`. The temperature is in them.
    pub(crate) weights: Vec<f32>,
    /// `[classes]`.
    pub(crate) bias: Vec<f32>,
    pub(crate) familiarity: Familiarity,
    /// The network whose features the head reads.
    pub network: NetworkId,
    /// How the head was made.
    pub recipe: Recipe,
    /// What it is worth.
    pub evaluation: Evaluation,
}

/// What tells one network's features from another's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkId {
    /// The SHA-256 of the weights file in lower-case hexadecimal, or the name of a formula.
    pub digest: String,
    /// The architecture with its variant, such as `resnet50 v1.5`.
    pub architecture: String,
    /// How pictures are prepared, as a text.
    pub preprocessing: String,
    /// The type in which the features were computed, such as `f32`.
    pub compute_dtype: String,
    /// The checkpoint's name, for people.
    pub name: String,
}

/// How a head was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Recipe {
    /// The program and its version.
    pub program: String,
    /// scikit-learn's `C` for the features as they are.
    pub c: f64,
    /// The temperature, which the weights contain.
    pub temperature: f64,
    /// How classes were weighted: `none` or `balanced`.
    pub class_weights: String,
    /// Whether mirrored pictures were learned from as well.
    pub flips: bool,
}

/// What a head says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The logits, one per class. Their softmax is calibrated.
    pub logits: Vec<f32>,
    /// How well the picture fits anything that the head was trained on: the share of held-out
    /// training pictures that fit no better, from 0 to 1.
    pub known: f32,
}

impl Head {
    /// Returns the names of the classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Returns how many features the head reads.
    pub fn features(&self) -> usize {
        self.dims
    }

    /// Returns the weights of a class, one for each feature; `None` if there is no such class.
    pub fn class_weights(&self, class: usize) -> Option<&[f32]> {
        self.weights.chunks_exact(self.dims.max(1)).nth(class)
    }

    /// Returns the weights of all classes, `[classes, features]`.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Returns the biases, one for each class.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Answers for one picture's features; `None` if there are not as many as the head reads.
    pub fn answer(&self, features: &[f32]) -> Option<Fit> {
        if features.len() != self.dims {
            return None;
        }
        let mut logits = dots(features, &self.weights);
        for (logit, bias) in logits.iter_mut().zip(&self.bias) {
            *logit += bias;
        }
        Some(Fit {
            known: self.familiarity.known(features),
            logits,
        })
    }
}
