//! What requests share: the service, once it is loaded, and the bounds of HTTP itself.

use std::sync::{Arc, OnceLock};

use super::problem::Failure;
use crate::config::{Access, HttpLimits};
use crate::metrics::Metrics;
use crate::service::Service;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    service: Arc<OnceLock<Arc<Service>>>,
    limits: HttpLimits,
    metrics: Option<Arc<Metrics>>,
    metrics_apart: bool,
    access: Arc<Access>,
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

    /// From now on requests are served. A second call changes nothing.
    pub fn loaded(&self, service: Arc<Service>) {
        let _ = self.service.set(service);
    }

    /// The service, if it has been loaded.
    pub(super) fn service(&self) -> Result<&Arc<Service>, Failure> {
        self.service.get().ok_or_else(Failure::loading)
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
