//! `POST /classify_image/`, the contract that must never break: applications know its names and
//! their order.
//!
//! A request passes through these modules, from the socket to the answer and back:
//!
//! ```text
//! connection   one HTTP connection
//! middleware   id, log line, metrics, problem documents
//! guard        keys and rates
//! body         the body's bytes, within their limits, and the JSON in them
//! this module  the request in the service's terms; its answer as JSON
//! service      admission ─► fetch ─► decode ─► queue ─► forward pass
//! ```

use poem::web::Data;
use poem_openapi::payload::Json;
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;

use super::body::JsonBody;
use super::headers::{model_header, server_timing};
use super::json::id;
use super::options::{
    DEFAULT_TOP_K, default_top_k, example_image, share, shortest, top_k_or_default,
};
use super::problem::Failure;
use super::state::ApiState;
use crate::service::{Ask, Prediction, Source};

/// An image to classify.
#[derive(Debug, Object, Deserialize)]
#[oai(example)]
pub(super) struct ClassifyImageRequest {
    /// Your user's id. It comes back unchanged.
    #[serde(deserialize_with = "id")]
    user_id: String,
    /// Where the image is: an `http:` or `https:` URL of a public server, or `data:image/...;base64,...` with the image itself.
    /// JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.
    image_url: String,
    /// How many classes the answer names.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "1000")),
        default = "default_top_k"
    )]
    #[serde(default = "default_top_k", deserialize_with = "top_k_or_default")]
    top_k: u32,
    /// Whose classes to name: the model's own name or that of a head. The checkpoint's own classes if it is not said.
    #[oai(skip_serializing_if_is_none)]
    #[serde(default)]
    model: Option<String>,
    /// Answers `unknown` where the picture fits a head worse than this share of its training pictures: 0 to 1.
    #[oai(
        validator(minimum(value = "0"), maximum(value = "1")),
        skip_serializing_if_is_none
    )]
    #[serde(default, deserialize_with = "share")]
    min_known: Option<f64>,
}

impl Example for ClassifyImageRequest {
    fn example() -> Self {
        Self {
            user_id: "123".to_owned(),
            image_url: example_image(),
            top_k: DEFAULT_TOP_K,
            model: None,
            min_known: None,
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

#[OpenApi(tag = "super::Group::Classification")]
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
        // The model may still be loading.
        let service = state.service()?;

        // Whose classes: the checkpoint's own or those of a head.
        let named = state.named_model(request.model.as_deref().unwrap_or(state.model_name()))?;
        let known = request
            .min_known
            .map_or(state.unknown_below(), |known| known as f32);

        // Admission, fetch, decoding, queue and forward pass, within the deadline.
        let source = Source::Url(request.image_url);
        let answer = service
            .answer_one(source, named.model.asking(Ask::default()))
            .await;
        let answer = answer.map_err(|error| Failure::in_field(error, "image_url"))?;

        // Softmax and top-k.
        let top_k = request.top_k as usize;
        let scores = service.scores(&named.model, &answer.output);
        let predictions = service.named_classes(&named.model, &scores, top_k, 0.0, known);
        state.count_answers(std::slice::from_ref(&named), 1);

        // The answer, in the contract's words.
        let entry = |prediction: Prediction| ClassProbability {
            class_name: prediction.label,
            probability: shortest(prediction.probability),
        };
        let body = ClassifyImageAnswer {
            user_id: request.user_id,
            prediction: predictions.into_iter().map(entry).collect(),
        };
        Ok(ClassifyImageResponse::Ok(
            Json(body),
            server_timing(&answer.phases),
            model_header(service.model()),
        ))
    }
}

/// Reads a request as the contract's route does.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    match super::json::read_object::<ClassifyImageRequest>(bytes, "a JSON object") {
        Ok(request) => assert!((1..=1000).contains(&request.top_k)),
        Err(error) => assert!(!error.into_detail().is_empty()),
    }
}
