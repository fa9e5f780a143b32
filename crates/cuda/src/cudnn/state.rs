//! What runs operations: buffers and graphs by their numbers, cuDNN's handle, and our kernels.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cudnn::{result as cudnn, sys as cudnn_sys};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};

use super::descriptors::Descriptors;
use super::kernels::{Kernels, launch};
use super::memory::DeviceMemory;
use super::plans::{Addresses, Plan, Target};
use super::{During, failed};
use crate::driver::{DeviceError, Engines, Tuning};
use crate::op::{Convolution, Half, Op, Place, max_pool_size};

pub(super) const ALGORITHM: cudnn_sys::cudnnConvolutionFwdAlgo_t =
    cudnn_sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;

/// How many times a way of computing a convolution is timed, after it has run once.
const TIMED_RUNS: usize = 3;

/// What is known of how a convolution is computed best.
enum Choice {
    /// cuDNN has proposed plans. None was timed yet, and [`ALGORITHM`] computes.
    Proposed(Vec<Plan>),
    /// The fastest: a plan, or [`ALGORITHM`].
    Timed(Option<Plan>),
}

/// What must not be used by two threads at one time. It is dropped in this order.
pub(super) struct State {
    /// Graphs by [`Graph`](crate::Graph)'s number.
    pub(super) graphs: Vec<Option<CudaGraph>>,
    /// How each convolution is computed; [`ALGORITHM`] computes what is not here.
    choices: HashMap<Convolution, Choice>,
    engines: Engines,
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
    pub(super) fn new(cudnn: Handle, kernels: Kernels, engines: Engines) -> Self {
        Self {
            graphs: Vec::new(),
            choices: HashMap::new(),
            engines,
            buffers: Vec::new(),
            cudnn,
            kernels,
        }
    }

    /// Returns how many bytes of workspace a convolution wants, and asks cuDNN for plans if it was
    /// not asked before.
    pub(super) fn workspace_bytes(&mut self, shape: &Convolution) -> Result<usize, DeviceError> {
        let descriptors = Descriptors::new(shape)?;
        // SAFETY: the handle and the descriptors are valid.
        let fixed = unsafe {
            cudnn::get_convolution_forward_workspace_size(
                self.cudnn.handle,
                descriptors.x.0,
                descriptors.filter.0,
                descriptors.convolution.0,
                descriptors.y.0,
                ALGORITHM,
            )
        }
        .during("planning a convolution")?;
        if self.engines == Engines::Fixed {
            return Ok(fixed);
        }
        let target = Target::Handle(self.cudnn.handle);
        let choice = self.choices.entry(*shape).or_insert_with(|| {
            // What cuDNN does not plan, the algorithm computes.
            Choice::Proposed(Plan::propose(&target, shape).unwrap_or_default())
        });
        let plans = match choice {
            Choice::Proposed(plans) => plans.as_slice(),
            Choice::Timed(plan) => plan.as_slice(),
        };
        let most = plans.iter().map(|plan| plan.workspace).max();
        Ok(fixed.max(most.unwrap_or(0)))
    }

    /// Times the ways to compute an operation and keeps the fastest. Returns nothing for what has
    /// one way, or was timed before.
    pub(super) fn tune(&mut self, op: &Op, stream: &CudaStream) -> Option<Tuning> {
        let Op::Convolution {
            shape, workspace, ..
        } = op
        else {
            return None;
        };
        let plans = match self.choices.get_mut(shape)? {
            Choice::Proposed(plans) => std::mem::take(plans),
            Choice::Timed(_) => return None,
        };
        let timed = |state: &Self, plan: Option<&Plan>| state.time(op, plan, stream).ok();
        // A way that fails is not taken. If all of them do, running the operation says why.
        let fixed = timed(self, None);
        let mut fastest = (fixed.unwrap_or(f32::INFINITY), None);
        let tried = plans.len();
        for plan in plans {
            if plan.workspace > workspace.bytes {
                continue;
            }
            if let Some(milliseconds) = timed(self, Some(&plan))
                && milliseconds < fastest.0
            {
                fastest = (milliseconds, Some(plan));
            }
        }
        let (milliseconds, plan) = fastest;
        let engine = plan.as_ref().map(|plan| plan.engine);
        self.choices.insert(*shape, Choice::Timed(plan));
        Some(Tuning {
            tried,
            engine,
            milliseconds,
            fixed_milliseconds: fixed,
        })
    }

