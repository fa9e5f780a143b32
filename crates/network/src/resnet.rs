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

use candle_core::Tensor;
use candle_nn::{BatchNorm, Conv2dConfig, VarBuilder, batch_norm, conv2d_no_bias};
use imgclass_checkpoint::{Architecture, Block, Variant};
use imgclass_kernels::ConvShape;

use crate::backend::{Backend, ConvPlace, ConvRole, FoldedConv, LinearWeights, STEM};
use crate::error::NetworkError;
use crate::input::Input;

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
        vb: &VarBuilder,
        architecture: &Architecture,
        classes: usize,
        backend: B,
    ) -> Result<Self, NetworkError> {
        let [first, second, third, fourth] = architecture.depths();
        let expansion = architecture.block().expansion();
        let loader = Loader {
            architecture,
            backend: &backend,
        };
        let stem = loader.stem(vb)?;
        // The layer whose output the next block reads.
        let mut last = STEM.to_owned();
        let stages = [
            loader.stage(&vb.pp("layer1"), &mut last, first, (64, 64, 1))?,
            loader.stage(
                &vb.pp("layer2"),
                &mut last,
                second,
                (64 * expansion, 128, 2),
            )?,
            loader.stage(
                &vb.pp("layer3"),
                &mut last,
                third,
                (128 * expansion, 256, 2),
            )?,
            loader.stage(
                &vb.pp("layer4"),
                &mut last,
                fourth,
                (256 * expansion, 512, 2),
            )?,
        ];
        let linear = loader.linear(&vb.pp("fc"), classes)?;
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

    /// Returns the convolutions in the order in which [`ResidualBlock::forward`] runs them.
    fn convs_in_order(&self) -> impl Iterator<Item = &B::Conv> {
        let rest = self.downsample.iter().chain(&self.middle);
        std::iter::once(&self.first).chain(rest).chain([&self.last])
    }
}

/// Builds layers: reads their weights and hands them to the backend.
struct Loader<'a, B: Backend> {
    architecture: &'a Architecture,
    backend: &'a B,
}

impl<B: Backend> Loader<'_, B> {
    fn stem(&self, vb: &VarBuilder) -> Result<B::Stem, NetworkError> {
        let shape = conv_shape(3, 64, 7, 2);
        let folded = self.folded(shape, vb.pp("conv1"), vb.pp("bn1"))?;
        self.backend.load_stem(folded)
    }

    /// Builds a stage of `blocks` blocks whose 3x3 convolutions have `width` channels. `stride` is
    /// the first block's. `input` names the layer whose output the stage reads, and becomes the
    /// stage's last layer.
    fn stage(
        &self,
        vb: &VarBuilder,
        input: &mut String,
        blocks: usize,
        (in_channels, width, stride): (usize, usize, usize),
    ) -> Result<Stage<B>, NetworkError> {
        let out_channels = width * self.architecture.block().expansion();
        let block = |i| match i {
            0 => self.block(&vb.pp(i), input, (in_channels, width, stride)),
            _ => self.block(&vb.pp(i), input, (out_channels, width, 1)),
        };
        let blocks = (0..blocks).map(block).collect::<Result<_, _>>()?;
        Ok(Stage { blocks })
    }

    fn block(
        &self,
        vb: &VarBuilder,
        input: &mut String,
        (in_channels, width, stride): (usize, usize, usize),
    ) -> Result<ResidualBlock<B>, NetworkError> {
        let (block, variant) = (self.architecture.block(), self.architecture.variant());
        let out_channels = width * block.expansion();
        // The first version of the bottleneck has its stride in the first 1x1 convolution, version
        // 1.5 in the 3x3.
        let (first_stride, middle_stride) = match variant {
            Variant::V1 => (stride, 1),
            Variant::V1_5 => (1, stride),
        };
        let fits = stride == 1 && in_channels == out_channels;
        let name = |conv: &str| vb.pp(conv).prefix();
        let conv = |conv: &str, bn, shape, input: &str, role| {
            let place = ConvPlace {
                name: name(conv),
                input: input.to_owned(),
                role,
            };
            self.conv(place, vb.pp(conv), vb.pp(bn), shape)
        };
        let add = ConvRole::Last {
            residual: fits.then(|| input.clone()),
        };
        let (first, second) = (name("conv1"), name("conv2"));
        let end = match block {
            Block::Basic => second.clone(),
            Block::Bottleneck => name("conv3"),
        };
        let downsample = if fits {
            None
        } else {
            let shape = conv_shape(in_channels, out_channels, 1, stride);
            let role = ConvRole::Downsample(end.clone());
            Some(conv("downsample.0", "downsample.1", shape, input, role)?)
        };
        let (first, middle, last) = match block {
            Block::Basic => {
                let shape = conv_shape(in_channels, width, 3, stride);
                (
                    conv("conv1", "bn1", shape, input, ConvRole::Relu)?,
                    None,
                    conv("conv2", "bn2", conv_shape(width, width, 3, 1), &first, add)?,
                )
            }
            Block::Bottleneck => {
                let reduce = conv_shape(in_channels, width, 1, first_stride);
                let spread = conv_shape(width, width, 3, middle_stride);
                let expand = conv_shape(width, out_channels, 1, 1);
                (
                    conv("conv1", "bn1", reduce, input, ConvRole::Relu)?,
                    Some(conv("conv2", "bn2", spread, &first, ConvRole::Relu)?),
                    conv("conv3", "bn3", expand, &second, add)?,
                )
            }
        };
        *input = end;
        Ok(ResidualBlock {
            first,
            middle,
            last,
            downsample,
        })
    }

    fn conv(
        &self,
        place: ConvPlace,
        conv: VarBuilder,
        bn: VarBuilder,
        shape: ConvShape,
    ) -> Result<B::Conv, NetworkError> {
        self.backend.load_conv(place, self.folded(shape, conv, bn)?)
    }

    /// Reads a convolution and its batch norm, and folds the second into the first.
    fn folded(
        &self,
        shape: ConvShape,
        conv: VarBuilder,
        bn: VarBuilder,
    ) -> Result<FoldedConv, NetworkError> {
        let config = Conv2dConfig {
            stride: shape.stride,
            padding: shape.padding,
            ..Default::default()
        };
        let (from, to) = (shape.in_channels, shape.out_channels);
        let conv = conv2d_no_bias(from, to, shape.kernel, config, conv)?;
        let bn: BatchNorm = batch_norm(to, self.architecture.batch_norm_epsilon(), bn)?;
        let folded = conv.absorb_bn(&bn)?;
        Ok(FoldedConv {
            shape,
            weight: numbers(folded.weight())?,
            bias: folded.bias().map_or(Ok(Vec::new()), numbers)?,
        })
    }

    fn linear(&self, fc: &VarBuilder, classes: usize) -> Result<B::Linear, NetworkError> {
        let features = self.architecture.features();
        self.backend.load_linear(LinearWeights {
            inputs: features,
            outputs: classes,
            weight: numbers(&fc.get((classes, features), "weight")?)?,
            bias: numbers(&fc.get(classes, "bias")?)?,
        })
    }
}

/// Returns the shape of a square convolution. Its padding is half its kernel, which keeps the size
/// at stride 1.
fn conv_shape(in_channels: usize, out_channels: usize, kernel: usize, stride: usize) -> ConvShape {
    ConvShape {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding: kernel / 2,
    }
}

fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
