//! The driver over CUDA and cuDNN.
//!
//! Convolutions run by `cudnnConvolutionBiasActivationForward`. Their algorithm is
//! `IMPLICIT_PRECOMP_GEMM`: it is the one of tensor cores in NHWC, and the only one that cuDNN takes
//! without an activation.

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::cudnn::{result as cudnn, result::CudnnError, sys as cudnn_sys};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result as driver, sys,
};

use crate::driver::{Buffer, DeviceError, Driver, Graph, SlotBytes};
use crate::op::{Convolution, Half, Op, Place, Tensor4, max_pool_size};

/// The code of `kernels.cu`, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// The threads of one block of our kernels.
const BLOCK: u32 = 256;

const ALGORITHM: cudnn_sys::cudnnConvolutionFwdAlgo_t =
    cudnn_sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;

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

/// What must not be used by two threads at one time. It is dropped in this order.
struct State {
    /// Graphs by [`Graph`]'s number.
    graphs: Vec<Option<CudaGraph>>,
    /// Allocations by [`Buffer`]'s number. A freed one is `None`.
    buffers: Vec<Option<DeviceMemory>>,
    cudnn: Handle,
    kernels: Kernels,
}

// SAFETY: CUDA's handles may be used by any thread that the context is bound to, which every method
// does, but not by two at one time, which the mutex around this prevents.
unsafe impl Send for State {}

/// Device memory.
struct DeviceMemory {
    address: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the address came from `malloc_sync`, and the call waits for work that uses it.
        let _ = unsafe { driver::free_sync(self.address) };
    }
}

/// A handle of cuDNN's.
struct Handle {
    handle: cudnn_sys::cudnnHandle_t,
    context: Arc<CudaContext>,
}

