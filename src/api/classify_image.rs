//! The contract that must never break: `POST /classify_image/`, names and order exactly as applications know them.

use poem::web::Data;
use poem_openapi::payload::Json;
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;

use super::body::JsonBody;
use super::headers::{model_header, server_timing};
use super::problem::Failure;
use super::shortest;
use super::state::ApiState;
use crate::service::{Classified, Source};

/// Entries of an answer where the request does not say how many.
pub(super) const DEFAULT_TOP_K: u32 = 5;

/// The most entries that a request may ask for.
pub(super) const MAX_TOP_K: u32 = 1000;

/// An image to classify.
#[derive(Debug, Object, Deserialize)]
#[oai(example)]
pub(super) struct ClassifyImageRequest {
    /// Your user's id. It comes back unchanged.
    user_id: String,
    /// Where the image is: an `http:` or `https:` URL of a public server, or `data:image/...;base64,...` with the image itself.
    /// JPEG, PNG, WebP, GIF, BMP or TIFF.
    image_url: String,
    /// How many classes the answer names.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "1000")),
        default = "default_top_k"
    )]
    #[serde(default = "default_top_k", deserialize_with = "top_k")]
    top_k: u32,
}

fn default_top_k() -> u32 {
    DEFAULT_TOP_K
}

fn top_k<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match Option::<i64>::deserialize(deserializer)? {
        None => Ok(DEFAULT_TOP_K),
        Some(k) => u32::try_from(k)
            .ok()
            .filter(|k| (1..=MAX_TOP_K).contains(k))
            .ok_or_else(|| serde::de::Error::custom(format!("{k} is outside 1 to {MAX_TOP_K}"))),
    }
}

/// A picture that is short enough to read past, so that the interface can be tried with no other server: an orange disc on white.
pub(super) const EXAMPLE_IMAGE: &str = include_str!("example_image.txt");

impl Example for ClassifyImageRequest {
    fn example() -> Self {
        Self {
            user_id: "123".to_owned(),
            image_url: EXAMPLE_IMAGE.trim().to_owned(),
            top_k: DEFAULT_TOP_K,
        }
    }
}

/// One class.
#[derive(Debug, Object)]
#[oai(rename_all = "camelCase")]
pub(super) struct ClassProbability {
    /// The class's short English name.
    class_name: String,
    /// From 0 to 1; over all classes they sum to 1.
    probability: f64,
}

/// The classes of an image.
#[derive(Debug, Object)]
#[oai(example)]
pub(super) struct ClassifyImageAnswer {
    /// As it came.
    user_id: String,
    /// The most probable classes, falling.
    prediction: Vec<ClassProbability>,
}

impl Example for ClassifyImageAnswer {
    fn example() -> Self {
        let prediction = [
            ("African elephant", 0.86),
            ("tusker", 0.11),
            ("Indian elephant", 0.03),
        ];
        Self {
            user_id: "123".to_owned(),
            prediction: prediction
                .map(|(name, probability)| ClassProbability {
                    class_name: name.to_owned(),
                    probability,
                })
                .into(),
        }
    }
}

#[derive(ApiResponse)]
pub(super) enum ClassifyImageResponse {
    /// The image's classes.
    #[oai(status = 200)]
    Ok(
        Json<ClassifyImageAnswer>,
        /// Where the time went, in milliseconds: fetch, decode, queue, inference, total.
        #[oai(header = "Server-Timing")]
        String,
        /// The model that answered; `(untrained)` follows where its weights are random.
        #[oai(header = "X-Model")]
        String,
    ),
}

pub(super) struct Contract;

#[OpenApi]
impl Contract {
    /// Classify an image
    ///
    /// Fetches the image and names its most probable classes. The same without the last slash.
    #[oai(
        path = "/classify_image/",
        method = "post",
        operation_id = "classify_image"
    )]
    async fn classify_image(
        &self,
        Data(state): Data<&ApiState>,
        JsonBody(request): JsonBody<ClassifyImageRequest>,
    ) -> Result<ClassifyImageResponse, Failure> {
        let service = state.service()?;
        let Classified {
            predictions,
            phases,
        } = service
            .classify(Source::Url(request.image_url), request.top_k as usize)
            .await
            .map_err(|error| Failure::in_field(error, "image_url"))?;
        let prediction = predictions
            .into_iter()
            .map(|p| ClassProbability {
                class_name: p.label,
                probability: shortest(p.probability),
            })
            .collect();
        let answer = ClassifyImageAnswer {
            user_id: request.user_id,
            prediction,
        };
        Ok(ClassifyImageResponse::Ok(
            Json(answer),
            server_timing(&phases),
            model_header(service.model()),
        ))
    }
}
