//! A checkpoint's tensors behind candle's `VarBuilder`, through which every layer asks for its
//! weights under the checkpoint's names.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use imgclass_checkpoint::{CheckpointError, CheckpointInfo, TensorSource, Weights};

use crate::backend::Backend;
use crate::error::NetworkError;
use crate::resnet::ResNet;

/// Builds the network of a checkpoint on a backend. Returns it with its last layer's weights,
/// `[classes, features]`.
pub(crate) fn build<B: Backend>(
    weights: &Weights,
    info: &CheckpointInfo,
    backend: B,
) -> Result<(ResNet<B>, Vec<f32>), NetworkError> {
    weights.take_all(|tensors| {
        let fault = Fault::default();
        let built = build_from(&var_builder(tensors, fault.clone()), info, backend);
        match fault.take() {
            Some(fault) => Err(fault.into()),
            None => built,
        }
    })
}

fn build_from<B: Backend>(
    vb: &VarBuilder,
    info: &CheckpointInfo,
    backend: B,
) -> Result<(ResNet<B>, Vec<f32>), NetworkError> {
    let (architecture, classes) = (&info.architecture, info.classes);
    let net = ResNet::load(vb, architecture, classes, backend)?;
    let last = vb.get((classes, architecture.features()), "fc.weight")?;
    Ok((net, last.flatten_all()?.to_vec1()?))
}

/// Returns a `VarBuilder` over a source of tensors, for networks that are built without a whole
/// checkpoint.
pub fn variables(tensors: &dyn TensorSource) -> VarBuilder<'_> {
    var_builder(tensors, Fault::default())
}

/// Returns tensors on the CPU and in f32, whatever the device: batch norms are folded in full
/// precision, and what is cast and uploaded is the result.
fn var_builder(tensors: &dyn TensorSource, fault: Fault) -> VarBuilder<'_> {
    VarBuilder::from_backend(
        Box::new(Variables { tensors, fault }),
        DType::F32,
        Device::Cpu,
    )
}

/// Keeps the first error of the source. Candle's own error type cannot carry ours, so ours is kept
/// here while candle's carries its text.
#[derive(Debug, Default, Clone)]
struct Fault(Arc<Mutex<Option<CheckpointError>>>);

impl Fault {
    /// Keeps the error if it is the first, and returns the text of the first.
    fn keep(&self, error: CheckpointError) -> String {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error).to_string()
    }

    /// Returns the first error and forgets it.
    fn take(&self) -> Option<CheckpointError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Gives candle the tensors of a source.
struct Variables<'a> {
    tensors: &'a dyn TensorSource,
    fault: Fault,
}

impl SimpleBackend for Variables<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self.tensors.tensor(name, shape.dims()) {
            Ok(values) => Tensor::from_vec(values, shape, &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device),
            Err(error) => candle_core::bail!("{}", self.fault.keep(error)),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor `{name}` was asked for without its shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }
}
