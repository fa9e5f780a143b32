//! A worker of either kind, and why one must be replaced.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::confinement::Confinement;
#[cfg(unix)]
use crate::process::Process;
use crate::thread::Thread;
use crate::work::{Outcome, Task};

/// Why a worker was ended or had ended, and another one took its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It ended by itself on a picture, for example by a fault of memory safety.
    Crashed,
    /// A picture needed more address space than its header announced.
    OutOfMemory,
    /// A picture took longer than `--decode-timeout`.
    Overran,
    /// A small picture took so long that it was moved to the lane of costly ones.
    Slow,
    /// Nobody waited any more for the picture that it had: the client left, or the deadline passed.
    Abandoned,
    /// It had a large picture, and its memory was given back.
    Retired,
    /// Something outside the service killed it, such as the system's out-of-memory killer.
    Killed,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 7] = [
        Self::Crashed,
        Self::OutOfMemory,
        Self::Overran,
        Self::Slow,
        Self::Abandoned,
        Self::Retired,
        Self::Killed,
    ];

    /// Returns the name that metrics and the log use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crashed => "crashed",
            Self::OutOfMemory => "out_of_memory",
            Self::Overran => "overran",
            Self::Slow => "slow",
            Self::Abandoned => "abandoned",
            Self::Retired => "retired",
            Self::Killed => "killed",
        }
    }
}

/// Is told what happens to workers. Its functions must be quick and must not panic.
pub trait Observer: Send + Sync {
    /// Is called when a worker is replaced.
    fn worker_replaced(&self, _cause: Cause) {}
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// Tells how long a worker process has used a processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessorClock {
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    pub(crate) process: u32,
}

impl ProcessorClock {
    /// Returns the time since the worker's start; `None` where the system does not tell it.
    pub(crate) fn time(self) -> Option<Duration> {
        #[cfg(target_os = "linux")]
        {
            // The first number of this file: nanoseconds on a processor.
            let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.process)).ok()?;
            let nanoseconds = text.split_ascii_whitespace().next()?.parse().ok()?;
            Some(Duration::from_nanos(nanoseconds))
        }
        #[cfg(not(target_os = "linux"))]
        None
    }
}

/// What carries tasks out.
#[derive(Debug)]
pub(crate) enum Worker {
    /// A process of its own.
    #[cfg(unix)]
    Process(Process),
    /// A thread of the service.
    Thread(Thread),
}

impl Worker {
    /// Carries a task out on the encoded picture `bytes`. The worker is of no further use after an
    /// error, and where this future is dropped.
    pub(crate) async fn perform(&mut self, bytes: &Bytes, task: Task) -> io::Result<Outcome> {
        match self {
            #[cfg(unix)]
            Self::Process(process) => process.perform(bytes, &task).await,
            Self::Thread(thread) => thread.perform(bytes.clone(), task).await,
        }
    }

    /// Returns which limits hold for this worker; `None` for a thread, for which none do.
    pub(crate) fn confinement(&self) -> Option<&Confinement> {
        match self {
            #[cfg(unix)]
            Self::Process(process) => Some(process.confinement()),
            Self::Thread(_) => None,
        }
    }

    /// Returns the clock of a process; `None` for a thread.
    pub(crate) fn clock(&self) -> Option<ProcessorClock> {
        match self {
            #[cfg(unix)]
            Self::Process(process) => Some(process.clock()),
            Self::Thread(_) => None,
        }
    }

    /// Returns whether the worker has ended by itself, or was killed from outside.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Process(process) => process.has_ended(),
            // A thread that has ended is noticed when it is asked.
            Self::Thread(_) => false,
        }
    }

    /// Kills a process. A thread cannot be killed: it ends when its picture is decoded.
    pub(crate) fn kill(&mut self) {
        match self {
            #[cfg(unix)]
            Self::Process(process) => process.kill(),
            Self::Thread(_) => {}
        }
    }

    /// Ends the worker and returns why it had ended, if it had by itself. Blocks until a process is
    /// gone.
    pub(crate) fn end(self) -> Option<Cause> {
        match self {
            #[cfg(unix)]
            Self::Process(process) => process.end(),
            Self::Thread(_) => Some(Cause::Crashed),
        }
    }
}
