//! Memory on cache-line boundaries, and the views of it that a job's tasks share.
//!
//! | type | what it is |
//! |---|---|
//! | [`Buffer`] | floats that it owns, always initialised |
//! | [`Source`] | borrowed floats that tasks read, or nothing |
//! | [`Destination`] | borrowed floats of which each task writes a part of its own |
//!
//! The kernels compute addresses by hand, so they take pointers out of these types. The types carry
//! what can be carried for them: the borrow lives as long as they do, and debug builds check every
//! offset against the length.

mod large_pages;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use large_pages::Chunk;

/// The alignment of buffers in bytes: a cache line, and the widest vector. A load of a vector from
/// an aligned line never straddles two lines.
const ALIGN: usize = 64;

/// The fewest bytes of a buffer that shares large pages. Smaller ones are nothing beside a network's
/// weights, and come from the heap.
const SHARED_BYTES: usize = 4 << 10;

/// Floats that start on a cache line. All of them are initialised from the beginning: fresh memory
/// is zero, and for large blocks the system gives zero pages for nothing.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<f32>,
    len: usize,
    /// The chunk that the memory is a part of; `None` if it is an allocation of its own.
    chunk: Option<Arc<Chunk>>,
}

// SAFETY: a buffer owns its memory, or its part of a chunk, and nothing else refers to it, as with
// `Vec<f32>`.
unsafe impl Send for Buffer {}
// SAFETY: through a shared reference a buffer can only be read.
unsafe impl Sync for Buffer {}

impl Default for Buffer {
    /// A buffer without any floats, which owns no memory.
    fn default() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            chunk: None,
        }
    }
}

impl Buffer {
    /// Allocates `len` floats, all zero.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let layout = Self::layout(len);
        // SAFETY: `len` is not zero, so the layout is not empty. Zero bytes are the float zero, so
        // all `len` floats are initialised.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start: start.cast(),
            len,
            chunk: None,
        }
    }

    /// Allocates `len` floats, all zero, that share large pages with other buffers of this kind. It
    /// is for what lives long.
    ///
    /// Under Miri and with `--cfg unshared_weights` they share nothing, so that a checker sees
    /// accesses outside of them.
    pub(crate) fn in_large_pages(len: usize) -> Self {
        let bytes = Self::layout(len).size();
        if bytes < SHARED_BYTES || cfg!(any(miri, unshared_weights)) {
            return Self::zeroed(len);
        }
        let (start, chunk) = large_pages::take(bytes);
        Self {
            start: start.cast(),
            len,
            chunk: Some(chunk),
        }
    }

    /// Returns at least `len` floats of any content. What the buffer held before is lost if it had
    /// to grow.
    pub(crate) fn grow(&mut self, len: usize) -> &mut [f32] {
        if len > self.len {
            // The old memory goes first, so that both never count at the same time.
            *self = Self::default();
            *self = Self::zeroed(len);
        }
        self.as_mut_slice()
    }

    /// Returns all floats.
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: `start` is valid for `len` floats, which `zeroed` has initialised; for a buffer
        // without memory it is dangling and aligned, as an empty slice wants it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Returns all floats, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`, and the exclusive borrow of the buffer is one of its memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Returns how many floats there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The layout of `len` floats on a cache line.
    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<f32>(len).and_then(|layout| layout.align_to(ALIGN));
        // Beyond half the address space: no machine holds the input that would ask for it.
        layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<f32>()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 && self.chunk.is_none() {
            // SAFETY: a buffer with floats and without a chunk got its memory in `zeroed` by this
            // layout, and owns it.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

/// Where the tasks of a job write. Copies of it go to threads whose tasks write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    start: *mut f32,
    len: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is the right to write borrowed floats, which may move to another thread. That two
// threads never write the same float is the contract of whoever writes through `at`.
unsafe impl Send for Destination<'_> {}
// SAFETY: a shared reference gives no more than a copy does, see `Send`.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    /// Borrows `out` for a job.
    pub(crate) fn new(out: &'a mut [f32]) -> Self {
        Self {
            start: out.as_mut_ptr(),
            len: out.len(),
            memory: PhantomData,
        }
    }

    /// Returns the address of float `offset`, which is at most the length.
    ///
    /// The address itself is harmless. Whoever writes there must stay within the borrowed floats,
    /// and must be the only task that writes those floats.
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        debug_assert!(
            offset <= self.len,
            "float {offset} of an output of {} floats",
            self.len
        );
        self.start.wrapping_add(offset)
    }

    /// Returns the same floats as something to read: a residual that the output takes the place of.
    pub(crate) fn as_source(self) -> Source<'a> {
        Source {
            start: self.start,
            len: self.len,
            memory: PhantomData,
        }
    }

    /// Returns floats `from..from + len` of these.
    ///
    /// # Panics
    /// If they are not all within these.
    pub(crate) fn part(self, from: usize, len: usize) -> Self {
        assert!(
            from <= self.len && len <= self.len - from,
            "floats {from} to {from} + {len} of {} floats",
            self.len
        );
        Self {
            start: self.start.wrapping_add(from),
            len,
            memory: PhantomData,
        }
    }
}

/// What the tasks of a job read: borrowed floats, or nothing.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Null where there is nothing.
    start: *const f32,
    len: usize,
    memory: PhantomData<&'a [f32]>,
}

// SAFETY: it is the right to read borrowed floats, which may move to another thread. A source made
// by `Destination::as_source` is written too, and then only by the task that reads the same floats.
unsafe impl Send for Source<'_> {}
// SAFETY: a shared reference gives no more than a copy does, see `Send`.
unsafe impl Sync for Source<'_> {}

impl<'a> Source<'a> {
    /// Nothing to read: [`Source::at`] is null.
    pub(crate) const NOTHING: Self = Self {
        start: std::ptr::null(),
        len: 0,
        memory: PhantomData,
    };

    /// Borrows `values` for a job.
    pub(crate) fn new(values: &'a [f32]) -> Self {
        Self {
            start: values.as_ptr(),
            len: values.len(),
            memory: PhantomData,
        }
    }

    /// Borrows the numbers of a buffer for a job, or nothing.
    pub(crate) fn optional(buffer: Option<&'a Buffer>) -> Self {
        buffer.map_or(Self::NOTHING, |buffer| Self::new(buffer.as_slice()))
    }

    /// Returns the address of float `offset`, which is at most the length; null where there is
    /// nothing.
    ///
    /// The address itself is harmless. Whoever reads there must stay within the borrowed floats.
    pub(crate) fn at(self, offset: usize) -> *const f32 {
        if self.start.is_null() {
            return self.start;
        }
        debug_assert!(
            offset <= self.len,
            "float {offset} of an input of {} floats",
            self.len
        );
        self.start.wrapping_add(offset)
    }
}
