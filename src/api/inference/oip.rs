//! The Open Inference Protocol V2 over REST, as clients of KServe and Triton speak it, with
//! Triton's extensions for classification and binary tensor data:
//! <https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md>

use bytes::Bytes;
use poem::http::{StatusCode, header};
use poem::web::{Data, Json};
use poem::{IntoResponse, Request, Response, handler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::protocol::{Body, Result, VERSION, answer_all, check_model, invalid};
use super::tensor::{
    Content, Flat, InputTensor, Kind, OutputTensor, TensorParameters, byte_strings, numbers,
};
use crate::api::images::check_count;
use crate::api::json::{self, at_most, at_most_or_null, id_or_null};
use crate::api::problem::{Failure, clip};
use crate::api::state::ApiState;
use crate::service::{Answer, Ask, Model, Service, Source};
use imgclass_checkpoint::Labels;
use imgclass_network::Want;
use imgclass_network::head;

/// The names of the outputs, in the order in which an answer has them where the request names none.
/// Only heads have the last one: how well the image fits the pictures that the head learned from.
const OUTPUTS: [&str; 4] = ["logits", "probabilities", "features", "known"];

/// Returns the names of a model's outputs.
fn outputs_of(whose: &Model) -> &'static [&'static str] {
    match whose {
        Model::Checkpoint => &OUTPUTS[..3],
        Model::Head(_) => &OUTPUTS,
    }
}

/// Whether an output has a number for each class.
fn is_by_class(output: &str) -> bool {
    ["logits", "probabilities"].contains(&output)
}

/// The header that says how many bytes of a body are JSON; binary tensors follow them.
const JSON_LENGTH: &str = "inference-header-content-length";

#[handler]
pub(super) fn server() -> Json<Value> {
    Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": [
            "classification", "binary_tensor_data", "model_configuration", "statistics",
        ],
    }))
}

#[handler]
pub(super) fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

/// Checks that requests will be served.
///
/// # Errors
/// A [`ProtocolError`](super::protocol::ProtocolError) with status 503 until the model is loaded and while
/// the service shuts down.
fn readiness(state: &ApiState) -> Result<()> {
    Ok(state.service()?.ready().map_err(Failure::from)?)
}

#[handler]
pub(super) fn ready(Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    readiness(state)?;
    Ok(Json(json!({"ready": true})))
}

#[handler]
pub(super) fn model_ready(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    let named = check_model(state, request, "")?;
    readiness(state)?;
    Ok(Json(json!({"name": named.name, "ready": true})))
}

#[handler]
pub(super) fn model(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    let named = check_model(state, request, "")?;
    let service = state.service()?;
    let labels = service.labels_of(&named.model);
    let (channels, height, width) = service.input_shape();
    let output = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [-1, columns(service, labels, name)]});
    Ok(Json(json!({
        "name": named.name,
        "versions": [VERSION],
        "platform": "imgclass",
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, channels, height, width]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": outputs_of(&named.model).iter().map(|name| output(name)).collect::<Vec<_>>(),
    })))
}

/// Describes the model in the words of Triton's configuration (`model_configuration` extension).
#[handler]
pub(super) fn config(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    let named = check_model(state, request, "")?;
    let service = state.service()?;
    let labels = service.labels_of(&named.model);
    let (channels, height, width) = service.input_shape();
    let output = |name: &str| json!({"name": name, "data_type": "TYPE_FP32", "dims": [columns(service, labels, name)]});
    Ok(Json(json!({
        "name": named.name,
        "platform": "imgclass",
        "backend": "imgclass",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": state.limits().max_images,
        "input": [
            {"name": "input", "data_type": "TYPE_FP32", "dims": [channels, height, width], "optional": true},
            {"name": "image", "data_type": "TYPE_STRING", "dims": [1], "optional": true},
        ],
        "output": outputs_of(&named.model).iter().map(|name| output(name)).collect::<Vec<_>>(),
    })))
}

/// Counts images and passes in the words of Triton (`statistics` extension).
#[handler]
pub(super) fn statistics(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    let named = check_model(state, request, "")?;
    Ok(Json(model_statistics(state, &named.name)))
}

#[handler]
pub(super) fn all_statistics(Data(state): Data<&ApiState>) -> Json<Value> {
    Json(model_statistics(state, state.model_name()))
}

