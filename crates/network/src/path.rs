//! `--gpu-path`: which of the ways through the network a GPU takes.

use std::fmt;
use std::str::FromStr;

/// The way through the network on a GPU that the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuPath {
    /// The fastest one whose logits agree with the CPU's.
    #[default]
    Auto,
    /// Our own network over cuDNN, [`gpu::GpuNet`](crate::gpu::GpuNet), whose convolutions run by the
    /// fastest of cuDNN's plans, or an error.
    Fused,
    /// The same with one algorithm for all convolutions, or an error.
    Fixed,
    /// Candle's operations. They are not checked against the CPU.
    Candle,
}

impl FromStr for GpuPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "fused" => Ok(Self::Fused),
            "fixed" => Ok(Self::Fixed),
            "candle" => Ok(Self::Candle),
            other => Err(format!(
                "`{other}` is no path; use auto, fused, fixed or candle"
            )),
        }
    }
}

impl fmt::Display for GpuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fused => "fused",
            Self::Fixed => "fixed",
            Self::Candle => "candle",
        })
    }
}

/// What computes the loaded network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputePath {
    /// Our kernels on the CPU.
    Kernels,
    /// Our own network over cuDNN.
    Fused,
    /// Candle's operations.
    Candle,
}

impl fmt::Display for ComputePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernels => "kernels",
            Self::Fused => "fused",
            Self::Candle => "candle",
        })
    }
}
