//! Which weights, and what is to be held of them that they do not say themselves.

use std::path::{Path, PathBuf};

use clap::Args;

use imgclass_checkpoint::{NamedWeights, Overrides, Preset, Variant, WeightsChoice};

/// Which weights.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct WeightsArgs {
    /// A local safetensors file, or untrained weights that need no download: `random`, or `random:resnet18` for another network
    #[arg(long, value_name = "FILE|random", env = "IMGCLASS_WEIGHTS")]
    pub weights: Option<NamedWeights>,

    /// A ResNet-18, 34, 50, 101 or 152 on the Hugging Face hub [default: weights/resnet50.safetensors if it is there, else timm/resnet50.tv2_in1k]
    #[arg(long, value_name = "OWNER/NAME", env = "IMGCLASS_MODEL")]
    pub model: Option<String>,

    /// Branch, tag or commit of the model on the hub [default: main]
    #[arg(long, env = "IMGCLASS_REVISION")]
    pub revision: Option<String>,

    /// Which of the model's safetensors files [default: model.safetensors, else the only one, else resnet50.safetensors]
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "weights",
        env = "IMGCLASS_WEIGHTS_FILE"
    )]
    pub weights_file: Option<String>,
}

/// What the checkpoint does not say of itself, or says wrongly.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct OverrideArgs {
    // Nothing in the weights tells: a wrong one classifies, badly.
    /// Where bottlenecks have their stride: v1 in the first 1x1 (Keras, Caffe), v1.5 in the 3x3 [default: the checkpoint's word, else v1.5]
    #[arg(long, env = "IMGCLASS_VARIANT")]
    pub variant: Option<Variant>,

    /// How images are prepared: torchvision, or caffe (blue, green, red from 0 to 255, less the mean) [default: the checkpoint's word, else torchvision]
    #[arg(long, value_name = "NAME", env = "IMGCLASS_PREPROCESSING")]
    pub preprocessing: Option<Preset>,

    /// What the classes are called, one a line in their order: names, or an id, a tab and names [default: the checkpoint's, else ImageNet's if there are 1000]
    #[arg(long, value_name = "FILE", env = "IMGCLASS_LABELS")]
    pub labels: Option<PathBuf>,
}

impl OverrideArgs {
    /// What to hold over the checkpoint's own word.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            variant: self.variant,
            preprocessing: self.preprocessing,
            labels: self.labels.clone(),
        }
    }
}

impl WeightsArgs {
    /// Which weights; `folder` is where [`imgclass_checkpoint::LOCAL_WEIGHTS`] is looked for.
    pub fn choice(&self, folder: &Path) -> WeightsChoice {
        WeightsChoice::resolve(
            self.weights.as_ref(),
            self.model.as_deref(),
            self.revision.as_deref(),
            self.weights_file.as_deref(),
            folder,
        )
    }
}
