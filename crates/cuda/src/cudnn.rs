//! The driver over CUDA and cuDNN.
//!
//! A convolution has two ways:
//!
//! - `cudnnConvolutionBiasActivationForward` with the algorithm `IMPLICIT_PRECOMP_GEMM`: it is the
//!   one of tensor cores in NHWC, and the only one that cuDNN takes without an activation.
//! - A plan of cuDNN's graph interface (`plans.rs`). At warm-up those which cuDNN proposes for a
//!   shape are timed beside the first way, and the fastest of all is kept.

mod descriptors;
mod kernels;
mod memory;
mod plans;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::cudnn::result::{self as cudnn, CudnnError};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result as driver, sys};

use crate::driver::{Buffer, DeviceError, Driver, Engines, Graph, SlotBytes, Tuning};
use crate::op::{Convolution, Op, Place};
use kernels::Kernels;
use memory::{DeviceMemory, Pinned};
use plans::{Plan, Properties, Target};
use state::{Handle, State};

/// Says what was being done when a call failed.
trait During<T> {
    fn during(self, call: &'static str) -> Result<T, DeviceError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, call: &'static str) -> Result<T, DeviceError> {
        self.map_err(|error| failed(call, &error))
    }
}

impl<T> During<T> for Result<T, CudnnError> {
    fn during(self, call: &'static str) -> Result<T, DeviceError> {
        self.map_err(|error| failed(call, &error))
    }
}

fn failed(call: &'static str, reason: &dyn fmt::Display) -> DeviceError {
    DeviceError {
        call,
        reason: reason.to_string(),
    }
}

/// Waits without a lock's poison: the state behind it is valid at every point where one panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs operations on one of NVIDIA's GPUs.
pub struct CudaDriver {
    description: String,
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    upload: Arc<CudaStream>,
    state: Mutex<State>,
    /// A slot is used outside of `state`, so that one pass fills its memory while another runs.
    slots: RwLock<Vec<Mutex<Slot>>>,
}

/// Returns the engines, by cuDNN's numbers, that cuDNN proposes for a convolution on a GPU that need
/// not be here: `properties` describes it in cuDNN's JSON. It shows without a GPU whether cuDNN takes
/// the graphs that this driver makes.
///
/// # Errors
/// cuDNN refuses the properties or the graph.
pub fn engines_for(properties: &str, shape: &Convolution) -> Result<Vec<i64>, DeviceError> {
    let target = Target::Absent(Properties::parse(properties)?);
    let plans = Plan::propose(&target, shape)?;
    Ok(plans.iter().map(|plan| plan.engine).collect())
}

/// The host's side of one pass.
struct Slot {
    upload: Pinned,
    download: Pinned,
    /// How much of `download` the last fetch fills.
    fetched: usize,
    /// When the last upload has ended.
    uploaded: CudaEvent,
    /// When the last download has ended.
    downloaded: CudaEvent,
}

impl CudaDriver {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// There is no such GPU, the driver has no code for it, or cuDNN does not start.
    pub fn new(ordinal: usize, engines: Engines) -> Result<Self, DeviceError> {
        let context = CudaContext::new(ordinal).during("opening the GPU")?;
        // SAFETY: cudarc's events serve its own slices, of which there are none here.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().during("asking the GPU")?;
        let description = format!(
            "{}, compute capability {major}.{minor}, cuDNN {}",
            context.name().during("asking the GPU")?,
            cudnn::get_version()
        );
        let compute = context.new_stream().during("creating a stream")?;
        let upload = context.new_stream().during("creating a stream")?;
        let state = State::new(Handle::new(&compute)?, Kernels::load(&context)?, engines);
        Ok(Self {
            description,
            context,
            compute,
            upload,
            state: Mutex::new(state),
            slots: RwLock::default(),
        })
    }

    /// Binds the context to this thread and takes the state.
    fn state(&self, call: &'static str) -> Result<MutexGuard<'_, State>, DeviceError> {
        self.context.bind_to_thread().during(call)?;
        Ok(locked(&self.state))
    }

    /// Calls `work` with a slot.
    fn with_slot<T>(
        &self,
        slot: usize,
        work: impl FnOnce(&mut Slot) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get(slot) else {
            return Err(failed("choosing a slot", &format!("{slot} is not open")));
        };
        work(&mut locked(slot))
    }
}

impl Driver for CudaDriver {
    fn description(&self) -> &str {
        &self.description
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let call = "allocating device memory";
        let mut state = self.state(call)?;
        // SAFETY: what uses the memory writes it first, or takes any content.
        let address = unsafe { driver::malloc_sync(bytes.max(1)) }.during(call)?;
        state.buffers.push(Some(DeviceMemory {
            address,
            bytes,
            context: self.context.clone(),
        }));
        Ok(Buffer(state.buffers.len() - 1))
    }

    fn free(&self, buffer: Buffer) {
        if let Some(held) = locked(&self.state).buffers.get_mut(buffer.0) {
            *held = None;
        }
    }

