//! What a request asks about one image, and what it gets.

use bytes::Bytes;

use super::explain::View;
use super::phases::Phases;
use imgclass_checkpoint::Labels;
use imgclass_network::{Output, Want};

/// An image as a request names it.
#[derive(Debug, Clone)]
pub enum Source {
    /// An http, https or data URL.
    Url(String),
    /// The bytes of an encoded image.
    Bytes(Bytes),
    /// The network's input itself: normalised, `[3, height, width]` in row-major order, with the
    /// sides of [`Service::input_shape`](super::Service::input_shape).
    Prepared(Vec<f32>),
}

/// What an answer must hold beside the logits. Each costs time or memory, so none comes unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    /// What else the model must return.
    pub want: Want,
    /// Keeps the picture itself, upright and no larger than [`View::MAX_SIDE`].
    pub picture: bool,
    /// Shows the network the mirrored picture. Heads learn from both forms.
    pub mirrored: bool,
}

impl Ask {
    /// Asks for what [`Service::explain`](super::Service::explain) needs; the picture is needed
    /// only where the map will be drawn.
    pub fn explanation(picture: bool) -> Self {
        let want = Want {
            feature_map: true,
            ..Want::default()
        };
        Self {
            want,
            picture,
            mirrored: false,
        }
    }

    /// Asks for the features, which are what an embedding is made of.
    pub fn features() -> Self {
        let want = Want {
            features: true,
            ..Want::default()
        };
        Self {
            want,
            ..Self::default()
        }
    }
}

/// What the model says about one image.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The logits, and what else was asked for.
    pub output: Output,
    /// The part of the picture that the network saw; `None` where the request prepared the input.
    pub view: Option<View>,
    /// How long each phase took.
    pub phases: Phases,
}

/// One class of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The index of the class.
    pub index: usize,
    /// The WordNet id of the class, if it has one.
    pub wnid: Option<String>,
    /// The short name of the class.
    pub label: String,
    /// The probability, from 0 to 1.
    pub probability: f32,
}

impl Prediction {
    /// Names a class.
    pub(super) fn of(labels: &Labels, index: usize, probability: f32) -> Self {
        let label = labels.get(index);
        Self {
            index,
            wnid: label.and_then(|label| label.wnid.clone()),
            label: label.map_or_else(|| format!("class {index}"), |label| label.name.clone()),
            probability,
        }
    }
}