impl Handle {
    /// Starts cuDNN for work on a stream, which must live longer than the handle is used.
    fn new(stream: &CudaStream) -> Result<Self, DeviceError> {
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

/// The code of `kernels.cu` on the device.
struct Module {
    module: sys::CUmodule,
    context: Arc<CudaContext>,
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the module was loaded with this value and is unloaded once.
        let _ = unsafe { driver::module::unload(self.module) };
    }
}

/// The functions of `kernels.cu`.
struct Kernels {
    /// Holds the functions' code.
    _module: Module,
    pixels: sys::CUfunction,
    planes: sys::CUfunction,
    max_pool: sys::CUfunction,
    average_pool: sys::CUfunction,
    linear_partial: sys::CUfunction,
    linear_sum: sys::CUfunction,
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

/// Page-locked host memory.
struct Pinned {
    memory: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is this value's own, and CUDA frees it from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
        let bytes = bytes.max(1);
        // SAFETY: the memory is set below before anybody reads it.
        let memory = unsafe { driver::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let memory = memory.during("allocating page-locked memory")?.cast::<u8>();
        // SAFETY: the allocation has this many bytes.
        unsafe { ptr::write_bytes(memory, 0, bytes) };
        Ok(Self {
            memory,
            bytes,
            context: context.clone(),
        })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation has this many bytes, all of them set since `new`.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the slice borrows the only owner.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the memory came from `malloc_host` and goes back once. Its slot was settled.
        let _ = unsafe { driver::free_host(self.memory.cast()) };
    }
}

impl CudaDriver {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// There is no such GPU, the driver has no code for it, or cuDNN does not start.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
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
        let state = State {
            graphs: Vec::new(),
            buffers: Vec::new(),
            cudnn: Handle::new(&compute)?,
            kernels: Kernels::load(&context)?,
        };
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

impl Kernels {
    fn load(context: &Arc<CudaContext>) -> Result<Self, DeviceError> {
        let call = "loading our kernels";
        let image = CString::new(PTX).map_err(|error| failed(call, &error))?;
        let module = Module {
            // SAFETY: the image is a string of PTX with a zero at its end.
            module: unsafe { driver::module::load_data(image.as_ptr().cast()) }.during(call)?,
            context: context.clone(),
        };
        let function = |name: &str| {
            let name = CString::new(name).map_err(|error| failed(call, &error))?;
            // SAFETY: the module is loaded.
            unsafe { driver::module::get_function(module.module, name) }.during(call)
        };
        Ok(Self {
            pixels: function("imgclass_pixels")?,
            planes: function("imgclass_planes")?,
            max_pool: function("imgclass_max_pool")?,
            average_pool: function("imgclass_average_pool")?,
            linear_partial: function("imgclass_linear_partial")?,
            linear_sum: function("imgclass_linear_sum")?,
            _module: module,
        })
    }
}

impl State {
    /// Returns the address of a place of at least `bytes` bytes.
    fn address(
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

    /// Queues one of our kernels with a thread for each of `count` results. Each argument is in the
    /// lower bytes of its number.
    fn launch(
        &self,
        kernel: sys::CUfunction,
        count: usize,
        arguments: &mut [u64],
        stream: &CudaStream,
        call: &'static str,
    ) -> Result<(), DeviceError> {
        let count = u32::try_from(count).map_err(|_| failed(call, &"the batch is too large"))?;
        let grid = (count.div_ceil(BLOCK).max(1), 1, 1);
        let mut pointers: Vec<*mut c_void> = arguments
            .iter_mut()
            .map(|argument| ptr::from_mut(argument).cast())
            .collect();
        // SAFETY: the callers pass what the kernel takes, with addresses of places that `address`
        // has checked, and kernels stay within the sizes that the places were checked for.
        unsafe {
            driver::launch_kernel(
                kernel,
                grid,
                (BLOCK, 1, 1),
                0,
                stream.cu_stream(),
                &mut pointers,
            )
        }
        .during(call)
    }

    fn run(&self, op: &Op, stream: &CudaStream) -> Result<(), DeviceError> {
        let (call, places) = op.places();
        for (place, bytes) in places {
            self.address(place, bytes, call)?;
        }
        // The places have been checked.
        let at = |place: Place| self.address(place, 0, call);
        let launch = |kernel, count, arguments: &mut [u64]| {
            self.launch(kernel, count, arguments, stream, call)
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

/// A descriptor of cuDNN's that destroys itself.
struct TensorDescriptor(cudnn_sys::cudnnTensorDescriptor_t);
struct FilterDescriptor(cudnn_sys::cudnnFilterDescriptor_t);
struct ConvolutionDescriptor(cudnn_sys::cudnnConvolutionDescriptor_t);
struct ActivationDescriptor(cudnn_sys::cudnnActivationDescriptor_t);

impl Drop for TensorDescriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created with this value and is destroyed once; likewise below.
        let _ = unsafe { cudnn::destroy_tensor_descriptor(self.0) };
    }
}

impl Drop for FilterDescriptor {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { cudnn::destroy_filter_descriptor(self.0) };
    }
}

impl Drop for ConvolutionDescriptor {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { cudnn::destroy_convolution_descriptor(self.0) };
    }
}

impl Drop for ActivationDescriptor {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { cudnn_sys::cudnnDestroyActivationDescriptor(self.0) };
    }
}

/// Everything that cuDNN is told of one convolution.
struct Descriptors {
    x: TensorDescriptor,
    filter: FilterDescriptor,
    bias: TensorDescriptor,
    y: TensorDescriptor,
    convolution: ConvolutionDescriptor,
    activation: ActivationDescriptor,
}

impl Descriptors {
    fn new(shape: &Convolution) -> Result<Self, DeviceError> {
        let call = "describing a convolution";
        let half = match shape.half {
            Half::F16 => cudnn_sys::cudnnDataType_t::CUDNN_DATA_HALF,
            Half::BF16 => cudnn_sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let tensor = |tensor: Tensor4| -> Result<TensorDescriptor, DeviceError> {
            let descriptor = TensorDescriptor(cudnn::create_tensor_descriptor().during(call)?);
            let (dims, strides) = (integers(tensor.dims)?, integers(tensor.strides)?);
            // SAFETY: the descriptor is valid; likewise below.
            unsafe { cudnn::set_tensor4d_descriptor_ex(descriptor.0, half, dims, strides) }
                .during(call)?;
            Ok(descriptor)
        };
        let filter = FilterDescriptor(cudnn::create_filter_descriptor().during(call)?);
        // In this format cuDNN still takes the sizes in the order K, C, R, S.
        let format = cudnn_sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let dims = integers(shape.filter().dims)?;
        // SAFETY: as above.
        unsafe { cudnn::set_filter4d_descriptor(filter.0, half, format, dims) }.during(call)?;

        let convolution =
            ConvolutionDescriptor(cudnn::create_convolution_descriptor().during(call)?);
        let [padding, stride] = integers([shape.padding, shape.stride])?;
        // SAFETY: as above.
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
        // SAFETY: as above.
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
        let call = "planning a convolution";
        let state = self.state(call)?;
        let descriptors = Descriptors::new(shape)?;
        // SAFETY: the handle and the descriptors are valid.
        unsafe {
            cudnn::get_convolution_forward_workspace_size(
                state.cudnn.handle,
                descriptors.x.0,
                descriptors.filter.0,
                descriptors.convolution.0,
                descriptors.y.0,
                ALGORITHM,
            )
        }
        .during(call)
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
