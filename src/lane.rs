//! Long work on what strangers send: undoing an encoding, parsing, undoing base64.
//!
//! A thread of the asynchronous runtime that works serves nobody else meanwhile, not even a health
//! check. So work on more than [`AT_ONCE`] bytes waits for a place, and is done after the runtime has
//! moved its other tasks to another thread. There are two lanes, each with places for half of the
//! cores: bodies of megabytes, of which some take half a second, wait for each other, and those of
//! usual pictures do not wait for them.

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::thread::available_parallelism;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

/// What is at most this long is worked on at once, in bytes. JSON of the slowest kind takes seven
/// milliseconds for it on a processor of 2022, and what clients send a tenth of that.
const AT_ONCE: usize = 512 * 1024;

/// The most bytes of work in the first lane. A photograph of three megabytes is four in base64.
const USUAL: usize = 4 * 1024 * 1024;

/// The lane of work on up to [`USUAL`] bytes, and that of work on more.
static LANES: LazyLock<[Semaphore; 2]> = LazyLock::new(|| {
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    [(); 2].map(|()| Semaphore::new((cores / 2).max(1)))
});

/// A place for work on a number of bytes.
#[derive(Debug)]
pub(crate) struct Place {
    bytes: usize,
    /// `None` where none is needed.
    permit: Option<SemaphorePermit<'static>>,
}

impl Place {
    /// Returns the place of work that is done at once.
    pub(crate) const fn none() -> Self {
        Self {
            bytes: AT_ONCE,
            permit: None,
        }
    }

    /// Waits for a place for work on `bytes`, unless this one is for as many.
    pub(crate) async fn widen(&mut self, bytes: usize) {
        if bytes <= self.bytes {
            return;
        }
        // The place in the lane for less is left first, so that nobody waits for it meanwhile.
        self.permit = None;
        let (lane, most) = match bytes {
            ..=USUAL => (&LANES[0], USUAL),
            _ => (&LANES[1], usize::MAX),
        };
        // An error would say that the lane is closed, which nobody does.
        self.permit = lane.acquire().await.ok();
        self.bytes = most;
    }

    /// Does the work.
    pub(crate) fn work<T>(self, work: impl FnOnce() -> T) -> T {
        let has_others = Handle::try_current()
            .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if self.permit.is_some() && has_others {
            tokio::task::block_in_place(work)
        } else {
            work()
        }
    }
}

/// Does work on `bytes`, in its place.
pub(crate) async fn work<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let mut place = Place::none();
    place.widen(bytes).await;
    place.work(work)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_have_their_turn_while_long_work_is_done() {
        let (tell, told) = mpsc::channel();
        let wait = move || {
            tokio::spawn(async move { tell.send(()) });
            told.recv_timeout(LONG)
        };
        let waiting = tokio::spawn(work(AT_ONCE + 1, wait));
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn usual_work_does_not_wait_for_longer_work_and_short_work_for_none() {
        let mut places = Vec::new();
        for bytes in [USUAL, USUAL + 1] {
            for length in [1, AT_ONCE, bytes] {
                let done = tokio::time::timeout(LONG, work(length, || length));
                assert_eq!(done.await, Ok(length));
            }
            // As many places as there are, in this lane.
            let lane = &LANES[usize::from(bytes > USUAL)];
            while lane.available_permits() > 0 {
                let mut place = Place::none();
                place.widen(bytes).await;
                places.push(place);
            }
        }
        let mut next = Place::none();
        let waits = tokio::time::timeout(Duration::from_millis(20), next.widen(USUAL + 1));
        assert!(waits.await.is_err());
        places.clear();
        next.widen(USUAL + 1).await;
        assert!(next.permit.is_some());
    }
}
