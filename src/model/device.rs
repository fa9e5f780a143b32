//! `--device`: which device computes. It opens one or says clearly why not; it never falls back from a device that was asked for.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use super::error::ModelError;

/// A device as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first of CUDA, Metal and the CPU that is there.
    #[default]
    Auto,
    /// Our own kernels on the CPU.
    Cpu,
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
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            other => other
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{other}` is no device; use auto, cpu, cuda:N or metal")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device; also gives its concrete name, for people.
    pub(super) fn open(self) -> Result<(Device, DeviceChoice), ModelError> {
        match self {
            Self::Auto => Ok(open_any()),
            Self::Cpu => Ok((Device::Cpu, self)),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(self.lacking("cuda")),
            Self::Metal if !cfg!(feature = "metal") => Err(self.lacking("metal")),
            Self::Cuda(ordinal) => self.opened(Device::new_cuda(ordinal)),
            Self::Metal => self.opened(Device::new_metal(0)),
        }
    }

    fn lacking(self, feature: &str) -> ModelError {
        ModelError::Device {
            asked: self.to_string(),
            reason: format!(
                "this build has no support for it (built without the feature `{feature}`); \
                 rebuild with `cargo build --release --features {feature}`, or use --device cpu or auto"
            ),
        }
    }

    fn opened(
        self,
        device: candle_core::Result<Device>,
    ) -> Result<(Device, DeviceChoice), ModelError> {
        device
            .map(|device| (device, self))
            .map_err(|e| ModelError::Device {
                asked: self.to_string(),
                reason: format!("{e}; use --device cpu or auto to run without it"),
            })
    }
}

/// The first device that this build knows and this machine has; the CPU always is.
fn open_any() -> (Device, DeviceChoice) {
    let candidates = [
        (cfg!(feature = "cuda"), DeviceChoice::Cuda(0)),
        (cfg!(feature = "metal"), DeviceChoice::Metal),
    ];
    for (built, choice) in candidates {
        if built {
            match choice.open() {
                Ok(opened) => return opened,
                Err(e) => tracing::warn!("{e}; going on with the CPU"),
            }
        }
    }
    (Device::Cpu, DeviceChoice::Cpu)
}
