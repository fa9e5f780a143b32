//! Every option of the service: its flag, its environment variable, its default, its bounds and the
//! reason for them.
//!
//! There is a file for each heading of `imgclass serve --help`. Values are checked here, once, when
//! the command line is read. Each `...Args` converts itself into the plain options of the layer
//! that it configures, so no layer reads `IMGCLASS_*` itself. The variables of others, `HF_*` and
//! `OTEL_*`, are read by `imgclass-checkpoint` and by `cli::logging`.

mod access;
mod connections;
mod fetch;
mod heads;
mod limits;
mod model;
mod server;
pub(crate) mod values;
mod weights;

use clap::Args;

use crate::service::ServiceOptions;
use imgclass_network::ModelInfo;

pub use access::{
    Access, AccessArgs, AllowedOrigin, ApiKey, KeyFileError, RateLimit, caller_address,
};
pub use connections::{ConnectionArgs, ConnectionLimits};
pub use fetch::FetchArgs;
pub use heads::{HeadArgs, NamedHead};
pub use limits::LimitArgs;
pub use model::ModelArgs;
pub use server::{
    DEFAULT_MODEL_NAME, HttpLimits, MAX_IMAGES_PER_REQUEST, Port, ServerArgs, is_root_path,
};
pub use weights::{OverrideArgs, WeightsArgs};

/// The options of everything that classifying needs, over HTTP or on the command line.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Options of the model and the device that runs it.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Options that bound how much is worked on at one time.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Options of fetching image URLs.
    #[command(flatten)]
    pub fetch: FetchArgs,
}

impl ServiceArgs {
    /// Returns the options of the service. Some defaults depend on the device that runs `model`.
    pub fn service_options(&self, model: &ModelInfo) -> ServiceOptions {
        ServiceOptions {
            fetch: self.fetch.config(),
            decode: self.limits.decode_options(self.model.threads()),
            engine: self.limits.engine_options(model),
            request_timeout: *self.limits.request_timeout,
        }
    }
}
