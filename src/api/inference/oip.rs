//! The Open Inference Protocol V2 over REST, as clients of KServe and Triton speak it, with
//! Triton's extensions for classification and binary tensor data:
//! <https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md>

use bytes::Bytes;
use poem::http::{StatusCode, header};
use poem::web::{Data, Json};
use poem::{IntoResponse, Request, Response, handler};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::protocol::{Body, Result, VERSION, answer_all, check_model, invalid, text_source};
use super::tensor::{Content, Flat, InputTensor, OutputTensor, byte_strings, numbers};
use crate::api::images::check_count;
use crate::api::problem::Failure;
use crate::api::state::ApiState;
use crate::service::{Answer, Ask, Service, Source};
use imgclass_network::Want;
use imgclass_network::head;

/// The names of the outputs, in the order in which an answer has them where the request names none.
const OUTPUTS: [&str; 3] = ["logits", "probabilities", "features"];

/// The header that says how many bytes of a body are JSON; binary tensors follow them.
const JSON_LENGTH: &str = "inference-header-content-length";

#[handler]
pub(super) fn server() -> Json<Value> {
    Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["classification", "binary_tensor_data"],
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
    check_model(state, request, "")?;
    readiness(state)?;
    Ok(Json(json!({"name": state.model_name(), "ready": true})))
}

#[handler]
pub(super) fn model(request: &Request, Data(state): Data<&ApiState>) -> Result<Json<Value>> {
    check_model(state, request, "")?;
    let service = state.service()?;
    let (channels, height, width) = service.input_shape();
    let output = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [-1, columns(service, name)]});
    Ok(Json(json!({
        "name": state.model_name(),
        "versions": [VERSION],
        "platform": "imgclass",
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, channels, height, width]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": OUTPUTS.map(output),
    })))
}

fn columns(service: &Service, output: &str) -> usize {
    match output {
        "features" => service.features(),
        _ => service.labels().len(),
    }
}

/// The JSON of a request to infer.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object with inputs")]
struct InferRequest {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<InputTensor>,
    #[serde(default)]
    outputs: Vec<RequestedOutput>,
}

