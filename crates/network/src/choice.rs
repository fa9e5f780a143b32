//! Chooses what computes the network, and checks it.
//!
//! A GPU's network is compared with our CPU kernels on one picture when it is loaded, so that a
//! GPU, a driver or a library with which nobody has tried it cannot give wrong answers unnoticed.
//! With `--gpu-path auto` the candidates are, in this order:
//!
//! 1. our own network over cuDNN ([`GpuNet`](crate::gpu::GpuNet)), on CUDA in f16 and bf16, whose
//!    convolutions run by the fastest of cuDNN's plans;
//! 2. the same with one algorithm for all convolutions;
//! 3. candle's network;
//! 4. our kernels on the CPU, if the operator asked for `--device auto`; else the error of 3.

use std::sync::Arc;

use imgclass_checkpoint::OpenCheckpoint;
use imgclass_cuda::Engines;
use imgclass_kernels::{Isa, ThreadPool};

use crate::backend::Backend;
use crate::calibration::Fidelity;
use crate::candle::CandleBackend;
use crate::classifier::ModelOptions;
use crate::cpu::{CpuBackend, CpuNumbers};
use crate::device::{DeviceChoice, OpenDevice};
use crate::dtype::ComputeType;
use crate::error::NetworkError;
use crate::gpu::{agreement, test_picture};
use crate::input::{Input, Normalisation};
use crate::int8::{self, Obtained, timed};
use crate::network::{FixedSizeResNet, Network};
use crate::path::{ComputePath, GpuPath};
use crate::weights::build;

/// What a choice gives: the network, and what `ModelInfo` says of it.
pub(crate) struct LoadedNetwork {
    pub(crate) network: Arc<dyn Network>,
    /// The last layer's weights, `[classes, features]`.
    pub(crate) class_weights: Vec<f32>,
    /// The CPU's instruction set and threads; `None` on other devices.
    pub(crate) cpu: Option<(Isa, usize)>,
    pub(crate) device: DeviceChoice,
    pub(crate) dtype: ComputeType,
    /// What 8-bit integers lose.
    pub(crate) fidelity: Option<Fidelity>,
    /// The layers that are kept in bfloat16 because 8-bit integers lose too much in them.
    pub(crate) wide_layers: Vec<String>,
    pub(crate) path: ComputePath,
    /// Why a faster path is not taken.
    pub(crate) note: Option<String>,
}

impl LoadedNetwork {
    /// Builds the network on the opened device.
    pub(crate) fn load(
        checkpoint: &OpenCheckpoint,
        opened: OpenDevice,
        options: &ModelOptions,
    ) -> Result<Self, NetworkError> {
        if options.calibrate.is_some() && opened.dtype != ComputeType::Int8 {
            return Err(NetworkError::NoCalibration(opened.dtype));
        }
        match opened.name {
            DeviceChoice::Cpu => Self::kernels(checkpoint, opened.dtype, options),
            DeviceChoice::Candle => Self::candle(checkpoint, opened),
            _ => Self::gpu(checkpoint, opened, options),
        }
    }

    /// Builds the network on our kernels, in any of their number types.
    fn kernels(
        checkpoint: &OpenCheckpoint,
        dtype: ComputeType,
        options: &ModelOptions,
    ) -> Result<Self, NetworkError> {
        let (isa, threads) = kernels_of(options)?;
        let loaded = |network, class_weights, fidelity| Self {
            network,
            class_weights,
            cpu: Some((isa, threads.threads())),
            device: DeviceChoice::Cpu,
            dtype,
            fidelity,
            wide_layers: Vec::new(),
            path: ComputePath::Kernels,
            note: None,
        };
        let backend = CpuBackend::maker(isa, Arc::clone(&threads), &checkpoint.info);
        advise(dtype, isa);
        match dtype {
            ComputeType::BF16 => {
                let (network, weights) = on_backend(checkpoint, backend(CpuNumbers::Bf16))?;
                return Ok(loaded(network, weights, None));
            }
            ComputeType::F32 | ComputeType::F16 => {
                let (network, weights) = on_backend(checkpoint, backend(CpuNumbers::F32))?;
                return Ok(loaded(network, weights, None));
            }
            ComputeType::Int8 => {}
        }
        let Obtained {
            network,
            packed,
            fidelity,
            ..
        } = int8::obtain(checkpoint, options, &backend)?;
        let wide_layers = network.wide();
        let (net, class_weights) = match packed {
            Some(packed) => packed,
            None => timed("packed the integers", || {
                network.pack(backend(CpuNumbers::F32))
            })?,
        };
        let network = FixedSizeResNet::new(net, checkpoint.info.preprocessing.crop.dims());
        let mut loaded = loaded(Arc::new(network), class_weights, Some(fidelity));
        loaded.wide_layers = wide_layers;
        Ok(loaded)
    }

