//! The network that tests load where any network will do.

use std::num::NonZeroUsize;

use imgclass_checkpoint::{Architecture, Overrides, WeightsSource};
use imgclass_network::{Classifier, DeviceChoice, GpuPath, ModelOptions};

/// Returns options for two threads on the CPU.
pub(crate) fn options() -> ModelOptions {
    ModelOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        gpu_path: GpuPath::Auto,
        isa: None,
        threads: NonZeroUsize::new(2).expect("2 is not 0"),
        cache: None,
        calibrate: None,
        overrides: Overrides::default(),
    }
}

/// Loads the formula's network with seed 0. Its answers mean nothing, but they are always the same.
pub(crate) fn untrained() -> Classifier {
    Classifier::load(&WeightsSource::random(Architecture::RESNET50), &options())
        .expect("the formula always loads")
}
