//! A global allocator for programs that run the kernels: large blocks start on cache lines and are kept for the next
//! layer instead of going back to the system. It never changes how small blocks are allocated.
//!
//! Every layer of every forward pass frees one large activation and asks for another. Given back to the system each
//! time, their pages are mapped, zeroed and faulted in again: 8 % of a forward pass at batch 1, 13 % at batch 8.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller blocks are the system allocator's: it keeps them well, and few vectors lie in them.
const LARGE: usize = 64 << 10;

/// Most bytes kept: the activations of a batch of eight that live at the same time, two blocks of 26 MB and smaller
/// ones.
const KEPT_BYTES: usize = 96 << 20;

/// Most blocks kept: a forward pass uses about a dozen sizes.
const KEPT_BLOCKS: usize = 32;

/// A cache line, and the widest vector: a load from an aligned line never straddles two.
const ALIGN: usize = 64;

/// Sizes are rounded up to at most this many classes between a power of two and the next, so that blocks fit again. What
/// is never touched of the last part takes address space only.
const CLASSES: usize = 8;

/// The allocator: `#[global_allocator] static ALLOCATOR: LargeBlocks = LargeBlocks;`
#[derive(Debug, Clone, Copy)]
pub struct LargeBlocks;

/// A free block, kept. An address of 0 is an empty place.
#[derive(Clone, Copy)]
struct Block {
    address: usize,
    size: usize,
    /// When it was freed: the smallest is the oldest.
    freed: u64,
}

struct Kept {
    blocks: [Block; KEPT_BLOCKS],
    bytes: usize,
    clock: u64,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block::EMPTY; KEPT_BLOCKS],
    bytes: 0,
    clock: 0,
});

impl Block {
    const EMPTY: Self = Self {
        address: 0,
        size: 0,
        freed: 0,
    };

    fn layout(size: usize) -> Layout {
        // SAFETY: the alignment is a power of two, and `size` comes from `class`, which keeps to `Layout`'s limit.
        unsafe { Layout::from_size_align_unchecked(size, ALIGN) }
    }
}

/// The size class of a layout, or `None` where the system allocator serves it.
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
    /// Gives all kept blocks back to the system: after loading a model, whose temporary blocks nobody needs again.
    pub fn release() {
        let mut kept = lock();
        while kept.drop_oldest() {}
    }

    /// Bytes kept at the moment.
    #[must_use]
    pub fn kept_bytes() -> usize {
        lock().bytes
    }
}

/// The kept blocks; their state is never left half-changed, so a poisoned lock is as good as another.
fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// A kept block of exactly this class.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let mut full = self.blocks.iter_mut().filter(|block| block.address != 0);
        let block = full.find(|block| block.size == size)?;
        let taken = std::mem::replace(block, Block::EMPTY);
        self.bytes -= taken.size;
        Some(ptr::with_exposed_provenance_mut(taken.address))
    }

    /// Keeps a block, dropping older ones for it; false if it is too large to keep.
    fn put(&mut self, block: *mut u8, size: usize) -> bool {
        if size > KEPT_BYTES / 2 {
            return false;
        }
        while self.bytes + size > KEPT_BYTES || self.blocks.iter().all(|block| block.address != 0) {
            self.drop_oldest();
        }
        self.clock += 1;
        let freed = self.clock;
        if let Some(place) = self.blocks.iter_mut().find(|place| place.address == 0) {
            *place = Block {
                address: block.expose_provenance(),
                size,
                freed,
            };
            self.bytes += size;
        }
        true
    }

    /// Gives the oldest block back to the system; false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let full = self.blocks.iter_mut().filter(|block| block.address != 0);
        let Some(oldest) = full.min_by_key(|block| block.freed) else {
            return false;
        };
        let block = std::mem::replace(oldest, Block::EMPTY);
        self.bytes -= block.size;
        // SAFETY: `alloc` took it from the system with this layout, and nobody uses it.
        unsafe {
            System.dealloc(
                ptr::with_exposed_provenance_mut(block.address),
                Block::layout(block.size),
            )
        };
        true
    }
}

// SAFETY: every block is either the system allocator's for its own layout, or one of a class that follows from the
// layout alone, aligned as `Block::layout` says, and kept blocks are handed out once.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class(layout) else {
            // SAFETY: the caller's contract is the system allocator's.
            return unsafe { System.alloc(layout) };
        };
        let kept = lock().take(size);
        // SAFETY: the layout's size is not zero.
        kept.unwrap_or_else(|| unsafe { System.alloc(Block::layout(size)) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class(layout) else {
            // SAFETY: the caller's contract is the system allocator's.
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
            // SAFETY: the caller's contract is the system allocator's.
            return unsafe { System.dealloc(block, layout) };
        };
        if !lock().put(block, size) {
            // SAFETY: `alloc` took it from the system with this layout.
            unsafe { System.dealloc(block, Block::layout(size)) }
        }
    }
}
