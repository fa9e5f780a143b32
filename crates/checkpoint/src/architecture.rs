//! Which network: kind of block, depths, where the stride is, the batch norms' epsilon. Plain data; it builds nothing and reads nothing.

use std::fmt;
use std::str::FromStr;

/// What the stages are made of (<https://arxiv.org/abs/1512.03385>, figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1 to fewer channels, 3x3, 1x1 to four times as many.
    Bottleneck,
}

impl Block {
    /// A block's output has this many times the channels of its 3x3 convolutions.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }

    /// How many convolutions it has, the one beside them not counted.
    pub fn convolutions(self) -> usize {
        match self {
            Self::Basic => 2,
            Self::Bottleneck => 3,
        }
    }
}

/// Where a bottleneck that halves the resolution has its stride. Nothing in the weights tells; basic blocks know only one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Variant {
    /// In the first 1x1: the paper's, Caffe's and Keras'.
    V1,
    /// In the 3x3: torchvision's, timm's and most others'.
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
    /// Two blocks a stage.
    pub const RESNET18: Self = standard("resnet18", "ResNet-18", Block::Basic, [2, 2, 2, 2]);
    /// ResNet-50's depths in basic blocks.
    pub const RESNET34: Self = standard("resnet34", "ResNet-34", Block::Basic, [3, 4, 6, 3]);
    /// What is meant where nothing is said.
    pub const RESNET50: Self = standard("resnet50", "ResNet-50", Block::Bottleneck, [3, 4, 6, 3]);
    /// A longer third stage.
    pub const RESNET101: Self =
        standard("resnet101", "ResNet-101", Block::Bottleneck, [3, 4, 23, 3]);
    /// Longer still.
    pub const RESNET152: Self =
        standard("resnet152", "ResNet-152", Block::Bottleneck, [3, 8, 36, 3]);

    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::RESNET18,
        Self::RESNET34,
        Self::RESNET50,
        Self::RESNET101,
        Self::RESNET152,
    ];

    /// The network that timm and torchvision call so, such as `resnet50`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name == name)
    }

    /// All names, for people.
    pub fn names() -> String {
        Self::ALL.map(|known| known.name).join(", ")
    }

    /// The network of these blocks whose depths are these or differ least: a file that lacks a block is held against what it nearly is.
    pub fn nearest(block: Block, depths: [usize; 4]) -> Self {
        let apart = |known: &Self| -> usize {
            let pairs = known.depths.iter().zip(depths);
            pairs.map(|(a, b)| a.abs_diff(b)).sum()
        };
        let of_block = Self::ALL.into_iter().filter(|known| known.block == block);
        of_block.min_by_key(apart).unwrap_or(Self::RESNET50)
    }

    /// The same with the stride elsewhere.
    #[must_use]
    pub fn with_variant(self, variant: Variant) -> Self {
        Self { variant, ..self }
    }

    /// The same with another epsilon under the root of each batch norm.
    #[must_use]
    pub fn with_batch_norm_epsilon(self, batch_norm_epsilon: f64) -> Self {
        Self {
            batch_norm_epsilon,
            ..self
        }
    }

    /// timm's and torchvision's name, such as `resnet50`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As people write it, such as `ResNet-50`.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// What the stages are made of.
    pub fn block(&self) -> Block {
        self.block
    }

    /// Blocks in each of the four stages.
    pub fn depths(&self) -> [usize; 4] {
        self.depths
    }

    /// Where the stride is; for basic blocks it says nothing.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Added to the variance under the root of each batch norm.
    pub fn batch_norm_epsilon(&self) -> f64 {
        self.batch_norm_epsilon
    }

    /// Pooled features per image: the channels of the last stage, 512 or 2048.
    pub fn features(&self) -> usize {
        512 * self.block.expansion()
    }

    /// Returns every tensor that a checkpoint of this network with `classes` classes must have: torchvision's name and the dimensions, in
    /// the order of the layers. Convolutions are `[out, in, kernel, kernel]`, the last layer is `[classes, features]`.
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

/// [`Architecture::title`].
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}
