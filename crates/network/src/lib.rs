//! The network: ResNet-18 to 152, layer by layer, over our CPU kernels or over candle on other devices. It knows no HTTP and no encoded
//! pictures, and above it nobody sees a tensor.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod classifier;
mod conv;
mod device;
mod dtype;
mod error;
mod fault;
pub mod head;
mod input;
mod packed;
mod profile;
pub mod resnet;
mod weights;

pub use classifier::{Classifier, ModelInfo, ModelOptions, Output, Want};
pub use conv::Backend;
pub use device::DeviceChoice;
pub use dtype::ComputeType;
pub use error::NetworkError;
pub use input::Input;
pub use profile::LayerTime;
pub use weights::variables;
