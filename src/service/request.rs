//! What a request for one image asks, and what it gets. Data only; the flow between the two is the service's.

use std::time::Duration;

use bytes::Bytes;

use super::explain::View;
use imgclass_network::{Output, Want};

/// An image as a request names it.
#[derive(Debug, Clone)]
pub enum Source {
    /// An http, https or data URL.
    Url(String),
    /// An encoded image.
    Bytes(Bytes),
    /// The network's input itself, planar `[3, height, width]` and normalised, of [`Service::input_shape`](super::Service::input_shape).
    Prepared(Vec<f32>),
}

/// What an answer must hold beside the logits, because it costs time or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    /// What the model gives.
    pub want: Want,
    /// Also the picture itself, upright and no larger than [`View::MAX_SIDE`].
    pub picture: bool,
}

impl Ask {
    /// What an explanation needs.
    pub fn explanation(picture: bool) -> Self {
        let want = Want {
            feature_map: true,
            ..Want::default()
        };
        Self { want, picture }
    }

    /// What an embedding needs.
    pub fn features() -> Self {
        let want = Want {
            features: true,
            ..Want::default()
        };
        Self {
            want,
            picture: false,
        }
    }
}

/// What the model says of one image.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Logits, and what else was asked for.
    pub output: Output,
    /// How the network saw the picture; `None` where the input came prepared.
    pub view: Option<View>,
    /// Where the time went.
    pub phases: Phases,
}

/// One class of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The class's index.
    pub index: usize,
    /// Its WordNet id, where it has one.
    pub wnid: Option<String>,
    /// Its short name.
    pub label: String,
    /// From 0 to 1.
    pub probability: f32,
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// From the URL to its bytes; zero where the bytes came along.
    pub fetch: Duration,
    /// Waiting for memory and a processor, decoding, resizing.
    pub decode: Duration,
    /// Waiting for the model.
    pub queue: Duration,
    /// The batch's forward pass.
    pub inference: Duration,
    /// All of it.
    pub total: Duration,
}

/// One part of a request's time, as in [`Phases`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// See [`Phases::fetch`].
    Fetch,
    /// See [`Phases::decode`].
    Decode,
    /// See [`Phases::queue`].
    Queue,
    /// See [`Phases::inference`].
    Inference,
    /// See [`Phases::total`].
    Total,
}

/// An image's classes.
#[derive(Debug, Clone)]
pub struct Classified {
    /// Falling probabilities.
    pub predictions: Vec<Prediction>,
    /// Where the time went.
    pub phases: Phases,
}
