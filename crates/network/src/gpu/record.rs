//! Records which operations a network consists of.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use imgclass_checkpoint::{Architecture, TensorSource};

use crate::backend::{Backend, ConvPlace, FoldedConv, LinearWeights, STEM};
use crate::error::NetworkError;
use crate::input::Input;
use crate::resnet::ResNet;

/// An activation of one image between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// The channels.
    pub channels: usize,
    /// Height and width.
    pub size: (usize, usize),
}

impl Value {
    /// Returns how many numbers the activation has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels * self.size.0 * self.size.1
    }

    /// Whether the activation has no numbers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A convolution with what is fused to it. Activations are numbered by [`Program::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fused {
    /// The weights, by the number of the layer.
    pub layer: usize,
    /// The input.
    pub input: usize,
    /// What is added before the ReLU.
    pub residual: Option<usize>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// The output.
    pub output: usize,
}

/// One operation over activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A convolution.
    Convolution(Fused),
    /// The stem's max-pool, 3x3 at a stride of 2.
    MaxPool {
        /// The input.
        input: usize,
        /// The output.
        output: usize,
    },
}

impl Step {
    /// Returns the activations that the operation reads.
    pub fn reads(&self) -> impl Iterator<Item = usize> {
        let (input, residual) = match *self {
            Self::Convolution(fused) => (fused.input, fused.residual),
            Self::MaxPool { input, .. } => (input, None),
        };
        std::iter::once(input).chain(residual)
    }

    /// Returns the activation that the operation writes.
    #[must_use]
    pub fn writes(&self) -> usize {
        match *self {
            Self::Convolution(fused) => fused.output,
            Self::MaxPool { output, .. } => output,
        }
    }
}

/// A convolution's weights and where they come from.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The checkpoint's name of the layer.
    pub name: String,
    /// The weights with the batch norm folded in, in float32.
    pub folded: FoldedConv,
}

/// What a network computes, for one image: the convolutions in their order, then the average pool
/// and the fully connected layer.
#[derive(Debug, Clone)]
pub struct Program {
    /// The convolutions' weights.
    pub layers: Vec<Layer>,
    /// The fully connected layer's weights.
    pub linear: LinearWeights,
    /// The activations. The first one is the network's input, of three channels.
    pub values: Vec<Value>,
    /// The operations in their order.
    pub steps: Vec<Step>,
    /// The last stage's output.
    pub feature_map: usize,
}

impl Program {
    /// Builds and records a network from a source of tensors, for images of the given height and
    /// width.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(
        tensors: &dyn TensorSource,
        architecture: &Architecture,
        classes: usize,
        size: (usize, usize),
    ) -> Result<Self, NetworkError> {
        let net = ResNet::load(tensors, architecture, classes, Recorder::default())?;
        Self::record(net, size)
    }

    /// Records the network of a ResNet that was loaded on a [`Recorder`].
    pub(crate) fn record(
        net: ResNet<Recorder>,
        size: (usize, usize),
    ) -> Result<Self, NetworkError> {
        let image = Input::Pixels(Vec::new());
        let forward = net.forward(&[&image], size)?;
        let feature_map = forward.feature_map.0;
        let recording = net.into_backend().into_recording();
        let missing = || NetworkError::Compute(candle_core::Error::msg("no linear layer recorded"));
        Ok(Self {
            layers: recording.layers,
            linear: recording.linear.ok_or_else(missing)?,
            values: recording.values,
            steps: recording.steps,
            feature_map,
        })
    }

    /// Forgets the weights' numbers, once they are on the device. Their shapes stay.
    pub(crate) fn forget_weights(&mut self) {
        for layer in &mut self.layers {
            layer.folded.weight = Vec::new();
            layer.folded.bias = Vec::new();
        }
        self.linear.weight = Vec::new();
        self.linear.bias = Vec::new();
    }

    /// Returns height and width of the images.
    #[must_use]
    pub fn input_size(&self) -> (usize, usize) {
        self.values[0].size
    }
}

#[derive(Debug, Default)]
struct Recording {
    layers: Vec<Layer>,
    linear: Option<LinearWeights>,
    values: Vec<Value>,
    steps: Vec<Step>,
}