/// Returns the totals of the service, whose passes serve all models together.
fn model_statistics(state: &ApiState, name: &str) -> Value {
    let totals = state.metrics().map(|m| m.totals()).unwrap_or_default();
    let duration = |(count, time): (u64, f64)| json!({"count": count, "ns": (time * 1e9) as u64});
    let unknown = json!({"count": 0, "ns": 0});
    json!({"model_stats": [{
        "name": name,
        "version": VERSION,
        "last_inference": 0,
        "inference_count": totals.images,
        "execution_count": totals.batches,
        "inference_stats": {
            "success": duration(totals.total),
            "fail": unknown,
            "queue": duration(totals.queue),
            "compute_input": duration(totals.decode),
            "compute_infer": duration(totals.inference),
            "compute_output": unknown,
        },
        "batch_stats": [],
    }]})
}

/// The JSON of a request for the index of the repository, which may be missing.
#[derive(Debug, Default, Deserialize)]
struct IndexRequest {
    /// Asks for the models that are ready alone.
    ready: Option<bool>,
}

/// Lists the models of the repository: the checkpoint's own and the heads (`model_repository`
/// extension).
#[handler]
pub(super) async fn repository_index(
    Data(state): Data<&ApiState>,
    Body(body): Body,
) -> Result<Json<Value>> {
    let request = if body.is_empty() {
        IndexRequest::default()
    } else {
        let read = |bytes: Bytes| json::read_object(&bytes, "a JSON object");
        let read = body.parse(read).await;
        read.map_err(|error| invalid(error.into_detail()))?
    };
    let (status, reason) = match state.service() {
        Err(_) => ("UNAVAILABLE", "the model is loading".to_owned()),
        Ok(service) => match service.ready() {
            Ok(()) => ("READY", String::new()),
            Err(reason) => ("UNAVAILABLE", reason.to_string()),
        },
    };
    if request.ready == Some(true) && status != "READY" {
        return Ok(Json(json!([])));
    }
    let entry = |name: &String| json!({"name": name, "version": VERSION, "state": status, "reason": reason});
    Ok(Json(state.model_names().iter().map(entry).collect()))
}

fn columns(service: &Service, labels: &Labels, output: &str) -> usize {
    match output {
        "features" => service.features(),
        "known" => 1,
        _ => labels.len(),
    }
}

/// The most inputs that are read. The model has one; a request with more is told so.
const MAX_INPUTS: usize = 2;

/// The JSON of a request to infer.
#[derive(Debug, Deserialize)]
struct InferRequest<'a> {
    #[serde(default, deserialize_with = "id_or_null")]
    id: Option<String>,
    parameters: Option<RequestParameters>,
    #[serde(borrow, deserialize_with = "at_most::<MAX_INPUTS, _, _>")]
    inputs: Vec<InputTensor<'a>>,
    #[serde(
        default,
        deserialize_with = "at_most_or_null::<{ OUTPUTS.len() }, _, _>"
    )]
    outputs: Vec<RequestedOutput>,
}

/// What a request may say about all of its outputs. Other parameters are skipped.
#[derive(Debug, Default, Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
    classification: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct RequestedOutput {
    name: String,
    parameters: Option<TensorParameters>,
}

/// An output that a request asks for, and its form.
struct Wanted {
    name: String,
    binary: bool,
    /// How many `value:index:label` texts to return instead of the numbers.
    classification: Option<usize>,
}

#[derive(Debug, Serialize)]
struct InferAnswer<'a> {
    model_name: &'a str,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<OutputTensor>,
}

#[handler]
pub(super) async fn infer(
    request: &Request,
    Data(state): Data<&ApiState>,
    Body(body): Body,
) -> Result<Response> {
    let named = check_model(state, request, "")?;
    let service = state.service()?;
    let labels = service.labels_of(&named.model);
    let (shape, max_images) = (service.input_shape(), state.limits().max_images);
    let read = |bytes: Bytes| -> Result<_> {
        let (json, tail) = split(request.header(JSON_LENGTH), bytes)?;
        let request: InferRequest<'_> = json::read_object(&json, "a JSON object with inputs")
            .map_err(|error| invalid(error.into_detail()))?;
        let wanted = wanted(&request, outputs_of(&named.model), labels.len())?;
        let sources = sources(&request.inputs, tail, shape, max_images)?;
        // The body ends here: what was made of it waits for the model, and is as large.
        Ok((request.id, wanted, sources))
    };
    let (id, wanted, sources) = body.parse(read).await?;
    let ask = Ask {
        want: Want {
            features: wanted.iter().any(|output| output.name == "features"),
            ..Want::default()
        },
        ..Ask::default()
    };
    let answers = answer_all(service, sources, named.model.asking(ask)).await?;

    let mut tail = Vec::new();
    let outputs = wanted.into_iter();
    let outputs = outputs.map(|wanted| output(wanted, &answers, service, &named.model, &mut tail));
    let outputs = outputs.collect();
    state.count_answers(std::slice::from_ref(&named), answers.len());
    let answer = InferAnswer {
        model_name: &named.name,
        model_version: VERSION,
        id,
        outputs,
    };
    respond(&answer, tail)
}

