//! How a network in 8-bit integers is obtained: from a file that `imgclass weights quantize` has
//! written, or of a float checkpoint with ranges that were kept or are measured.

use std::path::Path;
use std::time::Instant;

use imgclass_checkpoint::{OpenCheckpoint, QuantisedDescription, QuantisedFile, Weights, encode};

use crate::calibration::{self, Cache, Calibration, Fidelity, RECIPE};
use crate::choice::kernels_of;
use crate::classifier::ModelOptions;
use crate::cpu::{CpuBackend, CpuNumbers};
use crate::error::NetworkError;
use crate::input::Normalisation;
use crate::quantise::Scales;
use crate::quantised::QuantisedNetwork;
use crate::resnet::ResNet;

/// A network in 8-bit integers.
pub(crate) struct Obtained {
    pub(crate) network: QuantisedNetwork,
    /// The packed network with its last layer's weights, if it was needed for a comparison.
    pub(crate) packed: Option<(ResNet<CpuBackend>, Vec<f32>)>,
    /// How it compares with the float network.
    pub(crate) fidelity: Fidelity,
}

/// Obtains the network of a checkpoint. `backend` makes a backend that computes in a number type.
///
/// # Errors
/// The weights cannot be used, or the network in 8-bit integers is too far from the float network.
pub(crate) fn obtain(
    checkpoint: &OpenCheckpoint,
    options: &ModelOptions,
    backend: &dyn Fn(CpuNumbers) -> CpuBackend,
) -> Result<Obtained, NetworkError> {
    let (info, threads) = (&checkpoint.info, options.threads.get());
    if let Weights::Quantised(file) = &checkpoint.weights {
        if options.calibrate.is_some() {
            return Err(NetworkError::CalibratedAlready);
        }
        return Ok(Obtained {
            network: timed("read the integers", || {
                QuantisedNetwork::read(file, info, threads)
            })?,
            packed: None,
            fidelity: file.description().comparison.into(),
        });
    }
    let quantise = |scales: &Scales| {
        timed("quantised the weights", || {
            let weights = &checkpoint.weights;
            weights.take_all(|tensors| QuantisedNetwork::of(tensors, info, scales, threads))
        })
    };
    let own = match &options.calibrate {
        Some(folder) => Some(calibration::read_folder(folder, &info.preprocessing)?),
        None => None,
    };
    // Ranges on the user's own pictures are not kept, as the pictures may change.
    let folder = options.cache.as_deref().filter(|_| own.is_none());
    let normalisation = Normalisation::of(&info.preprocessing);
    let cache = folder.and_then(|folder| Cache::of(folder, info, &normalisation));
    if let Some((scales, fidelity)) = cache.as_ref().and_then(Cache::read) {
        fidelity.check()?;
        match quantise(&scales) {
            Ok(network) => {
                return Ok(Obtained {
                    network,
                    packed: None,
                    fidelity,
                });
            }
            // The file lacks a layer.
            Err(NetworkError::Quantisation(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let calibration = timed("made the pictures for the ranges", || {
        Calibration::new(&checkpoint.weights, info, own)
    })?;
    let scales = timed("measured the ranges", || {
        calibration.measure(backend(CpuNumbers::Bf16))
    })?;
    let network = quantise(&scales)?;
    let packed = timed("packed the integers", || {
        network.pack(backend(CpuNumbers::F32))
    })?;
    let fidelity = timed("compared with float32", || {
        calibration.compare(&packed.0, backend(CpuNumbers::F32))
    })?;
    fidelity.check()?;
    if let Some(cache) = cache {
        cache.write(&scales, &fidelity);
    }
    Ok(Obtained {
        network,
        packed: Some(packed),
        fidelity,
    })
}

/// Runs a step of loading and writes its time to the log.
pub(crate) fn timed<T>(step: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(ms, "{step}");
    result
}

/// A file of 8-bit integers that is to be written.
#[derive(Debug)]
pub struct QuantisedCheckpoint {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// How the network compares with the float network.
    pub fidelity: Fidelity,
    /// The names of layers that are kept in bfloat16.
    pub wide_layers: Vec<String>,
}

/// Makes a file of 8-bit integers of a float checkpoint. It loads as the network that `--dtype int8`
/// makes of the checkpoint, bit for bit.
///
/// # Errors
/// The weights cannot be used, are 8-bit integers already, or are not for 8-bit integers.
pub fn quantise_checkpoint(
    checkpoint: &OpenCheckpoint,
    options: &ModelOptions,
) -> Result<QuantisedCheckpoint, NetworkError> {
    if let Weights::Quantised(file) = &checkpoint.weights {
        return Err(file
            .refused("it holds 8-bit integers already".to_owned())
            .into());
    }
    let (isa, threads) = kernels_of(options)?;
    let backend = CpuBackend::maker(isa, threads, &checkpoint.info);
    let obtained = obtain(checkpoint, options, &backend)?;
    let (info, labels) = (&checkpoint.info, &checkpoint.labels);
    let comparison = obtained.fidelity.into();
    let description = QuantisedDescription::of(info, labels, RECIPE, comparison);
    let bytes = encode(&description, &obtained.network.tensors())
        .map_err(|reason| NetworkError::Quantisation(format!("it cannot be encoded: {reason}")))?;
    // What would not load is not written.
    let file = QuantisedFile::from_bytes(Path::new("to be written"), bytes)?;
    QuantisedNetwork::read(&file, info, options.threads.get())?;
    Ok(QuantisedCheckpoint {
        bytes: file.into_bytes(),
        fidelity: obtained.fidelity,
        wide_layers: obtained.network.wide(),
    })
}

/// Checks every tensor of a checkpoint: name, shape, type and numbers. Returns how a network in
/// 8-bit integers compares with the float network, if the checkpoint is one.
///
/// # Errors
/// [`NetworkError::Checkpoint`] for the first tensor that is wrong.
pub fn check_tensors(checkpoint: &OpenCheckpoint) -> Result<Option<Fidelity>, NetworkError> {
    match &checkpoint.weights {
        Weights::Quantised(file) => {
            QuantisedNetwork::read(file, &checkpoint.info, 1)?;
            Ok(Some(file.description().comparison.into()))
        }
        Weights::Formula(_) | Weights::Checkpoint(_) => {
            checkpoint.check_tensors()?;
            Ok(None)
        }
    }
}