    /// Candle's operations on any of its devices.
    fn candle(checkpoint: &OpenCheckpoint, opened: OpenDevice) -> Result<Self, NetworkError> {
        let OpenDevice {
            device,
            name,
            dtype,
        } = opened;
        let Some(numbers) = dtype.candle() else {
            return Err(NetworkError::ComputeType {
                device: name.to_string(),
                dtype,
                reason: "only our kernels do; take --device cpu".to_owned(),
            });
        };
        let backend = CandleBackend::new(device, numbers, &normalisation(checkpoint))?;
        let (network, class_weights) = on_backend(checkpoint, backend)?;
        Ok(Self {
            network,
            class_weights,
            cpu: None,
            fidelity: None,
            wide_layers: Vec::new(),
            device: name,
            dtype,
            path: ComputePath::Candle,
            note: None,
        })
    }

    /// The first of a GPU's paths that agrees with the CPU.
    fn gpu(
        checkpoint: &OpenCheckpoint,
        opened: OpenDevice,
        options: &ModelOptions,
    ) -> Result<Self, NetworkError> {
        if options.gpu_path == GpuPath::Candle {
            return Self::candle(checkpoint, opened);
        }
        let (name, dtype) = (opened.name, opened.dtype);
        let suits = fused::suits(name, dtype);
        if options.gpu_path != GpuPath::Auto
            && let Err(why) = &suits
        {
            let path = options.gpu_path;
            return Err(name.absent(&format!("--gpu-path {path}: {why}")));
        }
        let kernels = Self::kernels(checkpoint, ComputeType::F32, options)?;
        let picture = test_picture(checkpoint.info.preprocessing.crop.dims());
        let expected = kernels.network.run_batch(&[&picture], &[])?;
        let expected = expected.into_iter().next().unwrap_or_default().logits;

        let mut candidates = Vec::new();
        if let Ok((ordinal, half)) = suits {
            for (what, path, engines) in [
                (
                    "the fused network over cuDNN",
                    GpuPath::Fused,
                    Engines::Timed,
                ),
                (
                    "the fused network with a fixed algorithm",
                    GpuPath::Fixed,
                    Engines::Fixed,
                ),
            ] {
                if options.gpu_path != GpuPath::Auto && options.gpu_path != path {
                    continue;
                }
                candidates.push(Candidate {
                    what,
                    load: Box::new(move || {
                        fused::load(checkpoint, (name, ordinal), (dtype, half), engines)
                    }),
                });
            }
        }
        if options.gpu_path == GpuPath::Auto {
            candidates.push(Candidate {
                what: "candle's network",
                load: Box::new(move || Self::candle(checkpoint, opened)),
            });
        }
        let check = |loaded: &Self| agrees(&*loaded.network, &expected, &picture, dtype);
        match first_that_agrees(candidates, check) {
            Ok(loaded) => Ok(loaded),
            Err(why)
                if options.device == DeviceChoice::Auto && options.gpu_path == GpuPath::Auto =>
            {
                tracing::warn!("the CPU computes");
                Ok(Self {
                    note: Some(why),
                    ..kernels
                })
            }
            Err(why) => Err(name.absent(&why)),
        }
    }
}

/// Returns the instruction set that the operator named, or the processor's best, and threads.
pub(crate) fn kernels_of(options: &ModelOptions) -> Result<(Isa, Arc<ThreadPool>), NetworkError> {
    let isa = match &options.isa {
        Some(name) => Isa::named(name)?,
        None => Isa::detect(),
    };
    let threads = ThreadPool::new(options.threads).map_err(NetworkError::Threads)?;
    Ok((isa, Arc::new(threads)))
}

/// A network that may be taken.
struct Candidate<'a> {
    /// What people call it.
    what: &'static str,
    load: Box<dyn FnOnce() -> Result<LoadedNetwork, NetworkError> + 'a>,
}

