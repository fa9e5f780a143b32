//! The routes that describe what is loaded: classes, checkpoint, preprocessing and limits.

use bytes::Bytes;
use poem::web::Data;
use poem::{IntoResponse, Response};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::ToJSON;
use poem_openapi::{ApiResponse, Object, OpenApi};

use super::context::SharedAnswer;
use super::options::shortest;
use super::problem::Failure;
use super::state::ApiState;
use crate::service::Service;
use imgclass_checkpoint::{Block, Label, Labels};
use imgclass_image::{Preprocessing, Resize};

/// One class.
#[derive(Debug, Object)]
pub(super) struct LabelEntry {
    /// The class's index: with `wnid`, what identifies it. Several classes share a short name.
    index: usize,
    /// WordNet id; absent where the checkpoint has classes of its own.
    #[oai(skip_serializing_if_is_none)]
    wnid: Option<String>,
    /// The short name.
    label: String,
    /// All names, the short one first.
    names: Vec<String>,
}

impl LabelEntry {
    fn new((index, label): (usize, &Label)) -> Self {
        Self {
            index,
            wnid: label.wnid.clone(),
            label: label.name.clone(),
            names: label.names.clone(),
        }
    }
}

/// All classes, by index.
#[derive(Debug, Object)]
pub(super) struct LabelList {
    /// One entry a class.
    labels: Vec<LabelEntry>,
}

impl LabelList {
    /// Returns the list as JSON. With ten thousand classes that takes milliseconds and a megabyte, so
    /// it is made once and all requests share it.
    pub(super) fn to_bytes(labels: &Labels) -> Bytes {
        let labels = labels.iter().enumerate().map(LabelEntry::new).collect();
        Self { labels }.to_json_string().into()
    }
}

/// A [`LabelList`] in the bytes that all requests share.
pub(super) struct SharedLabels(Bytes);

impl Payload for SharedLabels {
    const CONTENT_TYPE: &'static str = Json::<LabelList>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        Json::<LabelList>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        <Json<LabelList> as Payload>::register(registry);
    }
}

impl IntoResponse for SharedLabels {
    fn into_response(self) -> Response {
        Response::builder()
            .content_type(Self::CONTENT_TYPE)
            .extension(SharedAnswer)
            .body(self.0)
    }
}

/// How images are prepared.
#[derive(Debug, Object)]
pub(super) struct PreprocessingDescription {
    /// What the image is resized to: the shorter side in pixels, or height and width.
    resize: Vec<u32>,
    /// The filter of the resize; antialiased.
    interpolation: String,
    /// Height and width of the centre crop that follows, in pixels.
    crop: Vec<u32>,
    /// The order of the network's input planes, of `mean` and of `std`: `rgb` or `bgr`.
    channels: String,
    /// The scale of `mean` and `std`: values are from 0 to this before they are subtracted; 1 or 255.
    scale: u32,
    /// Subtracted from each plane.
    mean: Vec<f64>,
    /// Divides each plane after that.
    std: Vec<f64>,
    /// Whether large JPEGs are decoded at a half, a quarter or an eighth of their size, which changes answers a little (`--fast-decode`).
    fast_decode: bool,
}

impl PreprocessingDescription {
    fn new(preprocessing: &Preprocessing, fast_decode: bool) -> Self {
        Self {
            resize: match preprocessing.resize {
                Resize::ShorterSide(side) => vec![side],
                Resize::Exact(size) => vec![size.height, size.width],
            },
            interpolation: preprocessing.filter.to_string(),
            crop: vec![preprocessing.crop.height, preprocessing.crop.width],
            channels: preprocessing.channels.to_string(),
            scale: preprocessing.scale.maximum().into(),
            mean: preprocessing.mean.map(shortest).into(),
            std: preprocessing.std.map(shortest).into(),
            fast_decode,
        }
    }
}

