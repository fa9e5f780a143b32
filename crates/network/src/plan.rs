//! Which convolutions a ResNet has, under which names and in which order, as plain data.
//!
//! The network is built by the plan ([`ResNet`](crate::resnet::ResNet)), and so are its ranges and
//! its file of 8-bit integers.

use imgclass_checkpoint::{Architecture, Block, Variant};
use imgclass_kernels::ConvShape;

use crate::backend::{ConvPlace, ConvRole, STEM};

/// A convolution: where it is, its shape, and the name of its batch norm.
#[derive(Debug, Clone)]
pub(crate) struct ConvPlan {
    pub(crate) place: ConvPlace,
    pub(crate) shape: ConvShape,
    pub(crate) batch_norm: String,
}

/// The convolutions of a residual block.
#[derive(Debug, Clone)]
pub(crate) struct BlockPlan {
    pub(crate) first: ConvPlan,
    /// The 3x3 convolution of a bottleneck.
    pub(crate) middle: Option<ConvPlan>,
    pub(crate) last: ConvPlan,
    /// Fits the block's input to its output where resolution or channels change.
    pub(crate) downsample: Option<ConvPlan>,
}

impl BlockPlan {
    /// Returns the names of the convolutions.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.convs().map(|conv| conv.place.name.as_str())
    }

    /// Returns the convolutions in the order in which they run.
    pub(crate) fn convs(&self) -> impl Iterator<Item = &ConvPlan> {
        let rest = self.downsample.iter().chain(&self.middle);
        std::iter::once(&self.first).chain(rest).chain([&self.last])
    }
}

/// All convolutions of a network but the stem's.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The blocks of `layer1` to `layer4`.
    pub(crate) stages: [Vec<BlockPlan>; 4],
}

impl Plan {
    /// Returns the plan of a network.
    pub(crate) fn of(architecture: &Architecture) -> Self {
        // The layer whose output the next block reads.
        let mut input = STEM.to_owned();
        let mut in_channels = 64;
        let mut stage = |index: usize| {
            let width = 64 << index;
            (0..architecture.depths()[index])
                .map(|block| {
                    let name = format!("layer{}.{block}", index + 1);
                    // The first block changes resolution and channels.
                    let stride = if block == 0 && index > 0 { 2 } else { 1 };
                    let sizes = (in_channels, width, stride);
                    let plan = block_plan(architecture, name, &input, sizes);
                    input.clone_from(&plan.last.place.name);
                    in_channels = plan.last.shape.out_channels;
                    plan
                })
                .collect()
        };
        Self {
            stages: [stage(0), stage(1), stage(2), stage(3)],
        }
    }

    /// Returns the blocks in their order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &BlockPlan> {
        self.stages.iter().flatten()
    }

    /// Returns the convolutions in the order in which they run.
    pub(crate) fn convs(&self) -> impl Iterator<Item = &ConvPlan> {
        self.blocks().flat_map(BlockPlan::convs)
    }
}

/// Returns the plan of a block whose 3x3 convolutions have `width` channels.
fn block_plan(
    architecture: &Architecture,
    name: String,
    input: &str,
    (in_channels, width, stride): (usize, usize, usize),
) -> BlockPlan {
    let (block, variant) = (architecture.block(), architecture.variant());
    let out_channels = width * block.expansion();
    // The first version of the bottleneck has its stride in the first 1x1 convolution, version 1.5
    // in the 3x3.
    let (first_stride, middle_stride) = match variant {
        Variant::V1 => (stride, 1),
        Variant::V1_5 => (1, stride),
    };
    let fits = stride == 1 && in_channels == out_channels;
    let in_block = |part: &str| format!("{name}.{part}");
    let conv = |conv: &str, norm: &str, shape, input: &str, role| ConvPlan {
        place: ConvPlace {
            name: in_block(conv),
            input: input.to_owned(),
            role,
        },
        shape,
        batch_norm: in_block(norm),
    };
    let add = ConvRole::Last {
        residual: fits.then(|| input.to_owned()),
    };
    let (first, second) = (in_block("conv1"), in_block("conv2"));
    let end = match block {
        Block::Basic => second.clone(),
        Block::Bottleneck => in_block("conv3"),
    };
    let downsample = (!fits).then(|| {
        let shape = conv_shape(in_channels, out_channels, 1, stride);
        let role = ConvRole::Downsample(end);
        conv("downsample.0", "downsample.1", shape, input, role)
    });
    let (first, middle, last) = match block {
        Block::Basic => {
            let shape = conv_shape(in_channels, width, 3, stride);
            (
                conv("conv1", "bn1", shape, input, ConvRole::Relu),
                None,
                conv("conv2", "bn2", conv_shape(width, width, 3, 1), &first, add),
            )
        }
        Block::Bottleneck => {
            let reduce = conv_shape(in_channels, width, 1, first_stride);
            let spread = conv_shape(width, width, 3, middle_stride);
            let expand = conv_shape(width, out_channels, 1, 1);
            (
                conv("conv1", "bn1", reduce, input, ConvRole::Relu),
                Some(conv("conv2", "bn2", spread, &first, ConvRole::Relu)),
                conv("conv3", "bn3", expand, &second, add),
            )
        }
    };
    BlockPlan {
        first,
        middle,
        last,
        downsample,
    }
}

/// Returns the shape of a square convolution. Its padding is half its kernel, which keeps the size
/// at stride 1.
pub(crate) fn conv_shape(
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    stride: usize,
) -> ConvShape {
    ConvShape {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding: kernel / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_has_the_convolutions_of_the_checkpoint_with_their_shapes() {
        for architecture in Architecture::ALL {
            let mut expected: Vec<(String, Vec<usize>)> = architecture
                .tensors(10)
                .into_iter()
                .filter(|(name, dims)| dims.len() == 4 && name != "conv1.weight")
                .collect();
            let plan = Plan::of(&architecture);
            let mut found: Vec<(String, Vec<usize>)> = plan
                .convs()
                .map(|conv| {
                    let (shape, name) = (conv.shape, &conv.place.name);
                    let dims = [
                        shape.out_channels,
                        shape.in_channels,
                        shape.kernel,
                        shape.kernel,
                    ];
                    (format!("{name}.weight"), dims.to_vec())
                })
                .collect();
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{architecture}");
        }
    }
}
