//! Statistics of an evaluation: intervals of confidence, and how well a score tells the known from
//! the unknown.

/// Returns the 95 % interval of a share by Wilson's score, which is right for few trials too.
pub fn wilson_interval(successes: usize, trials: usize) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    const Z: f64 = 1.959_963_984_540_054;
    let n = trials as f64;
    let share = successes as f64 / n;
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    // Rounding must not take the ends from where they belong.
    [
        if successes == 0 {
            0.0
        } else {
            (centre - spread) / scale
        },
        if successes == trials {
            1.0
        } else {
            (centre + spread) / scale
        },
    ]
}

/// Returns the probability that a known picture scores higher than an unknown one (AUROC); equal
/// scores count half. It is `None` where one of the sides is empty.
pub fn auroc(known: &[f32], unknown: &[f32]) -> Option<f64> {
    if known.is_empty() || unknown.is_empty() {
        return None;
    }
    let mut sorted = unknown.to_vec();
    sorted.sort_by(f32::total_cmp);
    let wins = known.iter().map(|score| {
        let below = sorted.partition_point(|other| other < score);
        let not_above = sorted.partition_point(|other| other <= score);
        (below + not_above) as f64 / 2.0
    });
    Some(wins.sum::<f64>() / (known.len() * unknown.len()) as f64)
}

/// Returns the share of unknown pictures that pass for known ones where 95 % of the known ones pass
/// (FPR95). It is `None` where one of the sides is empty.
pub fn false_positive_rate(known: &[f32], unknown: &[f32]) -> Option<f64> {
    if known.is_empty() || unknown.is_empty() {
        return None;
    }
    let mut sorted = known.to_vec();
    sorted.sort_by(f32::total_cmp);
    let threshold = sorted[known.len() / 20];
    let passed = unknown.iter().filter(|score| **score >= threshold).count();
    Some(passed as f64 / unknown.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // By scipy.stats.binomtest(...).proportion_ci(method="wilson").
        for (successes, trials, low, high) in [
            (8, 10, 0.4901625, 0.9433178),
            (0, 10, 0.0, 0.2775328),
            (950, 1000, 0.9346862, 0.9618697),
        ] {
            let [found_low, found_high] = wilson_interval(successes, trials);
            assert!((found_low - low).abs() < 1e-5, "{found_low} {low}");
            assert!((found_high - high).abs() < 1e-5, "{found_high} {high}");
        }
        assert_eq!(wilson_interval(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn separation_goes_from_none_to_complete() {
        assert_eq!(auroc(&[2.0, 3.0], &[0.0, 1.0]), Some(1.0));
        assert_eq!(auroc(&[1.0, 1.0], &[1.0]), Some(0.5));
        assert_eq!(auroc(&[], &[1.0]), None);
        assert_eq!(false_positive_rate(&[2.0; 20], &[1.0, 3.0]), Some(0.5));
    }
}
