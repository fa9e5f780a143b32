//! Makes RGB of luma and chroma, with the roundings of libavif and of libyuv below it, so that the
//! bytes are Pillow's.
//!
//! libavif has two ways, and which one it takes depends on the picture:
//!
//! - **Fixed point** (libyuv), for the usual matrices: 6 bits behind the point, chroma brought to the
//!   size of luma by weights of 9, 3, 3 and 1 sixteenths. More than 8 bits are cut to 8 first, except
//!   where there is alpha.
//! - **Floating point** for the other matrices, and for pictures without chroma and alpha.

use imgclass_av1::{Layout, Sample};

use crate::error::Refusal;

use super::Planes;
use super::container::Colour;

/// How the samples of one picture become RGB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conversion {
    layout: Layout,
    depth: u8,
    is_full_range: bool,
    method: Method,
}

#[derive(Debug, Clone, Copy)]
enum Method {
    /// Fixed point.
    Fixed(Fixed, Reduction),
    /// Floating point.
    Float(Matrix),
}

/// When samples of more than 8 bits become 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reduction {
    /// Before chroma is brought to the size of luma.
    First,
    /// After that, and luma keeps its bits through the matrix.
    Last,
    /// Luma keeps its bits, and each sample of chroma serves its pixels as it is.
    LastFromNearest,
}

/// A matrix in fixed point, with 6 bits behind the point.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    /// What luma counts, of 2^22.
    luma: u32,
    /// What is added to it.
    bias: i32,
    blue_to_blue: i32,
    blue_to_green: i32,
    red_to_green: i32,
    red_to_red: i32,
}

impl Fixed {
    /// Returns the matrix for these numbers of H.273, if libyuv has one.
    fn of(matrix: u16, is_full_range: bool) -> Option<Self> {
        // Rounded to 1/64 as libyuv has them. In limited range it cuts what blue adds to blue at 2.
        let (luma, bias, [blue_to_blue, blue_to_green, red_to_green, red_to_red]) =
            match (matrix, is_full_range) {
                (1, true) => (16_320, 32, [119, 12, 30, 101]),
                (2 | 5 | 6, true) => (16_320, 32, [113, 22, 46, 90]),
                (9, true) => (16_320, 32, [120, 11, 37, 94]),
                (1, false) => (18_997, -1160, [128, 14, 34, 115]),
                (2 | 5 | 6, false) => (18_997, -1160, [128, 25, 52, 102]),
                (9, false) => (19_003, -1160, [128, 12, 42, 107]),
                _ => return None,
            };
        Some(Self {
            luma,
            bias,
            blue_to_blue,
            blue_to_green,
            red_to_green,
            red_to_red,
        })
    }

    /// Returns what luma contributes, from a sample that fills 16 bits.
    fn scaled(&self, luma: u16) -> i32 {
        ((u32::from(luma) * self.luma) >> 16) as i32 + self.bias
    }

    fn rgb(&self, luma: u16, blue: u8, red: u8) -> [u8; 3] {
        let luma = self.scaled(luma);
        let (blue, red) = (i32::from(blue) - 128, i32::from(red) - 128);
        let green = luma - (blue * self.blue_to_green + red * self.red_to_green);
        [
            luma + red * self.red_to_red,
            green,
            luma + blue * self.blue_to_blue,
        ]
        .map(|value| (value >> 6).clamp(0, 255) as u8)
    }
}

/// A matrix of the slow way.
#[derive(Debug, Clone, Copy)]
enum Matrix {
    /// Luma is green, and chroma is blue and red.
    Identity,
    /// Chroma is green and orange against purple and blue.
    GreenOrange,
    /// What red and blue count in luma.
    Weights { red: f32, blue: f32 },
}

