//! The pool of buffers that activations come from.

use imgclass_kernels::BufferPool;

#[test]
fn buffers_start_on_cache_lines_have_their_length_and_are_kept_within_the_bound() {
    let most_bytes = 4 << 20;
    let pool = BufferPool::new(most_bytes);
    let lengths = [0, 1, 1023, 1024, 16_385, 50_000, 200_000, 900_000];
    for round in 0..if cfg!(miri) { 2 } else { 20 } {
        let lengths = &lengths[..if cfg!(miri) { 5 } else { lengths.len() }];
        let mut buffers: Vec<_> = lengths.iter().map(|len| pool.take(len + round)).collect();
        for (buffer, len) in buffers.iter_mut().zip(lengths) {
            assert_eq!(buffer.len(), len + round);
            assert_eq!(buffer.as_ptr().addr() % 64, 0, "{len} floats");
            buffer.fill(round as f32);
        }
        for buffer in &buffers {
            assert!(buffer.iter().all(|&v| v == round as f32));
        }
        drop(buffers);
        assert!(pool.kept_bytes() <= most_bytes, "{}", pool.kept_bytes());
    }
}

#[test]
fn a_fresh_buffer_is_zero_and_the_next_of_its_size_is_the_same_memory() {
    let pool = BufferPool::new(1 << 20);
    let mut first = pool.take(5000);
    assert!(first.iter().all(|&v| v == 0.0));
    first.fill(3.0);
    let at = first.as_ptr();
    drop(first);
    assert!(pool.kept_bytes() >= 5000 * size_of::<f32>());
    // A few floats fewer are of the same class.
    let second = pool.take(4990);
    assert_eq!(second.as_ptr(), at);
    assert_eq!(pool.kept_bytes(), 0);
}

#[test]
fn buffers_that_are_lent_at_one_time_never_share_memory() {
    let pool = BufferPool::new(1 << 20);
    for _ in 0..3 {
        let mut buffers: Vec<_> = (0..6).map(|_| pool.take(2000)).collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            buffer.fill(number as f32);
        }
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(
                buffer.iter().all(|&v| v == number as f32),
                "buffer {number}"
            );
        }
    }
}

#[test]
fn what_is_over_the_bound_goes_back_to_the_system_the_oldest_first() {
    // Room for one buffer of 10,000 floats and no more.
    let pool = BufferPool::new(45_000);
    let (old, new) = (pool.take(10_000), pool.take(9_000));
    drop(old);
    let at = new.as_ptr();
    drop(new);
    assert!(pool.kept_bytes() <= 45_000);
    assert_eq!(pool.take(9_000).as_ptr(), at);
    // A buffer that is larger than all that may be kept is not kept at all.
    drop(pool.take(100_000));
    assert!(pool.kept_bytes() <= 45_000);
}

#[test]
fn threads_may_give_back_what_others_have_taken() {
    let pool = BufferPool::new(1 << 20);
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let buffers: Vec<_> = (1..8).map(|i| pool.take(i * 1500)).collect();
        std::thread::scope(|scope| {
            for mut buffer in buffers {
                scope.spawn(move || buffer.fill(1.0));
            }
        });
    }
    assert!(pool.kept_bytes() <= 1 << 20);
}
