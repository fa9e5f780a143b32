//! ResNet-18 to 152, layer by layer (<https://arxiv.org/abs/1512.03385>).
//!
//! This module says which layers the network has, under which names its weights are stored
//! (torchvision's, which timm shares), and in which order the layers run. How a layer is computed
//! is the [`Backend`]'s business:
//!
//! ```text
//! images -> stem -> layer1 -> layer2 -> layer3 -> layer4 -> average pool -> fc -> logits
//!           7x7     blocks of 2 or 3 convolutions,          features
//!                   each block adds its input at its end
//! ```

use imgclass_checkpoint::{Architecture, TensorSource};
use imgclass_kernels::ConvShape;

use crate::backend::{Backend, FoldedConv, LinearWeights};
use crate::error::NetworkError;
use crate::input::Input;
use crate::parallel::in_parallel;
use crate::plan::{BlockPlan, ConvPlan, Plan, conv_shape};

/// How many stages come before those in which the weights are larger than one image's activations.
const EARLY_STAGES: usize = 2;

/// A ResNet whose layers a [`Backend`] computes.
pub struct ResNet<B: Backend> {
    backend: B,
    stem: B::Stem,
    /// `layer1` to `layer4`.
    stages: [Stage<B>; 4],
    /// The last layer, `fc`.
    linear: B::Linear,
}

/// The results of a forward pass over `n` images, in the images' order.
pub struct Forward<B: Backend> {
    /// The last stage's output: `features` channels of `h/32 * w/32` pixels, rounded up.
    pub feature_map: B::Activation,
    /// The pooled features, `[n, features]`.
    pub features: B::Rows,
    /// The logits, `[n, classes]`.
    pub logits: B::Rows,
}

impl<B: Backend> ResNet<B> {
    /// Builds the network from a source of tensors. Batch norms are folded into their convolutions.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device fails while it takes the weights.
    pub fn load(
        tensors: &dyn TensorSource,
        architecture: &Architecture,
        classes: usize,
        backend: B,
    ) -> Result<Self, NetworkError> {
        let layers = FloatLayers {
            tensors,
            architecture,
            classes,
        };
        Self::assemble(architecture, &layers, backend)
    }

    /// Builds the network of layers, on as many threads as the backend takes weights on.
    ///
    /// # Errors
    /// That of the first layer, in the network's order, that cannot be built.
    pub(crate) fn assemble(
        architecture: &Architecture,
        layers: &dyn Layers<B>,
        backend: B,
    ) -> Result<Self, NetworkError> {
        let plan = Plan::of(architecture);
        let stem = layers.stem(&backend)?;
        let plans: Vec<&ConvPlan> = plan.convs().collect();
        let convs = in_parallel(backend.loading_threads(), plans.len(), |index| {
            layers.conv(&backend, plans[index])
        })?;
        let linear = layers.linear(&backend)?;
        let mut convs = convs.into_iter();
        let stages = plan.stages.map(|blocks| Stage {
            blocks: blocks
                .iter()
                .filter_map(|block| ResidualBlock::of(block, &mut convs))
                .collect(),
        });
        let convs: Vec<&B::Conv> = stages
            .iter()
            .flat_map(|stage| &stage.blocks)
            .flat_map(ResidualBlock::convs_in_order)
            .collect();
        backend.announce_order(&convs, &linear);
        backend.finish_loading()?;
        Ok(Self {
            backend,
            stem,
            stages,
            linear,
        })
    }

    /// Returns what computes the layers.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Returns the backend alone.
    pub(crate) fn into_backend(self) -> B {
        self.backend
    }

