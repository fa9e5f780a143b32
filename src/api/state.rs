//! What requests share: the service, once it is loaded, and the bounds of HTTP itself.

use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Failure;
use crate::config::{Access, DEFAULT_MODEL_NAME, HttpLimits};
use crate::metrics::Metrics;
use crate::service::Service;

/// The weight of one permit of the memory for bodies: semaphores count in 32 bits.
const KIB: u64 = 1024;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    service: Arc<OnceLock<Arc<Service>>>,
    limits: HttpLimits,
    metrics: Option<Arc<Metrics>>,
    metrics_apart: bool,
    access: Arc<Access>,
    body_memory: Arc<Semaphore>,
    model_name: Arc<str>,
}

impl ApiState {
    /// A state whose service is still loading: requests for it are answered 503 until [`ApiState::loaded`].
    pub fn loading(limits: HttpLimits) -> Self {
        Self {
            service: Arc::default(),
            limits,
            metrics: None,
            metrics_apart: false,
            access: Arc::default(),
            body_memory: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            model_name: DEFAULT_MODEL_NAME.into(),
        }
    }

    /// Lets in only whom `access` lets in; without this, everybody.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self {
            access: Arc::new(access),
            ..self
        }
    }

    /// Counts into `metrics` from now on, and serves them at `/metrics`; not there where they are served on a port of their own
    /// (`apart`).
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>, apart: bool) -> Self {
        Self {
            metrics: Some(metrics),
            metrics_apart: apart,
            ..self
        }
    }

    /// The same under another model name than [`DEFAULT_MODEL_NAME`]: what clients of the inference protocols call the model.
    pub fn served_as(mut self, model_name: &str) -> Self {
        self.model_name = model_name.into();
        self
    }

    /// From now on requests are served. A second call changes nothing.
    pub fn loaded(&self, service: Arc<Service>) {
        let _ = self.service.set(service);
    }

    /// Holds no more than `bytes` of request bodies at one time, all together; without this, as many as come.
    #[must_use]
    pub fn with_body_memory(self, bytes: u64) -> Self {
        let permits = usize::try_from(bytes / KIB).unwrap_or(usize::MAX);
        Self {
            body_memory: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            ..self
        }
    }

    /// A share of the memory for bodies, or a refusal at once: clients that wait with half a body would hold what they have.
    pub(super) fn reserve_body(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let permits = u32::try_from((bytes as u64).div_ceil(KIB)).unwrap_or(u32::MAX);
        let memory = self.body_memory.clone().try_acquire_many_owned(permits);
        memory.map_err(|_| Failure::no_room_for_bodies())
    }

    /// The service, if it has been loaded.
    pub(super) fn service(&self) -> Result<&Arc<Service>, Failure> {
        self.service.get().ok_or_else(Failure::loading)
    }

    /// What clients of the inference protocols call the model.
    pub(super) fn model_name(&self) -> &str {
        &self.model_name
    }

    pub(super) fn limits(&self) -> HttpLimits {
        self.limits
    }

    /// What counts, if anything does.
    pub(super) fn metrics(&self) -> Option<&Arc<Metrics>> {
        self.metrics.as_ref()
    }

    /// Whether `/metrics` is a route of the interface itself.
    pub(super) fn serves_metrics(&self) -> bool {
        self.metrics.is_some() && !self.metrics_apart
    }

    /// Who may use the interface.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }
}
