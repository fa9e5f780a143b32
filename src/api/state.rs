//! What requests share: the service, once it is loaded, and the bounds of HTTP itself.

use std::sync::{Arc, OnceLock};

use super::problem::Failure;
use crate::config::HttpLimits;
use crate::service::Service;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    service: Arc<OnceLock<Arc<Service>>>,
    limits: HttpLimits,
}

impl ApiState {
    /// A state whose service is still loading: requests for it are answered 503 until [`ApiState::loaded`].
    pub fn loading(limits: HttpLimits) -> Self {
        Self {
            service: Arc::default(),
            limits,
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
}