impl Conversion {
    /// Returns the conversion for pictures of this form.
    ///
    /// # Errors
    /// Refuses what libavif refuses, by its number.
    pub(super) fn new(
        colour: Colour,
        depth: u8,
        layout: Layout,
        has_alpha: bool,
    ) -> Result<Self, Refusal> {
        let Colour {
            primaries,
            matrix,
            is_full_range,
        } = colour;
        let unsupported = || {
            let range = if is_full_range { "full" } else { "limited" };
            Err(Refusal::Unsupported(format!(
                "an AVIF image with matrix coefficients {matrix} in {range} range"
            )))
        };
        let is_grey = layout == Layout::Monochrome;
        // Chroma whose matrix follows from the primaries.
        let matrix = match (matrix, primaries) {
            (12, 1 | 2) => 1,
            (12, 5 | 6) => 6,
            (12, 9) => 9,
            (matrix, _) => matrix,
        };
        let float = match matrix {
            0 if is_grey || layout == Layout::Full => Matrix::Identity,
            1 => Matrix::weights(0.2126, 0.0722),
            4 => Matrix::weights(0.30, 0.11),
            2 | 5 | 6 => Matrix::weights(0.299, 0.114),
            7 => Matrix::weights(0.212, 0.087),
            8 if is_full_range => Matrix::GreenOrange,
            9 => Matrix::weights(0.2627, 0.0593),
            12 => match Matrix::of_primaries(primaries) {
                Some(matrix) => matrix,
                None => return unsupported(),
            },
            _ => return unsupported(),
        };
        let fixed_matrix = if is_grey && matrix == 0 { 6 } else { matrix };
        let fixed = Fixed::of(fixed_matrix, is_full_range).filter(|_| !is_grey || has_alpha);
        let method = match fixed {
            None => Method::Float(float),
            Some(fixed) => {
                let reduction = match (depth, layout) {
                    (10, layout) if has_alpha && layout != Layout::Monochrome => Reduction::Last,
                    (12, Layout::Half) if has_alpha => Reduction::LastFromNearest,
                    _ => Reduction::First,
                };
                Method::Fixed(fixed, reduction)
            }
        };
        Ok(Self {
            layout,
            depth,
            is_full_range,
            method,
        })
    }

    /// Returns an upper bound of the bytes of rows and tables that a conversion holds beside its
    /// samples and its result, for a picture of this width.
    pub(super) fn row_bytes(width: u32) -> u64 {
        // Two rows of chroma and one of luma, of up to 4 bytes a sample; two tables of 12 bits.
        u64::from(width) * 12 + (2 << 12) * 4
    }

