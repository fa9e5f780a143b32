//! Limits the rate of each caller by a token bucket, in bounded memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::RateLimit;

/// How many callers have buckets of their own at one time; they take some 4 MB.
const MAX_CALLERS: usize = 65_536;

/// The least time between two searches for callers that can be forgotten, because each search looks
/// at all callers.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The owner of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// The key with this index.
    Key(usize),
    /// An address without a key.
    Address(IpAddr),
    /// All callers together that came while the table was full.
    Others,
}

/// The buckets of all callers.
///
/// They follow the generic cell rate algorithm (ITU-T I.371, appendix A), which keeps only one
/// number of each bucket: the time at which it will be full again.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// The time between two requests in the long run.
    interval: Duration,
    /// How far ahead of the long run a caller may be: the time that a burst is worth.
    tolerance: Duration,
    max_callers: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    full_again: HashMap<Caller, Instant>,
    swept: Option<Instant>,
}

impl RateLimiter {
    pub(super) fn new(limit: RateLimit) -> Self {
        let interval = Duration::from_secs_f64(1.0 / limit.per_second);
        Self {
            interval,
            tolerance: interval.saturating_mul(limit.burst.saturating_sub(1)),
            max_callers: MAX_CALLERS,
            state: Mutex::default(),
        }
    }

    /// Takes a token from the caller's bucket.
    ///
    /// # Errors
    /// How long there will be no token; a refusal takes none.
    pub(super) fn take(&self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = state.place_for(caller, now, self.max_callers);
        let full_again = state.full_again.entry(caller).or_insert(now);
        let ahead = full_again.saturating_duration_since(now);
        if ahead > self.tolerance {
            return Err(ahead - self.tolerance);
        }
        *full_again = now + ahead + self.interval;
        Ok(())
    }
}

impl State {
    /// Returns the caller whose bucket is to be used: `caller` itself if it has one or there is
    /// room for one, else [`Caller::Others`].
    fn place_for(&mut self, caller: Caller, now: Instant, max_callers: usize) -> Caller {
        if self.full_again.len() < max_callers || self.full_again.contains_key(&caller) {
            return caller;
        }
        let due = |swept| now.saturating_duration_since(swept) >= SWEEP_EVERY;
        if self.swept.is_none_or(due) {
            self.swept = Some(now);
            // A full bucket says as much as no bucket.
            self.full_again.retain(|_, full_again| *full_again > now);
        }
        if self.full_again.len() < max_callers {
            caller
        } else {
            Caller::Others
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn limiter(per_second: f64, burst: u32, max_callers: usize) -> RateLimiter {
        let mut limiter = RateLimiter::new(RateLimit { per_second, burst });
        limiter.max_callers = max_callers;
        limiter
    }

    fn address(n: u32) -> Caller {
        Caller::Address(IpAddr::V4(Ipv4Addr::from_bits(n)))
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_the_wait_is_told() {
        let limiter = limiter(2.0, 3, 10);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(limiter.take(Caller::Key(0), start), Ok(()));
        }
        let ms = Duration::from_millis;
        assert_eq!(limiter.take(Caller::Key(0), start), Err(ms(500)));
        assert_eq!(
            limiter.take(Caller::Key(0), at(400)),
            Err(ms(100)),
            "a refusal costs nothing"
        );
        assert_eq!(
            limiter.take(Caller::Key(1), start),
            Ok(()),
            "others have their own"
        );
        assert_eq!(limiter.take(Caller::Key(0), at(500)), Ok(()));
        assert_eq!(limiter.take(Caller::Key(0), at(500)), Err(ms(500)));
        for _ in 0..3 {
            assert_eq!(
                limiter.take(Caller::Key(0), at(60_000)),
                Ok(()),
                "never more than the burst"
            );
        }
        assert!(limiter.take(Caller::Key(0), at(60_000)).is_err());
    }

    #[test]
    fn the_table_stays_bounded_and_those_who_come_late_share() {
        let limiter = limiter(1.0, 1, 3);
        let start = Instant::now();
        for n in 0..100 {
            let outcome = limiter.take(address(n), start);
            assert_eq!(
                outcome.is_ok(),
                n < 4,
                "three callers, and one for all others: {n}"
            );
        }
        assert!(limiter.state.lock().unwrap().full_again.len() <= 4);
        let later = start + Duration::from_secs(5);
        assert_eq!(
            limiter.take(address(200), later),
            Ok(()),
            "those with full buckets are forgotten"
        );
        assert!(limiter.state.lock().unwrap().full_again.len() <= 4);
    }
}
