//! Candle's network: candle's operations on any of its devices.
//!
//! It serves GPUs. On the CPU (`--device candle`) it is slow and stands for them where there is
//! none, and the tests compare our kernels with it.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module};

use crate::backend::{Backend, ConvPlace, FoldedConv, LinearWeights};
use crate::error::NetworkError;
use crate::input::{Input, Normalisation};

/// Computes a ResNet's layers with candle. Activations are `(N, C, H, W)` in a type that the caller
/// chooses; features and logits are f32.
pub struct CandleBackend {
    device: Device,
    /// The type of activations and of the convolutions' weights.
    dtype: DType,
    normalisation: DeviceNormalisation,
}

impl CandleBackend {
    /// Returns a backend that computes in `dtype` on `device`. Images that come as
    /// [`Input::Pixels`] are normalised by `normalisation`, on the device.
    ///
    /// # Errors
    /// The device has no memory for the normalisation's six numbers.
    pub fn new(
        device: Device,
        dtype: DType,
        normalisation: &Normalisation,
    ) -> Result<Self, NetworkError> {
        Ok(Self {
            normalisation: DeviceNormalisation::new(normalisation, &device)?,
            device,
            dtype,
        })
    }

    /// Uploads planar images as one batch `(n, 3, height, width)`.
    fn upload_planar(
        &self,
        images: &[&[f32]],
        (h, w): (usize, usize),
    ) -> candle_core::Result<Tensor> {
        Tensor::from_vec(images.concat(), (images.len(), 3, h, w), &self.device)
    }

    /// Uploads images of both kinds as one batch `(n, 3, height, width)`, in their order.
    fn upload(&self, images: &[&Input], size: (usize, usize)) -> candle_core::Result<Tensor> {
        let planar: Vec<&[f32]> = images.iter().filter_map(|image| image.planar()).collect();
        let pixels: Vec<&[u8]> = images.iter().filter_map(|image| image.pixels()).collect();
        if pixels.is_empty() {
            return self.upload_planar(&planar, size);
        }
        if planar.is_empty() {
            return self.normalisation.upload(&pixels, size, &self.device);
        }
        // Each kind is uploaded at once; then the device puts the images back into their order.
        let by_kind = Tensor::cat(
            &[
                self.upload_planar(&planar, size)?,
                self.normalisation.upload(&pixels, size, &self.device)?,
            ],
            0,
        )?;
        let (mut next_planar, mut next_pixels) = (0u32, planar.len() as u32);
        let order = images.iter().map(|image| {
            let next = match image {
                Input::Planar(_) => &mut next_planar,
                Input::Pixels(_) => &mut next_pixels,
            };
            *next += 1;
            *next - 1
        });
        let order = Tensor::from_iter(order, &self.device)?;
        by_kind.index_select(&order, 0)
    }

    /// Casts and uploads a convolution that was folded in f32.
    fn load(&self, folded: FoldedConv) -> candle_core::Result<Conv> {
        let FoldedConv {
            shape,
            weight,
            bias,
        } = folded;
        // Candle's CPU multiplies no bf16 matrices. There bf16 numbers are multiplied and summed in
        // f32 and the sum is rounded, which is what cuDNN does with them too.
        let summed_in = match self.dtype {
            DType::BF16 if self.device.is_cpu() => DType::F32,
            other => other,
        };
        let cast = |t: Tensor| {
            t.to_dtype(self.dtype)?
                .to_dtype(summed_in)?
                .to_device(&self.device)
        };
        let dims = (
            shape.out_channels,
            shape.in_channels,
            shape.kernel,
            shape.kernel,
        );
        let weight = Tensor::from_vec(weight, dims, &Device::Cpu)?;
        let bias = Tensor::from_vec(bias, shape.out_channels, &Device::Cpu)?;
        let config = Conv2dConfig {
            stride: shape.stride,
            padding: shape.padding,
            ..Default::default()
        };
        Ok(Conv {
            conv: Conv2d::new(cast(weight)?, Some(cast(bias)?), config),
            dtype: self.dtype,
        })
    }
}

/// A folded convolution as candle runs it.
pub struct Conv {
    conv: Conv2d,
    /// The type of the result.
    dtype: DType,
}

impl Conv {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.to_dtype(self.conv.weight().dtype())?;
        self.conv.forward(&x)?.to_dtype(self.dtype)
    }
}

impl Backend for CandleBackend {
    type Activation = Tensor;
    type Conv = Conv;
    type Stem = Conv;
    type Linear = Linear;
    type Rows = Tensor;

    fn load_conv(&self, _: ConvPlace, folded: FoldedConv) -> Result<Conv, NetworkError> {
        Ok(self.load(folded)?)
    }

