//! The passes of a resize give the same bits as sums in 64 bits, on every instruction set.
#![cfg(not(miri))]

use imgclass_kernels::{FRACTION_BITS, Isa, Taps, resample_across, resample_down};
use proptest::prelude::*;

const ONE: i64 = 1 << FRACTION_BITS;

fn clip(sum: i64) -> u8 {
    ((sum + ONE / 2) >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Returns what `taps` make of the samples that lie `step` apart from `start` on.
fn sum(samples: &[u8], taps: &Taps, start: usize, step: usize) -> u8 {
    let at = |i: usize| i64::from(samples[start + (taps.first + i) * step]);
    let weights = taps.weights.iter().enumerate();
    clip(weights.map(|(i, &weight)| at(i) * i64::from(weight)).sum())
}

fn across(samples: &[u8], width: usize, columns: &[Taps]) -> Vec<u8> {
    let rows = samples.len() / (3 * width);
    let mut sums = Vec::with_capacity(3 * rows * columns.len());
    for row in 0..rows {
        for taps in columns {
            sums.extend((0..3).map(|channel| sum(samples, taps, 3 * width * row + channel, 3)));
        }
    }
    sums
}

fn down(samples: &[u8], row_bytes: usize, rows: &[Taps]) -> Vec<u8> {
    rows.iter()
        .flat_map(|taps| (0..row_bytes).map(move |byte| sum(samples, taps, byte, row_bytes)))
        .collect()
}

/// Makes taps within `length` pixels. They have as many weights as there is room for, or fewer,
/// some of them below zero; the weights sum to anything from nothing to almost two.
fn taps(length: usize) -> impl Strategy<Value = Taps> {
    let weights = prop::collection::vec(-0.2f64..0.8, 0..=length.min(24));
    (weights, any::<prop::sample::Index>()).prop_map(move |(weights, first)| {
        let room = length - weights.len() + 1;
        let absolute: f64 = weights.iter().map(|w| w.abs()).sum();
        let scale = ONE as f64 * 1.9 / absolute.max(1e-9);
        Taps {
            first: first.index(room),
            weights: weights.iter().map(|w| (w * scale) as i32).collect(),
        }
    })
}

/// Makes cases: width, height, samples, columns and rows.
fn cases() -> impl Strategy<Value = (usize, usize, Vec<u8>, Vec<Taps>, Vec<Taps>)> {
    (1usize..40, 1usize..20).prop_flat_map(|(width, height)| {
        (
            Just(width),
            Just(height),
            prop::collection::vec(any::<u8>(), 3 * width * height),
            prop::collection::vec(taps(width), 0..12),
            prop::collection::vec(taps(height), 0..12),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_instruction_set_gives_the_exact_sums((width, _, samples, columns, rows) in cases()) {
        for isa in Isa::available() {
            prop_assert_eq!(
                resample_across(isa, &samples, width, &columns),
                across(&samples, width, &columns),
                "across, {}", isa
            );
            prop_assert_eq!(
                resample_down(isa, &samples, 3 * width, &rows),
                down(&samples, 3 * width, &rows),
                "down, {}", isa
            );
        }
    }
}

#[test]
fn nothing_resized_is_nothing() {
    const NOTHING: [u8; 0] = [];
    for isa in Isa::available() {
        let one = Taps {
            first: 0,
            weights: vec![ONE as i32],
        };
        assert_eq!(
            resample_across(isa, &[], 5, std::slice::from_ref(&one)),
            NOTHING
        );
        assert_eq!(resample_across(isa, &[1, 2, 3], 1, &[]), NOTHING);
        assert_eq!(resample_across(isa, &[], 0, &[]), NOTHING);
        assert_eq!(resample_down(isa, &[1, 2, 3], 3, &[]), NOTHING);
        assert_eq!(resample_down(isa, &[], 0, &[]), NOTHING);
        assert_eq!(resample_across(isa, &[7, 8, 9], 1, &[one]), [7, 8, 9]);
    }
}

#[test]
fn taps_outside_the_samples_are_refused() {
    let outside = [Taps {
        first: 1,
        weights: vec![1, 1],
    }];
    for isa in Isa::available() {
        let across = std::panic::catch_unwind(|| resample_across(isa, &[0; 6], 2, &outside));
        assert!(across.is_err(), "{isa}");
        let down = std::panic::catch_unwind(|| resample_down(isa, &[0; 6], 3, &outside));
        assert!(down.is_err(), "{isa}");
        let ragged = std::panic::catch_unwind(|| resample_across(isa, &[0; 7], 2, &[]));
        assert!(ragged.is_err(), "{isa}");
    }
}