    /// Converts a picture to RGB.
    pub(super) fn convert<T: Sample>(&self, planes: &Planes<'_, T>) -> Result<Vec<u8>, Refusal> {
        let (width, height) = planes.luma.size();
        let mut rgb = vec![0; width * height * 3];
        let rows = rgb.chunks_exact_mut(width * 3);
        let rows = rows.map(|row| row.as_chunks_mut::<3>().0).enumerate();
        match self.method {
            Method::Fixed(fixed, Reduction::First) => {
                let mut buffers = Buffers::new(width, 128_u8);
                let shift = self.depth - 8;
                // A sample of too many bits counts as the largest of 8.
                let reduce = move |sample: T| (sample.into() >> shift).min(255) as u8;
                for (y, row) in rows {
                    self.upsample(planes, y, &mut buffers, reduce);
                    let luma = planes.luma.row(y).iter();
                    let chroma = buffers.blue.iter().zip(&buffers.red);
                    for ((pixel, &luma), (&blue, &red)) in row.iter_mut().zip(luma).zip(chroma) {
                        *pixel = fixed.rgb(u16::from(reduce(luma)) * 0x0101, blue, red);
                    }
                }
            }
            Method::Fixed(fixed, reduction) => {
                let mut buffers = Buffers::new(width, 0_u16);
                let shift = self.depth - 8;
                let largest = (1 << self.depth) - 1;
                let fill = |sample: T| {
                    let sample = sample.into().min(largest);
                    sample << (16 - self.depth) | sample >> (2 * self.depth - 16)
                };
                let reduce = |sample: u16| (sample >> shift).min(255) as u8;
                for (y, row) in rows {
                    if reduction == Reduction::LastFromNearest {
                        self.repeat(planes, y, &mut buffers);
                    } else {
                        self.upsample(planes, y, &mut buffers, T::into);
                    }
                    let luma = planes.luma.row(y).iter();
                    let chroma = buffers.blue.iter().zip(&buffers.red);
                    for ((pixel, &luma), (&blue, &red)) in row.iter_mut().zip(luma).zip(chroma) {
                        *pixel = fixed.rgb(fill(luma), reduce(blue), reduce(red));
                    }
                }
            }
            Method::Float(matrix) => {
                let tables = Tables::new(self.depth, self.is_full_range, matrix);
                let mut buffers = Buffers::new(width, 0.0_f32);
                for (y, row) in rows {
                    self.upsample_float(planes, y, &mut buffers, &tables);
                    let luma = planes.luma.row(y).iter();
                    let chroma = buffers.blue.iter().zip(&buffers.red);
                    let is_grey = planes.chroma.is_none();
                    for ((pixel, &luma), (&blue, &red)) in row.iter_mut().zip(luma).zip(chroma) {
                        let luma = tables.luma(luma.into());
                        *pixel = if is_grey {
                            [luma; 3].map(to_byte)
                        } else {
                            matrix.rgb(luma, blue, red).map(to_byte)
                        };
                    }
                }
            }
        }
        Ok(rgb)
    }

    /// Brings the chroma of a row to the width of luma, in whole numbers. Where there is none, the
    /// buffers stay as they are.
    fn upsample<T: Sample, S: Whole>(
        &self,
        planes: &Planes<'_, T>,
        y: usize,
        buffers: &mut Buffers<S>,
        reduce: impl Fn(T) -> S + Copy,
    ) {
        let Some(chroma) = &planes.chroma else {
            return;
        };
        for (plane, buffer) in chroma.iter().zip([&mut buffers.blue, &mut buffers.red]) {
            match self.layout {
                Layout::Monochrome => {}
                Layout::Full => {
                    for (out, &sample) in buffer.iter_mut().zip(plane.row(y)) {
                        *out = reduce(sample);
                    }
                }
                Layout::HalfWidth => widen(plane.row(y), buffer, reduce),
                Layout::Half => {
                    let near = plane.row(y / 2);
                    match other_row(y, plane.size().1) {
                        Some(other) => {
                            widen_between(near, plane.row(other), buffer, reduce);
                        }
                        None => widen(near, buffer, reduce),
                    }
                }
            }
        }
    }

    /// Repeats the chroma of a row for both of its pixels.
    fn repeat<T: Sample>(&self, planes: &Planes<'_, T>, y: usize, buffers: &mut Buffers<u16>) {
        for (plane, buffer) in planes
            .chroma
            .iter()
            .flatten()
            .zip([&mut buffers.blue, &mut buffers.red])
        {
            let row = plane.row(y / 2);
            for (pair, &sample) in buffer.chunks_mut(2).zip(row) {
                pair.fill(sample.into());
            }
        }
    }

