//! `--device`: which device computes.
//!
//! A device that was asked for by name is opened, or the error says why not and what there is
//! instead. Only `auto` goes on with another device.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use candle_core::Device;

use crate::dtype::ComputeType;
use crate::error::NetworkError;
use imgclass_kernels::Isa;

/// The device that the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first of CUDA, Metal and the CPU that is there.
    #[default]
    Auto,
    /// Our own kernels on the CPU.
    Cpu,
    /// Candle's operations on the CPU. They are slow; they check, on a machine without a GPU, the
    /// path that GPUs take.
    Candle,
    /// The CUDA device of this ordinal.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "candle" => Ok(Self::Candle),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            other => other
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    format!("`{other}` is no device; use auto, cpu, candle, cuda:N or metal")
                }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Candle => f.write_str("candle"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// A device that was opened, and the type that the network computes in there.
pub(super) struct OpenDevice {
    pub(super) device: Device,
    /// What was opened; never [`DeviceChoice::Auto`].
    pub(super) name: DeviceChoice,
    pub(super) dtype: ComputeType,
}

impl DeviceChoice {
    /// Opens the device for computing in `dtype`, or in the type that suits it best if there is
    /// none.
    ///
    /// # Errors
    /// [`NetworkError::Device`] if the device cannot be used, [`NetworkError::ComputeType`] if it
    /// does not compute in `dtype`.
    pub(super) fn open(self, dtype: Option<ComputeType>) -> Result<OpenDevice, NetworkError> {
        let (device, name) = match self {
            Self::Auto => open_any(),
            named => (named.open_named()?, named),
        };
        let dtype = match dtype {
            Some(dtype) => name.check_type(dtype, &device).map(|()| dtype)?,
            None => name.default_type(&device),
        };
        Ok(OpenDevice {
            device,
            name,
            dtype,
        })
    }

    /// Opens a device, of which the CPU always is there.
    fn open_named(self) -> Result<Device, NetworkError> {
        match self {
            Self::Auto | Self::Cpu | Self::Candle => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(self.not_built("cuda,cudnn")),
            Self::Metal if !cfg!(feature = "metal") => Err(self.not_built("metal")),
            Self::Cuda(ordinal) => {
                let found = cuda::devices().map_err(|reason| self.absent(&reason))?;
                if ordinal >= found {
                    return Err(self.absent(&match found {
                        1 => "this machine has one CUDA device, cuda:0".to_owned(),
                        n => format!(
                            "this machine has {n} CUDA devices, cuda:0 to cuda:{}",
                            n - 1
                        ),
                    }));
                }
                self.open_guarded(|| Device::new_cuda(ordinal))
            }
            Self::Metal => self.open_guarded(|| Device::new_metal(0)),
        }
    }

    /// Opens a device by foreign code, and turns its panic into an error: candle's Metal backend
    /// panics if there is no device at all.
    fn open_guarded(
        self,
        open: impl FnOnce() -> candle_core::Result<Device>,
    ) -> Result<Device, NetworkError> {
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(opened) => opened.map_err(|e| self.absent(&e.to_string())),
            Err(_) => Err(self.absent("this machine has no such device")),
        }
    }

    /// Returns the error for a device that this build does not support.
    fn not_built(self, features: &str) -> NetworkError {
        self.absent(&format!(
            "this build has no support for it; \
             rebuild with `cargo build --release --features {features}`"
        ))
    }

    /// Returns the error for a device that cannot be used.
    pub(super) fn absent(self, reason: &str) -> NetworkError {
        NetworkError::Device {
            asked: self.to_string(),
            reason: reason.to_owned(),
            found: found_beside(self),
        }
    }

    /// Refuses a type that the opened device does not compute in.
    fn check_type(self, dtype: ComputeType, device: &Device) -> Result<(), NetworkError> {
        let reason = match (self, dtype) {
            (Self::Cpu, ComputeType::F16) => {
                "our kernels compute in f32, bf16 and int8; choose one of these by \
                 --dtype, or ask for a GPU by --device"
            }
            (Self::Candle | Self::Cuda(_) | Self::Metal, ComputeType::Int8) => {
                "only our kernels do; take --device cpu, or f32, f16 or bf16"
            }
            (Self::Cuda(_), ComputeType::BF16) if !cuda::computes_bf16(device) => {
                "that takes compute capability 8.0 (Ampere) or newer; use f32 or f16"
            }
            _ => return Ok(()),
        };
        Err(NetworkError::ComputeType {
            device: self.to_string(),
            dtype,
            reason: reason.to_owned(),
        })
    }

    /// Returns the type that suits the device best.
    ///
    /// On CUDA this is bf16, because candle has cuDNN sum bf16 convolutions in f32, and a network
    /// that falls back to candle should keep its type. It sums f16
    /// convolutions in f16, where sums of up to 4608 products lose digits and end at 65504. GPUs
    /// without bf16 compute in f32. On Metal it is f16, which candle's kernels sum in f32 there.
    fn default_type(self, device: &Device) -> ComputeType {
        match self {
            Self::Cuda(_) if cuda::computes_bf16(device) => ComputeType::BF16,
            Self::Metal => ComputeType::F16,
            _ => ComputeType::F32,
        }
    }
}

