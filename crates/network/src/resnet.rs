//! ResNet-18 to 152, layer by layer, under torchvision's names (which timm shares): <https://arxiv.org/abs/1512.03385>. It says what the
//! network is; how a layer is computed is the convolutions' business.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::conv::{Backend, ConvBn, ConvSpec, Exit, Stem, image_of, to_nchw};
use imgclass_checkpoint::{Architecture, Block, Variant};

/// The network.
pub struct ResNet {
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
    /// Pooled features `(n, features)`.
    pub features: Tensor,
    /// Logits `(n, classes)`.
    pub logits: Tensor,
}

impl Forward {
    /// The last stage's output `(n, features, h/32, w/32)`, rounded up.
    pub fn feature_map(&self) -> Result<Tensor> {
        to_nchw(&self.layer4)
    }

    /// [`Forward::feature_map`] of image `index` alone, `(1, features, h/32, w/32)`: the rest of the batch is not copied.
    pub fn feature_map_of(&self, index: usize) -> Result<Tensor> {
        to_nchw(&image_of(&self.layer4, index)?)
    }
}

impl ResNet {
    /// Builds the network from a source of tensors; the names below are the checkpoint's.
    pub fn load(
        vb: &VarBuilder,
        architecture: &Architecture,
        classes: usize,
        backend: &Backend,
    ) -> Result<Self> {
        let [first, second, third, fourth] = architecture.depths();
        let widened = architecture.block().expansion();
        let layers = Layers {
            architecture,
            backend,
        };
        let net = Self {
            stem: Stem::load(vb, architecture.batch_norm_epsilon(), backend)?,
            stages: [
                layers.stage(&vb.pp("layer1"), first, 64, 64, 1)?,
                layers.stage(&vb.pp("layer2"), second, 64 * widened, 128, 2)?,
                layers.stage(&vb.pp("layer3"), third, 128 * widened, 256, 2)?,
                layers.stage(&vb.pp("layer4"), fourth, 256 * widened, 512, 2)?,
            ],
            exit: Exit::load(architecture.features(), classes, vb.pp("fc"), backend)?,
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
            .flat_map(Residual::in_order)
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

    /// [`ResNet::forward`], showing `tap` the output of each stage in PyTorch's layout under its name: `maxpool`, `layer1` to `layer4`.
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
struct Stage(Vec<Residual>);

impl Stage {
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(x, |x, block| block.forward(x))
    }
}

/// What all layers are built by.
struct Layers<'a> {
    architecture: &'a Architecture,
    backend: &'a Backend,
}

impl Layers<'_> {
    /// `blocks` blocks whose 3x3 convolutions have `width` channels; the first of them has the stride.
    fn stage(
        &self,
        vb: &VarBuilder,
        blocks: usize,
        in_channels: usize,
        width: usize,
        stride: usize,
    ) -> Result<Stage> {
        let out_channels = width * self.architecture.block().expansion();
        let block = |i| match i {
            0 => self.block(&vb.pp(i), in_channels, width, stride),
            _ => self.block(&vb.pp(i), out_channels, width, 1),
        };
        (0..blocks).map(block).collect::<Result<_>>().map(Stage)
    }

    fn block(
        &self,
        vb: &VarBuilder,
        in_channels: usize,
        width: usize,
        stride: usize,
    ) -> Result<Residual> {
        let (block, variant) = (self.architecture.block(), self.architecture.variant());
        let out_channels = width * block.expansion();
        let conv = |conv, bn, shape| self.conv(vb.pp(conv), vb.pp(bn), shape);
        let (first, middle, last) = match (block, variant) {
            (Block::Basic, _) => (
                conv("conv1", "bn1", [in_channels, width, 3, stride])?,
                None,
                conv("conv2", "bn2", [width, width, 3, 1])?,
            ),
            (Block::Bottleneck, Variant::V1) => (
                conv("conv1", "bn1", [in_channels, width, 1, stride])?,
                Some(conv("conv2", "bn2", [width, width, 3, 1])?),
                conv("conv3", "bn3", [width, out_channels, 1, 1])?,
            ),
            (Block::Bottleneck, Variant::V1_5) => (
                conv("conv1", "bn1", [in_channels, width, 1, 1])?,
                Some(conv("conv2", "bn2", [width, width, 3, stride])?),
                conv("conv3", "bn3", [width, out_channels, 1, 1])?,
            ),
        };
        let fits = stride == 1 && in_channels == out_channels;
        let shape = [in_channels, out_channels, 1, stride];
        let downsample = (!fits).then(|| conv("downsample.0", "downsample.1", shape));
        Ok(Residual {
            first,
            middle,
            last,
            downsample: downsample.transpose()?,
        })
    }

    fn conv(&self, conv: VarBuilder, bn: VarBuilder, shape: [usize; 4]) -> Result<ConvBn> {
        let [in_channels, out_channels, kernel, stride] = shape;
        let spec = ConvSpec {
            in_channels,
            out_channels,
            kernel,
            stride,
        };
        let epsilon = self.architecture.batch_norm_epsilon();
        ConvBn::load(spec, epsilon, conv, bn, self.backend)
    }
}

/// Convolutions with ReLU between them, and the input added at the end.
struct Residual {
    first: ConvBn,
    /// The 3x3 of a bottleneck.
    middle: Option<ConvBn>,
    last: ConvBn,
    /// Fits the input to the output where resolution or channels change.
    downsample: Option<ConvBn>,
}

impl Residual {
    /// The convolutions as [`Residual::forward`] runs them.
    fn in_order(&self) -> impl Iterator<Item = &ConvBn> {
        let rest = self.downsample.iter().chain(&self.middle);
        std::iter::once(&self.first).chain(rest).chain([&self.last])
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let mut y = self.first.forward_relu(&x)?;
        let skip = match &self.downsample {
            Some(downsample) => downsample.forward(&x)?,
            None => x,
        };
        if let Some(middle) = &self.middle {
            y = middle.forward_relu(&y)?;
        }
        self.last.forward_add_relu(&y, skip)
    }
}
