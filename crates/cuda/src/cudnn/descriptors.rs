//! What cuDNN is told of a convolution: descriptors that destroy themselves.

use std::ffi::c_int;

use cudarc::cudnn::{result as cudnn, sys as cudnn_sys};

use super::{During, failed};
use crate::driver::DeviceError;
use crate::op::{Convolution, Half, Tensor4};

/// A descriptor of cuDNN's that destroys itself.
pub(super) struct TensorDescriptor(pub(super) cudnn_sys::cudnnTensorDescriptor_t);
pub(super) struct FilterDescriptor(pub(super) cudnn_sys::cudnnFilterDescriptor_t);
pub(super) struct ConvolutionDescriptor(pub(super) cudnn_sys::cudnnConvolutionDescriptor_t);
pub(super) struct ActivationDescriptor(pub(super) cudnn_sys::cudnnActivationDescriptor_t);

impl Drop for TensorDescriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once.
        let _ = unsafe { cudnn::destroy_tensor_descriptor(self.0) };
    }
}

impl Drop for FilterDescriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once.
        let _ = unsafe { cudnn::destroy_filter_descriptor(self.0) };
    }
}

impl Drop for ConvolutionDescriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once.
        let _ = unsafe { cudnn::destroy_convolution_descriptor(self.0) };
    }
}

impl Drop for ActivationDescriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once.
        let _ = unsafe { cudnn_sys::cudnnDestroyActivationDescriptor(self.0) };
    }
}

/// Everything that cuDNN is told of one convolution.
pub(super) struct Descriptors {
    pub(super) x: TensorDescriptor,
    pub(super) filter: FilterDescriptor,
    pub(super) bias: TensorDescriptor,
    pub(super) y: TensorDescriptor,
    pub(super) convolution: ConvolutionDescriptor,
    pub(super) activation: ActivationDescriptor,
}

impl Descriptors {
    /// Describes a convolution.
    pub(super) fn new(shape: &Convolution) -> Result<Self, DeviceError> {
        let call = "describing a convolution";
        let half = match shape.half {
            Half::F16 => cudnn_sys::cudnnDataType_t::CUDNN_DATA_HALF,
            Half::BF16 => cudnn_sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let tensor = |tensor: Tensor4| -> Result<TensorDescriptor, DeviceError> {
            let descriptor = TensorDescriptor(cudnn::create_tensor_descriptor().during(call)?);
            let (dims, strides) = (integers(tensor.dims)?, integers(tensor.strides)?);
            // SAFETY: the descriptor was just created.
            unsafe { cudnn::set_tensor4d_descriptor_ex(descriptor.0, half, dims, strides) }
                .during(call)?;
            Ok(descriptor)
        };
        let filter = FilterDescriptor(cudnn::create_filter_descriptor().during(call)?);
        // In this format cuDNN still takes the sizes in the order K, C, R, S.
        let format = cudnn_sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let dims = integers(shape.filter().dims)?;
        // SAFETY: the descriptor was just created.
        unsafe { cudnn::set_filter4d_descriptor(filter.0, half, format, dims) }.during(call)?;

        let convolution =
            ConvolutionDescriptor(cudnn::create_convolution_descriptor().during(call)?);
        let [padding, stride] = integers([shape.padding, shape.stride])?;
        // SAFETY: the descriptor was just created.
        unsafe {
            cudnn::set_convolution2d_descriptor(
                convolution.0,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                cudnn_sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                cudnn_sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
            .during(call)?;
            cudnn::set_convolution_math_type(
                convolution.0,
                cudnn_sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            )
            .during(call)?;
        }

        let activation = ActivationDescriptor(cudnn::create_activation_descriptor().during(call)?);
        let mode = if shape.relu {
            cudnn_sys::cudnnActivationMode_t::CUDNN_ACTIVATION_RELU
        } else {
            cudnn_sys::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY
        };
        let nan = cudnn_sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
        // SAFETY: the descriptor was just created.
        unsafe { cudnn::set_activation_descriptor(activation.0, mode, nan, 0.0) }.during(call)?;
        Ok(Self {
            x: tensor(shape.x())?,
            filter,
            bias: tensor(shape.bias())?,
            y: tensor(shape.y())?,
            convolution,
            activation,
        })
    }
}

/// Returns sizes as C's integers.
fn integers<const N: usize>(sizes: [usize; N]) -> Result<[c_int; N], DeviceError> {
    let mut made = [0; N];
    for (to, size) in made.iter_mut().zip(sizes) {
        *to = c_int::try_from(size)
            .map_err(|_| failed("describing a convolution", &"a tensor is too large"))?;
    }
    Ok(made)
}
