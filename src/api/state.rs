//! What all requests share: the service, once it is loaded, and the bounds of HTTP itself.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use poem::Request;
use poem::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::model::LabelList;
use super::problem::{Failure, RETRY_AFTER_RESTART, clip};
use crate::config::{Access, DEFAULT_MODEL_NAME, HttpLimits};
use crate::metrics::Metrics;
use crate::service::{Ask, Model, Service};

/// Bytes that one permit of the memory for bodies stands for. Semaphores count in 32 bits, which
/// would end at 4 GiB if they counted bytes.
pub(super) const BODY_UNIT: usize = 1024;

/// The largest body that may take the part of the memory that is kept for small ones, in bytes.
const SMALL_BODY: usize = 1 << 20;

/// A share of the memory for bodies, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct BodyShare {
    _large: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

/// The memory for answers that have not left yet, of all clients together. The largest answers are
/// heat maps of 1.5 MB and the numbers of many images, of which this holds some 80.
const ANSWER_MEMORY_KIB: usize = 128 * 1024;

/// The state of the HTTP interface; its clones share everything.
#[derive(Clone)]
pub struct ApiState {
    service: Arc<OnceLock<Arc<Service>>>,
    limits: HttpLimits,
    metrics: Option<Arc<Metrics>>,
    metrics_apart: bool,
    access: Arc<Access>,
    body_memory: Arc<Semaphore>,
    /// The part of it that bodies of more than [`SMALL_BODY`] may take.
    large_bodies: Arc<Semaphore>,
    answer_memory: Arc<Semaphore>,
    labels: Arc<OnceLock<Bytes>>,
    model_name: Arc<str>,
    root_path: Arc<str>,
    unknown_below: f32,
}

/// A model that a request names, with the name.
#[derive(Debug, Clone)]
pub(super) struct NamedModel {
    pub(super) name: String,
    pub(super) model: Model,
}

/// The most models that one request may name.
const MAX_MODELS: usize = 32;

impl ApiState {
    /// Makes the state of a service that is still loading. Requests that need the model are
    /// answered with 503 until [`ApiState::loaded`] is called.
    pub fn loading(limits: HttpLimits) -> Self {
        Self {
            service: Arc::default(),
            limits,
            metrics: None,
            metrics_apart: false,
            access: Arc::default(),
            body_memory: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            large_bodies: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            answer_memory: Arc::new(Semaphore::new(ANSWER_MEMORY_KIB)),
            labels: Arc::default(),
            model_name: DEFAULT_MODEL_NAME.into(),
            root_path: "".into(),
            unknown_below: 0.0,
        }
    }

