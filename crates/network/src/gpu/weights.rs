//! Weights as the GPU reads them.

use half::{bf16, f16};
use imgclass_cuda::Half;

use crate::backend::LinearWeights;
use crate::gpu::arena::Arena;
use crate::gpu::record::{Layer, Program};

/// Where each weight of a network begins in the one piece of memory that holds them all.
#[derive(Debug, Clone, Default)]
pub struct DeviceWeights {
    /// The bytes of the memory.
    pub len: usize,
    /// For each convolution the begin of its weights and of its bias, in bytes.
    pub layers: Vec<(usize, usize)>,
    /// The begin of the fully connected layer's weights, float32 `[inputs, outputs]`, and of its
    /// bias, in bytes.
    pub linear: (usize, usize),
}

impl DeviceWeights {
    /// Orders and converts a program's weights. Returns their places and the memory's content.
    #[must_use]
    pub fn of(program: &Program, half: Half) -> (Self, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut places = Self::default();
        for layer in &program.layers {
            let weights = append_halves(&mut bytes, filter(layer), half);
            let bias = append_halves(&mut bytes, layer.folded.bias.iter().copied(), half);
            places.layers.push((weights, bias));
        }
        let weights = append_floats(&mut bytes, transposed(&program.linear));
        let bias = append_floats(&mut bytes, program.linear.bias.iter().copied());
        places.linear = (weights, bias);
        places.len = bytes.len();
        (places, bytes)
    }
}

/// Begins a new part and returns its begin.
fn begin(bytes: &mut Vec<u8>) -> usize {
    let begin = bytes.len().next_multiple_of(Arena::ALIGNMENT);
    bytes.resize(begin, 0);
    begin
}

fn append_halves(bytes: &mut Vec<u8>, numbers: impl Iterator<Item = f32>, half: Half) -> usize {
    let begin = begin(bytes);
    for number in numbers {
        let bits = match half {
            Half::F16 => f16::from_f32(number).to_bits(),
            Half::BF16 => bf16::from_f32(number).to_bits(),
        };
        bytes.extend(bits.to_le_bytes());
    }
    begin
}

fn append_floats(bytes: &mut Vec<u8>, numbers: impl Iterator<Item = f32>) -> usize {
    let begin = begin(bytes);
    for number in numbers {
        bytes.extend(number.to_le_bytes());
    }
    begin
}

/// Returns how many channels a tensor of so many channels has on the GPU.
pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(Half::CHANNELS)
}

/// Returns a convolution's weights in the order K, R, S, C. Input channels that were added to a
/// multiple of eight have zeros.
fn filter(layer: &Layer) -> impl Iterator<Item = f32> {
    let shape = layer.folded.shape;
    let (channels, area) = (shape.in_channels, shape.kernel * shape.kernel);
    let weight = &layer.folded.weight;
    (0..shape.out_channels).flat_map(move |k| {
        (0..area).flat_map(move |position| {
            (0..padded(channels)).map(move |c| {
                if c < channels {
                    weight[(k * channels + c) * area + position]
                } else {
                    0.0
                }
            })
        })
    })
}

/// Returns the fully connected layer's weights as `[inputs, outputs]`.
fn transposed(linear: &LinearWeights) -> impl Iterator<Item = f32> {
    (0..linear.inputs).flat_map(move |input| {
        (0..linear.outputs).map(move |output| linear.weight[output * linear.inputs + input])
    })
}
