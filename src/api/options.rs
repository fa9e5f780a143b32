//! What the JSON of several routes has in common: the option `top_k`, the example picture, and how
//! numbers are written.

use serde::{Deserialize, Deserializer};

/// How many classes an answer names where the request does not say it.
pub(super) const DEFAULT_TOP_K: u32 = 5;

/// The most classes that a request may ask for.
pub(super) const MAX_TOP_K: u32 = 1000;

/// Reads `top_k`: `null`, or a whole number from 1 to [`MAX_TOP_K`].
pub(super) fn top_k<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(k) = Option::<i64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let within = u32::try_from(k)
        .ok()
        .filter(|k| (1..=MAX_TOP_K).contains(k));
    let error = || serde::de::Error::custom(format!("{k} is outside 1 to {MAX_TOP_K}"));
    within.ok_or_else(error).map(Some)
}

/// Reads a number from 0 to 1, or `null`.
pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(deserializer)? {
        Some(share) if !(0.0..=1.0).contains(&share) => Err(serde::de::Error::custom(format!(
            "{share} is outside 0 to 1"
        ))),
        share => Ok(share),
    }
}

/// Reads `top_k` as [`top_k`] does; `null` becomes [`DEFAULT_TOP_K`].
pub(super) fn top_k_or_default<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<u32, D::Error> {
    Ok(top_k(deserializer)?.unwrap_or_else(default_top_k))
}

/// Returns [`DEFAULT_TOP_K`], as derived code wants it.
pub(super) fn default_top_k() -> u32 {
    DEFAULT_TOP_K
}

/// A picture as a data URL, with which the interface can be tried without another server: the
/// page's example, a balloon, at 128 by 96 pixels. The default checkpoint knows it (balloon, 0.99).
pub(super) fn example_image() -> String {
    include_str!("example_image.txt").trim().to_owned()
}

/// Returns a number for JSON that has the digits that tell it from its neighbours in single
/// precision, and no more: 0.86, not 0.8600000143051147.
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn numbers_are_written_with_the_digits_that_single_precision_has() {
        for (x, text) in [
            (0.86f32, "0.86"),
            (0.1 + 0.2, "0.3"),
            (1e-30, "1e-30"),
            (0.0, "0"),
            (1.0, "1"),
        ] {
            assert_eq!(shortest(x), text.parse::<f64>().unwrap(), "{x}");
            assert_eq!(shortest(x) as f32, x);
        }
    }
}
