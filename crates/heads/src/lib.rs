//! Classifier heads: linear classifiers on the features that a network computes.
//!
//! A user's own classes need no new network. The features before its last layer describe nearly
//! everything in a photograph, and a linear classifier on them is trained in seconds. This crate
//! trains such a classifier, judges it, and reads and writes its file. It knows neither pictures
//! nor networks: features come in as plain numbers.
//!
//! ```text
//! Examples ──► train ──► Training ──► Head ──► file ──► Head::answer
//! features     folds     the head     weights, labels,   class scores and how
//! and classes  L-BFGS    and what     network, recipe    well a picture fits
//!                        it is worth
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `examples` | the features with their classes, and what makes them unusable |
//! | `training` | the whole training: folds, the choice of `C`, calibration, evaluation |
//! | `logistic`, `lbfgs` | logistic regression, and its optimiser |
//! | `rows`, `softmax`, `product` | what they compute with: matrices, losses, vectors |
//! | `reduction` | fewer features, where there is very much to compute |
//! | `folds`, `duplicates` | which pictures are held out together |
//! | `calibration`, `familiarity` | what a probability means, and what is unknown |
//! | `evaluation`, `statistics` | what people need in order to decide |
//! | `head`, `file` | the classifier, and its file |

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod calibration;
mod duplicates;
mod evaluation;
mod examples;
mod familiarity;
mod file;
mod folds;
mod head;
mod lbfgs;
mod logistic;
mod product;
mod reduction;
mod rows;
mod softmax;
pub mod statistics;
mod training;

pub use evaluation::{
    ClassScore, Confusion, CurvePoint, Evaluation, NearDuplicate, Suspect, TriedC, UnknownScore,
};
pub use examples::{ExampleError, Examples, Picture, check_classes};
pub use file::{HeadFileError, MAX_FILE_BYTES};
pub use head::{Fit, Head, NetworkId, Recipe};
pub use training::{ClassWeights, Progress, Training, TrainingOptions, train};
