//! Parsers for the values of options.
//!
//! Each parser returns a text that says what was expected; clap puts the option's name and the
//! value that it was given before it.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

/// Returns a parser for whole numbers within `range`.
pub(super) fn whole_number_parser(
    range: RangeInclusive<usize>,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "expected a whole number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Returns a parser for rates within `range`, in requests a second.
pub(crate) fn rate_parser(
    range: RangeInclusive<f64>,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(rate) if range.contains(&rate) => Ok(rate),
        _ => Err(format!(
            "expected requests a second from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Parses a share from 0 to 1.
pub(crate) fn parse_share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1, such as 0.05".to_owned()),
    }
}

/// Parses a duration from 1 ms to a day.
pub(crate) fn parse_duration(text: &str) -> Result<humantime::Duration, String> {
    match text.parse::<humantime::Duration>() {
        Ok(time) if (Duration::from_millis(1)..=Duration::from_hours(24)).contains(&*time) => {
            Ok(time)
        }
        _ => Err("expected a time from 1ms to 24h, such as 500ms or 30s".to_owned()),
    }
}

/// Parses how long a batch may wait for more images: from 0 s, which means not at all, to 10 s.
pub(super) fn parse_batch_delay(text: &str) -> Result<humantime::Duration, String> {
    parse_duration_up_to(
        text,
        Duration::from_secs(10),
        "expected a time from 0s to 10s, such as 5ms",
    )
}

/// Parses how long a shutdown is announced before it begins: from 0 s to 10 min.
///
/// Orchestrators kill a process that takes longer than that to end.
pub(super) fn parse_shutdown_delay(text: &str) -> Result<humantime::Duration, String> {
    parse_duration_up_to(
        text,
        Duration::from_mins(10),
        "expected a time from 0s to 10m, such as 5s",
    )
}

fn parse_duration_up_to(
    text: &str,
    longest: Duration,
    expected: &str,
) -> Result<humantime::Duration, String> {
    match text.parse::<humantime::Duration>() {
        Ok(time) if *time <= longest => Ok(time),
        _ => Err(expected.to_owned()),
    }
}

/// Parses an amount of memory or data from 1 KiB to 1 TiB.
///
/// Memory is counted in KiB by semaphores whose counters have 32 bits; 1 TiB is 2^30 KiB.
pub(super) fn parse_size(text: &str) -> Result<ByteSize, String> {
    parse_size_within(text, ByteSize::kib(1)..=ByteSize::tib(1))
}

/// Parses an amount of memory for decoding, from 16 MiB to 1 TiB.
///
/// With less than 16 MiB, ordinary photographs would be refused.
pub(super) fn parse_decode_memory(text: &str) -> Result<ByteSize, String> {
    parse_size_within(text, ByteSize::mib(16)..=ByteSize::tib(1))
}

fn parse_size_within(text: &str, range: RangeInclusive<ByteSize>) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if range.contains(&size) => Ok(size),
        _ => Err(format!(
            "expected a size from {} to {}, such as 20MiB",
            range.start(),
            range.end()
        )),
    }
}