/// What bounds a request.
#[derive(Debug, Object)]
pub(super) struct Limits {
    /// The largest request body, in bytes.
    max_payload_bytes: u64,
    /// The largest image that is fetched, in bytes.
    max_fetched_bytes: u64,
    /// The most pixels of an image.
    max_pixels: u64,
    /// The most images of one request.
    max_images_per_request: usize,
    /// The most images of one forward pass.
    max_batch_size: usize,
    /// Seconds from admission to answer.
    request_timeout_seconds: f64,
}

/// How far the network in 8-bit integers is from the one in 32-bit floats, measured on generated pictures.
#[derive(Debug, Object)]
pub(super) struct QuantisationDescription {
    /// The pictures that both networks were run on.
    pictures: usize,
    /// For how many of them both give the same class.
    same_class: usize,
    /// The root mean square of the differences between the logits, as a share of the logits' standard deviation.
    logit_error: f64,
    /// The layers that are kept in bfloat16 because 8-bit integers lose too much in them; usually none.
    wide_layers: Vec<String>,
    /// SHA-256 of the float checkpoint that a file of 8-bit integers was made from; absent where the float checkpoint itself is loaded.
    #[oai(skip_serializing_if_is_none)]
    float_sha256: Option<String>,
}

/// The loaded model.
#[derive(Debug, Object)]
pub(super) struct ModelDescription {
    /// What the inference protocols' routes call the model.
    name: String,
    /// The network: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `resnet152`.
    architecture: String,
    /// Where bottlenecks have their stride: `v1` in the first 1x1, `v1.5` in the 3x3. Absent for networks without bottlenecks.
    #[oai(skip_serializing_if_is_none)]
    variant: Option<String>,
    /// How many features an embedding has.
    features: usize,
    /// The checkpoint: the hub's `owner/name`, a file's name, or `random`.
    id: String,
    /// The hub's commit; absent for local files.
    #[oai(skip_serializing_if_is_none)]
    revision: Option<String>,
    /// SHA-256 of the weights file; absent for random weights.
    #[oai(skip_serializing_if_is_none)]
    sha256: Option<String>,
    /// False for random weights, whose answers mean nothing.
    trained: bool,
    /// `untrained` where the weights are random; else `trained`.
    status: String,
    /// The type of the stored weights.
    dtype: String,
    /// What the network computes in: `f32`, `f16`, `bf16` or `int8`. Logits and features are 32-bit floats whatever it is.
    compute_dtype: String,
    /// What computing in `int8` loses; absent for other types.
    #[oai(skip_serializing_if_is_none)]
    quantisation: Option<QuantisationDescription>,
    /// Where the network runs: `cpu`, `candle`, `cuda:N` or `metal`.
    device: String,
    /// What computes there: `kernels` (our own, on the CPU), `fused` (our own network over cuDNN) or `candle`.
    compute_path: String,
    /// Why a faster path is not taken, such as logits that differ from the CPU's; absent where there is none.
    #[oai(skip_serializing_if_is_none)]
    compute_path_note: Option<String>,
    /// The CPU kernels' instruction set; absent on other devices.
    #[oai(skip_serializing_if_is_none)]
    instruction_set: Option<String>,
    /// Threads of a forward pass on the CPU; 0 on other devices.
    threads: usize,
    /// How many classes there are.
    classes: usize,
    /// `exclusive` where an image is of one class, so that the probabilities of all classes sum to 1 (softmax); `independent` where each class has
    /// a probability of its own (the logistic function), as in checkpoints for several labels or for one class.
    probabilities: String,
    /// Whose names the classes have: `imagenet-1k`, `checkpoint`, `file` (the operator's), or `numbered`.
    labels: String,
    /// The heads: classifiers of the operator's own classes on this model's features.
    heads: Vec<HeadDescription>,
    /// How images are prepared.
    preprocessing: PreprocessingDescription,
    /// What bounds a request.
    limits: Limits,
}

