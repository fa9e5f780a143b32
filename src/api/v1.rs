//! The routes about images: classes, features and explanations, of one image or many.
//!
//! A route reads its options and hands its images to [`answers`]. A request for several images is
//! answered with status 200 and a result for each: an image that fails has a problem document in
//! its place.

mod body;
mod wire;

use poem::web::Data;
use poem_openapi::param::Query;
use poem_openapi::payload::{Binary, Json};
use poem_openapi::{ApiResponse, OpenApi, ResponseContent};

use self::body::{Images, ImagesBody};
use self::wire::{
    ClassifyAnswer, ClassifyRequest, ClassifyResult, EmbeddingResult, EmbeddingsAnswer,
    EmbeddingsRequest, ExplainAnswer, ExplainFormat, ExplainRequest, ExplainResult, ModelResult,
};
use super::context::RequestId;
use super::headers::{longest, model_header, server_timing};
use super::options::{DEFAULT_TOP_K, shortest};
use super::problem::{Failure, Problem};
use super::state::{ApiState, NamedModel, asking};
use crate::service::{Answer, Ask, Explanation, Phases, Service};
use imgclass_checkpoint::Probabilities;
use imgclass_network::head;

/// The opacity of the colours over a picture, where the request does not say it.
const DEFAULT_OPACITY: f64 = 0.5;

#[derive(ApiResponse)]
pub(super) enum ClassifyResponse {
    /// One result for each image; those that failed say why.
    #[oai(status = 200)]
    Ok(
        Json<ClassifyAnswer>,
        /// Where the time went, in milliseconds; of several images the longest of each phase.
        #[oai(header = "Server-Timing")]
        String,
        /// The model that answered; `(untrained)` follows where its weights are random.
        #[oai(header = "X-Model")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(super) enum EmbeddingsResponse {
    /// One result for each image; those that failed say why.
    #[oai(status = 200)]
    Ok(
        Json<EmbeddingsAnswer>,
        /// Where the time went, in milliseconds; of several images the longest of each phase.
        #[oai(header = "Server-Timing")]
        String,
        /// The model that answered; `(untrained)` follows where its weights are random.
        #[oai(header = "X-Model")]
        String,
    ),
}

/// A picture for people or numbers for programs.
#[derive(ResponseContent)]
pub(super) enum ExplainContent {
    Grid(Json<ExplainAnswer>),
    #[oai(content_type = "image/png")]
    Png(Binary<Vec<u8>>),
}

#[derive(ApiResponse)]
pub(super) enum ExplainResponse {
    /// A picture, or one result for each image.
    #[oai(status = 200)]
    Ok(
        ExplainContent,
        /// Where the time went, in milliseconds; of several images the longest of each phase.
        #[oai(header = "Server-Timing")]
        String,
        /// The model that answered; `(untrained)` follows where its weights are random.
        #[oai(header = "X-Model")]
        String,
    ),
}

/// Returns what an answer says of its probabilities: nothing where they sum to 1.
fn independence(service: &Service) -> Option<String> {
    let kind = service.model().checkpoint.probabilities;
    (kind == Probabilities::Independent).then(|| kind.to_string())
}

pub(super) struct ImageRoutes;

// Each option of the query is an argument of its route.
#[allow(clippy::too_many_arguments)]
#[OpenApi(tag = "super::Group::Classification")]
impl ImageRoutes {
    /// Classify images
    ///
    /// The most probable classes of each image. Send JSON, a form with files, or one image as the body (`curl --data-binary @photo.jpg`);
    /// options may stand in the body or in the query, and those in the body win. An image that fails leaves the others as they are; where the
    /// image is the body, its failure is the answer's.
    #[oai(path = "/v1/classify", method = "post", operation_id = "classify")]
    async fn classify(
        &self,
        Data(state): Data<&ApiState>,
        Data(id): Data<&RequestId>,
        ImagesBody(request): ImagesBody<ClassifyRequest>,
        /// How many classes each answer names at most.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")))]
        Query(top_k): Query<Option<u32>>,
        /// Leaves out classes that are less probable.
        #[oai(validator(minimum(value = "0"), maximum(value = "1")))]
        Query(min_probability): Query<Option<f64>>,
        /// Whose classes to name: the model's own name or that of a head; several with commas between them.
        Query(model): Query<Option<String>>,
        /// Answers `unknown` where a picture fits a head worse than this share of its training pictures.
        #[oai(validator(minimum(value = "0"), maximum(value = "1")))]
        Query(min_known): Query<Option<f64>>,
    ) -> Result<ClassifyResponse, Failure> {
        let service = state.service()?;
        let top_k = request.options.top_k.or(top_k).unwrap_or(DEFAULT_TOP_K) as usize;
        let least = request.options.min_probability.or(min_probability);
        let least = least.unwrap_or(0.0) as f32;
        let known = request.options.min_known.or(min_known);
        let least_known = known.map_or(state.unknown_below(), |known| known as f32);
        // The heads of one request stay the same, even if files change meanwhile.
        let models = state.named_models(request.options.model.as_deref().or(model.as_deref()))?;
        let ask = asking(&models, Ask::default());
        let (results, phases) = answers(service, id, request, ask, |answer| {
            let result = |NamedModel { name, model }: &NamedModel| {
                let scores = service.scores(model, &answer.output);
                let classes = service.named_classes(model, &scores, top_k, least, least_known);
                ModelResult {
                    model: name.clone(),
                    predictions: classes.into_iter().map(Into::into).collect(),
                    known: scores.known.map(shortest),
                }
            };
            Ok(models.iter().map(result).collect::<Vec<_>>())
        })
        .await?;
        state.count_answers(
            &models,
            results.iter().filter(|result| result.is_ok()).count(),
        );
        Ok(ClassifyResponse::Ok(
            Json(ClassifyAnswer {
                probabilities: independence(service),
                results: results.into_iter().map(classes).collect(),
            }),
            server_timing(&phases),
            model_header(service.model()),
        ))
    }

