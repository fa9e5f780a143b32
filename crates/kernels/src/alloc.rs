//! A global allocator for programs that run the kernels. Large blocks start on cache lines, and are
//! kept for the next layer instead of going back to the system. Small blocks are the system
//! allocator's.
//!
//! Every layer of every forward pass frees one large activation and asks for another. Given back to
//! the system each time, their pages are mapped, zeroed and faulted in again: 8 % of a forward pass
//! at batch 1, 13 % at batch 8.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// From this size on, in bytes, a block is large. The system allocator keeps smaller ones well, and
/// few vectors lie in them.
const LARGE: usize = 64 << 10;

/// The most bytes that are kept, until [`LargeBlocks::keep_for`] allows more.
const KEPT_BYTES: usize = 64 << 20;

/// How many bytes a forward pass is counted with. It leaves 40 MB for a batch of eight, 34 MB for
/// four, 13 MB for one.
const PASS_BYTES: usize = 34 << 20;

/// The most blocks that are kept. A forward pass uses about a dozen sizes.
const KEPT_BLOCKS: usize = 512;

/// The alignment of large blocks in bytes: a cache line, and the widest vector. A load of a vector
/// from an aligned line never straddles two lines.
const ALIGN: usize = 64;

/// How many classes of sizes there are between a power of two and the next. Sizes are rounded up to
/// the next class, so that blocks fit again. Pages that are never touched take address space only.
const CLASSES: usize = 8;

/// The allocator. A program selects it by
/// `#[global_allocator] static ALLOCATOR: LargeBlocks = LargeBlocks;`.
#[derive(Debug, Clone, Copy)]
pub struct LargeBlocks;

/// A free block that is kept.
#[derive(Clone, Copy)]
struct Block {
    address: usize,
    size: usize,
    /// When it was freed, by `Kept::clock`: the smallest number is the oldest block.
    freed: u64,
}

struct Kept {
    /// The kept blocks are the first `count` of these.
    blocks: [Block; KEPT_BLOCKS],
    count: usize,
    bytes: usize,
    most_bytes: usize,
    clock: u64,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block::NONE; KEPT_BLOCKS],
    count: 0,
    bytes: 0,
    most_bytes: KEPT_BYTES,
    clock: 0,
});

impl Block {
    const NONE: Self = Self {
        address: 0,
        size: 0,
        freed: 0,
    };

    fn layout(size: usize) -> Layout {
        // SAFETY: the alignment is a power of two, and `size` comes from `class`, which keeps to
        // `Layout`'s limit.
        unsafe { Layout::from_size_align_unchecked(size, ALIGN) }
    }
}

/// Returns the size class of a layout, or `None` if the system allocator serves it.
fn class(layout: Layout) -> Option<usize> {
    // Near the limit of `Layout` rounding could pass it; no such block can exist anyway.
    let large = LARGE..isize::MAX as usize / 2;
    let ours = large.contains(&layout.size()) && layout.align() <= ALIGN;
    ours.then(|| {
        let step = layout.size().next_power_of_two() / (2 * CLASSES);
        layout.size().next_multiple_of(step)
    })
}

impl LargeBlocks {
    /// Gives all kept blocks back to the system. This is for the end of loading a model, whose
    /// temporary blocks nobody needs again.
    pub fn release() {
        let mut kept = lock();
        while kept.drop_oldest() {}
    }

