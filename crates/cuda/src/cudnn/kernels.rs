//! Our own kernels (`kernels.cu`): loading their code and queueing one of them.

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result as driver, sys};

use super::{During, failed};
use crate::driver::DeviceError;

/// The code of `kernels.cu`, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// The threads of one block of our kernels.
const BLOCK: u32 = 256;

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
pub(super) struct Kernels {
    /// Holds the functions' code.
    _module: Module,
    pub(super) pixels: sys::CUfunction,
    pub(super) planes: sys::CUfunction,
    pub(super) max_pool: sys::CUfunction,
    pub(super) average_pool: sys::CUfunction,
    pub(super) linear_partial: sys::CUfunction,
    pub(super) linear_sum: sys::CUfunction,
}

impl Kernels {
    /// Loads the code of our kernels.
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Self, DeviceError> {
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

/// Queues one of our kernels with a thread for each of `count` results. Each argument is in the
/// lower bytes of its number.
///
/// # Safety
/// - `kernel` is one of [`Kernels`], whose code is still loaded, and `arguments` are what it takes.
/// - Each address among them is of memory that spans what the kernel reads or writes there for
///   `count` results, until the stream has come past it.
pub(super) unsafe fn launch(
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
    // SAFETY: the caller vouches for the kernel, its arguments and their addresses. Each pointer is to
    // a number that lives until the call returns, and the call has copied them by then.
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