/// Splits a body into its JSON and the binary tensors behind it.
fn split(json_length: Option<&str>, mut bytes: Bytes) -> Result<(Bytes, Bytes)> {
    let Some(text) = json_length else {
        return Ok((bytes, Bytes::new()));
    };
    let length = text.parse().ok().filter(|length| *length <= bytes.len());
    let length = length.ok_or_else(|| {
        invalid(format!(
            "Inference-Header-Content-Length is {text}, and the body has {} bytes",
            bytes.len()
        ))
    })?;
    let json = bytes.split_to(length);
    Ok((json, bytes))
}

/// Returns the outputs that a request asks for: those that it names, or all of them. The model has
/// `outputs` and `classes` classes.
fn wanted(request: &InferRequest<'_>, outputs: &[&str], classes: usize) -> Result<Vec<Wanted>> {
    let (binary, of_request) = match &request.parameters {
        None => (false, None),
        Some(parameters) => (
            parameters.binary_data_output.unwrap_or(false),
            classification(parameters.classification, "parameters", classes)?,
        ),
    };
    if request.outputs.is_empty() {
        let all = outputs.iter().map(|name| Wanted {
            name: (*name).to_owned(),
            binary,
            // The parameter stands for the whole request, and not every output has classes.
            classification: of_request.filter(|_| is_by_class(name)),
        });
        return Ok(all.collect());
    }
    let one = |(i, output): (usize, &RequestedOutput)| {
        let name = output.name.as_str();
        if !outputs.contains(&name) {
            return Err(invalid(format!(
                "outputs[{i}].name: there is no output {}; there are {}",
                clip(name),
                outputs.join(", ")
            )));
        }
        if request.outputs[..i]
            .iter()
            .any(|before| before.name == name)
        {
            return Err(invalid(format!(
                "outputs[{i}].name: {name} stands there twice"
            )));
        }
        let none = TensorParameters::default();
        let parameters = output.parameters.as_ref().unwrap_or(&none);
        let shared = parameters.refuse_shared_memory();
        shared.map_err(|reason| invalid(format!("outputs[{i}].{reason}")))?;
        let field = format!("outputs[{i}].parameters");
        let own = classification(parameters.classification, &field, classes)?;
        if own.is_some() && !is_by_class(name) {
            return Err(invalid(format!(
                "{field}: {name} has no classes: `classification` is for logits and probabilities",
            )));
        }
        Ok(Wanted {
            name: name.to_owned(),
            binary: parameters.binary_data.unwrap_or(binary),
            classification: own.or(of_request).filter(|_| is_by_class(name)),
        })
    };
    request.outputs.iter().enumerate().map(one).collect()
}

/// Judges the parameter `classification`, which stands in `field`: how many classes to name; `None`
/// for the numbers.
fn classification(value: Option<i64>, field: &str, classes: usize) -> Result<Option<usize>> {
    let Some(value) = value else { return Ok(None) };
    match usize::try_from(value) {
        // 0 is how Triton's clients say that they want the numbers.
        Ok(0) => Ok(None),
        Ok(k) if k <= classes => Ok(Some(k)),
        _ => Err(invalid(format!(
            "{field}: `classification` is {value}; it must be from 1 to {classes}"
        ))),
    }
}