#[derive(Debug, Deserialize)]
struct RequestedOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
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
    Body(bytes): Body,
) -> Result<Response> {
    check_model(state, request, "")?;
    let service = state.service()?;
    let (json, tail) = split(request.header(JSON_LENGTH), bytes)?;
    let request: InferRequest =
        serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
    let wanted = wanted(&request, service)?;
    let sources = sources(request.inputs, tail, service, state.limits().max_images)?;
    let ask = Ask {
        want: Want {
            features: wanted.iter().any(|output| output.name == "features"),
            ..Want::default()
        },
        picture: false,
    };
    let answers = answer_all(service, sources, ask).await?;

    let mut tail = Vec::new();
    let outputs = wanted.into_iter();
    let outputs = outputs.map(|wanted| output(wanted, &answers, service, &mut tail));
    let answer = InferAnswer {
        model_name: state.model_name(),
        model_version: VERSION,
        id: request.id,
        outputs: outputs.collect(),
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

/// Returns the outputs that a request asks for: those that it names, or all of them.
fn wanted(request: &InferRequest, service: &Service) -> Result<Vec<Wanted>> {
    let flag =
        |parameters: &Map<String, Value>, name: &str| parameters.get(name).and_then(Value::as_bool);
    let binary = flag(&request.parameters, "binary_data_output").unwrap_or(false);
    if request.outputs.is_empty() {
        let classification = classification(&request.parameters, service)?;
        let all = OUTPUTS.map(|name| Wanted {
            name: name.to_owned(),
            binary,
            // The parameter stands for the whole request, and features have no classes.
            classification: classification.filter(|_| name != "features"),
        });
        return Ok(all.into());
    }
    let one = |output: &RequestedOutput| {
        if !OUTPUTS.contains(&output.name.as_str()) {
            return Err(invalid(format!(
                "there is no output {}; there are {}",
                output.name,
                OUTPUTS.join(", ")
            )));
        }
        let own = classification(&output.parameters, service)?;
        if own.is_some() && output.name == "features" {
            return Err(invalid(
                "features have no classes: `classification` is for logits and probabilities",
            ));
        }
        let of_request = classification(&request.parameters, service)?;
        Ok(Wanted {
            name: output.name.clone(),
            binary: flag(&output.parameters, "binary_data").unwrap_or(binary),
            classification: own.or(of_request).filter(|_| output.name != "features"),
        })
    };
    request.outputs.iter().map(one).collect()
}

/// Reads the parameter `classification`: how many classes to name; `None` for the numbers.
fn classification(parameters: &Map<String, Value>, service: &Service) -> Result<Option<usize>> {
    let classes = service.labels().len();
    match parameters.get("classification") {
        None | Some(Value::Null) => Ok(None),
        // 0 is how Triton's clients say that they want the numbers.
        Some(value) => match value.as_u64().and_then(|k| usize::try_from(k).ok()) {
            Some(0) => Ok(None),
            Some(k) if k <= classes => Ok(Some(k)),
            _ => Err(invalid(format!(
                "`classification` is {value}; it must be from 1 to {classes}"
            ))),
        },
    }
}

/// Reads the images of a request's only input.
fn sources(
    mut inputs: Vec<InputTensor>,
    mut tail: Bytes,
    service: &Service,
    max_images: usize,
) -> Result<Vec<Source>> {
    let (Some(mut input), true) = (inputs.pop(), inputs.is_empty()) else {
        return Err(invalid(
            "expected one input: `input` (FP32) or `image` (BYTES)",
        ));
    };
    if !["input", "image"].contains(&input.name.as_str()) {
        return Err(invalid(format!(
            "there is no input {}; there are input and image",
            input.name
        )));
    }
    let (channels, height, width) = service.input_shape();
    let images = match (input.datatype.as_str(), input.shape.as_slice()) {
        ("FP32", &[n, c, h, w]) if (c, h, w) == (channels, height, width) => n,
        ("BYTES", &[n] | &[n, 1]) => n,
        (datatype, shape) => {
            return Err(invalid(format!(
                "input {} is {datatype} {shape:?}; expected FP32 [n, {channels}, {height}, {width}] or BYTES [n]",
                input.name
            )));
        }
    };
    check_count(images, max_images)?;
    let elements = input.elements();
    let content = input.take_content(&mut tail).map_err(invalid)?;
    if !tail.is_empty() {
        return Err(invalid(format!(
            "{} bytes follow the last tensor",
            tail.len()
        )));
    }
    let (found, sources) = match input.datatype.as_str() {
        "FP32" => prepared(content, images)?,
        _ => encoded(content)?,
    };
    if elements != Some(found) {
        return Err(invalid(format!(
            "input {} has {found} elements, which its shape {:?} does not",
            input.name, input.shape
        )));
    }
    Ok(sources)
}

/// Reads a tensor of prepared inputs. Returns how many numbers it holds, which the caller compares
/// with its shape, and the inputs that it makes if that is right.
fn prepared(content: Content, images: usize) -> Result<(usize, Vec<Source>)> {
    let numbers = match content {
        Content::Json(elements) if elements.texts.is_empty() => elements.numbers,
        Content::Json(_) => return Err(invalid("an FP32 tensor holds numbers, not texts")),
        Content::Binary(bytes) => numbers(&bytes).map_err(invalid)?,
    };
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(invalid("the tensor holds a number that is not finite"));
    }
    let each = (numbers.len() / images.max(1)).max(1);
    let sources = numbers
        .chunks(each)
        .map(|input| Source::Prepared(input.to_vec()));
    Ok((numbers.len(), sources.collect()))
}

/// Reads a tensor of encoded images: their bytes, or in JSON their base64 or their URLs. Returns
/// how many there are too.
fn encoded(content: Content) -> Result<(usize, Vec<Source>)> {
    let sources: Vec<Source> = match content {
        Content::Binary(bytes) => {
            let strings = byte_strings(bytes).map_err(invalid)?;
            strings.into_iter().map(Source::Bytes).collect()
        }
        Content::Json(elements) if elements.numbers.is_empty() => elements
            .texts
            .into_iter()
            .map(|text| text_source(text).map_err(invalid))
            .collect::<Result<_>>()?,
        Content::Json(_) => return Err(invalid("a BYTES tensor in JSON holds texts, not numbers")),
    };
    Ok((sources.len(), sources))
}

/// Makes one output, over all images. A binary one is added to `tail`.
fn output(
    wanted: Wanted,
    answers: &[Answer],
    service: &Service,
    tail: &mut Vec<u8>,
) -> OutputTensor {
    let row = |answer: &Answer| match wanted.name.as_str() {
        "logits" => answer.output.logits.clone(),
        "probabilities" => service.probabilities(&answer.output.logits),
        _ => answer.output.features.clone().unwrap_or_default(),
    };
    let rows = answers.iter().map(row);
    let (columns, elements) = match wanted.classification {
        None => {
            let rows: Vec<Vec<f32>> = rows.collect();
            (columns(service, &wanted.name), Flat::Numbers(rows.concat()))
        }
        Some(k) => {
            let best = rows.flat_map(|row| head::top_k(&row, k));
            let text = |(index, value): (usize, f32)| {
                let label = service.labels().get(index).map_or("", |label| &label.name);
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
