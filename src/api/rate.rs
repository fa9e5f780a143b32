//! A token bucket per caller, in bounded memory. Decides; waits for nobody and answers nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::RateLimit;

/// Callers that are told apart at one time, some 4 MB of them.
const MAX_CALLERS: usize = 65_536;

/// The least time between two searches for callers that can be forgotten: each looks at all of them.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Whose bucket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// The key with this number.
    Key(usize),
    /// An address without a key.
    Address(IpAddr),
    /// All addresses that came when the table was full, together.
    Others,
}

/// The buckets, by the generic cell rate algorithm (ITU-T I.371, appendix A): of each only the time is kept when it will be full again.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// Between two requests in the long run.
    interval: Duration,
    /// How far ahead of the long run a caller may be.
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

    /// Takes a token at the time `now`, or says how long there will be none.
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
    /// The caller itself if it is known or there is room for it.
    fn place_for(&mut self, caller: Caller, now: Instant, max_callers: usize) -> Caller {
        if self.full_again.len() < max_callers || self.full_again.contains_key(&caller) {
            return caller;
        }
        let due = |swept| now.saturating_duration_since(swept) >= SWEEP_EVERY;
        if self.swept.is_none_or(due) {
            self.swept = Some(now);
            // A full bucket is as good as none.
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
