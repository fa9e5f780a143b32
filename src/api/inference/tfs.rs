//! TensorFlow Serving's REST interface (<https://www.tensorflow.org/tfx/serving/api_rest>), so that
//! applications written for it can move over: status, metadata and predict, in row and column
//! format.

use bytes::Bytes;
use poem::http::{Method, StatusCode};
use poem::web::{Data, Json};
use poem::{Request, handler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::named_images::{Images, Rows};
use super::protocol::{Body, Result, VERSION, answer_all, check_model, invalid};
use crate::api::images::check_count;
use crate::api::json;
use crate::api::options::shortest;
use crate::api::problem::{Failure, clip};
use crate::api::state::ApiState;
use crate::service::{Answer, Ask, Model, Service};
use imgclass_network::head;

/// The only signature; requests may leave it out.
const SIGNATURE: &str = "serving_default";

/// Lists the models, as KServe's first protocol has it.
#[handler]
pub(super) fn models(Data(state): Data<&ApiState>) -> Json<Value> {
    Json(json!({"models": state.model_names()}))
}

/// Says how the model is, in the words of TensorFlow Serving and in those of KServe's first protocol,
/// which have the same path.
#[handler]
pub(super) fn status(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    check_method(request)?;
    let name = check_model(state, request, "")?.name;
    let (state, code, message) = match state.service() {
        Err(_) => ("LOADING", "OK", String::new()),
        Ok(service) => match service.ready() {
            Ok(()) => ("AVAILABLE", "OK", String::new()),
            Err(reason) => ("UNLOADING", "UNAVAILABLE", reason.to_string()),
        },
    };
    Ok(Json(json!({
        "name": name,
        "ready": state == "AVAILABLE",
        "model_version_status": [{
            "version": VERSION,
            "state": state,
            "status": {"error_code": code, "error_message": message},
        }]
    })))
}

/// Checks the method of a request. The router does not tell `/v1/models/NAME`, which is read, from
/// `/v1/models/NAME:predict`, which is posted to.
fn check_method(request: &Request) -> Result<()> {
    let (method, path) = (request.method(), request.uri().path());
    if path.contains(':') == (method == Method::POST) {
        return Ok(());
    }
    let refusal = StatusCode::METHOD_NOT_ALLOWED;
    Err(Failure::of_framework(refusal, method.as_str(), path).into())
}

#[handler]
pub(super) fn metadata(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    let named = check_model(state, request, "")?;
    let classes = state.service()?.labels_of(&named.model).len().to_string();
    let tensor = |dtype: &str, dims: &[&str]| {
        let dims: Vec<Value> = dims
            .iter()
            .map(|size| json!({"size": size, "name": ""}))
            .collect();
        json!({"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": false}, "name": ""})
    };
    let mut outputs = json!({
        "probabilities": tensor("DT_FLOAT", &["-1", &classes]),
        "classes": tensor("DT_INT64", &["-1"]),
    });
    if named.model.head().is_some() {
        outputs["known"] = tensor("DT_FLOAT", &["-1"]);
    }
    let signature = json!({
        "inputs": {"image_bytes": tensor("DT_STRING", &["-1"])},
        "outputs": outputs,
        "method_name": "tensorflow/serving/predict",
    });
    Ok(Json(json!({
        "model_spec": {"name": named.name, "signature_name": "", "version": VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    })))
}

/// The JSON of a request to predict. In row format it has `instances`, and the answer
/// `predictions`; in column format it has `inputs`, and the answer `outputs`.
#[derive(Debug, Deserialize)]
struct PredictRequest {
    signature_name: Option<String>,
    instances: Option<Rows>,
    inputs: Option<Images>,
}

/// The answer to a request to predict, in the format of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum PredictAnswer {
    Predictions(Vec<Row>),
    Outputs {
        probabilities: Vec<Vec<f64>>,
        classes: Vec<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        known: Option<Vec<f64>>,
    },
}

/// What the model says about one image.
#[derive(Debug, Serialize)]
struct Row {
    probabilities: Vec<f64>,
    classes: usize,
    /// How well the image fits the pictures that a head learned from; heads only.
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<f64>,
}

#[handler]
pub(super) async fn predict(
    request: &Request,
    Data(state): Data<&ApiState>,
    Body(body): Body,
) -> Result<Json<PredictAnswer>> {
    check_method(request)?;
    let named = check_model(state, request, ":predict")?;
    let service = state.service()?;
    let read = |bytes: Bytes| json::read_object(&bytes, "a JSON object with instances");
    let request: PredictRequest = body
        .parse(read)
        .await
        .map_err(|error| invalid(error.into_detail()))?;
    // TensorFlow Serving takes an empty name for the default one.
    let signature = request.signature_name.filter(|name| !name.is_empty());
    if let Some(other) = signature.filter(|name| name != SIGNATURE) {
        return Err(invalid(format!(
            "signature_name: there is no signature {}; there is {SIGNATURE}",
            clip(other)
        )));
    }
    let (images, rows) = match (request.instances, request.inputs) {
        (Some(instances), None) => (instances.0, true),
        (None, Some(inputs)) => (inputs.0, false),
        _ => return Err(invalid("expected either `instances` or `inputs`")),
    };
    check_count(images.len(), state.limits().max_images)?;
    let answers = answer_all(service, images, named.model.asking(Ask::default())).await?;
    state.count_answers(std::slice::from_ref(&named), answers.len());
    let predictions = answers
        .iter()
        .map(|answer| prediction(service, &named.model, answer));
    Ok(Json(if rows {
        PredictAnswer::Predictions(predictions.collect())
    } else {
        let rows: Vec<Row> = predictions.collect();
        PredictAnswer::Outputs {
            classes: rows.iter().map(|row| row.classes).collect(),
            known: rows.iter().map(|row| row.known).collect(),
            probabilities: rows.into_iter().map(|row| row.probabilities).collect(),
        }
    }))
}

/// Returns the most probable class, and the probabilities of all classes by their index.
fn prediction(service: &Service, model: &Model, answer: &Answer) -> Row {
    let scores = service.scores(model, &answer.output);
    let class = head::top_k(&scores.probabilities, 1)
        .first()
        .map_or(0, |top| top.0);
    Row {
        probabilities: scores.probabilities.into_iter().map(shortest).collect(),
        classes: class,
        known: scores.known.map(shortest),
    }
}

/// Reads a request to predict as the route does.
#[cfg(fuzzing)]
pub(in crate::api) fn fuzz(bytes: &[u8]) {
    let Ok(request) = json::read_object::<PredictRequest>(bytes, "") else {
        return;
    };
    let images = [
        request.instances.map(|rows| rows.0),
        request.inputs.map(|inputs| inputs.0),
    ];
    for images in images.into_iter().flatten() {
        assert!(images.len() <= json::MAX_IMAGES);
    }
}