    /// Sets the system allocator up for a service, if it is glibc's, and if the user has not done
    /// so by `MALLOC_ARENA_MAX` or `MALLOC_MMAP_THRESHOLD_`. It has to be called before any other
    /// thread is started.
    ///
    /// There are two arenas for small blocks. Otherwise there would be one for nearly each thread,
    /// and what one thread has freed, another would not find. Blocks from 1 MB on are allocated by
    /// `mmap`. Otherwise the end of the first large picture would raise that bound to the picture's
    /// size, and later large blocks would break up the heap. `docs/benchmarks.md` says what each is
    /// worth.
    pub fn set_up_system() {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            use std::ffi::c_int;
            unsafe extern "C" {
                fn mallopt(parameter: c_int, value: c_int) -> c_int;
            }
            // From glibc's `malloc.h`: M_ARENA_MAX and M_MMAP_THRESHOLD.
            for (variable, parameter, value) in [
                ("MALLOC_ARENA_MAX", -8, 2),
                ("MALLOC_MMAP_THRESHOLD_", -3, 1 << 20),
            ] {
                if std::env::var_os(variable).is_none() {
                    // SAFETY: glibc's own function by its own signature; it may be called at any
                    // time, and its failing changes nothing.
                    unsafe { mallopt(parameter, value) };
                }
            }
        }
    }

    /// Allows to keep what `passes` forward passes at one time need.
    pub fn keep_for(passes: usize) {
        lock().most_bytes = passes.saturating_mul(PASS_BYTES).max(KEPT_BYTES);
    }

    /// Returns how many bytes are kept at the moment.
    #[must_use]
    pub fn kept_bytes() -> usize {
        lock().bytes
    }
}

/// Locks the kept blocks. Their state is never left half changed, so a poisoned lock is as good as
/// another.
fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// Takes a kept block of exactly this class.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let mut kept = self.blocks[..self.count].iter();
        let at = kept.position(|block| block.size == size)?;
        Some(self.remove(at))
    }

    fn remove(&mut self, at: usize) -> *mut u8 {
        let block = self.blocks[at];
        self.count -= 1;
        self.blocks[at] = self.blocks[self.count];
        self.bytes -= block.size;
        ptr::with_exposed_provenance_mut(block.address)
    }

    /// Keeps a block, and drops older ones for it. Returns false if it is too large to keep.
    fn put(&mut self, block: *mut u8, size: usize) -> bool {
        if size > self.most_bytes / 2 {
            return false;
        }
        while self.bytes + size > self.most_bytes || self.count == KEPT_BLOCKS {
            self.drop_oldest();
        }
        self.clock += 1;
        self.blocks[self.count] = Block {
            address: block.expose_provenance(),
            size,
            freed: self.clock,
        };
        self.count += 1;
        self.bytes += size;
        true
    }

    /// Gives the oldest block back to the system. Returns false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let kept = self.blocks[..self.count].iter().enumerate();
        let Some((at, block)) = kept.min_by_key(|(_, block)| block.freed) else {
            return false;
        };
        let layout = Block::layout(block.size);
        // SAFETY: `alloc` took it from the system with this layout, and nobody uses it.
        unsafe { System.dealloc(self.remove(at), layout) };
        true
    }
}

// SAFETY: every block is either the system allocator's for its own layout, or one of a class that
// follows from the layout alone, aligned as `Block::layout` says, and kept blocks are handed out
// once.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class(layout) else {
            // SAFETY: this block is the system allocator's, whose contract for `alloc` the caller
            // keeps to.
            return unsafe { System.alloc(layout) };
        };
        let kept = lock().take(size);
        // SAFETY: the layout's size is not zero.
        kept.unwrap_or_else(|| unsafe { System.alloc(Block::layout(size)) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class(layout) else {
            // SAFETY: this block is the system allocator's, whose contract for `alloc_zeroed` the
            // caller keeps to.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let Some(kept) = lock().take(size) else {
            // Fresh pages are zero already; writing zeros would touch them all.
            // SAFETY: the layout's size is not zero.
            return unsafe { System.alloc_zeroed(Block::layout(size)) };
        };
        // SAFETY: the class is at least as large as the layout.
        unsafe { kept.write_bytes(0, layout.size()) };
        kept
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(size) = class(layout) else {
            // SAFETY: a block of this layout came from the system allocator by the same layout.
            return unsafe { System.dealloc(block, layout) };
        };
        if !lock().put(block, size) {
            // SAFETY: `alloc` took it from the system with this layout.
            unsafe { System.dealloc(block, Block::layout(size)) }
        }
    }
}