/// Opens the first device that this build supports and this machine has. The CPU always is one.
fn open_any() -> (Device, DeviceChoice) {
    let candidates = [
        (cfg!(feature = "cuda"), DeviceChoice::Cuda(0)),
        (cfg!(feature = "metal"), DeviceChoice::Metal),
    ];
    for (built, choice) in candidates {
        if built {
            match choice.open_named() {
                Ok(device) => return (device, choice),
                Err(e) => tracing::warn!("{e}; --device auto goes on with the CPU"),
            }
        }
    }
    (Device::Cpu, DeviceChoice::Cpu)
}

/// Describes to people what devices this machine has beside one that cannot be used.
fn found_beside(missing: DeviceChoice) -> String {
    let mut found = Vec::new();
    if cfg!(feature = "cuda")
        && !matches!(missing, DeviceChoice::Cuda(_))
        && let Ok(count @ 1..) = cuda::devices()
    {
        found.push(format!("{count} CUDA devices (--device cuda:0)"));
    }
    if cfg!(feature = "metal")
        && missing != DeviceChoice::Metal
        && let Ok(Ok(_)) = catch_unwind(|| Device::new_metal(0))
    {
        found.push("a Metal device (--device metal)".to_owned());
    }
    found.push(format!("the CPU, {} (--device cpu)", Isa::detect()));
    found.join(", ")
}

#[cfg(feature = "cuda")]
mod cuda {
    //! Asks CUDA's driver about this machine.

    use candle_core::Device;
    use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, sys::CUresult};

    /// Returns how many devices there are, at least one, or a text that says why there is none.
    pub(super) fn devices() -> Result<usize, String> {
        match CudaContext::device_count() {
            Ok(count) => match usize::try_from(count) {
                Ok(count) if count > 0 => Ok(count),
                _ => Err(NO_GPU.to_owned()),
            },
            Err(DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) => Err(
                "NVIDIA's driver is not here (libcuda.so.1 cannot be loaded); install it, \
                 or start the container with --gpus all"
                    .to_owned(),
            ),
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Err(NO_GPU.to_owned()),
            Err(e) => Err(format!("NVIDIA's driver does not start: {e}")),
        }
    }

    const NO_GPU: &str =
        "NVIDIA's driver is here and sees no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES";

    /// Whether the GPU has hardware for bf16, which came with compute capability 8.0.
    pub(super) fn computes_bf16(device: &Device) -> bool {
        let Device::Cuda(device) = device else {
            return false;
        };
        let stream = device.cuda_stream();
        let capability = stream.context().compute_capability();
        capability.is_ok_and(|(major, _)| major >= 8)
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    //! Stands in for CUDA's driver in a build without CUDA.

    use candle_core::Device;

    pub(super) fn devices() -> Result<usize, String> {
        Err("this build has no support for CUDA".to_owned())
    }

    pub(super) fn computes_bf16(_: &Device) -> bool {
        false
    }
}
