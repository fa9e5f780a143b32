//! Our kernels as candle operations: each layer borrows its packed weights and gives candle's tensors the channel-blocked layout
//! `(C/16, N, H, W, 16)`. It holds no arithmetic and no layout knowledge beyond those five dimensions.

use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, Device, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail,
};

use crate::profile;
use imgclass_kernels::{
    self as kernels, BLOCK, BatchDims, ConvShape, Isa, PackedConv, PackedLinear, PackedStem,
    ThreadPool, global_average_pool,
};

/// What is fused behind a convolution that adds no residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Relu,
}

/// A packed convolution and the threads that run it.
pub(super) struct Conv {
    name: String,
    packed: PackedConv,
    pool: Arc<ThreadPool>,
}

impl Conv {
    pub(super) fn new(
        name: String,
        isa: Isa,
        pool: Arc<ThreadPool>,
        shape: &ConvShape,
        weight: &[f32],
        bias: &[f32],
    ) -> Self {
        Self {
            name,
            packed: PackedConv::new(isa, *shape, weight, bias),
            pool,
        }
    }

    /// While this layer computes, it asks the weights of `next` into the cache. Changes no result.
    pub(super) fn precede(&self, next: &Self) {
        self.packed.precede(next.packed.weights());
    }

    /// [`Conv::precede`] for the network's last layer.
    pub(super) fn precede_exit(&self, next: &Exit) {
        self.packed.precede(next.packed.weights());
    }

    pub(super) fn forward(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Run {
            conv: self,
            relu: then == Then::Relu,
        })
    }

    /// With the residual branch added before the ReLU. The output takes the place of `skip`, which no other tensor may share.
    pub(super) fn forward_add_relu(&self, x: &Tensor, skip: Tensor) -> Result<Tensor> {
        skip.inplace_op2(x, &Onto { conv: self })?;
        Ok(skip)
    }

    /// Runs `layer` and notes its time.
    fn timed<T>(&self, dims: BatchDims, layer: impl FnOnce() -> T) -> T {
        let describe = || {
            let algorithm = self.packed.algorithm().to_string();
            (self.name.clone(), algorithm, self.packed.flops(dims))
        };
        profile::layer(describe, layer)
    }
}

/// One application of a convolution that adds no residual.
struct Run<'a> {
    conv: &'a Conv,
    relu: bool,
}

impl CustomOp1 for Run<'_> {
    fn name(&self) -> &'static str {
        "packed-conv"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Conv { packed, pool, .. } = self.conv;
        let (_, dims) = blocked_dims(layout)?;
        let x = contiguous(x, layout)?;
        let y = self
            .conv
            .timed(dims, || packed.forward(pool, x, dims, None, self.relu));
        let blocks = packed.shape().out_channels.div_ceil(BLOCK);
        let shape = blocked_shape(blocks, packed.output_dims(dims));
        Ok((CpuStorage::F32(y), shape))
    }
}

/// One application of a convolution onto its residual, ReLU after it.
struct Onto<'a> {
    conv: &'a Conv,
}

impl InplaceOp2 for Onto<'_> {
    fn name(&self) -> &'static str {
        "packed-conv-onto"
    }

    fn cpu_fwd(
        &self,
        skip: &mut CpuStorage,
        skip_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let Conv { packed, pool, .. } = self.conv;
        let (_, dims) = blocked_dims(layout)?;
        let x = contiguous(x, layout)?;
        let range = contiguous_range(skip_layout)?;
        let CpuStorage::F32(skip) = skip else {
            bail!(
                "expected a residual of 32-bit floats, found {:?}",
                skip.dtype()
            )
        };
        let out = &mut skip[range];
        self.conv
            .timed(dims, || packed.forward_onto(pool, x, dims, true, out));
        Ok(())
    }
}

/// The packed entry: planar images to pooled, channel-blocked activations.
pub(super) struct Stem {
    packed: PackedStem,
    pool: Arc<ThreadPool>,
}

