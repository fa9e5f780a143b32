//! Prints what pictures decode to, for comparisons with other decoders (`tools/differential.py`).
//!
//! It reads paths from the standard input, one a line, and answers each with one line: width,
//! height and the file that it wrote the RGB bytes to, or "refused" and the error's text. Where a
//! tab and a number of pixels follow a path, a JPEG is decoded at the least size of which no side is
//! shorter than that. With the argument `time` each file is decoded several times instead, and the
//! answer is the least milliseconds.

#![allow(
    clippy::expect_used,
    reason = "a tool for developers that fails by panicking"
)]

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Instant;

use imgclass_image::{Encoded, ImageError, Limits, RgbImage};

const LIMITS: Limits = Limits {
    max_pixels: 100_000_000,
    max_side: 65_535,
    max_decoded_bytes: 1 << 30,
};

/// Rounds of which the fastest counts.
const ROUNDS: usize = 15;

fn main() {
    let is_timed = std::env::args().nth(1).as_deref() == Some("time");
    let mut total = 0.0;
    for line in stdin().lock().lines() {
        let line = line.expect("a line of text");
        let (path, least) = line.split_once('\t').unwrap_or((&line, ""));
        let least = least.parse().unwrap_or(u32::MAX);
        let bytes = std::fs::read(path).expect("a readable file");
        let answer = match decode(&bytes, least) {
            Ok(_) if is_timed => {
                let milliseconds = fastest(&bytes, least);
                total += milliseconds;
                format!("{milliseconds:.3}\t{path}")
            }
            Ok(picture) => {
                let out = format!("{path}.rgb");
                std::fs::write(&out, picture.data()).expect("a writable folder");
                format!("{}\t{}\t{out}", picture.width(), picture.height())
            }
            Err(error) => format!("refused\t{error}"),
        };
        writeln!(stdout(), "{answer}").expect("an open output");
    }
    if is_timed {
        writeln!(stdout(), "{total:.3}\tin all").expect("an open output");
    }
}

fn decode(bytes: &[u8], least: u32) -> Result<RgbImage, ImageError> {
    Encoded::open_at_least(bytes, &LIMITS, |_| (least, least))?.decode()
}

fn fastest(bytes: &[u8], least: u32) -> f64 {
    let round = |_| {
        let start = Instant::now();
        let _ = decode(bytes, least);
        start.elapsed().as_secs_f64() * 1000.0
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}
