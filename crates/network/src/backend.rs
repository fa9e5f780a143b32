//! The operations that a ResNet consists of, as a trait.
//!
//! [`ResNet`](crate::resnet::ResNet) says which layers there are, under which names and in which
//! order. A [`Backend`] says how a layer's weights are kept, how an activation lies in memory, and
//! how a layer is computed. There are two:
//!
//! - [`CpuBackend`](crate::CpuBackend) computes with our own kernels, in f32, bf16 or 8-bit
//!   integers. Its activations are pooled buffers in blocks of 16 words.
//! - [`CandleBackend`](crate::CandleBackend) computes with candle's operations on any of its
//!   devices. Its activations are tensors `(N, C, H, W)`.
//!
//! A number type or a device with a memory layout of its own is a further implementation.

use std::num::NonZeroUsize;
use std::ops::Range;

use imgclass_kernels::{ConvShape, Entered};

use crate::error::NetworkError;
use crate::input::Input;

/// The weights of a convolution into which its batch norm has been folded, in f32.
#[derive(Debug, Clone)]
pub struct FoldedConv {
    /// The convolution's shape.
    pub shape: ConvShape,
    /// The weights, `[out_channels, in_channels, kernel, kernel]`.
    pub weight: Vec<f32>,
    /// The bias, `[out_channels]`.
    pub bias: Vec<f32>,
}

/// The weights of the fully connected layer, in f32.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// How many numbers the layer reads.
    pub inputs: usize,
    /// How many numbers the layer returns: one per class.
    pub outputs: usize,
    /// The weights, `[outputs, inputs]`.
    pub weight: Vec<f32>,
    /// The bias, `[outputs]`.
    pub bias: Vec<f32>,
}

/// The name under which the stem's output is known to [`ConvPlace::input`].
pub const STEM: &str = "conv1";

/// Where a convolution is in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvPlace {
    /// The checkpoint's name of the layer.
    pub name: String,
    /// The name of the layer whose output it reads, or [`STEM`].
    pub input: String,
    /// What becomes of its sums.
    pub role: ConvRole,
}

/// What becomes of a convolution's sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConvRole {
    /// A ReLU follows ([`Backend::conv_relu`]).
    Relu,
    /// They are a residual ([`Backend::conv`]) that is added to the layer of this name.
    Downsample(String),
    /// A residual is added and a ReLU follows ([`Backend::conv_add_relu`]). It is the output of the
    /// layer of this name, or of the block's downsample convolution.
    Last {
        /// The name of the layer, or `None` for the downsample convolution.
        residual: Option<String>,
    },
}

/// How many images the stem and each of the four stages run together, see
/// [`Backend::images_together`].
pub type ImagesTogether = [usize; 5];

