//! Where the time of an image goes.
//!
//! [`PhaseClock`] measures each phase once and passes the duration to both readers: to the
//! [`Observer`], which counts it, and to the [`Phases`] of the answer, which travel to the client.

use std::future::Future;
use std::time::{Duration, Instant};

/// One part of the time that an image takes; a field of [`Phases`] has the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// From the URL to its bytes. Takes no time where the request carried the image.
    Fetch,
    /// Waiting for a place before the model, for memory and for a decode worker; then decoding
    /// and resizing.
    Decode,
    /// Waiting in the model's queue for a batch.
    Queue,
    /// The forward pass of the batch that the image was in.
    Inference,
    /// From the admission of the request to the end of this image.
    Total,
}

/// The durations of an image's phases; a phase that did not happen takes no time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Duration of [`Phase::Fetch`].
    pub fetch: Duration,
    /// Duration of [`Phase::Decode`].
    pub decode: Duration,
    /// Duration of [`Phase::Queue`].
    pub queue: Duration,
    /// Duration of [`Phase::Inference`].
    pub inference: Duration,
    /// Duration of [`Phase::Total`].
    pub total: Duration,
}

/// Receives what the service measures; the metrics implement it.
///
/// Its functions are called on the path of a request: they must be quick and must not panic.
pub trait Observer: imgclass_engine::Observer + imgclass_decode::Observer {
    /// Is called at the end of each phase, also where the phase failed.
    ///
    /// An image that fails has no later phases, except [`Phase::Total`]: that one is passed for
    /// every image of an admitted request whose client stayed until the end.
    fn phase_finished(&self, _phase: Phase, _took: Duration) {}
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl imgclass_engine::Observer for NoObserver {}
impl imgclass_decode::Observer for NoObserver {}
impl Observer for NoObserver {}

/// Measures the phases of one image.
pub(super) struct PhaseClock<'a> {
    admitted: Instant,
    phases: Phases,
    observer: &'a dyn Observer,
}

impl<'a> PhaseClock<'a> {
    /// Starts the clock of an image whose request was admitted at `admitted`.
    pub(super) fn new(admitted: Instant, observer: &'a dyn Observer) -> Self {
        Self {
            admitted,
            phases: Phases::default(),
            observer,
        }
    }

    /// Waits for `work` and records its duration as that of `phase`.
    pub(super) async fn time<T>(&mut self, phase: Phase, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let outcome = work.await;
        self.record(phase, start.elapsed());
        outcome
    }

    /// Records the duration of a phase that somebody else has measured.
    pub(super) fn record(&mut self, phase: Phase, took: Duration) {
        let field = match phase {
            Phase::Fetch => &mut self.phases.fetch,
            Phase::Decode => &mut self.phases.decode,
            Phase::Queue => &mut self.phases.queue,
            Phase::Inference => &mut self.phases.inference,
            Phase::Total => &mut self.phases.total,
        };
        *field = took;
        self.observer.phase_finished(phase, took);
    }

    /// Records [`Phase::Total`] and returns the durations of all phases.
    pub(super) fn finish(mut self) -> Phases {
        self.record(Phase::Total, self.admitted.elapsed());
        self.phases
    }
}
