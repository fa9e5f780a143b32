//! Batching: which of the waiting jobs a worker takes for its next batch.
//!
//! These are pure functions over the queue, so that tests need neither clocks nor threads.

use std::collections::VecDeque;

/// What batching needs to know of a job.
pub(super) trait Waiting {
    /// Whether the caller has gone.
    fn abandoned(&self) -> bool;
    /// Whether the deadline has passed.
    fn expired(&self) -> bool;
}

/// The jobs that were taken from the front of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken<J> {
    /// The jobs to run, in the order in which they came.
    pub(super) batch: Vec<J>,
    /// The jobs whose deadline has passed. Their callers are told so.
    pub(super) expired: Vec<J>,
    /// How many jobs were dropped because their callers had gone.
    pub(super) abandoned: usize,
}

/// Returns how many of the `waiting` jobs a worker takes: an even share if `others` more workers
/// wait for jobs, and a full batch at most.
pub(super) fn even_share(waiting: usize, others: usize, max_batch_size: usize) -> usize {
    waiting.div_ceil(others + 1).min(max_batch_size)
}

/// Takes jobs from the front until the batch is full. Jobs that need no forward pass any more are
/// taken too, but do not count.
pub(super) fn take_batch<J: Waiting>(waiting: &mut VecDeque<J>, max_batch_size: usize) -> Taken<J> {
    let mut taken = Taken {
        batch: Vec::new(),
        expired: Vec::new(),
        abandoned: 0,
    };
    while taken.batch.len() < max_batch_size {
        match waiting.pop_front() {
            None => break,
            Some(job) if job.abandoned() => taken.abandoned += 1,
            Some(job) if job.expired() => taken.expired.push(job),
            Some(job) => taken.batch.push(job),
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_leaves_the_others_their_share() {
        for (waiting, others, max, share_of_this) in [
            (0, 3, 8, 0),
            (1, 0, 8, 1),
            (1, 3, 8, 1),
            (4, 1, 8, 2),
            (5, 1, 8, 3),
            (9, 0, 8, 8),
            (100, 3, 8, 8),
        ] {
            let found = even_share(waiting, others, max);
            assert_eq!(found, share_of_this, "{waiting} waiting, {others} others");
        }
    }

    #[derive(Debug, PartialEq, Eq, Clone, Copy)]
    enum Fate {
        Runs(u8),
        Left,
        Late(u8),
    }

    impl Waiting for Fate {
        fn abandoned(&self) -> bool {
            *self == Fate::Left
        }
        fn expired(&self) -> bool {
            matches!(self, Fate::Late(_))
        }
    }

    #[test]
    fn a_batch_takes_what_runs_in_order_and_leaves_the_rest() {
        use Fate::{Late, Left, Runs};
        type Case<'a> = (&'a [Fate], usize, &'a [Fate], &'a [Fate], usize, usize);
        let cases: &[Case] = &[
            // waiting, maximum, batch, expired, abandoned, left waiting
            (&[], 4, &[], &[], 0, 0),
            (&[Runs(1)], 4, &[Runs(1)], &[], 0, 0),
            (
                &[Runs(1), Runs(2), Runs(3)],
                2,
                &[Runs(1), Runs(2)],
                &[],
                0,
                1,
            ),
            (
                &[Left, Runs(1), Late(7), Runs(2), Left],
                2,
                &[Runs(1), Runs(2)],
                &[Late(7)],
                1,
                1,
            ),
            (
                &[Left, Left, Late(1), Late(2)],
                8,
                &[],
                &[Late(1), Late(2)],
                2,
                0,
            ),
        ];
        for (waiting, max, batch, expired, abandoned, left) in cases {
            let mut queue: VecDeque<Fate> = waiting.iter().copied().collect();
            let taken = take_batch(&mut queue, *max);
            assert_eq!(taken.batch, *batch, "{waiting:?}");
            assert_eq!(taken.expired, *expired, "{waiting:?}");
            assert_eq!(taken.abandoned, *abandoned, "{waiting:?}");
            assert_eq!(queue.len(), *left, "{waiting:?}");
        }
    }
}
