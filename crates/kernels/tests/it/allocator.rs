//! The allocator that keeps large blocks. This test program runs on it.

use imgclass_kernels::LargeBlocks;

/// This is the only test that looks at what is kept. Others allocate meanwhile, so it asserts
/// bounds that hold whatever they do.
#[test]
#[cfg_attr(miri, ignore = "large")]
fn large_blocks_start_on_cache_lines_and_are_kept_within_a_bound() {
    let sizes = [16_384, 16_385, 50_000, 1 << 20, 3_211_264 / 4, 5_000_000];
    for round in 0..20 {
        let blocks: Vec<Vec<f32>> = sizes
            .iter()
            .map(|&len| vec![round as f32; len + round])
            .collect();
        for block in &blocks {
            assert_eq!(block.as_ptr().addr() % 64, 0, "{} floats", block.len());
            assert!(block.iter().all(|&v| v == round as f32));
        }
        drop(blocks);
        assert!(LargeBlocks::kept_bytes() <= 64 << 20);
    }
}

#[test]
fn zeroed_blocks_are_zero_also_when_they_were_used_before() {
    let (len, rounds) = if cfg!(miri) {
        (16_384, 2)
    } else {
        (300_000, 5)
    };
    for _ in 0..rounds {
        let used = std::hint::black_box(vec![1.0f32; len]);
        drop(used);
        assert!(vec![0.0f32; len].iter().all(|&v| v == 0.0));
    }
}

#[test]
fn a_block_keeps_its_content_while_it_grows_across_the_border_of_large() {
    let mut grown: Vec<u32> = Vec::new();
    let last = if cfg!(miri) { 17_000 } else { 1_000_000 };
    for value in 0..last {
        grown.push(value);
    }
    assert!(
        grown
            .iter()
            .enumerate()
            .all(|(at, &value)| at as u32 == value)
    );
    grown.truncate(10);
    grown.shrink_to_fit();
    assert_eq!(grown, (0..10).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(miri, ignore = "large")]
fn threads_may_free_what_others_allocated() {
    for _ in 0..20 {
        let blocks: Vec<Vec<u8>> = (1..40).map(|i| vec![i as u8; i * 70_000]).collect();
        std::thread::scope(|scope| {
            for (index, block) in blocks.into_iter().enumerate() {
                scope.spawn(move || assert!(block.iter().all(|&v| v == (index + 1) as u8)));
            }
        });
    }
    LargeBlocks::release();
}
