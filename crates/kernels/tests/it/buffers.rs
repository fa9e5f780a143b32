//! The buffer pool: buffers start on cache lines, come back, and are kept within a bound. Weights lie
//! side by side in large pages.

use imgclass_kernels::{BatchDims, BufferPool, ConvShape, Isa, Numbers, PackedConv};

const MEGABYTE: usize = 1 << 20;

#[test]
fn buffers_have_the_asked_length_start_on_cache_lines_and_are_zero_at_first() {
    let pool = BufferPool::new(MEGABYTE);
    for len in [0, 1, 15, 1024, 1025, 5000] {
        let buffer = pool.take(len);
        assert_eq!(buffer.len(), len);
        assert_eq!(buffer.as_ptr().addr() % 64, 0, "{len} floats");
        // Buffers that came back are zero here too, since nobody has written to them.
        assert!(buffer.iter().all(|&v| v == 0.0), "{len} floats");
    }
}

#[test]
fn a_buffer_that_was_dropped_serves_the_next_request_of_about_its_length() {
    let pool = BufferPool::new(MEGABYTE);
    let mut first = pool.take(5000);
    first.fill(7.0);
    let address = first.as_ptr();
    assert_eq!(pool.kept_bytes(), 0);
    drop(first);
    assert!(pool.kept_bytes() >= 5000 * size_of::<f32>());
    // A clone shares the buffers.
    let second = pool.clone().take(4990);
    assert_eq!(second.as_ptr(), address);
    assert!(second.iter().all(|&v| v == 7.0));
    assert_eq!(pool.kept_bytes(), 0);
    // While it is in use, another request gets other memory.
    assert_ne!(pool.take(5000).as_ptr(), address);
}

#[test]
fn the_pool_keeps_no_more_bytes_than_it_was_made_for_and_drops_the_oldest_first() {
    let len = 1024;
    let bytes = len * size_of::<f32>();
    let pool = BufferPool::new(2 * bytes);
    let buffers = [pool.take(len), pool.take(len), pool.take(len)];
    let addresses = buffers.each_ref().map(|buffer| buffer.as_ptr());
    // They come back in this order.
    for buffer in buffers {
        drop(buffer);
        assert!(pool.kept_bytes() <= 2 * bytes);
    }
    assert_eq!(pool.kept_bytes(), 2 * bytes);
    let (last, middle) = (pool.take(len), pool.take(len));
    assert_eq!(
        [last.as_ptr(), middle.as_ptr()],
        [addresses[2], addresses[1]]
    );
    // One that alone is beyond the bound is not kept.
    drop(pool.take(3 * len));
    assert_eq!(pool.kept_bytes(), 0);
}

#[test]
fn buffers_may_come_back_on_other_threads() {
    let pool = BufferPool::new(MEGABYTE);
    // All are taken before the first comes back, so they are three.
    let buffers = [pool.take(2000), pool.take(2000), pool.take(2000)];
    std::thread::scope(|scope| {
        for (thread, mut buffer) in buffers.into_iter().enumerate() {
            scope.spawn(move || {
                buffer.fill(thread as f32);
                assert!(buffer.iter().all(|&v| v == thread as f32));
            });
        }
    });
    let kept = pool.kept_bytes();
    assert!((3 * 8000..=MEGABYTE).contains(&kept), "{kept} bytes");
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
                buffer.iter().all(|&value| value == number as f32),
                "buffer {number}"
            );
        }
    }
}

#[test]
fn weights_stay_as_they_are_while_others_beside_them_come_and_go() {
    let shape = |channels| ConvShape {
        in_channels: channels,
        out_channels: channels,
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    let pack = |channels: usize, value: f32| {
        let weight = vec![value; channels * channels];
        PackedConv::new(
            Isa::detect(),
            shape(channels),
            &weight,
            &vec![0.0; channels],
        )
    };
    let dims = BatchDims { n: 1, h: 1, w: 1 };
    let check = |conv: &PackedConv, channels: usize, value: f32| {
        let x = vec![1.0; dims.words(channels, Numbers::F32)];
        let y = conv.forward(&crate::pool(1), &x, dims, None, false);
        assert!(y.iter().all(|y| *y == value * channels as f32));
    };
    // Weights of a few kilobytes share memory; the largest take more than a chunk.
    let sizes: &[usize] = if cfg!(miri) { &[48] } else { &[48, 64, 1040] };
    for &channels in sizes {
        let before = pack(64, 1.0);
        let kept = pack(channels, 2.0);
        drop(before);
        let after: Vec<_> = (3..6).map(|value| pack(48, value as f32)).collect();
        check(&kept, channels, 2.0);
        for (value, conv) in (3..6).zip(&after) {
            check(conv, 48, value as f32);
        }
        drop(kept);
        check(&after[0], 48, 3.0);
    }
}
