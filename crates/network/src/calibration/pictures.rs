//! Generated pictures: coloured shapes over noise whose amplitude falls with the frequency, as in
//! photographs. They are the same on every machine.

use imgclass_image::{ImageError, Limits, RgbImage, decode};

/// Numbers by SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from `from` up to `to`.
    fn between(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// A drawn scene, which the service's page shows too.
static SCENE: &[u8] = include_bytes!("../../../../web/example.jpg");

/// Returns `count` sections of a drawn scene, some mirrored and with exchanged colours.
pub(super) fn sections(count: usize) -> Result<Vec<RgbImage>, ImageError> {
    const LIMITS: Limits = Limits {
        max_pixels: 1 << 20,
        max_side: 1 << 10,
        max_decoded_bytes: 1 << 26,
    };
    let scene = decode(SCENE, &LIMITS)?;
    let mut random = Random(1);
    let sections = (0..count).filter_map(|index| section(&mut random, &scene, index));
    Ok(sections.collect())
}

/// Returns a square of the scene, from a third of its height to all of it.
fn section(random: &mut Random, scene: &RgbImage, index: usize) -> Option<RgbImage> {
    const ORDERS: [[usize; 3]; 6] = [
        [0, 1, 2],
        [1, 2, 0],
        [2, 0, 1],
        [0, 2, 1],
        [2, 1, 0],
        [1, 0, 2],
    ];
    let (width, height) = (scene.width() as usize, scene.height() as usize);
    let least = width.min(height) as f32;
    let side = (least * random.between(0.35, 1.0)) as usize;
    let x = random.between(0.0, (width - side) as f32) as usize;
    let y = random.between(0.0, (height - side) as f32) as usize;
    // Every other section has the scene's own colours.
    let order = match index % 4 {
        0 | 1 => ORDERS[0],
        _ => ORDERS[1 + (random.next() % 5) as usize],
    };
    let mirrored = index % 2 == 1;
    let mut data = Vec::with_capacity(side * side * 3);
    for row in y..y + side {
        for column in 0..side {
            let column = if mirrored { side - 1 - column } else { column };
            let at = (row * width + x + column) * 3;
            data.extend(order.map(|channel| scene.data()[at + channel]));
        }
    }
    RgbImage::new(side as u32, side as u32, data)
}

/// Returns picture `seed` of `size`, height and width in pixels: interleaved `[height, width, 3]`.
pub(super) fn picture(seed: u64, size: (usize, usize)) -> Vec<u8> {
    let (height, width) = size;
    let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    // How fast the amplitude falls with the frequency, beyond the usual 1/f.
    let steepness = random.between(-0.2, 0.6);
    let grey = noise(&mut random, size, steepness);
    let mut pixels = vec![[0.0f32; 3]; height * width];
    for plane in 0..3 {
        let own = noise(&mut random, size, steepness);
        let brightness = 0.45 + random.between(-0.15, 0.15);
        for ((pixel, grey), own) in pixels.iter_mut().zip(&grey).zip(&own) {
            pixel[plane] = brightness + 0.25 * (0.8 * grey + 0.6 * own);
        }
    }
    let shapes = 4 + random.next() % 21;
    for _ in 0..shapes {
        draw(&mut random, &mut pixels, size);
    }
    let byte = |x: f32| (x * 255.0 + 0.5) as u8;
    pixels.into_iter().flatten().map(byte).collect()
}

/// Returns noise of mean 0 and deviation 1: random grids of all sizes, each twice as fine as the one
/// before, interpolated and summed.
fn noise(random: &mut Random, (height, width): (usize, usize), steepness: f32) -> Vec<f32> {
    let mut sum = vec![0.0f32; height * width];
    let mut cell = 1usize;
    while cell < height.max(width) {
        let (rows, columns) = (height.div_ceil(cell) + 1, width.div_ceil(cell) + 1);
        let amplitude = (cell as f32).powf(steepness);
        let grid: Vec<f32> = (0..rows * columns)
            .map(|_| amplitude * random.between(-1.0, 1.0))
            .collect();
        for (y, line) in sum.chunks_exact_mut(width).enumerate() {
            let (row, down) = (y / cell, (y % cell) as f32 / cell as f32);
            let (upper, lower) = (&grid[row * columns..], &grid[(row + 1) * columns..]);
            for (x, sum) in line.iter_mut().enumerate() {
                let (column, across) = (x / cell, (x % cell) as f32 / cell as f32);
                let mix = |line: &[f32]| line[column] * (1.0 - across) + line[column + 1] * across;
                *sum += mix(upper) * (1.0 - down) + mix(lower) * down;
            }
        }
        cell *= 2;
    }
    let count = sum.len().max(1) as f32;
    let mean = sum.iter().sum::<f32>() / count;
    let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
    let factor = 1.0 / variance.sqrt().max(1e-6);
    sum.iter().map(|x| (x - mean) * factor).collect()
}

/// Draws an ellipse, a rectangle, a triangle or a line of one colour somewhere.
fn draw(random: &mut Random, pixels: &mut [[f32; 3]], (height, width): (usize, usize)) {
    let colour: [f32; 3] = std::array::from_fn(|_| random.between(0.0, 1.0));
    let (h, w) = (height as f32, width as f32);
    let kind = random.next() % 4;
    let mut point = || {
        [
            random.between(-0.1 * h, 1.1 * h),
            random.between(-0.1 * w, 1.1 * w),
        ]
    };
    let [a, b, c] = [point(), point(), point()];
    let size = [random.between(0.03, 0.5) * h, random.between(0.03, 0.5) * w];
    // On which side of the line from `from` to `to` a point lies, and how far.
    let side = |[y, x]: [f32; 2], from: [f32; 2], to: [f32; 2]| {
        let (dy, dx) = (to[0] - from[0], to[1] - from[1]);
        (dx * (y - from[0]) - dy * (x - from[1])) / (dx * dx + dy * dy).sqrt().max(1e-3)
    };
    let inside = |p: [f32; 2]| match kind {
        0 => ((p[0] - a[0]) / size[0]).powi(2) + ((p[1] - a[1]) / size[1]).powi(2) < 0.25,
        1 => (p[0] - a[0]).abs() < 0.5 * size[0] && (p[1] - a[1]).abs() < 0.5 * size[1],
        2 => {
            let sides = [side(p, a, b), side(p, b, c), side(p, c, a)];
            sides.iter().all(|s| *s > 0.0) || sides.iter().all(|s| *s < 0.0)
        }
        _ => side(p, a, b).abs() < 0.06 * size[0],
    };
    for (y, line) in pixels.chunks_exact_mut(width).enumerate() {
        for (x, pixel) in line.iter_mut().enumerate() {
            if inside([y as f32, x as f32]) {
                *pixel = colour;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_the_same_each_time_and_differ_from_each_other() {
        let size = (40, 56);
        let first = picture(0, size);
        assert_eq!(first.len(), 40 * 56 * 3);
        assert_eq!(first, picture(0, size));
        assert_ne!(first, picture(1, size));
        let mean = first.iter().map(|&b| f64::from(b)).sum::<f64>() / first.len() as f64;
        assert!((30.0..225.0).contains(&mean), "{mean}");
    }
}
