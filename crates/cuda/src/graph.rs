//! A fused convolution as cuDNN's graph interface takes it, as plain data.
//!
//! The graph interface knows operations of one kind each, which hand tensors to each other. Tensors
//! between two operations are virtual: they lie in no memory, and cuDNN computes the whole graph in
//! one kernel. The operations of a convolution with everything fused to it are
//!
//! ```text
//! x, weights ─► convolution ─► add z ─► add bias ─► ReLU ─► y
//! ```
//!
//! In this order cuDNN knows the graph as one pattern, for which it has compiled kernels. With the
//! bias before z it knows none: only engines that are compiled when they are first used take such a
//! graph.

use crate::op::{Convolution, Half, Tensor4};

/// The type of a tensor's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Half precision, of tensors in memory.
    Half(Half),
    /// float32, of virtual tensors.
    F32,
}

/// What a tensor is to the convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The input.
    X,
    /// The weights.
    Weights,
    /// The bias.
    Bias,
    /// What is added before the ReLU.
    Z,
    /// The output.
    Y,
    /// A virtual tensor between two operations.
    Between,
}

/// A tensor of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphTensor {
    /// What it is to the convolution.
    pub role: Role,
    /// Its sizes and strides.
    pub shape: Tensor4,
    /// Its numbers' type.
    pub number: Number,
}

/// An operation of a graph. Tensors are named by their place in [`OperationGraph::tensors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// `y = conv(x, weights)`, a cross-correlation with float32 sums.
    Convolution {
        /// The input.
        x: usize,
        /// The weights.
        weights: usize,
        /// The output.
        y: usize,
        /// The zeros on each side.
        padding: usize,
        /// The stride in both directions.
        stride: usize,
    },
    /// `y = x + b`, where `b` may have one number for each channel.
    Add {
        /// The first summand.
        x: usize,
        /// The second summand.
        b: usize,
        /// The sum.
        y: usize,
    },
    /// `y = max(x, 0)`.
    Relu {
        /// The input.
        x: usize,
        /// The output.
        y: usize,
    },
}

/// Operations that cuDNN computes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationGraph {
    /// The tensors, those in memory first.
    pub tensors: Vec<GraphTensor>,
    /// The operations in their order.
    pub nodes: Vec<Node>,
}

impl OperationGraph {
    /// Every tensor in memory begins at a multiple of so many bytes: tensor cores load them at once.
    pub const ALIGNMENT: usize = 16;

    /// Describes a convolution with what is fused to it.
    #[must_use]
    pub fn of(convolution: &Convolution) -> Self {
        let stored = |role, shape| GraphTensor {
            role,
            shape,
            number: Number::Half(convolution.half),
        };
        let mut tensors = vec![
            stored(Role::X, convolution.x()),
            stored(Role::Weights, convolution.filter()),
            stored(Role::Bias, convolution.bias()),
            stored(Role::Y, convolution.y()),
        ];
        let [x, weights, bias, y] = [0, 1, 2, 3];
        let z = convolution.residual.then(|| {
            tensors.push(stored(Role::Z, convolution.y()));
            tensors.len() - 1
        });
        // What follows the convolution: each takes the result before it.
        enum Then {
            Add(usize),
            Relu,
        }
        let mut then: Vec<Then> = z.map(Then::Add).into_iter().collect();
        then.push(Then::Add(bias));
        then.extend(convolution.relu.then_some(Then::Relu));

        let mut between = || {
            tensors.push(GraphTensor {
                role: Role::Between,
                shape: convolution.y(),
                number: Number::F32,
            });
            tensors.len() - 1
        };
        let mut result = between();
        let mut nodes = vec![Node::Convolution {
            x,
            weights,
            y: result,
            padding: convolution.padding,
            stride: convolution.stride,
        }];
        let last = then.len() - 1;
        for (i, then) in then.into_iter().enumerate() {
            let to = if i == last { y } else { between() };
            nodes.push(match then {
                Then::Add(b) => Node::Add {
                    x: result,
                    b,
                    y: to,
                },
                Then::Relu => Node::Relu { x: result, y: to },
            });
            result = to;
        }
        Self { tensors, nodes }
    }

    /// Returns the number by which cuDNN knows a tensor. 0 is none.
    #[must_use]
    pub fn id(tensor: usize) -> i64 {
        tensor as i64 + 1
    }
}
