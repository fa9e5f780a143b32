//! Memory of the device, and page-locked memory of the host. Both give themselves back.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result as driver, sys};

use super::During;
use crate::driver::DeviceError;

/// Device memory.
pub(super) struct DeviceMemory {
    pub(super) address: sys::CUdeviceptr,
    pub(super) bytes: usize,
    pub(super) context: Arc<CudaContext>,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the address came from `malloc_sync`, and the call waits for work that uses it.
        let _ = unsafe { driver::free_sync(self.address) };
    }
}

/// Page-locked host memory.
pub(super) struct Pinned {
    memory: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is this value's own, and CUDA frees it from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
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

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation has this many bytes, all of them set since `new`.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
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
