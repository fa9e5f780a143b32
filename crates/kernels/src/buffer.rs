//! Memory on cache-line boundaries, and outputs that are written before they are read. It never hands out memory without
//! saying whether it holds anything.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A cache line; also the widest vector.
const ALIGN: usize = 64;

/// Floats that start on a cache line, so that no vector load straddles two.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: it owns its memory, as `Vec<f32>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
        }
    }
}

impl Buffer {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::default();
        let start = buffer.grow(len);
        // SAFETY: `grow` made room for `len` floats; zero bytes are the float zero.
        unsafe { start.write_bytes(0, len) };
        buffer
    }

    /// Makes room for `len` floats, dropping the content if it has to move.
    pub(crate) fn grow(&mut self, len: usize) -> *mut f32 {
        if len > self.len {
            *self = Self::default();
            let layout = Self::layout(len);
            // SAFETY: `len > 0` here, so the layout is not empty.
            let start = unsafe { alloc(layout) };
            let Some(start) = NonNull::new(start) else {
                handle_alloc_error(layout)
            };
            self.start = start.cast();
            self.len = len;
        }
        self.start.as_ptr()
    }

    /// The floats; only for buffers from [`Self::zeroed`].
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: that constructor initialises all `len` floats.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<f32>(len).and_then(|layout| layout.align_to(ALIGN));
        // Beyond half the address space: no machine holds the input that would ask for it.
        layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<f32>()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `grow` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

/// A `Vec` of `len` floats that `fill` writes completely, so that nothing is zeroed first.
///
/// # Safety
/// - `fill` initialises every element of its slice, or does not return.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    fill(&mut out.spare_capacity_mut()[..len]);
    // SAFETY: the capacity holds `len`, and `fill` has written them.
    unsafe { out.set_len(len) };
    out
}

/// `out` as memory to be overwritten.
pub(crate) fn overwritten(out: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layouts are the same; the kernels only ever write numbers through it, so `out` stays initialised.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) }
}

/// Where a job's tasks write: shared by threads whose tasks write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Destination(*mut f32);

// SAFETY: every user writes disjoint parts from different tasks, as `at` demands.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    /// The memory from `start` on.
    pub(crate) fn new(start: *mut f32) -> Self {
        Self(start)
    }

    /// The memory of `out`.
    pub(crate) fn of(out: &mut [MaybeUninit<f32>]) -> Self {
        Self(out.as_mut_ptr().cast())
    }

    /// The address `offset` floats on. Writing there is the caller's duty to keep inside, and apart from other tasks.
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// What a job's tasks read by raw pointer.
#[derive(Clone, Copy)]
pub(crate) struct Source(*const f32);

// SAFETY: it is only read from, while no task writes there.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// The memory from `start` on.
    pub(crate) fn new(start: *const f32) -> Self {
        Self(start)
    }

    /// The address `offset` floats on; null stays null.
    pub(crate) fn at(self, offset: usize) -> *const f32 {
        if self.0.is_null() {
            self.0
        } else {
            self.0.wrapping_add(offset)
        }
    }
}
