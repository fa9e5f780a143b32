//! The network: ResNet-18 to 152 in candle with our kernels beneath, its checkpoints, labels and head. It knows no HTTP and no pixels, and above
//! it nobody sees a tensor.

mod architecture;
mod checkpoint;
mod classifier;
mod conv;
mod convert;
mod description;
mod device;
mod dtype;
mod error;
mod fault;
pub mod formula;
pub mod head;
pub mod hub;
mod input;
mod labels;
mod naming;
mod opening;
mod packed;
mod pretrained;
mod profile;
pub mod resnet;
mod source;

pub use architecture::{Architecture, Block, Variant};
pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, ModelInfo, ModelOptions, Output, Overrides, Want};
pub use conv::Backend;
pub use convert::{Converted, convert};
pub use description::Description;
pub use device::DeviceChoice;
pub use dtype::ComputeType;
pub use error::ModelError;
pub use input::Input;
pub use labels::{ClassError, Label, LabelSource, Labels};
pub use pretrained::{
    Centre, Channels, INPUT_SIDES, Interpolation, Preset, PretrainedCfg, ResizeTo, Scale,
};
pub use profile::LayerTime;
pub use source::{
    DEFAULT_MODEL, DEFAULT_REVISION, LOCAL_WEIGHTS, NamedWeights, WeightsChoice, WeightsSource,
};
