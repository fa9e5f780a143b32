//! Decodes strangers' pictures in processes that have nothing to lose.
//!
//! The codecs are large and read what strangers send. So they run in worker processes: the same
//! program, started again with [`WORKER_ARGUMENT`]. A worker has one picture at a time, and limits
//! that it cannot overstep:
//!
//! | limit | set by | where it holds |
//! |---|---|---|
//! | address space, for each picture | `prlimit` | Linux |
//! | time, for each picture | the service, which kills the worker | Linux, macOS |
//! | no files, no network, no processes | seccomp and Landlock | Linux |
//!
//! ```text
//!              service                                       worker
//!   Decoders::begin ─── lease ──► Process ══ socket ══► child::run ─► work::perform
//!                                                                      open, decode, crop
//!   Begun::Prepared ◄──────────── 150 kB ═══════════════════════════ pixels of the crop
//! ```
//!
//! A picture that is small goes through in one exchange. One that turns out to be large or slow
//! comes back as [`Begun::Costly`], and [`Decoders::finish`] decodes it in a lane of its own, which
//! never has all workers ([`Decoders`] says how the lanes work). A worker that crashes, is killed or
//! overruns its time costs its own picture an error. It is replaced, the [`Observer`] counts it, and
//! the log names the SHA-256 of the input.
//!
//! [`Isolation::None`] decodes on threads of the service instead. It is for systems without these
//! means, and for debugging.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(unix)]
mod child;
mod confinement;
mod error;
mod keeper;
mod pool;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod protocol;
mod thread;
mod work;
mod worker;

#[cfg(unix)]
pub use child::run_worker;
pub use confinement::Confinement;
pub use error::{DecodeError, StartError};
pub use pool::{Begun, Costly, DecodeOptions, Decoders, Finished, Isolation};
pub use work::Prepared;
pub use worker::{Cause, NoObserver, Observer};

/// The first argument of a process that is a worker.
pub const WORKER_ARGUMENT: &str = "__decode-worker";

/// Returns whether this process was started as a worker.
#[must_use]
pub fn is_worker() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == WORKER_ARGUMENT)
}

/// Ends at once: systems without Unix sockets have no workers.
#[cfg(not(unix))]
#[must_use]
pub fn run_worker() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
