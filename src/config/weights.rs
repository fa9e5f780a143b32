//! Options that choose the weights, and that override what a checkpoint says of itself.

use std::path::{Path, PathBuf};

use clap::Args;

use imgclass_checkpoint::{NamedWeights, Overrides, Preset, Variant, WeightsChoice};

/// The options that choose the weights.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct WeightsArgs {
    /// A local safetensors file, or `random` for untrained weights that need no download
    ///
    /// Untrained weights are for trying the interface: answers have the right form, but mean
    /// nothing. `random` makes a ResNet-50; `random:resnet18`, for example, makes another network.
    #[arg(long, value_name = "FILE|random", env = "IMGCLASS_WEIGHTS")]
    pub weights: Option<NamedWeights>,

    /// A ResNet-18, 34, 50, 101 or 152 on the Hugging Face hub [default:
    /// weights/resnet50.safetensors if that file exists, else timm/resnet50.tv2_in1k]
    #[arg(long, value_name = "OWNER/NAME", env = "IMGCLASS_MODEL")]
    pub model: Option<String>,

    /// The branch, tag or commit of the model on the hub [default: main]
    #[arg(long, env = "IMGCLASS_REVISION")]
    pub revision: Option<String>,

    /// The name of the safetensors file in the model's repository [default: model.safetensors, else
    /// the only one, else resnet50.safetensors]
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "weights",
        env = "IMGCLASS_WEIGHTS_FILE"
    )]
    pub weights_file: Option<String>,
}

impl WeightsArgs {
    /// Returns the weights that the options choose.
    ///
    /// The file [`imgclass_checkpoint::LOCAL_WEIGHTS`] is looked for in `folder`.
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

/// The options that override what a checkpoint says of itself, or supply what it does not say.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct OverrideArgs {
    /// Where bottleneck blocks have their stride: v1 in the first 1x1 convolution (Keras, Caffe),
    /// v1.5 in the 3x3 [default: as the checkpoint says, else v1.5]
    ///
    /// The weights do not show which one is right: a wrong variant classifies, but badly.
    #[arg(long, env = "IMGCLASS_VARIANT")]
    pub variant: Option<Variant>,

    /// How images are prepared: torchvision, or caffe (blue, green, red from 0 to 255, minus the
    /// mean) [default: as the checkpoint says, else torchvision]
    #[arg(long, value_name = "NAME", env = "IMGCLASS_PREPROCESSING")]
    pub preprocessing: Option<Preset>,

    /// A file with the names of the classes, one class per line in their order [default: the
    /// checkpoint's, else ImageNet's if there are 1000 classes]
    ///
    /// A line is one or more names separated by commas, or an id, a tab and the names.
    #[arg(long, value_name = "FILE", env = "IMGCLASS_LABELS")]
    pub labels: Option<PathBuf>,
}

impl OverrideArgs {
    /// Returns what overrides the checkpoint's description.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            variant: self.variant,
            preprocessing: self.preprocessing,
            labels: self.labels.clone(),
        }
    }
}
