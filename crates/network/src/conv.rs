//! A convolution with its batch norm folded in: our packed kernels on the CPU, candle's `Conv2d` elsewhere. The choice is made once, at
//! load; layers only say what they are and what follows them.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{
    BatchNorm, Conv2d, Conv2dConfig, Linear, Module, VarBuilder, batch_norm, conv2d_no_bias, linear,
};

use crate::packed;
use imgclass_kernels::{self as kernels, ConvShape, Entered, Isa, ThreadPool};

/// What computes the layers.
#[derive(Clone)]
pub enum Backend {
    /// Our own kernels: the CPU's fast path. Activations are channel-blocked, `(C/16, N, H, W, 16)`.
    Packed {
        /// The instruction set that weights are packed for.
        isa: Isa,
        /// The threads that share the work.
        pool: Arc<ThreadPool>,
    },
    /// Candle's operations. Activations are `(N, C, H, W)`; features and logits are 32-bit floats.
    Candle {
        /// Where they run.
        device: Device,
        /// The type of activations and of the convolutions' weights.
        dtype: DType,
    },
}

impl Backend {
    /// Takes this thread's seat among those that compute, for a forward pass; nothing where no threads of ours compute.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        match self {
            Self::Packed { pool, .. } => Some(pool.enter()),
            Self::Candle { .. } => None,
        }
    }

    /// How many images should run together through the stem and each of the four stages, as measured with two threads and batches of
    /// eight. Two cores' caches hold about one image's early activations.
    pub(super) fn images_together(&self) -> [usize; 5] {
        match self {
            Self::Packed { pool, .. } => {
                let early = (pool.available() / 2).max(1);
                [early, early, early, 4 * early, usize::MAX]
            }
            Self::Candle { .. } => [usize::MAX; 5],
        }
    }

    /// Planar images, each `[3, height, width]`, as one batch where the network reads it.
    pub(super) fn batch(
        &self,
        images: &[&[f32]],
        (height, width): (usize, usize),
    ) -> Result<Tensor> {
        let (numbers, device) = match self {
            Self::Packed { pool, .. } => (kernels::join_images(pool, images, 1), &Device::Cpu),
            Self::Candle { device, .. } => (images.concat(), device),
        };
        Tensor::from_vec(numbers, (images.len(), 3, height, width), device)
    }

    /// Activations of some images each as one batch.
    pub(super) fn join_images(&self, mut parts: Vec<Tensor>) -> Result<Tensor> {
        match (self, parts.len()) {
            (_, 1) => Ok(parts.remove(0)),
            (Self::Packed { pool, .. }, _) => packed::join_images(pool, &parts),
            (Self::Candle { .. }, _) => Tensor::cat(&parts, 0),
        }
    }
}

/// Channels in, channels out, side of the square kernel, stride. Padding is "same" at stride 1: half the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvSpec {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

impl ConvSpec {
    fn shape(self) -> ConvShape {
        ConvShape {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.kernel / 2,
        }
    }

    /// Reads the convolution's weights and its batch norm, and folds the second into the first: weights and bias. `epsilon` is added to the
    /// variance under the root.
    fn load_folded(self, epsilon: f64, conv: VarBuilder, bn: VarBuilder) -> Result<Conv2d> {
        let config = Conv2dConfig {
            stride: self.stride,
            padding: self.kernel / 2,
            ..Default::default()
        };
        let conv = conv2d_no_bias(
            self.in_channels,
            self.out_channels,
            self.kernel,
            config,
            conv,
        )?;
        let bn: BatchNorm = batch_norm(self.out_channels, epsilon, bn)?;
        conv.absorb_bn(&bn)
    }
}

/// Weights `[out, in, kernel, kernel]` and bias `[out]` as plain numbers.
fn numbers(conv: &Conv2d) -> Result<(Vec<f32>, Vec<f32>)> {
    let to_vec = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let bias = conv.bias().map_or(Ok(Vec::new()), to_vec)?;
    Ok((to_vec(conv.weight())?, bias))
}

/// A folded convolution as candle runs it.
pub(super) struct CandleConv {
    conv: Conv2d,
    /// The type of what comes out.
    dtype: DType,
}

