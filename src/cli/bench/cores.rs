//! How long a cache line takes from one core to another and back.
//!
//! On cores that share a third-level cache it takes about 60 ns, on others several times as long.
//! Layers whose threads read what another has written depend on it, and a host may move a virtual
//! machine's cores between such places. So two figures can be compared only where this one is the
//! same.

use serde::Serialize;

/// The round trip between the first core and each other one, in nanoseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct CoreRoundTrip {
    /// That of the nearest core.
    nearest_ns: f64,
    /// That of the farthest core.
    farthest_ns: f64,
}

/// Shows the two times, or the one where they are about the same.
impl std::fmt::Display for CoreRoundTrip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nearest, farthest) = (self.nearest_ns.round(), self.farthest_ns.round());
        if farthest <= 1.25 * nearest {
            write!(f, "{farthest} ns")
        } else {
            write!(f, "{nearest} to {farthest} ns")
        }
    }
}

/// Measures the round trips: some milliseconds for each core. Returns `None` on one core, and on
/// systems on which a thread cannot be bound to a core.
#[cfg(not(target_os = "linux"))]
pub(super) fn measure() -> Option<CoreRoundTrip> {
    None
}

#[cfg(target_os = "linux")]
pub(super) use linux::measure;

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::CoreRoundTrip;

    /// Round trips in one timing: 3 ms where the cores are far apart.
    const TRIPS: u32 = 10_000;

    /// How often each time is taken. The least counts, because whatever else runs can only make it
    /// longer.
    const TIMINGS: usize = 3;

    /// The cache line that goes to and fro. It fills two lines of 64 bytes, because the processor
    /// fetches lines in pairs.
    #[repr(align(128))]
    struct Line(AtomicU32);

    pub(crate) fn measure() -> Option<CoreRoundTrip> {
        let allowed = sched_getaffinity(None).ok()?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let first = cores.next()?;
        let times: Option<Vec<f64>> = cores.map(|other| round_trip(first, other)).collect();
        let times = times?;
        Some(CoreRoundTrip {
            nearest_ns: times.iter().copied().reduce(f64::min)?,
            farthest_ns: times.iter().copied().reduce(f64::max)?,
        })
    }

    /// Returns the nanoseconds of one round trip between two cores, or `None` if a thread cannot be
    /// bound to one of them.
    fn round_trip(core: usize, other: usize) -> Option<f64> {
        let line = Line(AtomicU32::new(0));
        thread::scope(|scope| {
            let answering = scope.spawn(|| {
                let bound = bind(other);
                for _ in 0..TIMINGS as u32 * TRIPS {
                    hand_over(&line, 1, 0);
                }
                bound
            });
            let asking = scope.spawn(|| {
                let bound = bind(core);
                let timing = || {
                    let start = Instant::now();
                    for _ in 0..TRIPS {
                        hand_over(&line, 0, 1);
                    }
                    start.elapsed()
                };
                let least = (0..TIMINGS).map(|_| timing()).min();
                bound.then_some(least.unwrap_or(Duration::ZERO))
            });
            let least = asking.join().ok().flatten();
            let bound = answering.join().unwrap_or(false);
            let least = least.filter(|_| bound)?;
            Some(least.as_nanos() as f64 / f64::from(TRIPS))
        })
    }

    /// Waits until the line holds `from`, and makes it `to`.
    fn hand_over(line: &Line, from: u32, to: u32) {
        // Relaxed: the word carries no other data with it.
        while line.0.load(Ordering::Relaxed) != from {
            std::hint::spin_loop();
        }
        line.0.store(to, Ordering::Relaxed);
    }

    /// Binds this thread to a core. Returns whether that worked.
    fn bind(core: usize) -> bool {
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_longer_than_a_cache_access_and_shows_both_ends_where_they_differ() {
        if let Some(measured) = measure() {
            assert!(measured.nearest_ns > 5.0, "{measured:?}");
            assert!(measured.farthest_ns >= measured.nearest_ns, "{measured:?}");
        }
        let table = [(60.0, 62.4, "62 ns"), (60.4, 331.0, "60 to 331 ns")];
        for (nearest_ns, farthest_ns, expected) in table {
            let shown = CoreRoundTrip {
                nearest_ns,
                farthest_ns,
            };
            assert_eq!(shown.to_string(), expected);
        }
    }
}