    /// Embed images
    ///
    /// The features that the network's last layer classifies by, for search and for classifiers of your own. Send images as for
    /// `/v1/classify`.
    #[oai(path = "/v1/embeddings", method = "post", operation_id = "embeddings")]
    async fn embeddings(
        &self,
        Data(state): Data<&ApiState>,
        Data(id): Data<&RequestId>,
        ImagesBody(request): ImagesBody<EmbeddingsRequest>,
        /// Scale each embedding to length 1 (L2).
        Query(normalize): Query<Option<bool>>,
    ) -> Result<EmbeddingsResponse, Failure> {
        let service = state.service()?;
        let normalize = request.options.normalize.or(normalize).unwrap_or(false);
        let (results, phases) = answers(service, id, request, Ask::features(), |answer| {
            let features = answer.output.features.unwrap_or_default();
            Ok(if normalize {
                head::unit_length(features)
            } else {
                features
            })
        })
        .await?;
        let result = |result: Outcome<Vec<f32>>| match result {
            Ok(features) => EmbeddingResult {
                embedding: Some(features.into_iter().map(shortest).collect()),
                error: None,
            },
            Err(problem) => EmbeddingResult {
                embedding: None,
                error: Some(*problem),
            },
        };
        Ok(EmbeddingsResponse::Ok(
            Json(EmbeddingsAnswer {
                dimensions: service.features(),
                results: results.into_iter().map(result).collect(),
            }),
            server_timing(&phases),
            model_header(service.model()),
        ))
    }