    /// Runs images of the given height and width. There must be at least one, each of `3 * height *
    /// width` numbers.
    ///
    /// # Errors
    /// The device fails.
    pub fn forward(
        &self,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Forward<B>, NetworkError> {
        self.classify(self.run_stages(self.stages.len(), images, size)?)
    }

    /// Does what [`ResNet::forward`] does, and shows the output of the stem (`maxpool`) and of each
    /// stage (`layer1` to `layer4`) to `tap`, in PyTorch's layout `[n, channels, height, width]`.
    ///
    /// # Errors
    /// As [`ResNet::forward`].
    pub fn forward_with_taps(
        &self,
        images: &[&Input],
        size: (usize, usize),
        tap: &mut dyn FnMut(&str, Vec<f32>),
    ) -> Result<Forward<B>, NetworkError> {
        let all = 0..images.len();
        let mut x = self.backend.stem(&self.stem, images, size)?;
        tap("maxpool", self.backend.activation_to_nchw(&x, all.clone())?);
        let names = ["layer1", "layer2", "layer3", "layer4"];
        for (name, stage) in names.iter().zip(&self.stages) {
            x = stage.forward(&self.backend, x)?;
            tap(name, self.backend.activation_to_nchw(&x, all.clone())?);
        }
        self.classify(x)
    }

    /// Runs the stem and the first `stages` stages.
    ///
    /// [`Backend::images_together`] says how many images run together through the last of them.
    /// Each such group comes from as many smaller groups through the stages before it. With 8
    /// images and `[1, 1, 1, 4, MAX]`, each image runs alone through the stem, `layer1` and
    /// `layer2`, four images at a time through `layer3`, and all eight through `layer4`. Of such a
    /// group of four, [`Backend::images_side_by_side`] may let some run through the stem, `layer1`
    /// and `layer2` at the same time.
    fn run_stages(
        &self,
        stages: usize,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<B::Activation, NetworkError> {
        if stages == EARLY_STAGES {
            let alone = self.backend.images_side_by_side(images.len());
            let (alone, rest) = images.split_at(alone.min(images.len()));
            if !alone.is_empty() {
                let image = |index: usize| self.run_stages(stages, &alone[index..=index], size);
                let mut parts = self.backend.run_side_by_side(alone.len(), &image)?;
                if !rest.is_empty() {
                    parts.push(self.run_stages(stages, rest, size)?);
                }
                return self.backend.concatenate(parts);
            }
        }
        let together = self.backend.images_together()[stages];
        let groups = images
            .chunks(together)
            .map(|group| match stages.checked_sub(1) {
                None => self.backend.stem(&self.stem, group, size),
                Some(before) => {
                    let x = self.run_stages(before, group, size)?;
                    self.stages[before].forward(&self.backend, x)
                }
            });
        self.backend.concatenate(groups.collect::<Result<_, _>>()?)
    }

    /// Computes features and logits from the last stage's output.
    fn classify(&self, feature_map: B::Activation) -> Result<Forward<B>, NetworkError> {
        let features = self.backend.average_pool(&feature_map)?;
        let logits = self.backend.linear(&self.linear, &features)?;
        Ok(Forward {
            feature_map,
            features,
            logits,
        })
    }
}

/// The blocks of one resolution. The first block changes resolution and channels.
struct Stage<B: Backend> {
    blocks: Vec<ResidualBlock<B>>,
}

impl<B: Backend> Stage<B> {
    fn forward(&self, backend: &B, x: B::Activation) -> Result<B::Activation, NetworkError> {
        self.blocks
            .iter()
            .try_fold(x, |x, block| block.forward(backend, x))
    }
}

/// Two or three convolutions with ReLU between them; the block's input is added before the last
/// ReLU.
struct ResidualBlock<B: Backend> {
    first: B::Conv,
    /// The 3x3 convolution of a bottleneck; absent in a basic block.
    middle: Option<B::Conv>,
    last: B::Conv,
    /// Fits the block's input to its output where resolution or channels change.
    downsample: Option<B::Conv>,
}

impl<B: Backend> ResidualBlock<B> {
    fn forward(&self, backend: &B, x: B::Activation) -> Result<B::Activation, NetworkError> {
        let mut y = backend.conv_relu(&self.first, &x)?;
        let residual = match &self.downsample {
            Some(downsample) => backend.conv(downsample, &x)?,
            None => x,
        };
        if let Some(middle) = &self.middle {
            y = backend.conv_relu(middle, &y)?;
        }
        backend.conv_add_relu(&self.last, &y, residual)
    }

    /// Takes a block's convolutions from those of the network, which come in the network's order.
    fn of(plan: &BlockPlan, convs: &mut impl Iterator<Item = B::Conv>) -> Option<Self> {
        let first = convs.next()?;
        let downsample = plan.downsample.as_ref().and_then(|_| convs.next());
        let middle = plan.middle.as_ref().and_then(|_| convs.next());
        Some(Self {
            first,
            middle,
            last: convs.next()?,
            downsample,
        })
    }

    /// Returns the convolutions in the order in which [`ResidualBlock::forward`] runs them.
    fn convs_in_order(&self) -> impl Iterator<Item = &B::Conv> {
        let rest = self.downsample.iter().chain(&self.middle);
        std::iter::once(&self.first).chain(rest).chain([&self.last])
    }
}

/// Where a network's layers come from.
pub(crate) trait Layers<B: Backend>: Sync {
    /// Builds the stem.
    fn stem(&self, backend: &B) -> Result<B::Stem, NetworkError>;

    /// Builds a convolution.
    fn conv(&self, backend: &B, plan: &ConvPlan) -> Result<B::Conv, NetworkError>;

    /// Builds the last layer.
    fn linear(&self, backend: &B) -> Result<B::Linear, NetworkError>;
}

/// The layers of a float checkpoint.
pub(crate) struct FloatLayers<'a> {
    pub(crate) tensors: &'a dyn TensorSource,
    pub(crate) architecture: &'a Architecture,
    pub(crate) classes: usize,
}

impl FloatLayers<'_> {
    /// Reads the stem's convolution and its batch norm, and folds the second into the first.
    pub(crate) fn folded_stem(&self) -> Result<FoldedConv, NetworkError> {
        self.folded(conv_shape(3, 64, 7, 2), "conv1", "bn1")
    }

