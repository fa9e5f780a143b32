//! A program at one batch size: operations with shapes and places.

use imgclass_cuda::{Buffer, Convolution, Half, Op, Place};

use crate::gpu::arena::{Arena, Span};
use crate::gpu::record::{Fused, Program, Step};
use crate::gpu::weights::{DeviceWeights, padded};

/// The allocations that a plan's operations name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanMemory {
    /// The weights, as [`DeviceWeights`] lays them out.
    pub weights: Buffer,
    /// The activations.
    pub arena: Buffer,
    /// Memory for the time of one operation.
    pub workspace: Buffer,
    /// Features and logits.
    pub results: Buffer,
}

/// What runs for one batch size.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The images of the batch.
    pub batch: usize,
    /// The operations, from the input's activation to the logits.
    pub ops: Vec<Op>,
    /// Where the network's input goes: NHWC in half precision, of eight channels.
    pub input: Place,
    /// The last stage's output, NHWC in half precision. It stays until the next pass.
    pub feature_map: Place,
    /// The pooled features, float32 `[batch, features]`.
    pub features: Place,
    /// The logits, float32 `[batch, classes]`.
    pub logits: Place,
    /// The bytes that each allocation needs.
    pub arena_bytes: usize,
    /// The bytes of features and logits.
    pub results_bytes: usize,
    /// The bytes that the fully connected layer needs of the workspace.
    pub partial_bytes: usize,
}

impl Plan {
    /// Plans a program for a batch size. `workspace_bytes` is how large the workspace is; a
    /// convolution gets all of it.
    #[must_use]
    pub fn of(
        program: &Program,
        weights: &DeviceWeights,
        batch: usize,
        half: Half,
        memory: PlanMemory,
        workspace_bytes: usize,
    ) -> Self {
        let spans = spans(program, batch);
        let arena = Arena::layout(&spans);
        let activation = |value: usize| Place {
            buffer: memory.arena,
            offset: arena.offsets[value],
            bytes: spans[value].bytes,
        };
        let weight = |offset: usize| Place {
            buffer: memory.weights,
            offset,
            bytes: weights.len - offset,
        };
        let workspace = Place {
            buffer: memory.workspace,
            offset: 0,
            bytes: workspace_bytes,
        };
        let mut ops: Vec<Op> = program
            .steps
            .iter()
            .map(|step| match *step {
                Step::Convolution(fused) => {
                    let (filter, bias) = weights.layers[fused.layer];
                    Op::Convolution {
                        shape: convolution(program, fused, batch, half),
                        x: activation(fused.input),
                        weights: weight(filter),
                        bias: weight(bias),
                        z: fused.residual.map(activation),
                        y: activation(fused.output),
                        workspace,
                    }
                }
                Step::MaxPool { input, output } => Op::MaxPool {
                    from: activation(input),
                    to: activation(output),
                    batch,
                    size: program.values[input].size,
                    channels: program.values[input].channels,
                },
            })
            .collect();

        let last = program.values[program.feature_map];
        let (inputs, outputs) = (program.linear.inputs, program.linear.outputs);
        let features = Place {
            buffer: memory.results,
            offset: 0,
            bytes: batch * inputs * size_of::<f32>(),
        };
        let logits = Place {
            buffer: memory.results,
            offset: features.bytes,
            bytes: batch * outputs * size_of::<f32>(),
        };
        let slices = slices(batch);
        ops.push(Op::AveragePool {
            from: activation(program.feature_map),
            to: features,
            batch,
            area: last.size.0 * last.size.1,
            channels: last.channels,
            half,
        });
        ops.push(Op::Linear {
            from: features,
            weights: weight(weights.linear.0),
            bias: weight(weights.linear.1),
            partial: workspace,
            to: logits,
            batch,
            inputs,
            outputs,
            slices,
        });
        Self {
            batch,
            ops,
            input: activation(0),
            feature_map: activation(program.feature_map),
            features,
            logits,
            arena_bytes: arena.bytes,
            results_bytes: features.bytes + logits.bytes,
            partial_bytes: slices * logits.bytes,
        }
    }

    /// Returns the shapes of a program's convolutions at a batch size.
    pub fn convolutions(
        program: &Program,
        batch: usize,
        half: Half,
    ) -> impl Iterator<Item = Convolution> {
        program.steps.iter().filter_map(move |step| match *step {
            Step::Convolution(fused) => Some(convolution(program, fused, batch, half)),
            Step::MaxPool { .. } => None,
        })
    }
}

/// Returns into how many slices the fully connected layer's inputs are divided. A batch of one has
/// a thousand outputs, too few threads for a GPU; a large one has enough.
fn slices(batch: usize) -> usize {
    if batch <= 8 { 32 } else { 8 }
}

/// Returns the shape of a convolution.
fn convolution(program: &Program, fused: Fused, batch: usize, half: Half) -> Convolution {
    let shape = program.layers[fused.layer].folded.shape;
    Convolution {
        half,
        batch,
        size: program.values[fused.input].size,
        in_channels: padded(shape.in_channels),
        out_channels: shape.out_channels,
        kernel: shape.kernel,
        stride: shape.stride,
        padding: shape.padding,
        relu: fused.relu,
        residual: fused.residual.is_some(),
    }
}

/// Returns when each activation is in use. The input is written before the first operation, and the
/// feature map is kept to the end.
fn spans(program: &Program, batch: usize) -> Vec<Span> {
    let end = program.steps.len();
    let mut spans: Vec<Span> = program
        .values
        .iter()
        .map(|value| Span {
            first: end,
            last: 0,
            bytes: batch * padded(value.channels) * value.size.0 * value.size.1 * Half::BYTES,
        })
        .collect();
    spans[0].first = 0;
    for (i, step) in program.steps.iter().enumerate() {
        let written = &mut spans[step.writes()];
        (written.first, written.last) = (i, i);
        for read in step.reads() {
            spans[read].last = i;
        }
    }
    spans[program.feature_map].last = end;
    spans
}
