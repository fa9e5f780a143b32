//! From an image to its classes, features and heat map: everything between a request and its
//! answer that does not depend on how the request came.
//!
//! [`Service::answer_one`] is the way of one image, from admission to the model's output:
//!
//! ```text
//! admission ─► fetch ─► place in the queue ─► decode ─► queue ─► forward pass ─► logits
//! ```
//!
//! [`Service::predictions`] and [`Service::explain`] turn the output into classes and heat maps.
//! The HTTP routes and the command line both call this module, which knows neither HTTP nor files.

mod error;
mod explain;
mod heads;
mod phases;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tracing::{Instrument, info_span};

use self::heads::Heads;
use self::phases::PhaseClock;
use crate::lane;
use imgclass_checkpoint::{ClassError, Labels};
use imgclass_decode::{Begun, Confinement, DecodeOptions, Decoders, Prepared};
use imgclass_engine::{Engine, EngineError, EngineOptions, Place, Refusal, Slot, WorkerHealth};
use imgclass_fetch::{FetchConfig, Fetcher, decode_data_url, is_data_url};
use imgclass_image::{Preprocessing, Preprocessor};
use imgclass_network::head;
use imgclass_network::{Classifier, Input, ModelInfo, Network, Output};

pub use error::{NotReady, ServiceError, StartError};
pub use explain::{ExplainError, Explanation, View};
pub(crate) use heads::check_network;
pub use heads::{HeadError, Model, Scores, ServedHead, UNKNOWN};
pub use phases::{NoObserver, Observer, Phase, Phases};
pub use request::{Answer, Ask, Prediction, Source};

/// The bounds of the service; `config` explains each of them and sets its default.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// How images are fetched from URLs.
    pub fetch: FetchConfig,
    /// How large an image may be, and how and where images are decoded.
    pub decode: DecodeOptions,
    /// How many requests are admitted, how many images wait, and how they are batched.
    pub engine: EngineOptions,
    /// How long a request may take from its admission to its answer.
    pub request_timeout: Duration,
}

/// Answers requests about images. It is built once and shared by all requests.
pub struct Service {
    fetcher: Fetcher,
    max_pixels: u64,
    fast_decode: bool,
    preprocessor: Preprocessor,
    decoders: Decoders,
    engine: Engine,
    observer: Arc<dyn Observer>,
    classifier: Arc<Classifier>,
    heads: Heads,
    request_timeout: Duration,
    max_batch_size: usize,
    /// How many images of one request may wait for a place in the queue or be decoded.
    decoded_at_once: usize,
    draining: AtomicBool,
}

/// What fetching gives: a [`Source`] whose bytes are in memory.
enum Fetched {
    /// The bytes of an encoded image.
    Encoded(Bytes),
    /// The network's input, which the request has prepared itself.
    Prepared(Input),
}

/// Starting.
impl Service {
    /// Warms the model up, then starts its workers and those that decode.
    ///
    /// # Errors
    /// [`StartError`] where a part cannot be set up, or where the model fails on the images of its
    /// warm-up.
    pub fn start(
        classifier: Classifier,
        options: &ServiceOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let classifier = Arc::new(classifier);
        Self::start_with_network(classifier.network(), classifier, options, observer)
    }

    /// Does what [`Service::start`] does, but runs batches on `network` instead of the classifier's.
    /// Tests pass networks that are slow, that fail or that panic.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_with_network(
        network: Arc<dyn Network>,
        classifier: Arc<Classifier>,
        options: &ServiceOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let preprocessing = classifier.info().checkpoint.preprocessing.clone();
        let preprocessor = Preprocessor::new(preprocessing)?;
        let decoders = Decoders::start(&options.decode, preprocessor.clone(), observer.clone())?;
        Ok(Self {
            fetcher: Fetcher::new(options.fetch.clone())?,
            max_pixels: options.decode.limits.max_pixels,
            fast_decode: options.decode.fast,
            preprocessor,
            decoders,
            engine: Engine::start(network, options.engine, observer.clone())?,
            observer,
            classifier,
            heads: Heads::default(),
            request_timeout: options.request_timeout,
            max_batch_size: options.engine.max_batch_size.max(1),
            decoded_at_once: options.decode.workers.get().max(2),
            draining: AtomicBool::new(false),
        })
    }
}

/// Answering: the functions stand in the order in which a request passes through them.
impl Service {
    /// Answers a request for one image.
    ///
    /// # Errors
    /// [`ServiceError`]: the request was not admitted, one of the steps failed, or the deadline
    /// passed.
    pub async fn answer_one(&self, source: Source, ask: Ask) -> Result<Answer, ServiceError> {
        let admitted = Instant::now();
        let _place = self.admit()?;
        self.answer_image(admitted, source, ask, &Semaphore::new(1))
            .await
    }

