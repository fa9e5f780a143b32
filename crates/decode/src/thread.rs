//! A worker that is a thread of the service. Nothing outside the decoders limits it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use imgclass_image::{Format, ImageError};
use tokio::sync::oneshot;

use crate::work::{Outcome, Task, Work};

/// A thread that decodes one picture after the other. It ends when this value is dropped and its
/// picture is decoded.
#[derive(Debug)]
pub(crate) struct Thread {
    tasks: mpsc::Sender<(Bytes, Task, oneshot::Sender<Outcome>)>,
}

impl Thread {
    /// Starts a thread.
    pub(crate) fn start(work: Work) -> io::Result<Self> {
        let (tasks, to_do) = mpsc::channel::<(Bytes, Task, oneshot::Sender<Outcome>)>();
        thread::Builder::new()
            .name("decode".to_owned())
            .spawn(move || {
                for (bytes, task, done) in to_do {
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        refuse_what_aborts(&bytes).unwrap_or_else(|| work.perform(&bytes, &task))
                    }));
                    match outcome {
                        // An error means that the caller has left.
                        Ok(outcome) => drop(done.send(outcome)),
                        Err(_) => return tracing::error!("a decoding thread panicked"),
                    }
                }
            })?;
        Ok(Self { tasks })
    }

    /// Decodes the encoded picture `bytes`.
    pub(crate) async fn perform(&mut self, bytes: Bytes, task: Task) -> io::Result<Outcome> {
        let (done, outcome) = oneshot::channel();
        let ended = || io::Error::other("the decoding thread has ended");
        self.tasks.send((bytes, task, done)).map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())
    }
}

/// Refuses AVIF: its decoder aborts the process on most damaged data, which must not be the service's.
fn refuse_what_aborts(bytes: &[u8]) -> Option<Outcome> {
    (Format::sniff(bytes) == Some(Format::Avif)).then(|| {
        Outcome::Refused(ImageError::Unsupported {
            found: "an AVIF image without decode workers (they are not used on this system, or \
                    --no-decode-sandbox turns them off)"
                .to_owned(),
        })
    })
}
