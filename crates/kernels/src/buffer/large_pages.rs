//! Memory in large pages, for weights.
//!
//! A pass reads all weights of a network once, tens of megabytes. In pages of 4 KB it would have to
//! look up thousands of addresses, more than a processor remembers: on a virtual machine that takes
//! 5 to 8 % of a pass. So weights share *chunks* of some megabytes, which the system is asked to
//! keep in pages of 2 MB. Linux does so where `/sys/kernel/mm/transparent_hugepage/enabled` says
//! `madvise` or `always`. Elsewhere chunks are memory like any other.
//!
//! A chunk is freed with the last buffer in it. Buffers of one network are made one after the other
//! and dropped together, so that little memory waits for others.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ALIGN;

/// The bytes of a large page on x86-64, and on 64-bit Arm with pages of 4 KB.
const LARGE_PAGE: usize = 2 << 20;

/// The fewest bytes of a chunk. Larger ones would hold more memory that waits for the last buffer.
const CHUNK_BYTES: usize = 2 * LARGE_PAGE;

/// The most chunks that are kept in mind for further buffers.
const MOST_OPEN: usize = 16;

/// Some large pages that several buffers share.
#[derive(Debug)]
pub(super) struct Chunk {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a chunk owns its memory, and gives it out in parts that do not overlap. By itself it only
// frees it.
unsafe impl Send for Chunk {}
// SAFETY: a shared chunk gives no access to its memory.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Allocates a chunk of at least `bytes` bytes, which are not initialised.
    fn new(bytes: usize) -> Self {
        let size = bytes.max(CHUNK_BYTES).checked_next_multiple_of(LARGE_PAGE);
        let layout = size.and_then(|size| Layout::from_size_align(size, LARGE_PAGE).ok());
        // Beyond half the address space: no machine holds such weights.
        let layout = layout.unwrap_or_else(|| handle_alloc_error(Layout::new::<u8>()));
        Self {
            start: allocate(layout),
            layout,
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated by this layout in `new`, and no buffer is left in it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// A chunk that has room for more.
struct Open {
    chunk: Weak<Chunk>,
    /// The bytes that buffers have taken, from the chunk's start.
    used: usize,
}

/// The chunks that have room, oldest first.
static OPEN: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// Returns `bytes` bytes, all zero and on a cache line, and the chunk that they belong to.
pub(super) fn take(bytes: usize) -> (NonNull<u8>, Arc<Chunk>) {
    let (at, chunk) = {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|open| open.chunk.strong_count() > 0);
        let found = open.iter_mut().find_map(|open| {
            let chunk = open.chunk.upgrade()?;
            let at = open.used;
            if chunk.layout.size() - at < bytes {
                return None;
            }
            // A line may begin at the chunk's end, where nothing fits any more.
            open.used = (at + bytes)
                .next_multiple_of(ALIGN)
                .min(chunk.layout.size());
            Some((at, chunk))
        });
        found.unwrap_or_else(|| {
            let chunk = Arc::new(Chunk::new(bytes));
            if open.len() == MOST_OPEN {
                open.remove(0);
            }
            open.push(Open {
                chunk: Arc::downgrade(&chunk),
                used: bytes.next_multiple_of(ALIGN).min(chunk.layout.size()),
            });
            (0, chunk)
        })
    };
    // SAFETY: `bytes` bytes from `at` on lie within the chunk, and were given to nobody else, since
    // `used` only grows.
    let start = unsafe {
        let start = chunk.start.add(at);
        start.write_bytes(0, bytes);
        start
    };
    (start, chunk)
}

/// Allocates memory, which is not initialised, and asks the system to keep it in large pages. Where
/// it does not, nothing changes.
///
/// # Panics
/// If the layout is empty.
fn allocate(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0, "an allocation of no bytes");
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc(layout) };
    let Some(start) = NonNull::new(start) else {
        handle_alloc_error(layout)
    };
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        use std::ffi::{c_int, c_void};
        /// `MADV_HUGEPAGE`, from Linux's `mman-common.h`.
        const HUGE_PAGES: c_int = 14;
        unsafe extern "C" {
            fn madvise(start: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        // SAFETY: this is the C library's function by its own signature. The advice changes no
        // content, and the memory is the caller's.
        unsafe { madvise(start.as_ptr().cast(), layout.size(), HUGE_PAGES) };
    }
    start
}