    /// Explain a class
    ///
    /// Where in the image the network saw a class: its class activation map, which is exact for this network. As a picture with the map over
    /// it, as the map alone, or as numbers. Send images as for `/v1/classify`.
    #[oai(path = "/v1/explain", method = "post", operation_id = "explain")]
    async fn explain(
        &self,
        Data(state): Data<&ApiState>,
        Data(id): Data<&RequestId>,
        ImagesBody(mut request): ImagesBody<ExplainRequest>,
        /// The class to explain: an index, a WordNet id, or a name.
        Query(class): Query<Option<String>>,
        /// Whose class to explain: the model's own name or that of a head.
        Query(model): Query<Option<String>>,
        /// What to answer.
        Query(format): Query<Option<ExplainFormat>>,
        /// Of the colours over the picture.
        #[oai(validator(minimum(value = "0"), maximum(value = "1")))]
        Query(opacity): Query<Option<f64>>,
    ) -> Result<ExplainResponse, Failure> {
        let service = state.service()?;
        let options = &request.options;
        let class = options.class.as_deref().or(class.as_deref());
        let model = options.model.as_deref().or(model.as_deref());
        let model = state
            .named_model(model.unwrap_or(state.model_name()))?
            .model;
        let class = class
            .map(|text| service.class_of(&model, text))
            .transpose()?;
        let format = options.format.or(format).unwrap_or(ExplainFormat::Overlay);
        let opacity = options.opacity.or(opacity).unwrap_or(DEFAULT_OPACITY) as f32;
        if format != ExplainFormat::Grid && request.images.len() > 1 {
            return Err(Failure::invalid_request(format!(
                "images: a picture explains one image, and there are {}; ask for the format `grid`",
                request.images.len()
            )));
        }
        // A picture is of one image, whose failure is the answer's.
        request.alone |= format != ExplainFormat::Grid;
        let ask = model.asking(Ask::explanation(format != ExplainFormat::Grid));
        let explain = |answer| Ok(service.explain(&model, answer, class)?);
        let (mut results, phases) = answers(service, id, request, ask, explain).await?;
        let content = match format {
            ExplainFormat::Grid => ExplainContent::Grid(Json(grids(results))),
            _ => {
                let missing = || Failure::internal_because("an image has no explanation");
                let explanation = results.pop().and_then(Result::ok).ok_or_else(missing)?;
                let draw = move || match format {
                    ExplainFormat::Heatmap => explanation.heatmap(),
                    _ => explanation.overlay(opacity),
                };
                // To colour and compress a megapixel takes some 20 ms, during which this thread can
                // serve other requests.
                let drawn = tokio::task::spawn_blocking(draw).await;
                ExplainContent::Png(Binary(drawn.map_err(Failure::internal_because)??))
            }
        };
        Ok(ExplainResponse::Ok(
            content,
            server_timing(&phases),
            model_header(service.model()),
        ))
    }
}

/// Writes what the models say of one image: side by side where there are several.
fn classes(result: Outcome<Vec<ModelResult>>) -> ClassifyResult {
    let mut models = match result {
        Ok(models) => models,
        Err(problem) => {
            return ClassifyResult {
                error: Some(*problem),
                ..ClassifyResult::default()
            };
        }
    };
    match (models.pop(), models.is_empty()) {
        (Some(only), true) => ClassifyResult {
            predictions: Some(only.predictions),
            known: only.known,
            ..ClassifyResult::default()
        },
        (last, _) => {
            models.extend(last);
            ClassifyResult {
                models: Some(models),
                ..ClassifyResult::default()
            }
        }
    }
}

fn grids(results: Vec<Outcome<Explanation>>) -> ExplainAnswer {
    let result = |result: Outcome<Explanation>| match result {
        Ok(explanation) => ExplainResult {
            explanation: Some(explanation.into()),
            error: None,
        },
        Err(problem) => ExplainResult {
            explanation: None,
            error: Some(*problem),
        },
    };
    ExplainAnswer {
        results: results.into_iter().map(result).collect(),
    }
}

/// What one image of a request leads to. The problem is boxed because it is much larger than the
/// rest.
type Outcome<T> = Result<T, Box<Problem>>;

/// Answers for all images of the request `id`, and makes a `T` of each answer by `make`.
///
/// Returns the outcomes in the order of the images, and the longest of each phase.
///
/// # Errors
/// A [`Failure`] of the whole request, where it was not admitted or where it is about one image
/// alone and that one failed.
async fn answers<R, T>(
    service: &Service,
    id: &RequestId,
    request: Images<R>,
    ask: Ask,
    make: impl Fn(Answer) -> Result<T, Failure>,
) -> Result<(Vec<Outcome<T>>, Phases), Failure> {
    let (mut sources, mut faults) = (Vec::new(), Vec::new());
    for image in request.images {
        match image {
            Ok(source) => {
                sources.push(source);
                faults.push(None);
            }
            Err(failure) => faults.push(Some(failure)),
        }
    }
    let made = |answer: Answer| (answer.phases, make(answer));
    let mut answers = service.answer(sources, ask, made).await?.into_iter();
    let (mut outcomes, mut phases) = (Vec::new(), Vec::new());
    for (position, fault) in faults.into_iter().enumerate() {
        let answer = match fault {
            Some(failure) => Err(failure),
            None => {
                let missing = || Failure::internal_because("an image has no answer");
                let answer = answers.next().ok_or_else(missing)?;
                let field = format!("images[{position}].url");
                answer.map_err(|error| Failure::in_field(error, &field))
            }
        };
        let outcome = answer.and_then(|(took, made)| {
            phases.push(took);
            made
        });
        match outcome {
            Err(failure) if request.alone => return Err(failure),
            outcome => outcomes.push(outcome.map_err(|failure| {
                // The middleware logs the failures of requests only, and this request succeeds.
                failure.log();
                Box::new(failure.problem(id))
            })),
        }
    }
    Ok((outcomes, longest(&phases)))
}

/// Reads a body as each of the routes does.
#[cfg(fuzzing)]
pub(super) fn fuzz(content_type: &str, bytes: &bytes::Bytes) {
    body::fuzz::<ClassifyRequest>(content_type, bytes.clone());
    body::fuzz::<EmbeddingsRequest>(content_type, bytes.clone());
    body::fuzz::<ExplainRequest>(content_type, bytes.clone());
}
