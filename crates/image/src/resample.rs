//! Computes a window of a resized picture, bit for bit as Pillow computes it, without the rest of
//! the resized picture.
//!
//! The algorithm is that of Pillow's `src/libImaging/Resample.c` for 8 bits: a filter that widens
//! by the scale when shrinking, weights in fixed point, one pass across and one down, with rounding
//! to 8 bits in between. (Pillow 13 and later go down first for some tall pictures; this is the
//! order of every version before.) `fast_image_resize` with its 16-bit weights was up to 2/255 off
//! at hard edges, and its usual order clips bicubic overshoot at other places.

use crate::pixels::RgbImage;
use crate::preprocessing::Filter;
use imgclass_kernels::{FRACTION_BITS, Isa, Taps, resample_across, resample_down};
use std::f64::consts::PI;
use std::ops::Range;

impl Filter {
    /// Returns the filter's radius in source pixels, when it does not shrink.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Returns the weight at distance `x` from the centre, not normalised.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        (x * PI).sin() / (x * PI)
    }
}

/// One axis of a window: `length` pixels from `offset` on, of an axis that is resized from `source`
/// to `resized` pixels. The window lies within the axis, and no length is zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) source: u32,
    pub(super) resized: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Span {
    /// Returns the taps of every pixel in the window, as Pillow's `precompute_coeffs` and
    /// `normalize_coeffs_8bpc` compute them. The weights of a pixel sum to 1, and their absolute
    /// values to less than 2.
    fn taps(self, filter: Filter) -> Vec<Taps> {
        let scale = f64::from(self.source) / self.resized as f64;
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        (self.offset..self.offset + u64::from(self.length))
            .map(|at| {
                let centre = (at as f64 + 0.5) * scale;
                // Conversion to an integer cuts off, and saturates at 0.
                let first = (centre - support + 0.5) as usize;
                let end = ((centre + support + 0.5) as usize).min(self.source as usize);
                let weights: Vec<f64> = (first..end)
                    .map(|x| filter.weight((x as f64 - centre + 0.5) / widening))
                    .collect();
                let sum: f64 = weights.iter().sum();
                Taps {
                    first,
                    weights: weights.into_iter().map(|w| fixed_point(w / sum)).collect(),
                }
            })
            .collect()
    }
}

/// Returns a weight in fixed point with Pillow's `PRECISION_BITS`, which are the kernels'. Halves
/// are rounded away from zero, as Pillow does.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << FRACTION_BITS)).round() as i32
}

/// Returns the pixels `[down.length, across.length, 3]` of `picture` resized to `across.resized` by
/// `down.resized`.
pub(super) fn window(picture: &RgbImage, across: Span, down: Span, filter: Filter) -> Vec<u8> {
    let isa = Isa::detect();
    let columns = across.taps(filter);
    let mut rows = down.taps(filter);
    let needed = source_range(&rows);
    for taps in &mut rows {
        taps.first -= needed.start;
    }
    let width = picture.width() as usize;
    let band = &picture.data()[needed.start * width * 3..needed.end * width * 3];
    let band = resample_across(isa, band, width, &columns);
    resample_down(isa, &band, columns.len() * 3, &rows)
}

/// Returns the range of source pixels that the taps read.
fn source_range(taps: &[Taps]) -> Range<usize> {
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
    let end = taps.iter().map(|t| t.first + t.weights.len()).max();
    first..end.unwrap_or(0)
}
