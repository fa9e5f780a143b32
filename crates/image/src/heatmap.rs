//! Draws a grid of numbers as a picture that people can read: laid over a photograph, or alone on a
//! transparent ground. The result is a PNG.

use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::{ExtendedColorType, ImageEncoder};
use thiserror::Error;

use crate::pixels::RgbImage;
use crate::preprocessor::Region;

/// The colour map "inferno" of matplotlib (by Nathaniel Smith and Stéfan van der Walt, CC0), at
/// every sixteenth from 0 to 1. Its lightness rises evenly, so that it reads the same with any kind
/// of colour blindness and in grey.
const INFERNO: [[u8; 3]; 17] = [
    [0, 0, 4],
    [11, 7, 36],
    [33, 12, 74],
    [60, 9, 101],
    [87, 16, 109],
    [112, 25, 110],
    [137, 34, 106],
    [163, 43, 97],
    [187, 55, 85],
    [209, 70, 68],
    [227, 89, 50],
    [241, 113, 30],
    [249, 141, 10],
    [252, 171, 15],
    [249, 202, 50],
    [242, 232, 101],
    [252, 255, 164],
];

/// A heat map cannot be drawn.
#[derive(Debug, Error)]
pub enum RenderError {
    /// The grid has no numbers, or its dimensions do not match their count.
    #[error("a grid of {height}x{width} cannot hold {found} numbers")]
    Grid {
        /// The number of rows.
        height: usize,
        /// The number of columns.
        width: usize,
        /// The count of the numbers.
        found: usize,
    },
    /// The PNG cannot be written.
    #[error("the PNG cannot be written: {0}")]
    Png(#[from] ::image::ImageError),
}

/// Returns the colour of a heat from 0 to 1. A heat outside takes the colour of the nearer end.
#[must_use]
pub fn colour(heat: f32) -> [u8; 3] {
    let last = INFERNO.len() - 1;
    let at = heat.clamp(0.0, 1.0) * last as f32;
    let low = (at as usize).min(last - 1);
    let share = at - low as f32;
    std::array::from_fn(|channel| {
        mix(
            INFERNO[low][channel],
            f32::from(INFERNO[low + 1][channel]),
            share,
        )
    })
}

/// Returns the value that lies `share` (0 to 1) of the way from one value to another.
fn mix(from: u8, to: f32, share: f32) -> u8 {
    let from = f32::from(from);
    (from + (to - from) * share).round().clamp(0.0, 255.0) as u8
}

/// A grid of heats that covers a region of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    heats: Vec<f32>,
    height: usize,
    width: usize,
    region: Region,
}

impl HeatMap {
    /// Makes a heat map of numbers `[height, width]` on any scale. They are stretched so that the
    /// lowest is 0 and the highest 1, or all 0 if they are all alike. `region` is the part of the
    /// picture that they cover, in its pixels.
    ///
    /// # Errors
    /// [`RenderError::Grid`] if there are not `height * width` numbers, or none.
    pub fn new(
        grid: &[f32],
        (height, width): (usize, usize),
        region: Region,
    ) -> Result<Self, RenderError> {
        if grid.is_empty() || height.checked_mul(width) != Some(grid.len()) {
            let found = grid.len();
            return Err(RenderError::Grid {
                height,
                width,
                found,
            });
        }
        let low = grid.iter().copied().fold(f32::INFINITY, f32::min);
        let high = grid.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = high - low;
        let stretch = |x: &f32| {
            let heat = (x - low) / range;
            if heat.is_finite() { heat } else { 0.0 }
        };
        Ok(Self {
            heats: grid.iter().map(stretch).collect(),
            height,
            width,
            region,
        })
    }