/// Loads candidates in their order up to the first one that `check` accepts. Its note says why the
/// ones before it were not taken; if there is none, the error does.
fn first_that_agrees(
    candidates: Vec<Candidate>,
    check: impl Fn(&LoadedNetwork) -> Result<(), String>,
) -> Result<LoadedNetwork, String> {
    let mut reasons = Vec::new();
    for Candidate { what, load } in candidates {
        let loaded = load()
            .map_err(|error| error.to_string())
            .and_then(|loaded| check(&loaded).map(|()| loaded));
        match loaded {
            Ok(loaded) => {
                let note = (!reasons.is_empty()).then(|| reasons.join("; "));
                return Ok(LoadedNetwork { note, ..loaded });
            }
            Err(why) => {
                let reason = format!("{what} is not used: {why}");
                tracing::warn!("{reason}");
                reasons.push(reason);
            }
        }
    }
    Err(reasons.join("; "))
}

/// Says in the log where another number type would be faster on this processor, or where this one
/// is slow.
fn advise(dtype: ComputeType, isa: Isa) {
    match dtype {
        ComputeType::BF16 if !isa.multiplies_bf16() => tracing::warn!(
            "--dtype bf16 is slower than f32 here: there is no AVX512_BF16; the answers are the same"
        ),
        ComputeType::Int8 if !isa.multiplies_int8() => tracing::warn!(
            "--dtype int8 is no faster than f32 here: there is no AVX512_VNNI or AVX-VNNI; \
             the answers are the same"
        ),
        ComputeType::F32 if isa.multiplies_bf16() && isa.multiplies_int8() => tracing::info!(
            "this processor is faster with --dtype bf16, and fastest with --dtype int8, which \
             changes a few answers in a hundred"
        ),
        ComputeType::F32 if isa.multiplies_int8() => tracing::info!(
            "this processor is faster with --dtype int8, which changes a few answers in a hundred"
        ),
        _ => {}
    }
}

/// Compares a GPU's network with the CPU's logits.
fn agrees(
    network: &dyn Network,
    expected: &[f32],
    picture: &Input,
    dtype: ComputeType,
) -> Result<(), String> {
    let share = agreement(network, expected, picture, dtype)?;
    tracing::info!(
        "the GPU's logits agree with the CPU's: they differ by at most {:.3} % of the largest one",
        100.0 * share
    );
    Ok(())
}

fn normalisation(checkpoint: &OpenCheckpoint) -> Normalisation {
    Normalisation::of(&checkpoint.info.preprocessing)
}

/// Builds the network on a backend. Returns it with its last layer's weights.
fn on_backend<B: Backend>(
    checkpoint: &OpenCheckpoint,
    backend: B,
) -> Result<(Arc<dyn Network>, Vec<f32>), NetworkError> {
    let (net, class_weights) = build(&checkpoint.weights, &checkpoint.info, backend)?;
    let input_size = checkpoint.info.preprocessing.crop.dims();
    Ok((
        Arc::new(FixedSizeResNet::new(net, input_size)),
        class_weights,
    ))
}

#[cfg(feature = "fused")]
mod fused {
    //! Our own network over cuDNN.

    use std::sync::Arc;

    use imgclass_checkpoint::OpenCheckpoint;
    use imgclass_cuda::{CudaDriver, Engines};

    use super::{LoadedNetwork, normalisation};
    use crate::device::DeviceChoice;
    use crate::dtype::ComputeType;
    use crate::error::NetworkError;
    use crate::gpu::{GpuNet, Half, Program, Recorder};
    use crate::path::ComputePath;
    use crate::weights::build;

    /// Returns the GPU's number and the type, or why the network is not for them.
    pub(super) fn suits(name: DeviceChoice, dtype: ComputeType) -> Result<(usize, Half), String> {
        let DeviceChoice::Cuda(ordinal) = name else {
            return Err("it is for NVIDIA's GPUs".to_owned());
        };
        match dtype {
            ComputeType::F16 => Ok((ordinal, Half::F16)),
            ComputeType::BF16 => Ok((ordinal, Half::BF16)),
            _ => Err(format!("it computes in f16 and bf16, not in {dtype}")),
        }
    }