    fn load_stem(&self, folded: FoldedConv) -> Result<Conv, NetworkError> {
        Ok(self.load(folded)?)
    }

    /// The layer stays in f32 whatever the network computes in: it is a thousandth of the work, and
    /// its results are compared and shown.
    fn load_linear(&self, weights: LinearWeights) -> Result<Linear, NetworkError> {
        let LinearWeights {
            inputs,
            outputs,
            weight,
            bias,
        } = weights;
        let weight = Tensor::from_vec(weight, (outputs, inputs), &self.device)?;
        let bias = Tensor::from_vec(bias, outputs, &self.device)?;
        Ok(Linear::new(weight, Some(bias)))
    }

    /// Candle gives each thread a stream of its own on CUDA. What the loading thread has uploaded
    /// must be there before another thread computes with it.
    fn finish_loading(&self) -> Result<(), NetworkError> {
        Ok(self.device.synchronize()?)
    }

    fn stem(
        &self,
        stem: &Conv,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Tensor, NetworkError> {
        let x = stem.forward(&self.upload(images, size)?)?.relu()?;
        // The padding of a max-pool is minus infinity; zero does as well, because ReLU came before.
        let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        Ok(x.max_pool2d_with_stride(3, 2)?)
    }

    fn conv(&self, conv: &Conv, x: &Tensor) -> Result<Tensor, NetworkError> {
        Ok(conv.forward(x)?)
    }

    fn conv_relu(&self, conv: &Conv, x: &Tensor) -> Result<Tensor, NetworkError> {
        Ok(conv.forward(x)?.relu()?)
    }

    fn conv_add_relu(
        &self,
        conv: &Conv,
        x: &Tensor,
        residual: Tensor,
    ) -> Result<Tensor, NetworkError> {
        Ok((conv.forward(x)? + residual)?.relu()?)
    }

    fn concatenate(&self, mut parts: Vec<Tensor>) -> Result<Tensor, NetworkError> {
        match parts.as_slice() {
            [_] => Ok(parts.remove(0)),
            several => Ok(Tensor::cat(several, 0)?),
        }
    }

    /// The sums are f32, because half precision would round each of the 49 partial sums.
    fn average_pool(&self, x: &Tensor) -> Result<Tensor, NetworkError> {
        Ok(x.to_dtype(DType::F32)?.mean((2, 3))?)
    }

    fn linear(&self, linear: &Linear, features: &Tensor) -> Result<Tensor, NetworkError> {
        Ok(linear.forward(features)?)
    }

    fn rows_to_vec(&self, rows: Tensor) -> Result<Vec<f32>, NetworkError> {
        Ok(download(&rows)?)
    }

    fn activation_to_nchw(
        &self,
        x: &Tensor,
        images: Range<usize>,
    ) -> Result<Vec<f32>, NetworkError> {
        Ok(download(&x.narrow(0, images.start, images.len())?)?)
    }

    fn prefers_pixels(&self) -> bool {
        true
    }

    /// CUDA's libraries choose and load their code for each shape when they first meet it.
    fn prepares_each_batch_size(&self) -> bool {
        !self.device.is_cpu()
    }
}

/// Returns a tensor's numbers in f32.
fn download(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_vec1()
}

/// [`Normalisation`] as tensors on the device.
struct DeviceNormalisation {
    /// `(1, 3, 1, 1)`.
    factor: Tensor,
    /// `(1, 3, 1, 1)`.
    addend: Tensor,
    reversed: bool,
}

impl DeviceNormalisation {
    fn new(normalisation: &Normalisation, device: &Device) -> candle_core::Result<Self> {
        let per_plane = |values: &[f32; 3]| Tensor::from_slice(values, (1, 3, 1, 1), device);
        Ok(Self {
            factor: per_plane(&normalisation.factor)?,
            addend: per_plane(&normalisation.addend)?,
            reversed: normalisation.reversed,
        })
    }

    /// Uploads images, each interleaved `[height, width, 3]`, and normalises them into one batch
    /// `(n, 3, height, width)` in f32. Only bytes cross the bus.
    fn upload(
        &self,
        images: &[&[u8]],
        (h, w): (usize, usize),
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let pixels = Tensor::from_vec(images.concat(), (images.len(), h, w, 3), device)?;
        let mut planes = pixels.permute((0, 3, 1, 2))?.contiguous()?;
        if self.reversed {
            planes = planes.flip(&[1])?;
        }
        planes
            .to_dtype(DType::F32)?
            .broadcast_mul(&self.factor)?
            .broadcast_add(&self.addend)
    }
}