/// Reads the images of a request's only input. A prepared one has the sides of `shape`.
fn sources(
    inputs: &[InputTensor<'_>],
    mut tail: Bytes,
    (channels, height, width): (usize, usize, usize),
    max_images: usize,
) -> Result<Vec<Source>> {
    let [input] = inputs else {
        return Err(invalid(
            "inputs: expected one input: `input` (FP32) or `image` (BYTES)",
        ));
    };
    let name = input.name.as_str();
    if !["input", "image"].contains(&name) {
        return Err(invalid(format!(
            "inputs[0].name: there is no input {}; there are input and image",
            clip(name)
        )));
    }
    let (kind, images) = match (input.datatype.as_str(), input.shape.as_slice()) {
        ("FP32", &[n, c, h, w]) if (c, h, w) == (channels, height, width) => (Kind::Number, n),
        ("BYTES", &[n] | &[n, 1]) => (Kind::Image, n),
        (datatype, shape) => {
            return Err(invalid(format!(
                "inputs[0]: {name} is {} {shape:?}; expected FP32 [n, {channels}, {height}, {width}] or BYTES [n]",
                clip(datatype)
            )));
        }
    };
    check_count(images, max_images)?;
    let overflow = || invalid(format!("inputs[0].shape: {:?} is too large", input.shape));
    let count = input.elements().ok_or_else(overflow)?;
    let content = input.content(kind, count, &mut tail).map_err(invalid)?;
    if !tail.is_empty() {
        return Err(invalid(format!(
            "{} bytes follow the last tensor",
            tail.len()
        )));
    }
    let wrong_count = |found: usize| {
        invalid(format!(
            "inputs[0]: {name} has {found} elements, which its shape {:?} does not",
            input.shape
        ))
    };
    let numbers = match (kind, content) {
        (_, Content::Images(images)) => return Ok(images),
        (_, Content::Numbers(numbers)) => numbers,
        (Kind::Image, Content::Binary(bytes)) => {
            let strings = byte_strings(bytes, count).map_err(invalid)?;
            return match strings.len() {
                found if found == count => Ok(strings.into_iter().map(Source::Bytes).collect()),
                found => Err(wrong_count(found)),
            };
        }
        (Kind::Number, Content::Binary(bytes)) => match numbers(&bytes).map_err(invalid)? {
            numbers if numbers.len() == count => numbers,
            other => return Err(wrong_count(other.len())),
        },
    };
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(invalid(
            "inputs[0].data: the tensor holds a number that is not finite",
        ));
    }
    let each = channels * height * width;
    let inputs = numbers.chunks(each.max(1));
    Ok(inputs
        .map(|input| Source::Prepared(input.to_vec()))
        .collect())
}

/// Makes one output, over all images. A binary one is added to `tail`.
fn output(
    wanted: Wanted,
    answers: &[Answer],
    service: &Service,
    whose: &Model,
    tail: &mut Vec<u8>,
) -> OutputTensor {
    let labels = service.labels_of(whose);
    let row = |answer: &Answer| match wanted.name.as_str() {
        "logits" => service.scores(whose, &answer.output).logits,
        "probabilities" => service.scores(whose, &answer.output).probabilities,
        "known" => vec![service.scores(whose, &answer.output).known.unwrap_or(0.0)],
        _ => answer.output.features.clone().unwrap_or_default(),
    };
    let rows = answers.iter().map(row);
    let (columns, elements) = match wanted.classification {
        None => {
            let rows: Vec<Vec<f32>> = rows.collect();
            (
                columns(service, labels, &wanted.name),
                Flat::Numbers(rows.concat()),
            )
        }
        Some(k) => {
            let best = rows.flat_map(|row| head::top_k(&row, k));
            let text = |(index, value): (usize, f32)| {
                let label = labels.get(index).map_or("", |label| &label.name);
                format!("{value}:{index}:{label}")
            };
            (k, Flat::Texts(best.map(text).collect()))
        }
    };
    let shape = vec![answers.len(), columns];
    OutputTensor::new(wanted.name, shape, elements, wanted.binary.then_some(tail))
}

/// Makes the response: JSON alone, or JSON with the binary tensors of `tail` behind it and its
/// length in a header.
fn respond(answer: &InferAnswer, tail: Vec<u8>) -> Result<Response> {
    let mut body = serde_json::to_vec(answer).map_err(Failure::internal_because)?;
    if tail.is_empty() {
        return Ok(body.with_content_type("application/json").into_response());
    }
    let json_length = body.len().to_string();
    body.extend(tail);
    Ok(Response::builder()
        .status(StatusCode::OK)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(JSON_LENGTH, json_length)
        .body(body))
}

/// Reads a request to infer, its tensors too, as the route does: for a small model, so that a fuzzer
/// finds its shape.
#[cfg(fuzzing)]
pub(in crate::api) fn fuzz(json_length: Option<&str>, bytes: Bytes) {
    const MAX_IMAGES: usize = 4;
    let Ok((json, tail)) = split(json_length, bytes) else {
        return;
    };
    let Ok(request) = json::read_object::<InferRequest<'_>>(&json, "") else {
        return;
    };
    if let Ok(wanted) = wanted(&request, &OUTPUTS, 10) {
        assert!((1..=OUTPUTS.len()).contains(&wanted.len()));
        assert!(
            wanted
                .iter()
                .all(|w| w.classification.is_none_or(|k| (1..=10).contains(&k)))
        );
    }
    let Ok(sources) = sources(&request.inputs, tail, (3, 2, 2), MAX_IMAGES) else {
        return;
    };
    assert!((1..=MAX_IMAGES).contains(&sources.len()));
    for source in sources {
        if let Source::Prepared(input) = source {
            assert!(input.len() == 12 && input.iter().all(|x| x.is_finite()));
        }
    }
}
