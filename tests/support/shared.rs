//! The reference data that may lie beside the checkout, and the network that tests load when it does not.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use imgclass::model::{
    Architecture, Classifier, DeviceChoice, ModelOptions, Overrides, WeightsSource,
};

/// A file of the reference data; says loudly that a test is skipped where there is none.
#[allow(dead_code, reason = "not every test needs reference data")]
pub(crate) fn shared(file: &str, test: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../shared")
        .join(file);
    if path.exists() {
        return Some(path);
    }
    // Not by a macro: what those print is shown for failing tests only.
    let skipped = format!(
        "\n*** SKIPPED: {test}: the reference data {} is not there ***\n",
        path.display()
    );
    let _ = std::io::stderr().write_all(skipped.as_bytes());
    None
}

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
#[allow(dead_code, reason = "not every test needs a whole classifier")]
pub(crate) fn untrained() -> Classifier {
    Classifier::load(&WeightsSource::random(Architecture::RESNET50), &options())
        .expect("the formula always loads")
}