/// A head that is served beside the checkpoint's own classes.
#[derive(Debug, Object)]
pub(super) struct HeadDescription {
    /// What requests call it.
    name: String,
    /// SHA-256 of its file.
    sha256: String,
    /// The names of its classes, by index.
    labels: Vec<String>,
    /// The share of held-out training images that it recognises, from 0 to 1.
    accuracy: f64,
    /// True where a newer file could not be used, so that the one that was loaded before serves on; the log says why.
    stale: bool,
}

#[derive(ApiResponse)]
pub(super) enum LabelsResponse {
    /// All classes.
    #[oai(status = 200)]
    Ok(SharedLabels),
}

#[derive(ApiResponse)]
pub(super) enum ModelResponse {
    /// The loaded model.
    #[oai(status = 200)]
    Ok(Json<Box<ModelDescription>>),
}

pub(super) struct ModelRoutes;

#[OpenApi(tag = "super::Group::Model")]
impl ModelRoutes {
    /// The classes
    ///
    /// Index, WordNet id and names of every class that the model tells apart.
    #[oai(path = "/v1/labels", method = "get", operation_id = "labels")]
    async fn labels(&self, Data(state): Data<&ApiState>) -> Result<LabelsResponse, Failure> {
        Ok(LabelsResponse::Ok(SharedLabels(state.labels()?)))
    }

    /// The model
    ///
    /// Which checkpoint is loaded, where it runs, how images are prepared for it and what bounds a request.
    #[oai(path = "/v1/model", method = "get", operation_id = "model")]
    async fn model(&self, Data(state): Data<&ApiState>) -> Result<ModelResponse, Failure> {
        let service = state.service()?;
        let limits = Limits {
            max_payload_bytes: state.limits().payload_limit as u64,
            max_fetched_bytes: service.max_fetched_bytes(),
            max_pixels: service.max_pixels(),
            max_images_per_request: state.limits().max_images,
            max_batch_size: service.max_batch_size(),
            request_timeout_seconds: service.request_timeout().as_secs_f64(),
        };
        Ok(ModelResponse::Ok(Json(Box::new(describe(
            state.model_name(),
            service,
            limits,
        )))))
    }
}

fn describe(name: &str, service: &Service, limits: Limits) -> ModelDescription {
    let info = service.model();
    let architecture = &info.checkpoint.architecture;
    let variant = architecture.variant().to_string();
    ModelDescription {
        name: name.to_owned(),
        architecture: architecture.name().to_owned(),
        variant: (architecture.block() == Block::Bottleneck).then_some(variant),
        features: architecture.features(),
        id: info.checkpoint.id.clone(),
        revision: info.checkpoint.revision.clone(),
        sha256: info.checkpoint.sha256.clone(),
        trained: info.checkpoint.trained,
        status: if info.checkpoint.trained {
            "trained"
        } else {
            "untrained"
        }
        .to_owned(),
        dtype: info.checkpoint.stored_type.clone(),
        compute_dtype: info.compute_dtype.to_string(),
        quantisation: info.fidelity.map(|fidelity| QuantisationDescription {
            pictures: fidelity.pictures,
            same_class: fidelity.same_class,
            logit_error: fidelity.logit_error,
            wide_layers: info.wide_layers.clone(),
            float_sha256: info
                .checkpoint
                .quantised_from
                .as_ref()
                .and_then(|float| float.sha256.clone()),
        }),
        device: info.device.clone(),
        compute_path: info.compute_path.to_string(),
        compute_path_note: info.compute_path_note.clone(),
        instruction_set: info.isa.clone(),
        threads: info.threads,
        classes: info.checkpoint.classes,
        probabilities: info.checkpoint.probabilities.to_string(),
        labels: service.labels().source().to_string(),
        heads: service
            .heads()
            .iter()
            .map(|head| HeadDescription {
                name: head.name.clone(),
                sha256: head.sha256.clone(),
                labels: head.head.labels().to_vec(),
                accuracy: head.head.evaluation.accuracy,
                stale: service.head_is_stale(&head.name),
            })
            .collect(),
        preprocessing: PreprocessingDescription::new(
            service.preprocessing(),
            service.fast_decode(),
        ),
        limits,
    }
}