impl Recording {
    fn value(&mut self, value: Value) -> usize {
        self.values.push(value);
        self.values.len() - 1
    }

    fn layer(&mut self, name: String, folded: FoldedConv) -> usize {
        self.layers.push(Layer { name, folded });
        self.layers.len() - 1
    }

    fn convolution(
        &mut self,
        layer: usize,
        input: usize,
        residual: Option<usize>,
        relu: bool,
    ) -> usize {
        let shape = self.layers[layer].folded.shape;
        let along = |size: usize| (size + 2 * shape.padding - shape.kernel) / shape.stride + 1;
        let size = self.values[input].size;
        let output = self.value(Value {
            channels: shape.out_channels,
            size: (along(size.0), along(size.1)),
        });
        self.steps.push(Step::Convolution(Fused {
            layer,
            input,
            residual,
            relu,
            output,
        }));
        output
    }
}

/// A backend that takes weights and notes operations instead of computing them.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Recording>);

impl Recorder {
    fn note<T>(&self, note: impl FnOnce(&mut Recording) -> T) -> T {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn into_recording(self) -> Recording {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An activation by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noted(usize);

impl Backend for Recorder {
    type Activation = Noted;
    type Conv = usize;
    type Stem = usize;
    type Linear = ();
    type Rows = ();

    fn load_conv(&self, place: ConvPlace, folded: FoldedConv) -> Result<usize, NetworkError> {
        Ok(self.note(|recording| recording.layer(place.name, folded)))
    }

    fn load_stem(&self, folded: FoldedConv) -> Result<usize, NetworkError> {
        Ok(self.note(|recording| recording.layer(STEM.to_owned(), folded)))
    }

    fn load_linear(&self, weights: LinearWeights) -> Result<(), NetworkError> {
        self.note(|recording| recording.linear = Some(weights));
        Ok(())
    }

    fn stem(
        &self,
        stem: &usize,
        _: &[&Input],
        size: (usize, usize),
    ) -> Result<Noted, NetworkError> {
        Ok(self.note(|recording| {
            let input = recording.value(Value { channels: 3, size });
            let convolved = recording.convolution(*stem, input, None, true);
            let Value { channels, size } = recording.values[convolved];
            let halved = |size: usize| (size - 1) / 2 + 1;
            let output = recording.value(Value {
                channels,
                size: (halved(size.0), halved(size.1)),
            });
            recording.steps.push(Step::MaxPool {
                input: convolved,
                output,
            });
            Noted(output)
        }))
    }

    fn conv(&self, conv: &usize, x: &Noted) -> Result<Noted, NetworkError> {
        Ok(Noted(self.note(|recording| {
            recording.convolution(*conv, x.0, None, false)
        })))
    }

    fn conv_relu(&self, conv: &usize, x: &Noted) -> Result<Noted, NetworkError> {
        Ok(Noted(self.note(|recording| {
            recording.convolution(*conv, x.0, None, true)
        })))
    }

    fn conv_add_relu(
        &self,
        conv: &usize,
        x: &Noted,
        residual: Noted,
    ) -> Result<Noted, NetworkError> {
        Ok(Noted(self.note(|recording| {
            recording.convolution(*conv, x.0, Some(residual.0), true)
        })))
    }

    /// There is one part: all images run together.
    fn concatenate(&self, parts: Vec<Noted>) -> Result<Noted, NetworkError> {
        parts
            .first()
            .copied()
            .ok_or_else(|| NetworkError::Compute(candle_core::Error::msg("nothing to concatenate")))
    }

    fn average_pool(&self, _: &Noted) -> Result<(), NetworkError> {
        Ok(())
    }

    fn linear(&self, (): &(), (): &()) -> Result<(), NetworkError> {
        Ok(())
    }

    fn rows_to_vec(&self, (): ()) -> Result<Vec<f32>, NetworkError> {
        Ok(Vec::new())
    }

    fn activation_to_nchw(&self, _: &Noted, _: Range<usize>) -> Result<Vec<f32>, NetworkError> {
        Ok(Vec::new())
    }
}
