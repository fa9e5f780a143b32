//! What runs operations: buffers and graphs by their numbers, cuDNN's handle, and our kernels.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cudnn::{result as cudnn, sys as cudnn_sys};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};

use super::descriptors::Descriptors;
use super::kernels::{Kernels, launch};
use super::memory::DeviceMemory;
use super::{During, failed};
use crate::driver::DeviceError;
use crate::op::{Convolution, Half, Op, Place, max_pool_size};

pub(super) const ALGORITHM: cudnn_sys::cudnnConvolutionFwdAlgo_t =
    cudnn_sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;

/// What must not be used by two threads at one time. It is dropped in this order.
pub(super) struct State {
    /// Graphs by [`Graph`]'s number.
    pub(super) graphs: Vec<Option<CudaGraph>>,
    /// Allocations by [`Buffer`]'s number. A freed one is `None`.
    pub(super) buffers: Vec<Option<DeviceMemory>>,
    pub(super) cudnn: Handle,
    pub(super) kernels: Kernels,
}

// SAFETY: CUDA's handles may be used by any thread that the context is bound to, which every method
// does, but not by two at one time, which the mutex around this prevents.
unsafe impl Send for State {}

/// A handle of cuDNN's.
pub(super) struct Handle {
    pub(super) handle: cudnn_sys::cudnnHandle_t,
    context: Arc<CudaContext>,
}

impl Handle {
    /// Starts cuDNN for work on a stream, which must live longer than the handle is used.
    pub(super) fn new(stream: &CudaStream) -> Result<Self, DeviceError> {
        let made = Self {
            handle: cudnn::create_handle().during("starting cuDNN")?,
            context: stream.context().clone(),
        };
        // SAFETY: handle and stream are valid.
        unsafe { cudnn::set_stream(made.handle, stream.cu_stream() as *mut _) }
            .during("starting cuDNN")?;
        Ok(made)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the handle was created with this value and is destroyed once.
        let _ = unsafe { cudnn::destroy_handle(self.handle) };
    }
}

impl State {
    /// Returns the address of a place of at least `bytes` bytes.
    pub(super) fn address(
        &self,
        place: Place,
        bytes: usize,
        call: &'static str,
    ) -> Result<sys::CUdeviceptr, DeviceError> {
        let held = self.buffers.get(place.buffer.0).and_then(Option::as_ref);
        let ends = place.offset.checked_add(place.bytes);
        match (held, ends) {
            (Some(held), Some(end)) if end <= held.bytes && bytes <= place.bytes => {
                Ok(held.address + place.offset as sys::CUdeviceptr)
            }
            _ => Err(failed(
                call,
                &format!("{bytes} bytes do not fit into {place:?}"),
            )),
        }
    }