impl Stem {
    pub(super) fn new(isa: Isa, pool: Arc<ThreadPool>, weight: &[f32], bias: &[f32]) -> Self {
        Self {
            packed: PackedStem::new(isa, weight, bias),
            pool,
        }
    }

    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        images.contiguous()?.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Stem {
    fn name(&self) -> &'static str {
        "packed-stem"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, _, h, w) = layout.shape().dims4()?;
        let images = contiguous(storage, layout)?;
        let dims = BatchDims { n, h, w };
        let describe = || {
            (
                "conv1 and max-pool".to_owned(),
                "stem".to_owned(),
                self.packed.flops(dims),
            )
        };
        let y = profile::layer(describe, || self.packed.forward(&self.pool, images, dims));
        let out = self.packed.output_dims(dims);
        Ok((
            CpuStorage::F32(y),
            blocked_shape(self.packed.out_channels().div_ceil(BLOCK), out),
        ))
    }
}

/// The packed exit: average pool and last layer.
pub(super) struct Exit {
    packed: PackedLinear,
    pool: Arc<ThreadPool>,
    classes: usize,
}

impl Exit {
    pub(super) fn new(
        isa: Isa,
        pool: Arc<ThreadPool>,
        (classes, features): (usize, usize),
        weight: &[f32],
        bias: &[f32],
    ) -> Self {
        let packed = PackedLinear::new(isa, features, weight, bias);
        Self {
            packed,
            pool,
            classes,
        }
    }

    pub(super) fn pool(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&AveragePool { exit: self })
    }

    pub(super) fn classify(&self, features: &Tensor) -> Result<Tensor> {
        features.apply_op1_no_bwd(&Classify { exit: self })
    }
}

struct AveragePool<'a> {
    exit: &'a Exit,
}

impl CustomOp1 for AveragePool<'_> {
    fn name(&self) -> &'static str {
        "packed-average-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (blocks, dims) = blocked_dims(layout)?;
        let channels = blocks * BLOCK;
        let x = contiguous(storage, layout)?;
        let describe = || {
            (
                "average pool".to_owned(),
                "mean".to_owned(),
                (channels * dims.pixels()) as u64,
            )
        };
        let y = profile::layer(describe, || {
            global_average_pool(&self.exit.pool, x, channels, dims)
        });
        Ok((CpuStorage::F32(y), Shape::from((dims.n, channels))))
    }
}

struct Classify<'a> {
    exit: &'a Exit,
}

impl CustomOp1 for Classify<'_> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, _) = layout.shape().dims2()?;
        let x = contiguous(storage, layout)?;
        let describe = || {
            (
                "fc".to_owned(),
                "GEMM".to_owned(),
                self.exit.packed.flops(n),
            )
        };
        let y = profile::layer(describe, || self.exit.packed.forward(&self.exit.pool, x, n));
        Ok((CpuStorage::F32(y), Shape::from((n, self.exit.classes))))
    }
}

/// Activations of some images each as one batch.
pub(super) fn join_images(pool: &ThreadPool, parts: &[Tensor]) -> Result<Tensor> {
    let stored: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
    let (mut slices, mut shape) = (Vec::new(), (0, BatchDims { n: 0, h: 0, w: 0 }));
    for (storage, layout) in &stored {
        let Storage::Cpu(storage) = &**storage else {
            bail!("packed activations lie on the CPU")
        };
        slices.push(contiguous(storage, layout)?);
        let (blocks, dims) = blocked_dims(layout)?;
        let n = shape.1.n + dims.n;
        shape = (blocks, BatchDims { n, ..dims });
    }
    let (blocks, dims) = shape;
    let joined = kernels::join_images(pool, &slices, blocks);
    Tensor::from_vec(joined, blocked_shape(blocks, dims), &Device::Cpu)
}

fn blocked_shape(blocks: usize, dims: BatchDims) -> Shape {
    Shape::from((blocks, dims.n, dims.h, dims.w, BLOCK))
}

fn blocked_dims(layout: &Layout) -> Result<(usize, BatchDims)> {
    match *layout.dims() {
        [blocks, n, h, w, BLOCK] => Ok((blocks, BatchDims { n, h, w })),
        ref other => {
            bail!("expected a channel-blocked activation (C/16, N, H, W, 16), found {other:?}")
        }
    }
}

/// The numbers of a tensor that lies in memory in its own order.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[contiguous_range(layout)?])
}

/// Where those numbers lie in the storage.
fn contiguous_range(layout: &Layout) -> Result<Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "expected a contiguous tensor, found strides {:?}",
            layout.stride()
        )
    };
    Ok(start..end)
}
