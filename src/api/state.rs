//! What requests share: the service, once it is loaded, and the bounds of HTTP itself.

use std::sync::{Arc, OnceLock};

use super::problem::Failure;
use crate::config::{DEFAULT_MODEL_NAME, HttpLimits};
use crate::service::Service;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    service: Arc<OnceLock<Arc<Service>>>,
    limits: HttpLimits,
    model_name: Arc<str>,
}

impl ApiState {
    /// A state whose service is still loading: requests for it are answered 503 until [`ApiState::loaded`].
    pub fn loading(limits: HttpLimits) -> Self {
        Self {
            service: Arc::default(),
            limits,
            model_name: DEFAULT_MODEL_NAME.into(),
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
}