    /// Answers a request for several images, and makes a `T` of each answer by `make` as soon as it
    /// is there: answers may hold feature maps, of which a request with many images would keep many
    /// while it waits for the last. The results are in the order of the images.
    ///
    /// The images share one place and one deadline. An image that fails does not affect the others.
    /// At most two batches of images are in work at one time, so that one request cannot fill the
    /// queue. No more of them wait for a place in it than are decoded at one time, so that other
    /// requests have their turn between them.
    ///
    /// # Errors
    /// [`Refusal`] where the request was not admitted.
    pub async fn answer<T>(
        &self,
        sources: Vec<Source>,
        ask: Ask,
        make: impl Fn(Answer) -> T,
    ) -> Result<Vec<Result<T, ServiceError>>, Refusal> {
        let admitted = Instant::now();
        let _place = self.admit()?;
        let turns = Semaphore::new(self.decoded_at_once);
        let (make, turns) = (&make, &turns);
        let answers = stream::iter(sources)
            .map(|source| async move {
                let answer = self.answer_image(admitted, source, ask, turns).await;
                answer.map(make)
            })
            .buffered(2 * self.engine.images_at_once());
        Ok(answers.collect().await)
    }

    /// Takes a request's place, which is free again when the returned value is dropped.
    ///
    /// # Errors
    /// [`Refusal`], at once, where all places are taken, where the model's recent pace says that
    /// the request would miss its deadline, or where the service is shutting down.
    pub fn admit(&self) -> Result<Place, Refusal> {
        self.engine.admit(self.request_timeout)
    }

    /// Takes one image of an admitted request through all steps, within the request's deadline.
    async fn answer_image(
        &self,
        admitted: Instant,
        source: Source,
        ask: Ask,
        turns: &Semaphore,
    ) -> Result<Answer, ServiceError> {
        let deadline = admitted + self.request_timeout;
        let mut clock = PhaseClock::new(admitted, &*self.observer);
        let prepared = matches!(source, Source::Prepared(_));
        let steps = async {
            // Fetch: a URL becomes the bytes behind it.
            let fetching = self.fetch(source).instrument(info_span!("fetch"));
            let fetched = clock.time(Phase::Fetch, fetching).await?;

            // Decode: the bytes become the network's input.
            let decoding = self.decode(fetched, ask, turns);
            let (slot, input, view) = clock.time(Phase::Decode, decoding).await?;

            // Queue and forward pass: a worker takes the input, in a batch with those of other
            // requests.
            let running = self.engine.run(slot, input, ask.want, deadline);
            let done = running.instrument(info_span!("model")).await;
            let done = done.map_err(|error| self.engine_error(error))?;
            clock.record(Phase::Queue, done.queued);
            clock.record(Phase::Inference, done.inference);
            if !is_finite(&done.output) {
                return Err(ServiceError::NotFinite { prepared });
            }
            Ok((done.output, view))
        };
        let outcome = tokio::time::timeout_at(deadline.into(), steps)
            .await
            .unwrap_or(Err(ServiceError::DeadlinePassed(self.request_timeout)));
        let phases = clock.finish();
        outcome.map(|(output, view)| Answer {
            output,
            view,
            phases,
        })
    }

    async fn fetch(&self, source: Source) -> Result<Fetched, ServiceError> {
        match source {
            Source::Url(url) if is_data_url(&url) => {
                let most = self.max_fetched_bytes();
                let decoded = lane::work(url.len(), || decode_data_url(&url, most));
                Ok(Fetched::Encoded(decoded.await?))
            }
            Source::Url(url) => Ok(Fetched::Encoded(self.fetcher.fetch(&url).await?)),
            Source::Bytes(bytes) => Ok(Fetched::Encoded(bytes)),
            Source::Prepared(input) => Ok(Fetched::Prepared(Input::Planar(input))),
        }
    }

    /// Makes the network's input, with a place for it in the model's queue.
    ///
    /// The place comes first, so that there are never more inputs than the queue has places. Only a
    /// costly picture gives its place back until it is decoded, and its turn among the images of its
    /// request: others must not wait behind it. The [`View`] is that of an encoded image; it holds the
    /// picture itself where `ask` says so.
    async fn decode(
        &self,
        fetched: Fetched,
        ask: Ask,
        turns: &Semaphore,
    ) -> Result<(Slot, Input, Option<View>), ServiceError> {
        // An error would say that the semaphore is closed, which nobody does.
        let turn = turns.acquire().await.ok();
        let slot = self.slot().await?;
        let bytes = match fetched {
            Fetched::Prepared(input) => return Ok((slot, input, None)),
            Fetched::Encoded(bytes) => bytes,
        };
        let decoding = async {
            let keep_picture = ask.picture.then_some(View::MAX_SIDE);
            match self.decoders.begin(bytes, keep_picture).await? {
                Begun::Prepared(prepared) => Ok((slot, prepared)),
                Begun::Costly(costly) => {
                    drop((slot, turn));
                    let finished = self.decoders.finish(costly).await?;
                    Ok((self.slot().await?, finished.prepared))
                }
            }
        };
        let decoded: Result<_, ServiceError> = decoding.instrument(info_span!("decode")).await;
        let (slot, mut prepared) = decoded?;
        if ask.mirrored {
            let width = self.preprocessing().crop.width as usize;
            mirror(&mut prepared.pixels, width);
        }
        let (input, view) = self.input(prepared);
        Ok((slot, input, Some(view)))
    }

