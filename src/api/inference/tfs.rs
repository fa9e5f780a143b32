//! TensorFlow Serving's REST interface (<https://www.tensorflow.org/tfx/serving/api_rest>), so that
//! applications written for it can move over: status, metadata and predict, in row and column
//! format.

use poem::web::{Data, Json};
use poem::{Request, handler};
use serde::Deserialize;
use serde_json::{Value, json};

use super::protocol::{Body, Result, VERSION, answer_all, check_model, invalid, text_source};
use crate::api::images::{check_count, decode_base64};
use crate::api::options::shortest;
use crate::api::state::ApiState;
use crate::service::{Answer, Ask, Service, Source};
use imgclass_network::head;

/// The only signature; requests may leave it out.
const SIGNATURE: &str = "serving_default";

#[handler]
pub(super) fn status(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    check_model(state, request, "")?;
    let (state, code, message) = match state.service() {
        Err(_) => ("LOADING", "OK", String::new()),
        Ok(service) => match service.ready() {
            Ok(()) => ("AVAILABLE", "OK", String::new()),
            Err(reason) => ("UNLOADING", "UNAVAILABLE", reason.to_string()),
        },
    };
    Ok(Json(json!({
        "model_version_status": [{
            "version": VERSION,
            "state": state,
            "status": {"error_code": code, "error_message": message},
        }]
    })))
}

#[handler]
pub(super) fn metadata(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    check_model(state, request, "")?;
    let classes = state.service()?.labels().len().to_string();
    let tensor = |dtype: &str, dims: &[&str]| {
        let dims: Vec<Value> = dims
            .iter()
            .map(|size| json!({"size": size, "name": ""}))
            .collect();
        json!({"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": false}, "name": ""})
    };
    let signature = json!({
        "inputs": {"image_bytes": tensor("DT_STRING", &["-1"])},
        "outputs": {"probabilities": tensor("DT_FLOAT", &["-1", &classes]), "classes": tensor("DT_INT64", &["-1"])},
        "method_name": "tensorflow/serving/predict",
    });
    Ok(Json(json!({
        "model_spec": {"name": state.model_name(), "signature_name": "", "version": VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    })))
}

/// The JSON of a request to predict. In row format it has `instances`, and the answer
/// `predictions`; in column format it has `inputs`, and the answer `outputs`.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object with instances")]
struct PredictRequest {
    signature_name: Option<String>,
    instances: Option<Vec<Instance>>,
    inputs: Option<Column>,
}

/// An image: `{"b64": "..."}`, bare or under an input's name, or a URL.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected {\"b64\": \"...\"}, {\"url\": \"...\"} or a URL"
)]
enum Instance {
    Text(String),
    Base64 { b64: String },
    Url { url: String },
    Named { image_bytes: Box<Instance> },
    Input { input: Box<Instance> },
}

/// All images in one column, bare or under the input's name.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of images, or `image_bytes` with one"
)]
enum Column {
    Bare(Vec<Instance>),
    Named { image_bytes: Vec<Instance> },
}

impl Instance {
    fn source(self) -> std::result::Result<Source, String> {
        match self {
            Self::Text(text) => text_source(text),
            Self::Url { url } => Ok(Source::Url(url)),
            Self::Base64 { b64 } => decode_base64(&b64),
            Self::Named { image_bytes: inner } | Self::Input { input: inner } => inner.source(),
        }
    }
}

#[handler]
pub(super) async fn predict(
    request: &Request,
    Data(state): Data<&ApiState>,
    Body(bytes): Body,
) -> Result<Json<Value>> {
    check_model(state, request, ":predict")?;
    let service = state.service()?;
    let request: PredictRequest =
        serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if let Some(other) = request.signature_name.filter(|name| name != SIGNATURE) {
        return Err(invalid(format!(
            "there is no signature {other}; there is {SIGNATURE}"
        )));
    }
    let (images, rows) = match (request.instances, request.inputs) {
        (Some(instances), None) => (instances, true),
        (
            None,
            Some(
                Column::Bare(images)
                | Column::Named {
                    image_bytes: images,
                },
            ),
        ) => (images, false),
        _ => return Err(invalid("expected either `instances` or `inputs`")),
    };
    check_count(images.len(), state.limits().max_images)?;
    let sources = images.into_iter().enumerate().map(|(position, image)| {
        image
            .source()
            .map_err(|reason| invalid(format!("image {position}: {reason}")))
    });
    let sources = sources.collect::<Result<_>>()?;
    let answers = answer_all(service, sources, Ask::default()).await?;
    let predictions: Vec<(usize, Vec<f64>)> = answers
        .iter()
        .map(|answer| prediction(service, answer))
        .collect();
    Ok(Json(if rows {
        let rows = predictions.into_iter();
        let rows = rows.map(
            |(class, probabilities)| json!({"probabilities": probabilities, "classes": class}),
        );
        json!({"predictions": rows.collect::<Vec<_>>()})
    } else {
        let (classes, probabilities): (Vec<_>, Vec<_>) = predictions.into_iter().unzip();
        json!({"outputs": {"probabilities": probabilities, "classes": classes}})
    }))
}

/// Returns the most probable class, and the probabilities of all classes by their index.
fn prediction(service: &Service, answer: &Answer) -> (usize, Vec<f64>) {
    let probabilities = service.probabilities(&answer.output.logits);
    let class = head::top_k(&probabilities, 1)
        .first()
        .map_or(0, |top| top.0);
    (class, probabilities.into_iter().map(shortest).collect())
}
