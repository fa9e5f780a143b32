//! The parsers that strangers' bytes reach, for the targets in `fuzz/`. Built by cargo-fuzz alone.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::labels::{self, LabelSource, Labels};
use crate::tensors::TensorSource;

/// Reads a `config.json` of either form, and a `preprocessor_config.json`.
pub fn config(text: &str) {
    crate::description::fuzz(text);
}

/// Reads a safetensors file and takes every tensor of the network that its names show.
pub fn safetensors(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz"), bytes.to_vec()) else {
        return;
    };
    let (Ok(classes), Ok(tensors)) = (checkpoint.classes(), checkpoint.checked_tensors()) else {
        return;
    };
    for (name, dims) in checkpoint.architecture().tensors(classes) {
        if let Ok(values) = tensors.tensor(&name, &dims) {
            assert_eq!(values.len(), dims.iter().product::<usize>());
        }
    }
    let _ = tensors.check_all_taken();
}

/// Reads what `weights convert` reads.
pub fn convert(bytes: &[u8]) {
    crate::convert::fuzz(bytes);
}

/// Reads an answer of the hub.
pub fn hub(body: &[u8]) {
    crate::hub::fuzz(body);
}

/// Reads a file of labels and looks a class up.
pub fn labels(text: &str) {
    if let Ok(labels) = labels::parse(text) {
        let labels = Labels::named(labels, LabelSource::File);
        let _ = labels.find(text.lines().next().unwrap_or_default());
    }
    let shown = crate::printable(text);
    assert!(!shown.contains(|c: char| c.is_control()));
}
