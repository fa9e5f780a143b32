//! `--dtype`: the type that the network computes in.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;

/// The type of activations and of the convolutions' weights. Logits, features and what follows from
/// them are 32-bit floats in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeType {
    /// 32-bit floats.
    F32,
    /// IEEE 754's 16-bit floats: 11 bits of precision, up to 65504.
    F16,
    /// The upper half of 32-bit floats: 8 bits of precision, their whole range.
    BF16,
    /// 8-bit integers with a scale for each layer's output and each output channel's weights.
    Int8,
}

impl FromStr for ComputeType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            "int8" => Ok(Self::Int8),
            other => Err(format!("`{other}` is no dtype; use f32, f16, bf16 or int8")),
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl ComputeType {
    /// Returns candle's type for it. Candle's devices do not compute in 8-bit integers.
    pub(crate) fn candle(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Int8 => None,
        }
    }
}