    /// Brings the chroma of a row to the width of luma, in floating point.
    fn upsample_float<T: Sample>(
        &self,
        planes: &Planes<'_, T>,
        y: usize,
        buffers: &mut Buffers<f32>,
        tables: &Tables,
    ) {
        let Some(chroma) = &planes.chroma else {
            return;
        };
        let (halves_width, halves_height) = match self.layout {
            Layout::Monochrome | Layout::Full => (false, false),
            Layout::HalfWidth => (true, false),
            Layout::Half => (true, true),
        };
        let height = planes.luma.size().1;
        for (plane, buffer) in chroma.iter().zip([&mut buffers.blue, &mut buffers.red]) {
            let near = plane.row(if halves_height { y / 2 } else { y });
            if !halves_width {
                for (out, &sample) in buffer.iter_mut().zip(near) {
                    *out = tables.chroma(sample.into());
                }
                continue;
            }
            let other = match neighbour(y, height) {
                Some(other) if halves_height => plane.row(other),
                _ => near,
            };
            let width = buffer.len();
            let value = |sample: T| tables.chroma(sample.into());
            for (x, out) in buffer.iter_mut().enumerate() {
                let next = neighbour(x, width).unwrap_or(x / 2);
                *out = value(near[x / 2]) * (9.0 / 16.0)
                    + value(near[next]) * (3.0 / 16.0)
                    + value(other[x / 2]) * (3.0 / 16.0)
                    + value(other[next]) * (1.0 / 16.0);
            }
        }
    }
}

/// Rows of chroma at the width of luma.
struct Buffers<S> {
    blue: Vec<S>,
    red: Vec<S>,
}

impl<S: Copy> Buffers<S> {
    /// Returns rows that hold `value`, which is what they keep where there is no chroma.
    fn new(width: usize, value: S) -> Self {
        Self {
            blue: vec![value; width],
            red: vec![value; width],
        }
    }
}

/// A whole number that is a sample.
trait Whole: Copy + Into<u32> {
    fn from_sum(sum: u32) -> Self;
}

impl Whole for u8 {
    fn from_sum(sum: u32) -> Self {
        sum as u8
    }
}

impl Whole for u16 {
    fn from_sum(sum: u32) -> Self {
        sum as u16
    }
}

/// Returns the row of chroma that is next to a row of luma, beside the one at half its number. The
/// first row has none, and neither has the last of an even number.
fn other_row(y: usize, rows: usize) -> Option<usize> {
    let other = if y % 2 == 1 {
        y / 2 + 1
    } else {
        (y / 2).checked_sub(1)?
    };
    (other < rows).then_some(other)
}

/// Returns the sample of chroma that is next to a sample of luma in one direction, beside the one at
/// half its number, if there is one.
fn neighbour(at: usize, length: usize) -> Option<usize> {
    match at {
        0 => None,
        at if at.is_multiple_of(2) => Some(at / 2 - 1),
        at if at + 1 == length => None,
        at => Some(at / 2 + 1),
    }
}

/// Doubles the width of a row: weights of 3 and 1. The first and the last sample are taken as they
/// are.
fn widen<T: Copy, S: Whole>(row: &[T], out: &mut [S], reduce: impl Fn(T) -> S) {
    let last = out.len() - 1;
    let sample = |at: usize| reduce(row[at]);
    out[0] = sample(0);
    // Each two neighbours of chroma make two samples between them.
    let pairs = row.array_windows::<2>();
    for ([left, right], out) in pairs.zip(out[1..].chunks_exact_mut(2)) {
        let (left, right) = (reduce(*left).into(), reduce(*right).into());
        out[0] = S::from_sum((3 * left + right + 2) >> 2);
        out[1] = S::from_sum((left + 3 * right + 2) >> 2);
    }
    out[last] = sample(last / 2);
}

/// Doubles the width of a row that lies between two: weights of 9, 3, 3 and 1. The first and the
/// last sample have only the neighbour in the other row.
fn widen_between<T: Copy, S: Whole>(
    near: &[T],
    other: &[T],
    out: &mut [S],
    reduce: impl Fn(T) -> S,
) {
    let last = out.len() - 1;
    let upright = |at: usize| -> S {
        let (near, other): (u32, u32) = (reduce(near[at]).into(), reduce(other[at]).into());
        S::from_sum((3 * near + other + 2) >> 2)
    };
    out[0] = upright(0);
    let pairs = near.array_windows::<2>().zip(other.array_windows::<2>());
    for (([a, b], [c, d]), out) in pairs.zip(out[1..].chunks_exact_mut(2)) {
        let left = 3 * reduce(*a).into() + reduce(*c).into();
        let right = 3 * reduce(*b).into() + reduce(*d).into();
        out[0] = S::from_sum((3 * left + right + 8) >> 4);
        out[1] = S::from_sum((left + 3 * right + 8) >> 4);
    }
    out[last] = upright(last / 2);
}

