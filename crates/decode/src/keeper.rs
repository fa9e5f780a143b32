//! The thread that starts workers and replaces those that have ended.
//!
//! Workers die with the thread that started them, so this one lives as long as the [`Decoders`]
//! that it keeps. Its errands come over a channel, and it ends when the channel is closed.
//!
//! [`Decoders`]: crate::Decoders

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::StartError;
use crate::pool::Shared;
#[cfg(unix)]
use crate::process::{Launch, Process};
use crate::thread::Thread;
use crate::work::Work;
use crate::worker::{Cause, Worker};

/// The pause after the first failed start of a worker. It doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) enum Start {
    #[cfg(unix)]
    Process(Launch),
    Thread(Work),
}

impl Start {
    fn worker(&self) -> Result<Worker, StartError> {
        match self {
            #[cfg(unix)]
            Self::Process(launch) => Process::start(launch)
                .map(Worker::Process)
                .map_err(StartError::Worker),
            Self::Thread(work) => Thread::start(work.clone())
                .map(Worker::Thread)
                .map_err(StartError::Thread),
        }
    }
}

/// A worker to be ended and replaced, and whom to tell why it had ended by itself.
#[derive(Debug)]
pub(crate) struct Replacement {
    pub(crate) worker: Worker,
    pub(crate) ended: Option<oneshot::Sender<Option<Cause>>>,
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// `None` once the keeper is to end.
    errands: Option<mpsc::Sender<Replacement>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread, which starts `count` workers and gives them to `shared`.
    ///
    /// # Errors
    /// [`StartError`] where the thread or a worker does not start.
    pub(crate) fn start(
        start: Start,
        count: usize,
        shared: Arc<Shared>,
    ) -> Result<Self, StartError> {
        let (errands, to_do) = mpsc::channel::<Replacement>();
        let (started, outcome) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("decode-keeper".to_owned())
            .spawn(move || {
                for _ in 0..count {
                    match start.worker() {
                        Ok(worker) => shared.add(worker),
                        Err(error) => return drop((started.send(Err(error)), shared.end())),
                    }
                }
                drop(started.send(Ok(())));
                for replacement in to_do {
                    replace(replacement, &start, &shared);
                }
                shared.end();
            })
            .map_err(StartError::Thread)?;
        let lost = |_| Err(StartError::Thread(io::Error::other("it ended as it began")));
        outcome.recv().unwrap_or_else(lost)?;
        Ok(Self {
            errands: Some(errands),
            thread: Some(thread),
        })
    }

    /// Has a worker ended and replaced.
    pub(crate) fn replace(&self, replacement: Replacement) {
        if let Some(errands) = &self.errands {
            // An error means that the keeper has ended, and the workers with it.
            let _ = errands.send(replacement);
        }
    }
}

/// Ends a worker and starts another one, however long that takes.
fn replace(replacement: Replacement, start: &Start, shared: &Shared) {
    let cause = replacement.worker.end();
    if let Some(ended) = replacement.ended {
        // An error means that the caller has left.
        let _ = ended.send(cause);
    }
    let mut pause = PAUSE;
    while !shared.is_closed() {
        match start.worker() {
            Ok(worker) => return shared.add(worker),
            Err(error) => {
                tracing::error!(%error, retry = ?pause, "a decode worker cannot be started");
                thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Ends the workers and waits for them.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.errands = None;
        if let Some(thread) = self.thread.take() {
            // An error means that the thread panicked, which has been reported.
            let _ = thread.join();
        }
    }
}
