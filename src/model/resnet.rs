//! ResNet-50 v1.5, layer by layer, under torchvision's names (which timm shares): <https://arxiv.org/abs/1512.03385>, with the stride in
//! the 3x3 convolution as torchvision has it. It says what the network is; how a layer is computed is the convolutions' business.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::conv::{Backend, ConvBn, ConvSpec, Exit, Stem, image_of, to_nchw};

/// Pooled features per image: the channels of the last stage.
pub const FEATURES: usize = 2048;

/// A bottleneck's output has this many times the channels of its 3x3 convolution.
const EXPANSION: usize = 4;

/// The network.
pub struct ResNet50 {
    stem: Stem,
    /// `layer1` to `layer4`.
    stages: [Stage; 4],
    exit: Exit,
    backend: Backend,
}

/// A forward pass's results, `n` images in the order they came.
pub struct Forward {
    /// The last stage's output; [`Forward::feature_map`] gives it in PyTorch's layout.
    layer4: Tensor,
    /// Pooled features `(n, 2048)`.
    pub features: Tensor,
    /// Logits `(n, classes)`.
    pub logits: Tensor,
}

impl Forward {
    /// The last stage's output `(n, 2048, h/32, w/32)`, rounded up.
    pub fn feature_map(&self) -> Result<Tensor> {
        to_nchw(&self.layer4)
    }

    /// [`Forward::feature_map`] of image `index` alone, `(1, 2048, h/32, w/32)`: the rest of the batch is not copied.
    pub fn feature_map_of(&self, index: usize) -> Result<Tensor> {
        to_nchw(&image_of(&self.layer4, index)?)
    }
}

impl ResNet50 {
    /// Builds the network from a source of tensors; the names below are the checkpoint's.
    pub fn load(vb: &VarBuilder, classes: usize, backend: &Backend) -> Result<Self> {
        let stage = |name, blocks, in_channels, width, stride| {
            Stage::load(&vb.pp(name), blocks, in_channels, width, stride, backend)
        };
        let net = Self {
            stem: Stem::load(vb, backend)?,
            stages: [
                stage("layer1", 3, 64, 64, 1)?,
                stage("layer2", 4, 256, 128, 2)?,
                stage("layer3", 6, 512, 256, 2)?,
                stage("layer4", 3, 1024, 512, 2)?,
            ],
            exit: Exit::load(FEATURES, classes, vb.pp("fc"), backend)?,
            backend: backend.clone(),
        };
        net.announce_order();
        Ok(net)
    }

    /// Tells each convolution which weights are read after its own.
    fn announce_order(&self) {
        let order: Vec<&ConvBn> = self
            .stages
            .iter()
            .flat_map(|stage| &stage.0)
            .flat_map(Bottleneck::in_order)
            .collect();
        for pair in order.windows(2) {
            pair[0].precede(pair[1]);
        }
        if let Some(last) = order.last() {
            last.precede_exit(&self.exit);
        }
    }

    /// Images `(n, 3, h, w)`, normalised, to features and logits.
    pub fn forward(&self, images: &Tensor) -> Result<Forward> {
        self.leave(self.through(self.stages.len(), images)?)
    }

    /// [`ResNet50::forward`], showing `tap` the output of each stage in PyTorch's layout under its name: `maxpool`, `layer1` to `layer4`.
    pub fn forward_with_taps(
        &self,
        images: &Tensor,
        tap: &mut dyn FnMut(&str, Tensor),
    ) -> Result<Forward> {
        let mut x = self.stem.forward(images)?;
        tap("maxpool", to_nchw(&x)?);
        for (name, stage) in ["layer1", "layer2", "layer3", "layer4"]
            .iter()
            .zip(&self.stages)
        {
            x = stage.forward(x)?;
            tap(name, to_nchw(&x)?);
        }
        self.leave(x)
    }

    /// The stem and the first `stages` stages. Early activations are large and their weights small, so few images at a time keep the
    /// former in the cache; later it is the other way about.
    fn through(&self, stages: usize, images: &Tensor) -> Result<Tensor> {
        let (n, together) = (images.dim(0)?, self.backend.images_together()[stages]);
        let parts = (0..n).step_by(together).map(|first| {
            let part = images.narrow(0, first, together.min(n - first))?;
            match stages.checked_sub(1) {
                None => self.stem.forward(&part),
                Some(before) => self.stages[before].forward(self.through(before, &part)?),
            }
        });
        self.backend.join_images(parts.collect::<Result<_>>()?)
    }

    /// The last stage's output to features and logits.
    fn leave(&self, layer4: Tensor) -> Result<Forward> {
        let features = self.exit.pool(&layer4)?;
        let logits = self.exit.classify(&features)?;
        Ok(Forward {
            layer4,
            features,
            logits,
        })
    }
}

/// Blocks at one resolution; the first one changes resolution and channels.
struct Stage(Vec<Bottleneck>);

impl Stage {
    fn load(
        vb: &VarBuilder,
        blocks: usize,
        in_channels: usize,
        width: usize,
        stride: usize,
        backend: &Backend,
    ) -> Result<Self> {
        (0..blocks)
            .map(|i| {
                let (channels, stride) = if i == 0 {
                    (in_channels, stride)
                } else {
                    (width * EXPANSION, 1)
                };
                Bottleneck::load(&vb.pp(i), channels, width, stride, backend)
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(x, |x, block| block.forward(x))
    }
}

/// 1x1 to fewer channels, 3x3, 1x1 back to more, and the input added at the end.
struct Bottleneck {
    conv1: ConvBn,
    conv2: ConvBn,
    conv3: ConvBn,
    /// Fits the input to the output where resolution or channels change.
    downsample: Option<ConvBn>,
}

impl Bottleneck {
    fn load(
        vb: &VarBuilder,
        in_channels: usize,
        width: usize,
        stride: usize,
        backend: &Backend,
    ) -> Result<Self> {
        let out_channels = width * EXPANSION;
        let conv = |conv: &str, bn: &str, in_channels, out_channels, kernel, stride| {
            let spec = ConvSpec {
                in_channels,
                out_channels,
                kernel,
                stride,
            };
            ConvBn::load(spec, vb.pp(conv), vb.pp(bn), backend)
        };
        Ok(Self {
            conv1: conv("conv1", "bn1", in_channels, width, 1, 1)?,
            conv2: conv("conv2", "bn2", width, width, 3, stride)?,
            conv3: conv("conv3", "bn3", width, out_channels, 1, 1)?,
            downsample: (stride != 1 || in_channels != out_channels)
                .then(|| {
                    conv(
                        "downsample.0",
                        "downsample.1",
                        in_channels,
                        out_channels,
                        1,
                        stride,
                    )
                })
                .transpose()?,
        })
    }

    /// The convolutions as [`Bottleneck::forward`] runs them.
    fn in_order(&self) -> impl Iterator<Item = &ConvBn> {
        let downsample = self.downsample.iter();
        let rest = [&self.conv2, &self.conv3];
        std::iter::once(&self.conv1).chain(downsample).chain(rest)
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let y = self.conv1.forward_relu(&x)?;
        let skip = match &self.downsample {
            Some(downsample) => downsample.forward(&x)?,
            None => x,
        };
        let y = self.conv2.forward_relu(&y)?;
        self.conv3.forward_add_relu(&y, skip)
    }
}
