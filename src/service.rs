//! The use case: images, however they came, to their classes, features and heat maps. Reads like the flow: admission, fetch, decode, queue,
//! batch, forward, top-k. It knows no HTTP, no files and no tensors.

mod decoding;
mod explain;
mod request;

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use thiserror::Error;
use tracing::{Instrument, info_span};

use self::decoding::Decoders;
use imgclass_checkpoint::{ClassError, Labels};
use imgclass_engine::{
    Engine, EngineError, EngineOptions, EngineStartError, Forward, NoObserver, Place, Refusal,
    WorkerHealth,
};
use imgclass_fetch::{FetchConfig, FetchError, Fetcher, SetupError};
use imgclass_image::{ImageError, Limits, Preprocessing, PreprocessingError, Preprocessor};
use imgclass_network::head;
use imgclass_network::{Classifier, Input, ModelInfo};

pub use explain::{ExplainError, Explanation, View};
pub use request::{Answer, Ask, Classified, Phase, Phases, Prediction, Source};

/// The service's bounds; `config` says what each is for.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// Fetching of image URLs.
    pub fetch: FetchConfig,
    /// Sizes of images; `max_decoded_bytes` also bounds all decoding at one time, together.
    pub image: Limits,
    /// Admission, queue and batches.
    pub engine: EngineOptions,
    /// From a request's admission to its answer.
    pub request_timeout: Duration,
    /// Images that are decoded at one time.
    pub decode_threads: NonZeroUsize,
}

/// What the service tells whoever counts: what the engine tells, and each phase as it ends. Must be quick and must not panic.
pub trait Observer: imgclass_engine::Observer {
    /// A phase ended, well or badly; of requests that end early the later phases are not told. `Total` is told of every request that
    /// was admitted and whose caller stayed.
    fn phase_finished(&self, _phase: Phase, _took: Duration) {}
}

