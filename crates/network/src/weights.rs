//! Builds a network of a checkpoint's tensors, and shows the tensors to candle's own networks.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use imgclass_checkpoint::{CheckpointInfo, TensorSource, Weights};

use crate::backend::Backend;
use crate::error::NetworkError;
use crate::resnet::ResNet;

/// Builds the network of a float checkpoint on a backend. Returns it with its last layer's weights,
/// `[classes, features]`.
pub(crate) fn build<B: Backend>(
    weights: &Weights,
    info: &CheckpointInfo,
    backend: B,
) -> Result<(ResNet<B>, Vec<f32>), NetworkError> {
    let (architecture, classes) = (&info.architecture, info.classes);
    weights.take_all(|tensors| {
        let net = ResNet::load(tensors, architecture, classes, backend)?;
        let last = tensors.tensor("fc.weight", &[classes, architecture.features()])?;
        Ok((net, last))
    })
}

/// Returns a `VarBuilder` over a source of tensors, for networks of candle's, with which ours is
/// compared. Tensors are on the CPU and in f32.
pub fn variables(tensors: &dyn TensorSource) -> VarBuilder<'_> {
    VarBuilder::from_backend(Box::new(Variables(tensors)), DType::F32, Device::Cpu)
}

/// Gives candle the tensors of a source.
struct Variables<'a>(&'a dyn TensorSource);

impl SimpleBackend for Variables<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self.0.tensor(name, shape.dims()) {
            Ok(values) => Tensor::from_vec(values, shape, &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device),
            Err(error) => candle_core::bail!("{error}"),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor `{name}` was asked for without its shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}
