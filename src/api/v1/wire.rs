//! The requests and answers of the routes about images, as they travel, with the checks of their
//! fields.

use std::fmt;

use poem_openapi::types::Example;
use poem_openapi::{Enum, Object};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use super::body::{ImageReference, ImagesRequest};
use crate::api::json::{MAX_IMAGES, at_most};
use crate::api::options::{example_image, share, shortest, top_k};
use crate::api::problem::Problem;
use crate::service::{Explanation, Prediction};

/// Images to classify.
#[derive(Debug, Object, Deserialize)]
#[oai(example)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassifyRequest {
    /// The images.
    #[oai(validator(min_items = "1"))]
    #[serde(deserialize_with = "at_most::<MAX_IMAGES, _, _>")]
    images: Vec<ImageReference>,
    /// How many classes each answer names at most: 1 to 1000, 5 if it is not said.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "1000")),
        skip_serializing_if_is_none
    )]
    #[serde(default, deserialize_with = "top_k")]
    pub(super) top_k: Option<u32>,
    /// Leaves out classes that are less probable: 0 to 1, 0 if it is not said.
    #[oai(
        validator(minimum(value = "0"), maximum(value = "1")),
        skip_serializing_if_is_none
    )]
    #[serde(default, deserialize_with = "share")]
    pub(super) min_probability: Option<f64>,
    /// Whose classes to name: the model's own name or that of a head (`/v1/model` lists them). Several with commas between them cost one
    /// forward pass. The checkpoint's own classes if it is not said.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default)]
    pub(super) model: Option<String>,
    /// Answers `unknown` where a picture fits a head worse than this share of its training pictures: 0 to 1, the operator's
    /// `--unknown-below` if it is not said.
    #[oai(
        validator(minimum(value = "0"), maximum(value = "1")),
        skip_serializing_if_is_none
    )]
    #[serde(default, deserialize_with = "share")]
    pub(super) min_known: Option<f64>,
}

/// Images whose features are asked for.
#[derive(Debug, Object, Deserialize)]
#[oai(example)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingsRequest {
    /// The images.
    #[oai(validator(min_items = "1"))]
    #[serde(deserialize_with = "at_most::<MAX_IMAGES, _, _>")]
    images: Vec<ImageReference>,
    /// Scale each embedding to length 1 (L2), so that dot products are cosine similarities. False if it is not said.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default)]
    pub(super) normalize: Option<bool>,
}

/// Images whose classes are to be explained.
#[derive(Debug, Object, Deserialize)]
#[oai(example)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainRequest {
    /// The images; one alone for formats other than `grid`.
    #[oai(validator(min_items = "1"))]
    #[serde(deserialize_with = "at_most::<MAX_IMAGES, _, _>")]
    images: Vec<ImageReference>,
    /// The class to explain: an index, a WordNet id, or a name. The most probable one if it is not said.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default, deserialize_with = "class")]
    pub(super) class: Option<String>,
    /// Whose class to explain: the model's own name or that of a head. The checkpoint if it is not said.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default)]
    pub(super) model: Option<String>,
    // No words of its own: generators of clients stumble over a described reference.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default)]
    pub(super) format: Option<ExplainFormat>,
    /// Of the colours over the picture: 0 to 1, 0.5 if it is not said.
    #[oai(
        validator(minimum(value = "0"), maximum(value = "1")),
        skip_serializing_if_is_none
    )]
    #[serde(default, deserialize_with = "share")]
    pub(super) opacity: Option<f64>,
}

/// How an explanation is given; `overlay` if it is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Deserialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub(super) enum ExplainFormat {
    /// PNG: the upright picture, no side longer than 1024 pixels, with the map over it in the colours of "inferno" (dark is low, bright is high).
    Overlay,
    /// PNG of the same size: the map alone, transparent where the network does not look.
    Heatmap,
    /// JSON: the numbers of the map, for any number of images.
    Grid,
}

macro_rules! takes_images {
    ($($request:ty),*) => {$(
        impl ImagesRequest for $request {
            fn take_images(&mut self) -> Vec<ImageReference> {
                std::mem::take(&mut self.images)
            }
        }
    )*};
}

takes_images!(ClassifyRequest, EmbeddingsRequest, ExplainRequest);

fn example_images() -> Vec<ImageReference> {
    vec![ImageReference {
        url: Some(example_image()),
        base64: None,
    }]
}

impl Example for ClassifyRequest {
    fn example() -> Self {
        Self {
            images: example_images(),
            top_k: Some(3),
            min_probability: Some(0.01),
            model: None,
            min_known: None,
        }
    }
}

impl Example for EmbeddingsRequest {
    fn example() -> Self {
        Self {
            images: example_images(),
            normalize: Some(true),
        }
    }
}

impl Example for ExplainRequest {
    fn example() -> Self {
        Self {
            images: example_images(),
            class: None,
            model: None,
            format: Some(ExplainFormat::Overlay),
            opacity: Some(0.5),
        }
    }
}

/// Reads a class, or `null`. A class is a text; its index may also come as a number.
fn class<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Class(String);

    impl<'de> Deserialize<'de> for Class {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(ClassVisitor).map(Self)
        }
    }

    struct ClassVisitor;

    impl Visitor<'_> for ClassVisitor {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a whole number")
        }

        fn visit_u64<E>(self, index: u64) -> Result<String, E> {
            Ok(index.to_string())
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    Ok(Option::<Class>::deserialize(deserializer)?.map(|class| class.0))
}

