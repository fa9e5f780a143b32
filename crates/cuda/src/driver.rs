//! The trait between the network and a GPU.

use thiserror::Error;

use crate::op::{Convolution, Op, Place};

/// A call to the GPU that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{call}: {reason}")]
pub struct DeviceError {
    /// What was being done.
    pub call: &'static str,
    /// The library's status by its name, such as `CUDA_ERROR_OUT_OF_MEMORY`, and its own words.
    pub reason: String,
}

/// An allocation of device memory, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub usize);

/// Operations that were captured as a CUDA graph, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Graph(pub usize);

/// How convolutions are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engines {
    /// The fastest of what cuDNN proposes, by [`Driver::tune`].
    Timed,
    /// One algorithm for all.
    Fixed,
}

/// What [`Driver::tune`] has found for a convolution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// How many plans were proposed.
    pub tried: usize,
    /// The fastest plan's engine, by cuDNN's number; `None` is the fixed algorithm.
    pub engine: Option<i64>,
    /// How long the fastest takes.
    pub milliseconds: f32,
    /// How long the fixed algorithm takes; `None` if it fails.
    pub fixed_milliseconds: Option<f32>,
}

/// The page-locked host memory of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotBytes {
    /// The most bytes of one [`Driver::send`].
    pub upload: usize,
    /// The most bytes of one [`Driver::fetch`].
    pub download: usize,
}

/// Runs operations on one GPU.
///
/// Work goes to two queues. [`Driver::send`] fills the upload queue, everything else the compute
/// queue, and within a queue one thing runs after the other. A slot is the host's side of one pass:
///
/// ```text
/// upload queue    send(0)   send(1)             send(0)
/// compute queue             join(0) run fetch(0)  join(1) run fetch(1)  join(0) ...
/// host                                       finish(0)          finish(1)
/// ```
///
/// A slot belongs to one pass from `send` to `finish`. After an error the caller settles the driver
/// before it uses a slot again.
///
/// Buffers are checked: an operation that reads or writes beyond an allocation is an error.
pub trait Driver: Send + Sync + 'static {
    /// Returns the GPU and the libraries as people know them.
    fn description(&self) -> &str;

    /// Allocates device memory. Its content is not defined.
    ///
    /// # Errors
    /// There is not enough, or the device fails; the latter holds for all other methods too.
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError>;

    /// Returns an allocation, which no queued operation may use any more.
    fn free(&self, buffer: Buffer);

    /// Writes bytes at the begin of a place and waits for it.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn write(&self, to: Place, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Returns how many bytes of workspace a convolution wants.
    ///
    /// # Errors
    /// The device does not compute such a convolution.
    fn workspace_bytes(&self, shape: &Convolution) -> Result<usize, DeviceError>;

    /// Opens as many slots as there are sizes, in the place of those that were open.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn open_slots(&self, sizes: &[SlotBytes]) -> Result<(), DeviceError>;

    /// Copies parts, one after the other, into the slot's page-locked memory, and queues their
    /// upload. The parts may change when this returns.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn send(&self, slot: usize, parts: &[&[u8]], to: Place) -> Result<(), DeviceError>;

    /// Makes the compute queue wait for the slot's upload.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn join(&self, slot: usize) -> Result<(), DeviceError>;

    /// Queues an operation.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn run(&self, op: &Op) -> Result<(), DeviceError>;

    /// Chooses the fastest way to compute an operation, by running all of them. It waits for the
    /// results, and leaves in the operation's output what the last one wrote. Returns `None` where
    /// there is nothing to choose, or the choice was made before.
    fn tune(&self, op: &Op) -> Option<Tuning>;

    /// Takes a choice of [`Driver::tune`] back for good: the fixed algorithm computes. Returns
    /// whether something else did.
    fn distrust(&self, op: &Op) -> bool;

    /// Captures operations as a graph, which is replayed with less work for the host than each of
    /// them takes. They do not run yet. Each must have run before, because libraries load code when
    /// they first meet a shape.
    ///
    /// # Errors
    /// As [`Driver::allocate`]. The queue can be used on.
    fn capture(&self, ops: &[Op]) -> Result<Graph, DeviceError>;

    /// Queues the operations of a graph.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn replay(&self, graph: Graph) -> Result<(), DeviceError>;

    /// Returns a graph, which must not be queued any more.
    fn forget(&self, graph: Graph);

    /// Queues the download of places, one after the other, into the slot's page-locked memory.
    ///
    /// # Errors
    /// As [`Driver::allocate`].
    fn fetch(&self, slot: usize, from: &[Place]) -> Result<(), DeviceError>;

    /// Waits for the slot's download and returns its bytes.
    ///
    /// # Errors
    /// As [`Driver::allocate`]; an operation that was queued before can have failed.
    fn finish(&self, slot: usize) -> Result<Vec<u8>, DeviceError>;

    /// Waits until nothing is queued, after an error.
    fn settle(&self);
}