/// What samples stand for, from 0 to 1 and from -0.5 to 0.5.
struct Tables {
    luma: Vec<f32>,
    chroma: Vec<f32>,
}

impl Tables {
    fn new(depth: u8, is_full_range: bool, matrix: Matrix) -> Self {
        let largest = ((1_u32 << depth) - 1) as f32;
        let unit = (1_u32 << (depth - 8)) as f32;
        let (bias, luma_range, chroma_range) = if is_full_range {
            (0.0, largest, largest)
        } else {
            (16.0 * unit, 219.0 * unit, 224.0 * unit)
        };
        let all = || (0..1_u32 << depth).map(|sample| sample as f32);
        let luma: Vec<_> = all().map(|sample| (sample - bias) / luma_range).collect();
        let chroma = match matrix {
            Matrix::Identity => luma.clone(),
            _ => all()
                .map(|sample| (sample - 128.0 * unit) / chroma_range)
                .collect(),
        };
        Self { luma, chroma }
    }

    fn luma(&self, sample: u16) -> f32 {
        self.luma[usize::from(sample).min(self.luma.len() - 1)]
    }

    fn chroma(&self, sample: u16) -> f32 {
        self.chroma[usize::from(sample).min(self.chroma.len() - 1)]
    }
}

/// Coordinates of a colour in the CIE 1931 diagram.
type Point = (f32, f32);

/// Daylight, the usual white.
const D65: Point = (0.3127, 0.3290);

impl Matrix {
    fn weights(red: f32, blue: f32) -> Self {
        Self::Weights { red, blue }
    }

    /// Returns the matrix that follows from primaries (equations 39 and 40 of H.273): luma is the
    /// lightness, so red and blue count what they add to that of white.
    fn of_primaries(primaries: u16) -> Option<Self> {
        // The coordinates x and y of red, green, blue and white.
        let [red, green, blue, white] = match primaries {
            4 => [(0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)],
            7 => [(0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65],
            8 => [
                (0.681, 0.319),
                (0.243, 0.692),
                (0.145, 0.049),
                (0.310, 0.316),
            ],
            11 => [
                (0.680, 0.320),
                (0.265, 0.690),
                (0.150, 0.060),
                (0.314, 0.351),
            ],
            12 => [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65],
            22 => [(0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65],
            _ => return None,
        };
        let determinant = |a: Point, b: Point, c: Point| {
            let z = |(x, y): Point| 1.0 - (x + y);
            a.0 * (b.1 * z(c) - c.1 * z(b))
                + a.1 * (c.0 * z(b) - b.0 * z(c))
                + z(a) * (b.0 * c.1 - c.0 * b.1)
        };
        let whole = white.1 * determinant(red, green, blue);
        Some(Self::weights(
            red.1 * determinant(white, green, blue) / whole,
            blue.1 * determinant(white, red, green) / whole,
        ))
    }

    fn rgb(self, luma: f32, blue: f32, red: f32) -> [f32; 3] {
        match self {
            Self::Identity => [red, luma, blue],
            Self::GreenOrange => {
                let rest = luma - blue;
                [rest + red, luma + blue, rest - red]
            }
            Self::Weights { red: kr, blue: kb } => {
                let kg = 1.0 - kr - kb;
                [
                    luma + (2.0 * (1.0 - kr)) * red,
                    luma - (2.0 * (kr * (1.0 - kr) * red + kb * (1.0 - kb) * blue)) / kg,
                    luma + (2.0 * (1.0 - kb)) * blue,
                ]
            }
        }
    }
}

fn to_byte(value: f32) -> u8 {
    (0.5 + value.clamp(0.0, 1.0) * 255.0) as u8
}