/// One class.
#[derive(Debug, Object)]
pub(super) struct ClassEntry {
    /// The class's index; with `wnid`, what identifies it.
    index: usize,
    /// WordNet id; absent where the checkpoint has classes of its own.
    #[oai(skip_serializing_if_is_none)]
    wnid: Option<String>,
    /// The short English name, which several classes may share.
    label: String,
    /// From 0 to 1. Over all classes they sum to 1, unless the answer says that they are independent.
    probability: f64,
}

impl From<Prediction> for ClassEntry {
    fn from(p: Prediction) -> Self {
        Self {
            index: p.index,
            wnid: p.wnid,
            label: p.label,
            probability: shortest(p.probability),
        }
    }
}

/// What one of several models says of an image.
#[derive(Debug, Object)]
pub(super) struct ModelResult {
    /// The name of the model or head.
    pub(super) model: String,
    /// The most probable classes, falling.
    pub(super) predictions: Vec<ClassEntry>,
    /// How well the image fits anything that the head was trained on: the share of its training images that fit no better. Absent for the
    /// checkpoint's own classes.
    #[oai(skip_serializing_if_is_none)]
    pub(super) known: Option<f64>,
}

/// One image's classes, or why there are none.
#[derive(Debug, Default, Object)]
pub(in crate::api) struct ClassifyResult {
    /// The most probable classes, falling.
    #[oai(skip_serializing_if_is_none)]
    pub(super) predictions: Option<Vec<ClassEntry>>,
    /// How well the image fits anything that the head was trained on: the share of its training images that fit no better, from 0 to 1. Absent
    /// for the checkpoint's own classes.
    #[oai(skip_serializing_if_is_none)]
    pub(super) known: Option<f64>,
    /// What each model says, in the order in which the request names them; only where it names several, in the place of `predictions`.
    #[oai(skip_serializing_if_is_none)]
    pub(super) models: Option<Vec<ModelResult>>,
    /// Why this image has no classes; the others are not touched by it.
    #[oai(skip_serializing_if_is_none)]
    pub(super) error: Option<Problem>,
}

/// One result for each image, in their order.
#[derive(Debug, Object)]
#[oai(example)]
pub(in crate::api) struct ClassifyAnswer {
    /// `independent` where classes do not exclude each other, so that each has a probability of its own; absent where the probabilities of all
    /// classes sum to 1.
    #[oai(skip_serializing_if_is_none)]
    pub(super) probabilities: Option<String>,
    /// As many as there were images.
    pub(super) results: Vec<ClassifyResult>,
}

impl Example for ClassifyAnswer {
    fn example() -> Self {
        let entry = |index, wnid: &str, label: &str, probability| ClassEntry {
            index,
            wnid: Some(wnid.to_owned()),
            label: label.to_owned(),
            probability,
        };
        let predictions = vec![
            entry(386, "n02504458", "African elephant", 0.86),
            entry(101, "n01871265", "tusker", 0.11),
        ];
        Self {
            probabilities: None,
            results: vec![ClassifyResult {
                predictions: Some(predictions),
                ..ClassifyResult::default()
            }],
        }
    }
}

/// One image's features, or why there are none.
#[derive(Debug, Object)]
pub(in crate::api) struct EmbeddingResult {
    /// The features.
    #[oai(skip_serializing_if_is_none)]
    pub(super) embedding: Option<Vec<f64>>,
    /// Why this image has none; the others are not touched by it.
    #[oai(skip_serializing_if_is_none)]
    pub(super) error: Option<Problem>,
}

/// One result for each image, in their order.
#[derive(Debug, Object)]
pub(in crate::api) struct EmbeddingsAnswer {
    /// How many numbers an embedding has.
    pub(super) dimensions: usize,
    /// As many as there were images.
    pub(super) results: Vec<EmbeddingResult>,
}

/// A part of a picture, in its pixels.
#[derive(Debug, Object)]
pub(super) struct RegionEntry {
    /// From the left edge; below 0 where the network also saw black beside the picture.
    left: f64,
    /// From the top edge.
    top: f64,
    /// Across.
    width: f64,
    /// Down.
    height: f64,
}

/// Where a class was seen.
#[derive(Debug, Object)]
pub(super) struct ExplanationEntry {
    /// The class that is explained.
    class: ClassEntry,
    /// The class activation map, row by row: the last layer's weights of the class times the last feature map. Its mean plus the class's bias
    /// is the class's logit.
    grid: Vec<Vec<f64>>,
    /// What the map covers of the upright picture.
    region: RegionEntry,
    /// The upright picture's width in pixels.
    image_width: u32,
    /// The upright picture's height in pixels.
    image_height: u32,
}

impl From<Explanation> for ExplanationEntry {
    fn from(explanation: Explanation) -> Self {
        let region = explanation.region();
        let (image_width, image_height) = explanation.size();
        let numbers = |row: &Vec<f32>| row.iter().copied().map(shortest).collect();
        Self {
            grid: explanation.grid.iter().map(numbers).collect(),
            class: explanation.prediction.into(),
            region: RegionEntry {
                left: region.left,
                top: region.top,
                width: region.width,
                height: region.height,
            },
            image_width,
            image_height,
        }
    }
}

/// One image's explanation, or why there is none.
#[derive(Debug, Object)]
pub(in crate::api) struct ExplainResult {
    /// Where the class was seen.
    #[oai(skip_serializing_if_is_none)]
    pub(super) explanation: Option<ExplanationEntry>,
    /// Why this image has none; the others are not touched by it.
    #[oai(skip_serializing_if_is_none)]
    pub(super) error: Option<Problem>,
}

/// One result for each image, in their order.
#[derive(Debug, Object)]
pub(in crate::api) struct ExplainAnswer {
    /// As many as there were images.
    pub(super) results: Vec<ExplainResult>,
}