impl Observer for NoObserver {}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// Not admitted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The URL gave no bytes.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The bytes gave no image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The deadline passed.
    #[error("the deadline of {0:?} passed")]
    DeadlinePassed(Duration),
    /// The model gave no output.
    #[error(transparent)]
    Engine(EngineError),
    /// A task of ours failed.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Why the service cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The fetcher cannot.
    #[error(transparent)]
    Fetch(#[from] SetupError),
    /// The checkpoint's preprocessing cannot be carried out.
    #[error("the checkpoint's preprocessing cannot be carried out: {0}")]
    Preprocessing(#[from] PreprocessingError),
    /// No threads for decoding.
    #[error("the decoding threads cannot start: {0}")]
    Decoders(io::Error),
    /// The engine cannot, or the model failed on its first images.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
}

/// Everything between a request and its answer. Built once and shared.
pub struct Service {
    fetcher: Fetcher,
    limits: Limits,
    preprocessor: Arc<Preprocessor>,
    decoders: Decoders,
    engine: Engine,
    observer: Arc<dyn Observer>,
    classifier: Arc<Classifier>,
    request_timeout: Duration,
    max_batch_size: usize,
    draining: AtomicBool,
}

/// A source whose bytes are here.
enum Material {
    Encoded(Bytes),
    Prepared(Input),
}

impl Service {
    /// Warms the model up and starts its worker.
    pub fn start(
        classifier: Classifier,
        options: &ServiceOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let classifier = Arc::new(classifier);
        Self::start_over(classifier.clone(), classifier, options, observer)
    }

    /// [`Service::start`] with something else to run batches: tests bring what is slow or panics.
    pub fn start_over(
        model: Arc<dyn Forward>,
        classifier: Arc<Classifier>,
        options: &ServiceOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let preprocessing = classifier.info().checkpoint.preprocessing.clone();
        Ok(Self {
            fetcher: Fetcher::new(options.fetch.clone())?,
            limits: options.image,
            preprocessor: Arc::new(Preprocessor::new(preprocessing)?),
            decoders: Decoders::new(options.decode_threads, options.image.max_decoded_bytes)
                .map_err(StartError::Decoders)?,
            engine: Engine::start(model, options.engine, observer.clone())?,
            observer,
            classifier,
            request_timeout: options.request_timeout,
            max_batch_size: options.engine.max_batch_size.max(1),
            draining: AtomicBool::new(false),
        })
    }

    /// Takes a request's place; to be held until its answer is made.
    pub fn admit(&self) -> Result<Place, Refusal> {
        self.engine.admit(self.request_timeout)
    }

    /// The `top_k` most probable classes of one image.
    pub async fn classify(&self, source: Source, top_k: usize) -> Result<Classified, ServiceError> {
        let answer = self.answer_one(source, Ask::default()).await?;
        Ok(Classified {
            predictions: self.predictions(&answer.output.logits, top_k, 0.0),
            phases: answer.phases,
        })
    }

    /// What the model says of one image.
    pub async fn answer_one(&self, source: Source, ask: Ask) -> Result<Answer, ServiceError> {
        let start = Instant::now();
        let _place = self.admit()?;
        self.answer_in_time(start, source, ask).await
    }

    /// What the model says of each of a request's images, in their order. They share one place and one deadline; an image that fails leaves
    /// the others as they are. No more than two batches of them are in work at one time, so that one request cannot fill the queue.
    pub async fn answer(
        &self,
        sources: Vec<Source>,
        ask: Ask,
    ) -> Result<Vec<Result<Answer, ServiceError>>, Refusal> {
        let start = Instant::now();
        let _place = self.admit()?;
        let answers = stream::iter(sources)
            .map(|source| self.answer_in_time(start, source, ask))
            .buffered(2 * self.engine.images_at_once());
        Ok(answers.collect().await)
    }

    async fn answer_in_time(
        &self,
        start: Instant,
        source: Source,
        ask: Ask,
    ) -> Result<Answer, ServiceError> {
        let deadline = start + self.request_timeout;
        let answer = self.answer_by(deadline, source, ask);
        let answer = tokio::time::timeout_at(deadline.into(), answer)
            .await
            .unwrap_or(Err(ServiceError::DeadlinePassed(self.request_timeout)));
        self.observer.phase_finished(Phase::Total, start.elapsed());
        answer
    }

    async fn answer_by(
        &self,
        deadline: Instant,
        source: Source,
        ask: Ask,
    ) -> Result<Answer, ServiceError> {
        let start = Instant::now();
        let fetching = self.fetch(source).instrument(info_span!("fetch"));
        let material = fetching.await;
        let fetched = Instant::now();
        self.observer.phase_finished(Phase::Fetch, fetched - start);
        let material = material?;
        let slot = self.engine.slot().await.map_err(|e| self.engine_error(e))?;
        let decoding = self
            .input(material, ask.picture)
            .instrument(info_span!("decode"));
        let input = decoding.await;
        let decoded = Instant::now();
        self.observer
            .phase_finished(Phase::Decode, decoded - fetched);
        let (input, view) = input?;
        let done = self
            .engine
            .run(slot, input, ask.want, deadline)
            .instrument(info_span!("model"))
            .await;
        let done = done.map_err(|e| self.engine_error(e))?;
        self.observer.phase_finished(Phase::Queue, done.queued);
        self.observer
            .phase_finished(Phase::Inference, done.inference);
        let phases = Phases {
            fetch: fetched - start,
            decode: decoded - fetched,
            queue: done.queued,
            inference: done.inference,
            total: start.elapsed(),
        };
        Ok(Answer {
            output: done.output,
            view,
            phases,
        })
    }

    async fn fetch(&self, source: Source) -> Result<Material, ServiceError> {
        match source {
            Source::Url(url) => Ok(Material::Encoded(self.fetcher.fetch(&url).await?)),
            Source::Bytes(bytes) => Ok(Material::Encoded(bytes)),
            Source::Prepared(input) => Ok(Material::Prepared(Input::Planar(input))),
        }
    }

    /// The network's input, and what of the picture is kept.
    async fn input(
        &self,
        material: Material,
        keep: bool,
    ) -> Result<(Input, Option<View>), ServiceError> {
        match material {
            Material::Prepared(input) => Ok((input, None)),
            Material::Encoded(bytes) => {
                let (input, view) = self.prepare(bytes, keep).await?;
                Ok((input, Some(view)))
            }
        }
    }

    /// Encoded bytes to the network's input, when a decoding thread is free and the memory for it.
    async fn prepare(&self, bytes: Bytes, keep: bool) -> Result<(Input, View), ServiceError> {
        let info = imgclass_image::inspect(&bytes, &self.limits)?;
        let (limits, preprocessor) = (self.limits, self.preprocessor.clone());
        let takes_pixels = self.classifier.takes_pixels();
        let work = move || -> Result<(Input, View), ImageError> {
            let picture = imgclass_image::decode(&bytes, &limits)?;
            let input = match takes_pixels {
                true => Input::Pixels(preprocessor.pixels(&picture)),
                false => Input::Planar(preprocessor.apply(&picture)),
            };
            Ok((input, View::of(picture, &preprocessor, keep)))
        };
        Ok(self.decoders.run(info.decoded_bytes, work).await??)
    }

    /// The `top_k` most probable classes of an image whose probability is `min_probability` at least, falling.
    pub fn predictions(
        &self,
        logits: &[f32],
        top_k: usize,
        min_probability: f32,
    ) -> Vec<Prediction> {
        head::top_k(&head::softmax(logits), top_k)
            .into_iter()
            .take_while(|(_, probability)| *probability >= min_probability)
            .map(|(index, probability)| self.prediction(index, probability))
            .collect()
    }

    fn prediction(&self, index: usize, probability: f32) -> Prediction {
        let label = self.labels().get(index);
        Prediction {
            index,
            wnid: label.and_then(|label| label.wnid.clone()),
            label: label.map_or_else(|| format!("class {index}"), |label| label.name.clone()),
            probability,
        }
    }

    /// The class that a text names: its index, its WordNet id or one of its names.
    pub fn class(&self, text: &str) -> Result<usize, ClassError> {
        self.labels().find(text)
    }

    /// Channels, height and width of the network's input.
    pub fn input_shape(&self) -> (usize, usize, usize) {
        let (height, width) = self.preprocessing().crop.dims();
        (3, height, width)
    }

    /// How many features an embedding has.
    pub fn features(&self) -> usize {
        self.classifier.info().checkpoint.architecture.features()
    }

    fn engine_error(&self, error: EngineError) -> ServiceError {
        match error {
            EngineError::DeadlinePassed => ServiceError::DeadlinePassed(self.request_timeout),
            other => ServiceError::Engine(other),
        }
    }

    /// Requests that are worked on.
    pub fn in_flight(&self) -> usize {
        self.engine.admission().in_flight()
    }

    /// Prepared images that wait for the model.
    pub fn queue_depth(&self) -> usize {
        self.engine.queue_depth()
    }

    /// What is loaded.
    pub fn model(&self) -> &ModelInfo {
        self.classifier.info()
    }

    /// What the classes are called.
    pub fn labels(&self) -> &Labels {
        self.classifier.labels()
    }

    /// How images are prepared.
    pub fn preprocessing(&self) -> &Preprocessing {
        self.preprocessor.settings()
    }

    /// The largest image that is fetched, in bytes.
    pub fn max_fetched_bytes(&self) -> u64 {
        self.fetcher.config().max_bytes
    }

    /// The most pixels of an image.
    pub fn max_pixels(&self) -> u64 {
        self.limits.max_pixels
    }

    /// Images that the model works on at one time, at most.
    pub fn images_at_once(&self) -> usize {
        self.engine.images_at_once()
    }

    /// Images in one forward pass at most.
    pub fn max_batch_size(&self) -> usize {
        self.max_batch_size
    }

    /// From a request's admission to its answer.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Whether requests will be served: the worker is well and the service is not shutting down. A full queue changes nothing.
    pub fn ready(&self) -> Result<(), NotReady> {
        match self.engine.health() {
            _ if self.draining.load(Ordering::Acquire) => Err(NotReady::Draining),
            WorkerHealth::Gone => Err(NotReady::WorkerGone),
            WorkerHealth::Stuck(running) => Err(NotReady::WorkerStuck(running)),
            WorkerHealth::OutOfDeviceMemory => Err(NotReady::OutOfDeviceMemory),
            WorkerHealth::DeviceLost => Err(NotReady::DeviceLost),
            WorkerHealth::Well => Ok(()),
        }
    }

    /// Says from now on that it is not ready, and goes on serving whoever comes until [`Service::stop`].
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Finishes what waits and ends the worker; blocks for `within` at most and says whether it ended.
    pub fn stop(&self, within: Duration) -> bool {
        self.engine.stop(within)
    }
}

/// Why the service is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotReady {
    /// It is shutting down.
    #[error("the service is shutting down")]
    Draining,
    /// The worker's thread has ended.
    #[error("the model's worker has ended")]
    WorkerGone,
    /// A batch runs far over its usual time.
    #[error("the model's worker has been stuck in one batch for {0:?}")]
    WorkerStuck(Duration),
    /// The device had no memory for a single image of late.
    #[error("the model's device is out of memory")]
    OutOfDeviceMemory,
    /// The device has failed for good.
    #[error("the model's device is lost; the service must be restarted")]
    DeviceLost,
}