    /// Waits for a place in the model's queue.
    async fn slot(&self) -> Result<Slot, ServiceError> {
        let slot = self.engine.slot().await;
        slot.map_err(|error| self.engine_error(error))
    }

    /// Returns a decoded picture as the network takes it.
    fn input(&self, prepared: Prepared) -> (Input, View) {
        let view = View::of(prepared.size, prepared.picture, &self.preprocessor);
        let input = if self.classifier.takes_pixels() {
            Input::Pixels(prepared.pixels)
        } else {
            Input::Planar(self.preprocessor.normalise(&prepared.pixels))
        };
        (input, view)
    }

    fn engine_error(&self, error: EngineError) -> ServiceError {
        match error {
            EngineError::DeadlinePassed => ServiceError::DeadlinePassed(self.request_timeout),
            other => ServiceError::Engine(other),
        }
    }

    /// Returns the `top_k` most probable classes of an image, most probable first, without those
    /// whose probability is below `min_probability`. `logits` has one number per class.
    pub fn predictions(
        &self,
        logits: &[f32],
        top_k: usize,
        min_probability: f32,
    ) -> Vec<Prediction> {
        head::top_k(&self.probabilities(logits), top_k)
            .into_iter()
            .take_while(|(_, probability)| *probability >= min_probability)
            .map(|(index, probability)| self.prediction(index, probability))
            .collect()
    }

    /// Returns the probability of each class by its index. `logits` has one number per class.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        head::probabilities(logits, self.model().checkpoint.probabilities)
    }

    fn prediction(&self, index: usize, probability: f32) -> Prediction {
        Prediction::of(self.labels(), index, probability)
    }
}

/// Mirrors an image `[height, width, 3]` from left to right.
fn mirror(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut((3 * width).max(1)) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

/// Returns whether all numbers of an output are finite. Finite inputs and weights can give numbers
/// beyond `f32`, of which no probability can be made.
fn is_finite(output: &Output) -> bool {
    let rest = [&output.features, &output.feature_map];
    let rest = rest.into_iter().flatten().flatten();
    output.logits.iter().chain(rest).all(|x| x.is_finite())
}

/// What is loaded, and within which bounds it works.
impl Service {
    /// Returns the index of the class that `text` names: by its index, its WordNet id or one of its
    /// names.
    ///
    /// # Errors
    /// [`ClassError`] where no class has that name, or more than one.
    pub fn class(&self, text: &str) -> Result<usize, ClassError> {
        self.labels().find(text)
    }

    /// Returns channels, height and width of the network's input.
    pub fn input_shape(&self) -> (usize, usize, usize) {
        let (height, width) = self.preprocessing().crop.dims();
        (3, height, width)
    }

    /// Returns how many numbers an embedding has.
    pub fn features(&self) -> usize {
        self.classifier.info().checkpoint.architecture.features()
    }

    /// Describes the loaded model.
    pub fn model(&self) -> &ModelInfo {
        self.classifier.info()
    }

    /// Returns the names of the classes.
    pub fn labels(&self) -> &Labels {
        self.classifier.labels()
    }

    /// Describes how images are prepared for the network.
    pub fn preprocessing(&self) -> &Preprocessing {
        self.preprocessor.settings()
    }

    /// Returns the size of the largest image that is fetched, in bytes.
    pub fn max_fetched_bytes(&self) -> u64 {
        self.fetcher.config().max_bytes
    }

    /// Returns how many pixels an image may have.
    pub fn max_pixels(&self) -> u64 {
        self.max_pixels
    }

    /// Returns whether large JPEGs are decoded at a reduced size.
    pub fn fast_decode(&self) -> bool {
        self.fast_decode
    }

    /// Returns which limits hold for the processes that decode; `None` where there are none.
    pub fn confinement(&self) -> Option<&Confinement> {
        self.decoders.confinement()
    }

    /// Returns how many images all workers together run at one time, at most.
    pub fn images_at_once(&self) -> usize {
        self.engine.images_at_once()
    }

    /// Returns how many images one forward pass has, at most.
    pub fn max_batch_size(&self) -> usize {
        self.max_batch_size
    }

    /// Returns how long a request may take from its admission to its answer.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }
}

/// State, and the end.
impl Service {
    /// Returns how many requests hold a place.
    pub fn in_flight(&self) -> usize {
        self.engine.admission().in_flight()
    }

    /// Returns how many prepared images wait for a worker.
    pub fn queue_depth(&self) -> usize {
        self.engine.queue_depth()
    }

    /// Says whether requests will be served. A full queue does not make the service unready.
    ///
    /// # Errors
    /// [`NotReady`] where the service is shutting down or where a worker or the device has failed.
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

    /// Makes [`Service::ready`] say from now on that the service is shutting down. Requests are
    /// still served until [`Service::stop`].
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Refuses new requests, finishes the images that wait, and ends the workers.
    ///
    /// Blocks until the workers have ended, but no longer than `within`; returns whether they have.
    pub fn stop(&self, within: Duration) -> bool {
        self.engine.stop(within)
    }
}