    /// Takes a choice back. Returns whether a plan computed the operation.
    pub(super) fn distrust(&mut self, op: &Op) -> bool {
        let Op::Convolution { shape, .. } = op else {
            return false;
        };
        let before = self.choices.insert(*shape, Choice::Timed(None));
        matches!(before, Some(Choice::Timed(Some(_))))
    }

    /// Returns how long a convolution takes by a plan, or by [`ALGORITHM`].
    fn time(&self, op: &Op, plan: Option<&Plan>, stream: &CudaStream) -> Result<f32, DeviceError> {
        let call = "timing a convolution";
        let run = || self.run_with(op, plan, stream);
        // The first time, code is loaded.
        run()?;
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            stream.record_event(Some(flags)).during(call)
        };
        let begin = event()?;
        for _ in 0..TIMED_RUNS {
            run()?;
        }
        let end = event()?;
        let all = begin.elapsed_ms(&end).during(call)?;
        Ok(all / TIMED_RUNS as f32)
    }

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

    /// Queues an operation, a convolution in the way that was chosen for it. A plan that fails is
    /// given up for [`ALGORITHM`].
    pub(super) fn run(&mut self, op: &Op, stream: &CudaStream) -> Result<(), DeviceError> {
        let shape = match op {
            Op::Convolution { shape, .. } => Some(shape),
            _ => None,
        };
        if let Some(shape) = shape
            && let Some(Choice::Timed(plan @ Some(_))) = self.choices.get(shape)
        {
            if self.run_with(op, plan.as_ref(), stream).is_ok() {
                return Ok(());
            }
            self.choices.insert(*shape, Choice::Timed(None));
        }
        self.run_with(op, None, stream)
    }

    /// Queues an operation, a convolution by a plan or by [`ALGORITHM`].
    fn run_with(
        &self,
        op: &Op,
        plan: Option<&Plan>,
        stream: &CudaStream,
    ) -> Result<(), DeviceError> {
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
                let tensors = Addresses {
                    x: at(x)?,
                    weights: at(weights)?,
                    bias: at(bias)?,
                    z: z.map(at).transpose()?,
                    y: at(y)?,
                };
                if shape.residual != tensors.z.is_some() {
                    return Err(failed(
                        call,
                        &"z is there without a residual, or the reverse",
                    ));
                }
                let (address, bytes) = (at(workspace)?, workspace.bytes);
                match plan {
                    Some(plan) if plan.workspace > bytes => {
                        Err(failed(call, &"the workspace is too small"))
                    }
                    // SAFETY: the handle is used under the mutex around this state. The places were
                    // checked for the shapes, z for whether it is there, and the workspace for its
                    // size.
                    Some(plan) => unsafe { plan.execute(self.cudnn.handle, &tensors, address) },
                    None => self.convolve(&shape, &tensors, (address, bytes), call),
                }
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

    /// Queues a convolution by [`ALGORITHM`] on the handle's stream.
    fn convolve(
        &self,
        shape: &Convolution,
        tensors: &Addresses,
        workspace: (sys::CUdeviceptr, usize),
        call: &'static str,
    ) -> Result<(), DeviceError> {
        let descriptors = Descriptors::new(shape)?;
        let Addresses {
            x,
            weights,
            bias,
            z,
            y,
        } = *tensors;
        // Without a residual z counts for nothing, but has to be there.
        let z = z.unwrap_or(y);
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
