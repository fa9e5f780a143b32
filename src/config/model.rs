//! Options of the model: which weights are loaded, and what runs them.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::values::whole_number_parser;
use super::weights::{OverrideArgs, WeightsArgs};
use imgclass_network::{ComputeType, DeviceChoice, GpuPath, ModelOptions};

/// The options of the model and the device that runs it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Options that choose the weights.
    #[command(flatten)]
    pub weights: WeightsArgs,
    /// Options that override what the checkpoint says of itself.
    #[command(flatten)]
    pub overrides: OverrideArgs,

    /// The device that computes: auto, cpu, cuda:N, metal or candle.
    ///
    /// `auto` takes a GPU if this build supports one and one is there, else the CPU. `candle` runs
    /// on the CPU what would run on a GPU; it is slow, and meant for checking.
    #[arg(long, default_value_t = DeviceChoice::Auto, env = "IMGCLASS_DEVICE")]
    pub device: DeviceChoice,

    /// The number type that the network computes in: f32, f16, bf16 or int8 [default: f32 on the
    /// CPU, bf16 on CUDA from compute capability 8.0, f16 on Metal]
    ///
    /// The CPU computes in f32, bf16 and int8, GPUs in f32, f16 and bf16. int8 needs no data set:
    /// the first start measures the ranges of activations on generated pictures. A file that
    /// `imgclass weights quantize` has written computes in int8 without being asked to.
    #[arg(long, value_name = "TYPE", env = "IMGCLASS_DTYPE")]
    pub dtype: Option<ComputeType>,

    /// A folder of pictures like those that will be classified, for `--dtype int8`: the ranges of
    /// activations are measured on up to 64 of them, at each start, instead of on generated ones
    #[arg(long, value_name = "DIR", env = "IMGCLASS_CALIBRATE")]
    pub calibrate: Option<PathBuf>,

    /// The way through the network on a GPU: auto, fused, fixed or candle.
    ///
    /// `fused` is our own network over cuDNN, for NVIDIA's GPUs in f16 and bf16, and takes the
    /// fastest of the plans that cuDNN proposes. `fixed` is the same with one algorithm for all
    /// convolutions. `candle` runs candle's operations. `auto` takes the first of them whose logits
    /// agree with the CPU's when the model is loaded.
    #[arg(long, value_name = "PATH", default_value_t = GpuPath::Auto, env = "IMGCLASS_GPU_PATH")]
    pub gpu_path: GpuPath,

    /// The CPU's instruction set that is used: avx512, avx2, neon or portable [default: the best one
    /// that this processor has]
    #[arg(long, value_name = "NAME", env = "IMGCLASS_ISA")]
    pub isa: Option<String>,

    /// The number of threads that compute on the CPU, and of images that are decoded at one time
    /// [default: the number of cores, or the container's CPU quota]
    #[arg(
        long,
        value_name = "N",
        value_parser = whole_number_parser(1..=1024),
        env = "IMGCLASS_THREADS"
    )]
    pub threads: Option<usize>,
}

impl ModelArgs {
    /// Returns the number of threads: as asked for, or as many as this process may run at one time.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads
            .and_then(NonZeroUsize::new)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }

    /// Returns the options with which the model is loaded.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device,
            dtype: self.dtype,
            gpu_path: self.gpu_path,
            isa: self.isa.clone(),
            threads: self.threads(),
            cache: cache_folder(|name| std::env::var_os(name)),
            calibrate: self.calibrate.clone(),
            overrides: self.overrides.overrides(),
        }
    }
}

/// Returns the folder in which the ranges for int8 are kept: `imgclass` in the user's cache folder,
/// by the XDG base directory specification. `None` where the user has none.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(variable(name)?);
        path.is_absolute().then_some(path)
    };
    let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    folder.map(|folder| folder.join("imgclass"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_xdg_specification() {
        let found = |xdg: Option<&str>, home: Option<&str>| {
            cache_folder(|name| {
                let value = if name == "HOME" { home } else { xdg };
                value.map(OsString::from)
            })
        };
        for (xdg, home, expected) in [
            (Some("/c"), Some("/h"), Some("/c/imgclass")),
            (Some("relative"), Some("/h"), Some("/h/.cache/imgclass")),
            (Some(""), Some("/h"), Some("/h/.cache/imgclass")),
            (None, Some("/h"), Some("/h/.cache/imgclass")),
            (None, None, None),
        ] {
            assert_eq!(
                found(xdg, home),
                expected.map(PathBuf::from),
                "{xdg:?} {home:?}"
            );
        }
    }
}
