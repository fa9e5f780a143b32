//! The five networks as plain data: kind of block, depths, place of the stride, the batch norms'
//! epsilon, and the name and shape of every tensor that they have.

use std::fmt;
use std::str::FromStr;

/// The kind of block that the stages are made of (<https://arxiv.org/abs/1512.03385>, figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1 to fewer channels, 3x3, 1x1 to four times as many.
    Bottleneck,
}

impl Block {
    /// Returns how many times the channels of its 3x3 convolutions a block's output has.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }

    /// Returns how many convolutions a block has, without the one of its shortcut.
    pub fn convolutions(self) -> usize {
        match self {
            Self::Basic => 2,
            Self::Bottleneck => 3,
        }
    }
}

/// The convolution in which a bottleneck that halves the resolution has its stride. The weights do
/// not tell. Basic blocks have only one place for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Variant {
    /// The first 1x1, as in the paper, in Caffe and in Keras.
    V1,
    /// The 3x3, as in torchvision, timm and most others.
    #[default]
    V1_5,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Self::V1),
            "v1.5" => Ok(Self::V1_5),
            other => Err(format!("`{other}` is no variant; use v1 or v1.5")),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V1_5 => "v1.5",
        })
    }
}

/// PyTorch's default epsilon of `BatchNorm2d`. Keras' ResNets have 1.001e-5.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// One of the five networks of the paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Architecture {
    name: &'static str,
    title: &'static str,
    block: Block,
    depths: [usize; 4],
    variant: Variant,
    batch_norm_epsilon: f64,
}

const fn standard(
    name: &'static str,
    title: &'static str,
    block: Block,
    depths: [usize; 4],
) -> Architecture {
    Architecture {
        name,
        title,
        block,
        depths,
        variant: Variant::V1_5,
        batch_norm_epsilon: BATCH_NORM_EPSILON,
    }
}

impl Architecture {
    /// ResNet-18: two basic blocks in each stage.
    pub const RESNET18: Self = standard("resnet18", "ResNet-18", Block::Basic, [2, 2, 2, 2]);
    /// ResNet-34: the depths of ResNet-50, in basic blocks.
    pub const RESNET34: Self = standard("resnet34", "ResNet-34", Block::Basic, [3, 4, 6, 3]);
    /// ResNet-50, which is meant where no network is named.
    pub const RESNET50: Self = standard("resnet50", "ResNet-50", Block::Bottleneck, [3, 4, 6, 3]);
    /// ResNet-101: ResNet-50 with a longer third stage.
    pub const RESNET101: Self =
        standard("resnet101", "ResNet-101", Block::Bottleneck, [3, 4, 23, 3]);
    /// ResNet-152: longer second and third stages still.
    pub const RESNET152: Self =
        standard("resnet152", "ResNet-152", Block::Bottleneck, [3, 8, 36, 3]);

    /// All five networks, the smallest first.
    pub const ALL: [Self; 5] = [
        Self::RESNET18,
        Self::RESNET34,
        Self::RESNET50,
        Self::RESNET101,
        Self::RESNET152,
    ];

    /// Returns the network that timm and torchvision call `name`, such as `resnet50`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name == name)
    }

    /// Returns all names as a message lists them.
    pub fn names() -> String {
        Self::ALL.map(|known| known.name).join(", ")
    }

    /// Returns the network of these blocks whose depths differ least from these, so that a file
    /// that lacks a block is compared with the network that it nearly is.
    pub fn nearest(block: Block, depths: [usize; 4]) -> Self {
        let apart = |known: &Self| -> usize {
            let pairs = known.depths.iter().zip(depths);
            pairs.map(|(a, b)| a.abs_diff(b)).sum()
        };
        let of_block = Self::ALL.into_iter().filter(|known| known.block == block);
        of_block.min_by_key(apart).unwrap_or(Self::RESNET50)
    }

    /// Returns the same network with its stride in the place of `variant`.
    #[must_use]
    pub fn with_variant(self, variant: Variant) -> Self {
        Self { variant, ..self }
    }

    /// Returns the same network with another epsilon under the root of each batch norm.
    #[must_use]
    pub fn with_batch_norm_epsilon(self, batch_norm_epsilon: f64) -> Self {
        Self {
            batch_norm_epsilon,
            ..self
        }
    }

    /// Returns timm's and torchvision's name, such as `resnet50`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the name as people write it, such as `ResNet-50`.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// Returns the kind of block that the stages are made of.
    pub fn block(&self) -> Block {
        self.block
    }

    /// Returns the number of blocks in each of the four stages.
    pub fn depths(&self) -> [usize; 4] {
        self.depths
    }

    /// Returns where bottlenecks have their stride. For basic blocks it says nothing.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Returns what is added to the variance under the root of each batch norm.
    pub fn batch_norm_epsilon(&self) -> f64 {
        self.batch_norm_epsilon
    }

    /// Returns the number of pooled features of an image: the channels of the last stage, 512 or
    /// 2048.
    pub fn features(&self) -> usize {
        512 * self.block.expansion()
    }

    /// Returns every tensor that a checkpoint of this network with `classes` classes must have, in
    /// the order of the layers: torchvision's name and the dimensions. Convolutions are
    /// `[out, in, kernel, kernel]`, the last layer is `[classes, features]`.
    pub fn tensors(&self, classes: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        let mut convolution = |conv: &str, norm: &str, [out, input, kernel]: [usize; 3]| {
            tensors.push((format!("{conv}.weight"), vec![out, input, kernel, kernel]));
            for part in ["weight", "bias", "running_mean", "running_var"] {
                tensors.push((format!("{norm}.{part}"), vec![out]));
            }
        };
        convolution("conv1", "bn1", [64, 3, 7]);
        let mut input = 64;
        for (stage, blocks) in self.depths.into_iter().enumerate() {
            let width = 64 << stage;
            let out = width * self.block.expansion();
            for block in 0..blocks {
                let name = format!("layer{}.{block}", stage + 1);
                let shapes: &[[usize; 3]] = match self.block {
                    Block::Basic => &[[width, input, 3], [width, width, 3]],
                    Block::Bottleneck => &[[width, input, 1], [width, width, 3], [out, width, 1]],
                };
                for (shape, i) in shapes.iter().zip(1..) {
                    convolution(&format!("{name}.conv{i}"), &format!("{name}.bn{i}"), *shape);
                }
                if block == 0 && (stage > 0 || input != out) {
                    let name = format!("{name}.downsample");
                    convolution(&format!("{name}.0"), &format!("{name}.1"), [out, input, 1]);
                }
                input = out;
            }
        }
        tensors.push(("fc.weight".to_owned(), vec![classes, self.features()]));
        tensors.push(("fc.bias".to_owned(), vec![classes]));
        tensors
    }
}

/// Shows the network's [`title`](Architecture::title).
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}