    /// Queues an operation.
    pub(super) fn run(&self, op: &Op, stream: &CudaStream) -> Result<(), DeviceError> {
        let (call, places) = op.places();
        for (place, bytes) in places {
            self.address(place, bytes, call)?;
        }
        // The places have been checked.
        let at = |place: Place| self.address(place, 0, call);
        let launch = |kernel, count, arguments: &mut [u64]| {
            // SAFETY: each arm passes what its kernel takes, with addresses of places that
            // `address` has checked, and kernels stay within the sizes that the places were checked
            // for.
            unsafe { launch(kernel, count, arguments, stream, call) }
        };
        let kernels = &self.kernels;
        match *op {
            Op::Pixels {
                from,
                to,
                pixels,
                half,
                normalisation,
            } => {
                let number = |x: f32| u64::from(x.to_bits());
                let [f0, f1, f2] = normalisation.factor.map(number);
                let [a0, a1, a2] = normalisation.addend.map(number);
                let reversed = u64::from(normalisation.reversed);
                let mut arguments = vec![at(from)?, at(to)?, pixels as u64];
                arguments.extend([f0, f1, f2, a0, a1, a2, reversed, is_bf16(half)]);
                launch(kernels.pixels, pixels, &mut arguments)
            }
            Op::Planes {
                from,
                to,
                images,
                area,
                half,
            } => {
                let count = images * area;
                launch(
                    kernels.planes,
                    count,
                    &mut [at(from)?, at(to)?, count as u64, area as u64, is_bf16(half)],
                )
            }
            Op::Convolution {
                shape,
                x,
                weights,
                bias,
                z,
                y,
                workspace,
            } => {
                let z = z.map(at).transpose()?;
                let places = [at(x)?, at(weights)?, at(bias)?, z.unwrap_or(at(y)?), at(y)?];
                self.convolve(&shape, places, (at(workspace)?, workspace.bytes), call)
            }
            Op::MaxPool {
                from,
                to,
                batch,
                size: (height, width),
                channels,
            } => {
                let (out_height, out_width) = max_pool_size((height, width));
                let groups = channels / Half::CHANNELS;
                let count = batch * out_height * out_width * groups;
                let sizes = [count, height, width, groups, out_height, out_width];
                let mut arguments = vec![at(from)?, at(to)?];
                arguments.extend(sizes.map(|size| size as u64));
                launch(kernels.max_pool, count, &mut arguments)
            }
            Op::AveragePool {
                from,
                to,
                batch,
                area,
                channels,
                half,
            } => {
                let count = batch * channels;
                launch(
                    kernels.average_pool,
                    count,
                    &mut [
                        at(from)?,
                        at(to)?,
                        count as u64,
                        area as u64,
                        channels as u64,
                        is_bf16(half),
                    ],
                )
            }
            Op::Linear {
                from,
                weights,
                bias,
                partial,
                to,
                batch,
                inputs,
                outputs,
                slices,
            } => {
                let count = slices * batch.div_ceil(4) * outputs;
                let mut arguments = vec![at(from)?, at(weights)?, at(partial)?];
                let sizes = [count, batch, inputs, outputs, slices];
                arguments.extend(sizes.map(|size| size as u64));
                launch(kernels.linear_partial, count, &mut arguments)?;
                let count = batch * outputs;
                let mut arguments = vec![at(partial)?, at(bias)?, at(to)?];
                arguments.extend([count, outputs, slices].map(|size| size as u64));
                launch(kernels.linear_sum, count, &mut arguments)
            }
        }
    }

    /// Queues a convolution on the handle's stream. `places` are the addresses of x, weights, bias,
    /// z and y.
    fn convolve(
        &self,
        shape: &Convolution,
        [x, weights, bias, z, y]: [sys::CUdeviceptr; 5],
        workspace: (sys::CUdeviceptr, usize),
        call: &'static str,
    ) -> Result<(), DeviceError> {
        let descriptors = Descriptors::new(shape)?;
        let one = 1f32;
        let residual = f32::from(u8::from(shape.residual));
        // SAFETY: the handle and the descriptors are valid. The addresses are of places that hold
        // what the descriptors say, as `Op::places` was checked, and cuDNN stays within the
        // workspace's size. With half precision the two factors are float32.
        unsafe {
            cudnn::convolution_bias_activation_forward(
                self.cudnn.handle,
                ptr::from_ref(&one).cast(),
                descriptors.x.0,
                x as *const c_void,
                descriptors.filter.0,
                weights as *const c_void,
                descriptors.convolution.0,
                ALGORITHM,
                workspace.0 as *mut c_void,
                workspace.1,
                ptr::from_ref(&residual).cast(),
                descriptors.y.0,
                z as *const c_void,
                descriptors.bias.0,
                bias as *const c_void,
                descriptors.activation.0,
                descriptors.y.0,
                y as *mut c_void,
            )
        }
        .during(call)
    }
}

/// Returns what the kernels' parameter `bf16` is for a type.
fn is_bf16(half: Half) -> u64 {
    u64::from(half == Half::BF16)
}
