//! The interface by which a network takes its tensors, wherever they come from.

use crate::error::CheckpointError;

/// A source of named tensors. Names are torchvision's, which timm shares, such as
/// `layer1.0.conv1.weight`.
pub trait TensorSource: Send + Sync {
    /// Returns the values of the tensor `name`, row-major, which must have exactly the dimensions
    /// `dims`.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] if there is no such tensor, or its shape, type or numbers cannot
    /// be used.
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError>;

    /// Returns whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;
}
