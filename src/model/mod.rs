//! The network: ResNet-50 in candle with our kernels beneath, its checkpoints, labels and head. It knows no HTTP and no pixels, and above
//! it nobody sees a tensor.

mod checkpoint;
mod classifier;
mod conv;
mod device;
mod dtype;
mod error;
mod fault;
pub mod formula;
pub mod head;
pub mod hub;
mod input;
mod labels;
mod packed;
mod pretrained;
mod profile;
pub mod resnet;
mod source;

pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, ModelInfo, ModelOptions, Output, Want};
pub use conv::Backend;
pub use device::DeviceChoice;
pub use dtype::ComputeType;
pub use error::ModelError;
pub use input::Input;
pub use labels::{ClassError, Label, Labels};
pub use pretrained::{INPUT_SIDES, Interpolation, PretrainedCfg};
pub use profile::LayerTime;
pub use source::{DEFAULT_MODEL, DEFAULT_REVISION, LOCAL_WEIGHTS, WeightsChoice, WeightsSource};
