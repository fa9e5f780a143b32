//! Memory for activations that goes from one layer to the next instead of back to the system.
//!
//! Every layer of every forward pass needs one large output and frees one. Given back to the system
//! each time, their pages would be mapped, zeroed and faulted in again: 8 % of a forward pass at
//! batch 1, 13 % at batch 8. A [`BufferPool`] keeps them. Whoever runs a network owns the pool and
//! hands it down, as rten's `BufferPool` is handed down (<https://github.com/robertknight/rten>).
//!
//! All memory is initialised: fresh buffers hold zeros, which the system gives for nothing, and
//! used ones hold what the layer before has left. So a kernel's output is an ordinary `&mut [f32]`.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::Buffer;

/// How many classes of lengths there are between a power of two and the next. Lengths are rounded
/// up to the next class, so that a buffer fits again for a layer of about the same size. Pages that
/// are never touched take address space only.
const CLASSES: usize = 8;

/// The smallest class, in floats: one page of 4 KiB.
const SMALLEST: usize = 1024;

/// Buffers of `f32` that are kept for whoever asks next. Clones of a pool share the same buffers.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    kept: Mutex<Kept>,
    /// The most bytes that are kept.
    most_bytes: usize,
}

#[derive(Default)]
struct Kept {
    /// The buffers that nobody uses, in the order in which they came back.
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl BufferPool {
    /// Makes a pool that keeps at most `most_bytes` bytes of buffers that nobody uses.
    #[must_use]
    pub fn new(most_bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                kept: Mutex::default(),
                most_bytes,
            }),
        }
    }

    /// Returns a buffer of `len` floats that starts on a cache line. It holds zeros if it is fresh,
    /// and otherwise what its last user has left.
    #[must_use]
    pub fn take(&self, len: usize) -> PooledBuffer {
        let class = class(len);
        let buffer = self.shared.lock().take(class);
        PooledBuffer {
            buffer: buffer.unwrap_or_else(|| Buffer::zeroed(class)),
            len,
            pool: self.clone(),
        }
    }

    /// Returns how many bytes are kept at the moment.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.shared.lock().bytes
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("kept_bytes", &self.kept_bytes())
            .field("most_bytes", &self.shared.most_bytes)
            .finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics between two changes, so what a panicking thread leaves is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes the buffer of this class that came back last: its lines are the likeliest to be in a
    /// cache.
    fn take(&mut self, class: usize) -> Option<Buffer> {
        let at = self
            .buffers
            .iter()
            .rposition(|buffer| buffer.len() == class)?;
        let buffer = self.buffers.remove(at);
        self.bytes -= bytes(&buffer);
        Some(buffer)
    }

    /// Keeps a buffer, and drops the oldest ones while there are more than `most_bytes`.
    fn put(&mut self, buffer: Buffer, most_bytes: usize) {
        self.bytes += bytes(&buffer);
        self.buffers.push(buffer);
        let mut dropped = 0;
        while self.bytes > most_bytes {
            self.bytes -= bytes(&self.buffers[dropped]);
            dropped += 1;
        }
        self.buffers.drain(..dropped);
    }
}

/// A buffer from a [`BufferPool`]. It goes back to the pool when it is dropped.
pub struct PooledBuffer {
    buffer: Buffer,
    len: usize,
    pool: BufferPool,
}

impl Deref for PooledBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.len]
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[..self.len]
    }
}

impl fmt::Debug for PooledBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PooledBuffer of {} floats", self.len)
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let shared = &self.pool.shared;
        shared.lock().put(buffer, shared.most_bytes);
    }
}

/// Returns the length of the buffer that serves a request for `len` floats.
fn class(len: usize) -> usize {
    let len = len.max(SMALLEST);
    len.next_multiple_of(len.next_power_of_two() / (2 * CLASSES))
}

fn bytes(buffer: &Buffer) -> usize {
    buffer.len() * size_of::<f32>()
}