    fn write(&self, to: Place, bytes: &[u8]) -> Result<(), DeviceError> {
        let call = "uploading weights";
        let state = self.state(call)?;
        let address = state.address(to, bytes.len(), call)?;
        // SAFETY: the place has room for the bytes, and the call returns when they were read.
        unsafe { driver::memcpy_htod_sync(address, bytes) }.during(call)?;
        // Our streams do not wait for the one that this copy ran on.
        self.context.synchronize().during(call)
    }

    fn workspace_bytes(&self, shape: &Convolution) -> Result<usize, DeviceError> {
        self.state("planning a convolution")?.workspace_bytes(shape)
    }

    fn open_slots(&self, sizes: &[SlotBytes]) -> Result<(), DeviceError> {
        let call = "opening slots";
        self.context.bind_to_thread().during(call)?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.clear();
        for size in sizes {
            slots.push(Mutex::new(Slot {
                upload: Pinned::new(&self.context, size.upload)?,
                download: Pinned::new(&self.context, size.download)?,
                fetched: 0,
                uploaded: self.context.new_event(None).during(call)?,
                downloaded: self.context.new_event(None).during(call)?,
            }));
        }
        Ok(())
    }

    fn send(&self, slot: usize, parts: &[&[u8]], to: Place) -> Result<(), DeviceError> {
        let call = "uploading images";
        let address =
            self.state(call)?
                .address(to, parts.iter().map(|part| part.len()).sum(), call)?;
        self.with_slot(slot, |slot| {
            let mut length = 0;
            let memory = slot.upload.as_mut_slice();
            for part in parts {
                let Some(room) = memory.get_mut(length..length + part.len()) else {
                    return Err(failed(call, &"the slot is too small"));
                };
                room.copy_from_slice(part);
                length += part.len();
            }
            // SAFETY: the place has room for the bytes, and the slot's memory does not change until
            // its pass has finished or was settled.
            unsafe {
                driver::memcpy_htod_async(address, &memory[..length], self.upload.cu_stream())
            }
            .during(call)?;
            slot.uploaded.record(&self.upload).during(call)
        })
    }

    fn join(&self, slot: usize) -> Result<(), DeviceError> {
        let call = "waiting for images";
        self.with_slot(slot, |slot| self.compute.wait(&slot.uploaded).during(call))
    }

    fn run(&self, op: &Op) -> Result<(), DeviceError> {
        self.state(op.places().0)?.run(op, &self.compute)
    }

    fn tune(&self, op: &Op) -> Option<Tuning> {
        let mut state = self.state("timing a convolution").ok()?;
        state.tune(op, &self.compute)
    }

    fn distrust(&self, op: &Op) -> bool {
        locked(&self.state).distrust(op)
    }

    fn capture(&self, ops: &[Op]) -> Result<Graph, DeviceError> {
        let call = "capturing a graph";
        let mut state = self.state(call)?;
        // Other threads go on uploading meanwhile, and libraries may allocate.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.compute.begin_capture(mode).during(call)?;
        let ran = ops.iter().try_for_each(|op| state.run(op, &self.compute));
        // Whatever came of it, the stream has to leave its capture.
        let ended = self.compute.end_capture(sys::CUgraphInstantiate_flags(0));
        ran?;
        match ended.during(call)? {
            Some(graph) => {
                state.graphs.push(Some(graph));
                Ok(Graph(state.graphs.len() - 1))
            }
            None => Err(failed(call, &"nothing was captured")),
        }
    }

    fn replay(&self, graph: Graph) -> Result<(), DeviceError> {
        let call = "launching a graph";
        let state = self.state(call)?;
        match state.graphs.get(graph.0) {
            Some(Some(graph)) => graph.launch().during(call),
            _ => Err(failed(call, &format!("there is no {graph:?}"))),
        }
    }

    fn forget(&self, graph: Graph) {
        if let Some(held) = locked(&self.state).graphs.get_mut(graph.0) {
            *held = None;
        }
    }

    fn fetch(&self, slot: usize, from: &[Place]) -> Result<(), DeviceError> {
        let call = "downloading results";
        let state = self.state(call)?;
        self.with_slot(slot, |slot| {
            let mut length = 0;
            let memory = slot.download.as_mut_slice();
            for place in from {
                let address = state.address(*place, place.bytes, call)?;
                let Some(room) = memory.get_mut(length..length + place.bytes) else {
                    return Err(failed(call, &"the slot is too small"));
                };
                // SAFETY: both sides have room for the bytes, and nobody reads the slot's memory
                // before the event that `finish` waits for.
                unsafe { driver::memcpy_dtoh_async(room, address, self.compute.cu_stream()) }
                    .during(call)?;
                length += place.bytes;
            }
            slot.fetched = length;
            slot.downloaded.record(&self.compute).during(call)
        })
    }

    fn finish(&self, slot: usize) -> Result<Vec<u8>, DeviceError> {
        let call = "waiting for results";
        self.with_slot(slot, |slot| {
            slot.downloaded.synchronize().during(call)?;
            Ok(slot.download.as_slice()[..slot.fetched].to_vec())
        })
    }

    fn settle(&self) {
        let _ = self.upload.synchronize();
        let _ = self.compute.synchronize();
    }
}

impl Drop for CudaDriver {
    /// Waits for what is queued: it uses the memory that is freed next.
    fn drop(&mut self) {
        self.settle();
    }
}