    /// Serves only those whom `access` lets in. Without this, everybody is served.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self {
            access: Arc::new(access),
            ..self
        }
    }

    /// Counts into `metrics` and serves them at `/metrics`, except where they have a port of their
    /// own (`apart`).
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>, apart: bool) -> Self {
        Self {
            metrics: Some(metrics),
            metrics_apart: apart,
            ..self
        }
    }

    /// Sets the name by which clients of the inference protocols call the model, which is
    /// [`DEFAULT_MODEL_NAME`] without this.
    #[must_use]
    pub fn served_as(mut self, model_name: &str) -> Self {
        self.model_name = model_name.into();
        self
    }

    /// Serves the interface under the path `root_path` too, which has no slash at its end. The proxy
    /// before the service may leave it in place or remove it.
    #[must_use]
    pub fn under(mut self, root_path: &str) -> Self {
        self.root_path = root_path.into();
        self
    }

    /// Calls pictures unknown that fit a head worse than this, where a request does not say it.
    #[must_use]
    pub fn with_unknown_below(self, unknown_below: f32) -> Self {
        Self {
            unknown_below,
            ..self
        }
    }

    /// Serves requests by `service` from now on. A second call changes nothing.
    pub fn loaded(&self, service: Arc<Service>) {
        let _ = self.service.set(service);
    }

    /// Holds no more than `bytes` of request bodies at one time, all together. Bodies of more than
    /// a mebibyte may have three quarters of it, or one of the largest size if that is more.
    /// Without this there is no such bound.
    #[must_use]
    pub fn with_body_memory(self, bytes: u64) -> Self {
        let permits = |bytes: u64| {
            let permits = usize::try_from(bytes / BODY_UNIT as u64).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
        };
        // The largest body that is allowed must fit.
        let largest = (self.limits.payload_limit as u64).min(bytes);
        Self {
            body_memory: permits(bytes),
            large_bodies: permits((bytes - bytes / 4).max(largest)),
            ..self
        }
    }

    /// Takes the share of the memory for bodies by which a body grows from `before` bytes to
    /// `after`; `None` where there is not enough. A quarter of the memory is kept for small bodies,
    /// so that some large ones do not keep all others out.
    ///
    /// Does not wait: requests that wait with half a body would keep the memory of that half from
    /// each other.
    pub(super) fn reserve_body(&self, before: usize, after: usize) -> Option<BodyShare> {
        let take = |memory: &Arc<Semaphore>, bytes: usize| {
            let permits = u32::try_from(bytes.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
            memory.clone().try_acquire_many_owned(permits).ok()
        };
        let large = match after {
            ..=SMALL_BODY => None,
            // What it had while it was small is taken now.
            _ if before <= SMALL_BODY => Some(take(&self.large_bodies, after)?),
            _ => Some(take(&self.large_bodies, after - before)?),
        };
        Some(BodyShare {
            _large: large,
            _all: take(&self.body_memory, after - before)?,
        })
    }

    /// Returns the memory for answers, of which one permit stands for a KiB.
    pub(super) fn answer_memory(&self) -> &Arc<Semaphore> {
        &self.answer_memory
    }

    /// Returns the service.
    ///
    /// # Errors
    /// A [`Failure`] with status 503 until the service is loaded.
    pub(super) fn service(&self) -> Result<&Arc<Service>, Failure> {
        self.service.get().ok_or_else(|| {
            Failure::unavailable(
                "not-ready",
                "The model is loading",
                "the model is not loaded yet",
                RETRY_AFTER_RESTART,
            )
        })
    }

    /// Returns the answer of `/v1/labels`.
    ///
    /// # Errors
    /// A [`Failure`] with status 503 until the service is loaded.
    pub(super) fn labels(&self) -> Result<Bytes, Failure> {
        let service = self.service()?;
        let labels = || LabelList::to_bytes(service.labels());
        Ok(self.labels.get_or_init(labels).clone())
    }

    /// Returns the name by which clients of the inference protocols call the model.
    pub(super) fn model_name(&self) -> &str {
        &self.model_name
    }

    /// Returns the path under which the interface is served, without a slash at its end.
    pub(super) fn root_path(&self) -> &str {
        &self.root_path
    }

    /// Returns the model of a name: the checkpoint's own classes or a head.
    ///
    /// # Errors
    /// A [`Failure`] with status 404 where there is none, and with 503 until the service is loaded.
    pub(super) fn named_model(&self, name: &str) -> Result<NamedModel, Failure> {
        self.find_model(name)?.ok_or_else(|| {
            Failure::new(
                StatusCode::NOT_FOUND,
                "unknown-model",
                "There is no such model",
                format!(
                    "there is no model {:?}; this service has {}",
                    clip(name),
                    self.model_names().join(", ")
                ),
            )
        })
    }

    /// Returns the model of a name; `None` where there is none.
    ///
    /// # Errors
    /// A [`Failure`] with status 503 until the service is loaded.
    pub(super) fn find_model(&self, name: &str) -> Result<Option<NamedModel>, Failure> {
        let service = self.service()?;
        let model = if name == self.model_name() {
            Some(Model::Checkpoint)
        } else {
            service.head(name)
        };
        Ok(model.map(|model| NamedModel {
            name: name.to_owned(),
            model,
        }))
    }

    /// Returns the names of all models: the checkpoint's first, then those of the heads.
    pub(super) fn model_names(&self) -> Vec<String> {
        let mut names = vec![self.model_name().to_owned()];
        if let Ok(service) = self.service() {
            names.extend(service.heads().iter().map(|head| head.name.clone()));
        }
        names
    }

    /// Returns the models that the option `model` names, with commas between several. Without the
    /// option it is the checkpoint.
    ///
    /// # Errors
    /// As [`ApiState::named_model`], and where there are too many, or one is named twice.
    pub(super) fn named_models(&self, names: Option<&str>) -> Result<Vec<NamedModel>, Failure> {
        let names = names.unwrap_or_else(|| self.model_name());
        if names.split(',').count() > MAX_MODELS {
            return Err(Failure::invalid_request(format!(
                "model: more than {MAX_MODELS} are named"
            )));
        }
        let mut models = Vec::<NamedModel>::new();
        for name in names.split(',') {
            let named = self.named_model(name.trim())?;
            if models.iter().any(|before| before.name == named.name) {
                return Err(Failure::invalid_request(format!(
                    "model: {} is named twice",
                    named.name
                )));
            }
            models.push(named);
        }
        Ok(models)
    }

    /// Returns how well a picture must fit a head where the request does not say it.
    pub(super) fn unknown_below(&self) -> f32 {
        self.unknown_below
    }

    /// Counts images that models answered.
    pub(super) fn count_answers(&self, models: &[NamedModel], images: usize) {
        if let Some(metrics) = &self.metrics {
            for named in models {
                metrics.images_answered(&named.name, images);
            }
        }
    }

    /// Returns the bounds of HTTP itself.
    pub(super) fn limits(&self) -> HttpLimits {
        self.limits
    }

    /// Returns the metrics that are counted into, if there are any.
    pub(super) fn metrics(&self) -> Option<&Arc<Metrics>> {
        self.metrics.as_ref()
    }

    /// Says whether `/metrics` is a route of the interface itself.
    pub(super) fn serves_metrics(&self) -> bool {
        self.metrics.is_some() && !self.metrics_apart
    }

    /// Returns the rules that say who may use the interface.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }
}

/// Adds to `ask` what each of the models needs.
pub(super) fn asking(models: &[NamedModel], ask: Ask) -> Ask {
    models
        .iter()
        .fold(ask, |ask, named| named.model.asking(ask))
}

/// Returns the state that the routes were given, for extractors, which see only the request.
///
/// # Errors
/// A [`Failure`] with status 500 where the routes were given none.
pub(super) fn state_of(request: &Request) -> Result<&ApiState, Failure> {
    let missing = || Failure::internal_because("the routes were given no state");
    request.data::<ApiState>().ok_or_else(missing)
}