impl CandleConv {
    /// Casts and uploads what was folded in f32.
    fn new(folded: &Conv2d, device: &Device, dtype: DType) -> Result<Self> {
        // Candle's CPU multiplies no bf16 matrices. There bf16 numbers are multiplied and summed in f32 and the sum is rounded, which is
        // what cuDNN does with them too.
        let summed_in = match dtype {
            DType::BF16 if device.is_cpu() => DType::F32,
            other => other,
        };
        let cast = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(summed_in)?.to_device(device);
        let bias = folded.bias().map(cast).transpose()?;
        Ok(Self {
            conv: Conv2d::new(cast(folded.weight())?, bias, *folded.config()),
            dtype,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(self.conv.weight().dtype())?;
        self.conv.forward(&x)?.to_dtype(self.dtype)
    }
}

/// A convolution followed by its batch norm.
pub(super) enum ConvBn {
    Packed(packed::Conv),
    Candle(CandleConv),
}

impl ConvBn {
    pub(super) fn load(
        spec: ConvSpec,
        epsilon: f64,
        conv: VarBuilder,
        bn: VarBuilder,
        backend: &Backend,
    ) -> Result<Self> {
        let name = conv.prefix();
        let folded = spec.load_folded(epsilon, conv, bn)?;
        Ok(match backend {
            Backend::Packed { isa, pool } => {
                let (weight, bias) = numbers(&folded)?;
                Self::Packed(packed::Conv::new(
                    name,
                    *isa,
                    pool.clone(),
                    &spec.shape(),
                    &weight,
                    &bias,
                ))
            }
            Backend::Candle { device, dtype } => {
                Self::Candle(CandleConv::new(&folded, device, *dtype)?)
            }
        })
    }

    /// Says which layer runs after this one, so that its weights are on their way when it does. Changes no result.
    pub(super) fn precede(&self, next: &Self) {
        if let (Self::Packed(conv), Self::Packed(next)) = (self, next) {
            conv.precede(next);
        }
    }

    /// [`ConvBn::precede`] for the network's last convolution.
    pub(super) fn precede_exit(&self, next: &Exit) {
        if let (Self::Packed(conv), Exit::Packed(next)) = (self, next) {
            conv.precede_exit(next);
        }
    }

    /// Convolution and batch norm, nothing after them.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(conv) => conv.forward(x, packed::Then::Nothing),
            Self::Candle(conv) => conv.forward(x),
        }
    }

    /// ... then ReLU.
    pub(super) fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(conv) => conv.forward(x, packed::Then::Relu),
            Self::Candle(conv) => conv.forward(x)?.relu(),
        }
    }

    /// ... then the residual branch added, then ReLU. Packed layers write over `skip`: no other tensor may share its memory.
    pub(super) fn forward_add_relu(&self, x: &Tensor, skip: Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(conv) => conv.forward_add_relu(x, skip),
            Self::Candle(conv) => (conv.forward(x)? + skip)?.relu(),
        }
    }
}

/// The network's entry: 7x7 convolution of stride 2, batch norm, ReLU, 3x3 max-pool of stride 2.
pub(super) enum Stem {
    Packed(packed::Stem),
    Candle(CandleConv),
}

impl Stem {
    pub(super) fn load(vb: &VarBuilder, epsilon: f64, backend: &Backend) -> Result<Self> {
        let spec = ConvSpec {
            in_channels: 3,
            out_channels: 64,
            kernel: 7,
            stride: 2,
        };
        let folded = spec.load_folded(epsilon, vb.pp("conv1"), vb.pp("bn1"))?;
        Ok(match backend {
            Backend::Packed { isa, pool } => {
                let (weight, bias) = numbers(&folded)?;
                Self::Packed(packed::Stem::new(*isa, pool.clone(), &weight, &bias))
            }
            Backend::Candle { device, dtype } => {
                Self::Candle(CandleConv::new(&folded, device, *dtype)?)
            }
        })
    }

    /// `(N, 3, H, W)` to 64 channels at a quarter of the size.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(stem) => stem.forward(images),
            Self::Candle(conv) => {
                // The padding of a max-pool is minus infinity; zero does as well, because ReLU came before.
                let x = conv.forward(images)?.relu()?;
                let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
                x.max_pool2d_with_stride(3, 2)
            }
        }
    }
}

/// The network's exit: the mean over all positions, then the last layer.
pub(super) enum Exit {
    Packed(packed::Exit),
    Candle(Linear),
}

impl Exit {
    pub(super) fn load(
        features: usize,
        classes: usize,
        fc: VarBuilder,
        backend: &Backend,
    ) -> Result<Self> {
        let fc = linear(features, classes, fc)?;
        Ok(match backend {
            Backend::Packed { isa, pool } => {
                let weight = fc.weight().flatten_all()?.to_vec1::<f32>()?;
                let bias = fc.bias().map_or(Ok(Vec::new()), |b| b.to_vec1::<f32>())?;
                Self::Packed(packed::Exit::new(
                    *isa,
                    pool.clone(),
                    (classes, features),
                    &weight,
                    &bias,
                ))
            }
            // In f32 whatever the network computes in: it is a thousandth of the work, and what comes out is compared and shown.
            Backend::Candle { device, .. } => {
                let bias = fc.bias().map(|bias| bias.to_device(device)).transpose()?;
                Self::Candle(Linear::new(fc.weight().to_device(device)?, bias))
            }
        })
    }

    /// The mean over all positions: the pooled features, `(N, C)`.
    pub(super) fn pool(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(exit) => exit.pool(x),
            // In f32: half precision would round each of the 49 partial sums.
            Self::Candle(_) => x.to_dtype(DType::F32)?.mean((2, 3)),
        }
    }

    /// Features `(N, C)` to logits `(N, classes)`.
    pub(super) fn classify(&self, features: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(exit) => exit.classify(features),
            Self::Candle(fc) => fc.forward(features),
        }
    }
}

/// One image of a batch, in the layout of the batch.
pub(super) fn image_of(x: &Tensor, index: usize) -> Result<Tensor> {
    let batch_dim = if x.rank() == 5 { 1 } else { 0 };
    x.narrow(batch_dim, index, 1)
}

/// An activation in PyTorch's layout `(N, C, H, W)`, whichever one it came in.
pub(super) fn to_nchw(x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [blocks, n, h, w, lanes] => {
            x.permute((1, 0, 4, 2, 3))?
                .contiguous()?
                .reshape((n, blocks * lanes, h, w))
        }
        _ => Ok(x.clone()),
    }
}
