//! The network that tests load where any network will do.

use std::num::NonZeroUsize;

use imgclass_checkpoint::{Architecture, Overrides, WeightsSource};
use imgclass_network::{Classifier, DeviceChoice, ModelOptions};

/// Options for two threads on the CPU.
pub(crate) fn options() -> ModelOptions {
    ModelOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        isa: None,
        threads: NonZeroUsize::new(2).expect("2 is not 0"),
        overrides: Overrides::default(),
    }
}

/// The formula's network, seed 0.
pub(crate) fn untrained() -> Classifier {
    Classifier::load(&WeightsSource::random(Architecture::RESNET50), &options())
        .expect("the formula always loads")
}
