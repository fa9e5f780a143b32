//! Work at load on several threads, before there is a network.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Calls `make` once for each index below `count`, on up to `threads` threads, and returns what the
/// calls returned in the order of the indices. The last indices come first, because a network's
/// last layers are its largest.
///
/// # Errors
/// That of the smallest index for which `make` fails.
pub(crate) fn in_parallel<T: Send, E: Send>(
    threads: usize,
    count: usize,
    make: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let threads = threads.min(count);
    if threads < 2 {
        return (0..count).map(make).collect();
    }
    let left = AtomicUsize::new(count);
    let made = Mutex::new(Vec::with_capacity(count));
    let work = || {
        // It is subtracted from as long as it is not zero.
        while let Ok(left) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        }) {
            let index = left - 1;
            let result = (index, make(index));
            made.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_unstable_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::in_parallel;

    #[test]
    fn results_and_the_first_error_come_in_the_order_of_the_indices() {
        for threads in [1, 2, 7] {
            let squares = in_parallel(threads, 100, |i| Ok::<_, ()>(i * i));
            assert_eq!(squares, Ok((0..100).map(|i| i * i).collect()));
            let failed = in_parallel(threads, 100, |i| if i % 30 == 29 { Err(i) } else { Ok(i) });
            assert_eq!(failed, Err(29));
        }
    }
}