    /// Does what [`Self::folded_stem`] does for another convolution.
    pub(crate) fn folded_conv(&self, plan: &ConvPlan) -> Result<FoldedConv, NetworkError> {
        self.folded(plan.shape, &plan.place.name, &plan.batch_norm)
    }

    /// Reads the last layer.
    pub(crate) fn linear_weights(&self) -> Result<LinearWeights, NetworkError> {
        let (outputs, inputs) = (self.classes, self.architecture.features());
        Ok(LinearWeights {
            inputs,
            outputs,
            weight: self.tensors.tensor("fc.weight", &[outputs, inputs])?,
            bias: self.tensors.tensor("fc.bias", &[outputs])?,
        })
    }

    fn folded(
        &self,
        shape: ConvShape,
        conv: &str,
        batch_norm: &str,
    ) -> Result<FoldedConv, NetworkError> {
        let (from, to, side) = (shape.in_channels, shape.out_channels, shape.kernel);
        let tensors = self.tensors;
        let mut weight = tensors.tensor(&format!("{conv}.weight"), &[to, from, side, side])?;
        let of_channels = |part| tensors.tensor(&format!("{batch_norm}.{part}"), &[to]);
        let (mean, variance) = (of_channels("running_mean")?, of_channels("running_var")?);
        let (gamma, mut bias) = (of_channels("weight")?, of_channels("bias")?);
        let epsilon = self.architecture.batch_norm_epsilon() as f32;
        let length = (weight.len() / to.max(1)).max(1);
        let channels = weight.chunks_exact_mut(length).zip(&mut bias).enumerate();
        for (channel, (weight, bias)) in channels {
            let factor = gamma[channel] / (variance[channel] + epsilon).sqrt();
            weight.iter_mut().for_each(|weight| *weight *= factor);
            *bias -= factor * mean[channel];
        }
        Ok(FoldedConv {
            shape,
            weight,
            bias,
        })
    }
}

impl<B: Backend> Layers<B> for FloatLayers<'_> {
    fn stem(&self, backend: &B) -> Result<B::Stem, NetworkError> {
        backend.load_stem(self.folded_stem()?)
    }

    fn conv(&self, backend: &B, plan: &ConvPlan) -> Result<B::Conv, NetworkError> {
        backend.load_conv(plan.place.clone(), self.folded_conv(plan)?)
    }

    fn linear(&self, backend: &B) -> Result<B::Linear, NetworkError> {
        backend.load_linear(self.linear_weights()?)
    }
}