    pub(super) fn load(
        checkpoint: &OpenCheckpoint,
        (device, ordinal): (DeviceChoice, usize),
        (dtype, half): (ComputeType, Half),
        engines: Engines,
    ) -> Result<LoadedNetwork, NetworkError> {
        let driver = CudaDriver::new(ordinal, engines)?;
        let recorder = Recorder::default();
        let (net, class_weights) = build(&checkpoint.weights, &checkpoint.info, recorder)?;
        let program = Program::record(net, checkpoint.info.preprocessing.crop.dims())?;
        let net = GpuNet::new(Box::new(driver), program, half, normalisation(checkpoint))?;
        tracing::info!(gpu = net.description(), "the fused network is loaded");
        Ok(LoadedNetwork {
            network: Arc::new(net),
            class_weights,
            cpu: None,
            fidelity: None,
            wide_layers: Vec::new(),
            device,
            dtype,
            path: ComputePath::Fused,
            note: None,
        })
    }
}

#[cfg(not(feature = "fused"))]
mod fused {
    //! Stands in for the fused network in a build without it.

    use imgclass_checkpoint::OpenCheckpoint;
    use imgclass_cuda::Engines;

    use super::LoadedNetwork;
    use crate::device::DeviceChoice;
    use crate::dtype::ComputeType;
    use crate::error::NetworkError;

    /// What there is none of.
    #[derive(Clone, Copy)]
    pub(super) enum Nothing {}

    pub(super) fn suits(_: DeviceChoice, _: ComputeType) -> Result<(usize, Nothing), String> {
        Err("this build has no cuDNN; rebuild with `--features cuda,cudnn`".to_owned())
    }

    pub(super) fn load(
        _: &OpenCheckpoint,
        _: (DeviceChoice, usize),
        (_, nothing): (ComputeType, Nothing),
        _: Engines,
    ) -> Result<LoadedNetwork, NetworkError> {
        match nothing {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Output, Want};

    /// A network whose logits are always the same.
    struct Constant(Vec<f32>);

    impl Network for Constant {
        fn run_batch(&self, _: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
            Ok(vec![Output {
                logits: self.0.clone(),
                ..Output::default()
            }])
        }
    }

    fn candidate(
        what: &'static str,
        logits: Option<[f32; 2]>,
        path: ComputePath,
    ) -> Candidate<'static> {
        Candidate {
            what,
            load: Box::new(move || match logits {
                Some(logits) => Ok(LoadedNetwork {
                    network: Arc::new(Constant(logits.to_vec())),
                    class_weights: Vec::new(),
                    cpu: None,
                    fidelity: None,
                    wide_layers: Vec::new(),
                    device: DeviceChoice::Cuda(0),
                    dtype: ComputeType::F16,
                    path,
                    note: None,
                }),
                None => Err(NetworkError::DeviceLost {
                    reason: "it fell off the bus".to_owned(),
                }),
            }),
        }
    }

    #[test]
    fn the_first_network_that_agrees_with_the_cpu_is_taken_and_says_why_no_faster_one_is() {
        let right = Some([1.0, -2.0]);
        let wrong = Some([1.0, -1.9]);
        let (differs, lost) = ("differs from the CPU's by 5.00 %", "it fell off the bus");
        for (fused, candle, expected, words) in [
            (right, right, Some(ComputePath::Fused), vec![]),
            (
                wrong,
                right,
                Some(ComputePath::Candle),
                vec!["fused is not used", differs],
            ),
            (
                None,
                right,
                Some(ComputePath::Candle),
                vec!["fused is not used", lost],
            ),
            (
                wrong,
                None,
                None,
                vec!["fused is not used", differs, "candle is not used", lost],
            ),
        ] {
            let candidates = vec![
                candidate("fused", fused, ComputePath::Fused),
                candidate("candle", candle, ComputePath::Candle),
            ];
            let picture = Input::Pixels(Vec::new());
            let found = first_that_agrees(candidates, |loaded| {
                agrees(&*loaded.network, &[1.0, -2.0], &picture, ComputeType::F16)
            });
            let (path, note) = match found {
                Ok(loaded) => (Some(loaded.path), loaded.note.unwrap_or_default()),
                Err(why) => (None, why),
            };
            assert_eq!(path, expected, "{note}");
            assert_eq!(note.is_empty(), words.is_empty(), "{note}");
            for word in words {
                assert!(note.contains(word), "{note}: lacks {word}");
            }
        }
    }
}