    /// Returns the picture with the heat map over it, as PNG. `opacity` is from 0 (only the
    /// picture) to 1 (only the colours). The part that the network does not see stays as it is.
    ///
    /// # Errors
    /// [`RenderError::Png`] if the PNG cannot be written.
    pub fn over(&self, picture: &RgbImage, opacity: f32) -> Result<Vec<u8>, RenderError> {
        let mut pixels = picture.data().to_vec();
        let rows = self.axis(
            picture.height(),
            self.region.top,
            self.region.height,
            self.height,
        );
        let columns = self.axis(
            picture.width(),
            self.region.left,
            self.region.width,
            self.width,
        );
        let row_bytes = picture.width() as usize * 3;
        for (row, down) in pixels.chunks_exact_mut(row_bytes).zip(&rows) {
            for (pixel, across) in row.chunks_exact_mut(3).zip(&columns) {
                let (Some(down), Some(across)) = (down, across) else {
                    continue;
                };
                let hot = colour(self.heat(down, across));
                for (sample, hot) in pixel.iter_mut().zip(hot) {
                    *sample = mix(*sample, f32::from(hot), opacity.clamp(0.0, 1.0));
                }
            }
        }
        png(
            &pixels,
            picture.width(),
            picture.height(),
            ExtendedColorType::Rgb8,
        )
    }

    /// Returns the heat map alone, as PNG of the picture's size: opaque where the network sees,
    /// transparent elsewhere.
    ///
    /// # Errors
    /// [`RenderError::Png`] if the PNG cannot be written.
    pub fn alone(&self, (width, height): (u32, u32)) -> Result<Vec<u8>, RenderError> {
        let rows = self.axis(height, self.region.top, self.region.height, self.height);
        let columns = self.axis(width, self.region.left, self.region.width, self.width);
        let mut pixels = Vec::with_capacity(rows.len() * columns.len() * 4);
        for down in &rows {
            for across in &columns {
                match (down, across) {
                    (Some(down), Some(across)) => {
                        pixels.extend_from_slice(&colour(self.heat(down, across)));
                        pixels.push(u8::MAX);
                    }
                    _ => pixels.extend_from_slice(&[0; 4]),
                }
            }
        }
        png(&pixels, width, height, ExtendedColorType::Rgba8)
    }

    /// Returns for every pixel of an axis the cells that it takes its heat from; `None` outside of
    /// the region.
    fn axis(&self, pixels: u32, start: f64, length: f64, cells: usize) -> Vec<Option<Taps>> {
        let tap = |pixel: u32| {
            let inside = (f64::from(pixel) + 0.5 - start) / length;
            (0.0..1.0)
                .contains(&inside)
                .then(|| Taps::new(inside * cells as f64, cells))
        };
        (0..pixels).map(tap).collect()
    }

    /// Returns the heat of one pixel.
    fn heat(&self, down: &Taps, across: &Taps) -> f32 {
        let row = |y: &usize| -> f32 {
            let cells = &self.heats[y * self.width..(y + 1) * self.width];
            let taps = across.cells.iter().zip(across.weights);
            taps.map(|(x, weight)| cells[*x] * weight).sum()
        };
        let taps = down.cells.iter().zip(down.weights);
        taps.map(|(y, weight)| row(y) * weight).sum()
    }
}

/// Four neighbouring cells and their weights by Catmull-Rom's cubic, which goes through the cells'
/// own values. The outermost cells repeat.
#[derive(Debug, Clone, Copy)]
struct Taps {
    cells: [usize; 4],
    weights: [f32; 4],
}

impl Taps {
    /// Returns the cells and weights of the position `at` among `cells` cells, whose centres are at
    /// their index plus a half.
    fn new(at: f64, cells: usize) -> Self {
        let from_centre = at - 0.5;
        let first = from_centre.floor() - 1.0;
        let t = (from_centre - from_centre.floor()) as f32;
        let last = cells.saturating_sub(1);
        Self {
            // A conversion to an integer saturates at 0.
            cells: std::array::from_fn(|i| ((first + i as f64) as usize).min(last)),
            weights: [
                ((-0.5 * t + 1.0) * t - 0.5) * t,
                (1.5 * t - 2.5) * t * t + 1.0,
                ((-1.5 * t + 2.0) * t + 0.5) * t,
                (0.5 * t - 0.5) * t * t,
            ],
        }
    }
}

/// Encodes interleaved samples as PNG.
fn png(
    pixels: &[u8],
    width: u32,
    height: u32,
    colour: ExtendedColorType,
) -> Result<Vec<u8>, RenderError> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, width, height, colour)?;
    Ok(bytes)
}