/// Computes the layers of a ResNet.
///
/// The first group of methods takes weights at load, the second runs layers, and the third says how
/// the backend is best used.
pub trait Backend: Send + Sync + 'static {
    /// What one layer hands to the next: some images' channels, rows and columns.
    type Activation: Send;
    /// A convolution with its batch norm folded in.
    type Conv: Send + Sync;
    /// The first layers: 7x7 convolution of stride 2, ReLU, 3x3 max-pool of stride 2.
    type Stem: Send + Sync;
    /// The fully connected layer.
    type Linear: Send + Sync;
    /// One row of numbers per image: pooled features or logits, in f32.
    type Rows;

    /// Takes the weights of a convolution.
    ///
    /// # Errors
    /// The device fails while it takes the weights; the same holds for the other `load_` methods.
    fn load_conv(&self, place: ConvPlace, folded: FoldedConv) -> Result<Self::Conv, NetworkError>;

    /// Takes the weights of the stem's convolution.
    ///
    /// # Errors
    /// As [`Backend::load_conv`].
    fn load_stem(&self, folded: FoldedConv) -> Result<Self::Stem, NetworkError>;

    /// Takes the weights of the fully connected layer.
    ///
    /// # Errors
    /// As [`Backend::load_conv`].
    fn load_linear(&self, weights: LinearWeights) -> Result<Self::Linear, NetworkError>;

    /// Returns on how many threads weights are read, folded and taken.
    fn loading_threads(&self) -> usize {
        1
    }

    /// Tells the backend in which order the layers run.
    ///
    /// A layer can then ask the weights of the next one into the cache while it computes. This
    /// changes no result.
    fn announce_order(&self, _convs: &[&Self::Conv], _last: &Self::Linear) {}

    /// Waits until everything that was loaded can be used from any thread.
    ///
    /// # Errors
    /// The device fails.
    fn finish_loading(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Runs the stem over images of the given height and width: 64 channels at a quarter of the
    /// size. The images may be of both kinds of [`Input`].
    ///
    /// # Errors
    /// The device fails; the same holds for the other methods that compute.
    fn stem(
        &self,
        stem: &Self::Stem,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Self::Activation, NetworkError>;

    /// Runs a convolution with nothing behind it.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn conv(
        &self,
        conv: &Self::Conv,
        x: &Self::Activation,
    ) -> Result<Self::Activation, NetworkError>;

    /// Runs a convolution and a ReLU.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn conv_relu(
        &self,
        conv: &Self::Conv,
        x: &Self::Activation,
    ) -> Result<Self::Activation, NetworkError>;

    /// Runs a convolution, adds `residual`, and runs a ReLU. The result may take the residual's
    /// memory.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn conv_add_relu(
        &self,
        conv: &Self::Conv,
        x: &Self::Activation,
        residual: Self::Activation,
    ) -> Result<Self::Activation, NetworkError>;

    /// Puts the images of several activations, which are alike but for their number of images, one
    /// after the other into one activation. There is at least one part.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn concatenate(&self, parts: Vec<Self::Activation>) -> Result<Self::Activation, NetworkError>;

    /// Returns the mean of each channel of each image: the pooled features, `[n, channels]`.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn average_pool(&self, x: &Self::Activation) -> Result<Self::Rows, NetworkError>;

    /// Runs the fully connected layer over features, `[n, inputs]`, to logits, `[n, outputs]`.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn linear(
        &self,
        linear: &Self::Linear,
        features: &Self::Rows,
    ) -> Result<Self::Rows, NetworkError>;

    /// Returns all rows, one after the other.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn rows_to_vec(&self, rows: Self::Rows) -> Result<Vec<f32>, NetworkError>;

    /// Returns some images of an activation in PyTorch's layout, `[images, channels, height,
    /// width]`.
    ///
    /// # Errors
    /// As [`Backend::stem`].
    fn activation_to_nchw(
        &self,
        x: &Self::Activation,
        images: Range<usize>,
    ) -> Result<Vec<f32>, NetworkError>;

    /// Returns how many images should run together through the stem and through each of the four
    /// stages.
    ///
    /// Where memory is cached, early activations are large and their weights small, so few images
    /// at a time keep the activations in the cache; later it is the other way about. A stage runs
    /// at least as many images together as the stage before it. By default whole batches run
    /// together.
    fn images_together(&self) -> ImagesTogether {
        [usize::MAX; 5]
    }

    /// Returns how many of a batch's `images` should run through the stem and the first two stages
    /// each by itself, several at a time ([`Backend::run_side_by_side`]). The rest runs as
    /// [`Backend::images_together`] says. By default none do.
    fn images_side_by_side(&self, _images: usize) -> usize {
        0
    }

    /// Calls `run` once for each index below `images`, several calls at a time if the device can,
    /// and returns what they returned in the order of the indices.
    ///
    /// # Errors
    /// The first error that a call returned.
    fn run_side_by_side(
        &self,
        images: usize,
        run: &(dyn Fn(usize) -> Result<Self::Activation, NetworkError> + Sync),
    ) -> Result<Vec<Self::Activation>, NetworkError> {
        (0..images).map(run).collect()
    }

    /// Takes a place among the threads that compute, for the length of a forward pass. Returns
    /// `None` where the device needs no such place.
    fn enter(&self) -> Option<Entered<'_>> {
        None
    }

    /// Returns how many forward passes should run at one time.
    fn passes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Whether images should come as [`Input::Pixels`], which are a quarter of the bytes in the queue
    /// and on the way to a device at the end of a bus. Every backend takes both kinds.
    fn prefers_pixels(&self) -> bool {
        false
    }

    /// Whether the device prepares its code anew for each batch size that it meets. If so, the
    /// warm-up runs several of them.
    fn prepares_each_batch_size(&self) -> bool {
        false
    }
}
