//! From the planes of the components to rows of full-size samples, and from these to RGB, as
//! libjpeg-turbo ("fancy" upsampling) and Pillow do it.

use super::markers::ColourModel;

/// The samples of one component at its own resolution.
pub(super) struct Plane {
    /// The samples that belong to the picture; rows are padded to whole blocks.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) stride: usize,
    pub(super) samples: Vec<u8>,
    /// How many times this component must be stretched, across and down.
    pub(super) stretch: (usize, usize),
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }

    /// Writes row `y` of the whole picture into `row`, which may be longer than the picture. `is_fancy`
    /// asks for interpolation where a direction is doubled; otherwise samples are repeated.
    fn stretched<'a>(
        &'a self,
        y: usize,
        is_fancy: bool,
        sums: &mut Vec<u16>,
        row: &'a mut [u8],
    ) -> &'a [u8] {
        match self.stretch {
            (1, 1) => return self.row(y),
            (2, 1) if is_fancy && self.width > 2 => double(self.row(y), row),
            (1, 2) if is_fancy => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                let (near, far) = self.neighbours(y);
                for ((out, &near), &far) in row.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            (2, 2) if is_fancy && self.width > 2 => {
                let (near, far) = self.neighbours(y);
                sums.clear();
                sums.extend(
                    near.iter()
                        .zip(far)
                        .map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)),
                );
                double_sums(sums, row);
            }
            (across, down) => {
                let samples = self.row(y / down);
                for (out, &sample) in row.chunks_mut(across).zip(samples) {
                    out.fill(sample);
                }
            }
        }
        row
    }

    /// Returns the row that row `y` of the picture lies in, and the row on its other side.
    fn neighbours(&self, y: usize) -> (&[u8], &[u8]) {
        let near = y / 2;
        let far = if y.is_multiple_of(2) {
            near.saturating_sub(1)
        } else {
            (near + 1).min(self.height - 1)
        };
        (self.row(near), self.row(far))
    }
}

/// Doubles a row of at least two samples: each new sample is three quarters the nearer old one and
/// one quarter the farther.
fn double(samples: &[u8], out: &mut [u8]) {
    let (pairs, _) = out.as_chunks_mut::<2>();
    let last = samples.len() - 1;
    let wide = |at: usize| u16::from(samples[at]);
    pairs[0] = [samples[0], ((wide(0) * 3 + wide(1) + 2) >> 2) as u8];
    for (pair, window) in pairs[1..].iter_mut().zip(samples.windows(3)) {
        let [before, sample, after] = [window[0], window[1], window[2]].map(u16::from);
        *pair = [
            ((sample * 3 + before + 1) >> 2) as u8,
            ((sample * 3 + after + 2) >> 2) as u8,
        ];
    }
    pairs[last] = [
        ((wide(last) * 3 + wide(last - 1) + 1) >> 2) as u8,
        samples[last],
    ];
}

/// The same for sums that have been interpolated vertically and are four times too large.
fn double_sums(sums: &[u16], out: &mut [u8]) {
    let (pairs, _) = out.as_chunks_mut::<2>();
    let last = sums.len() - 1;
    pairs[0] = [
        ((sums[0] * 4 + 8) >> 4) as u8,
        ((sums[0] * 3 + sums[1] + 7) >> 4) as u8,
    ];
    for (pair, window) in pairs[1..].iter_mut().zip(sums.windows(3)) {
        let [before, sum, after] = [window[0], window[1], window[2]];
        *pair = [
            ((sum * 3 + before + 8) >> 4) as u8,
            ((sum * 3 + after + 7) >> 4) as u8,
        ];
    }
    pairs[last] = [
        ((sums[last] * 3 + sums[last - 1] + 8) >> 4) as u8,
        ((sums[last] * 4 + 7) >> 4) as u8,
    ];
}

/// Converts the planes of a picture of `width` by `height` to interleaved RGB.
pub(super) fn to_rgb(
    planes: &[Plane],
    model: ColourModel,
    (width, height): (usize, usize),
    is_fancy: bool,
) -> Vec<u8> {
    let mut rgb = vec![0; width * height * 3];
    // A stretched row may reach over the edge by less than four samples.
    let mut buffers: Vec<Vec<u8>> = planes.iter().map(|_| vec![0; width + 8]).collect();
    let mut sums = Vec::new();
    for (y, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
        let rows: Vec<&[u8]> = planes
            .iter()
            .zip(&mut buffers)
            .map(|(plane, buffer)| &plane.stretched(y, is_fancy, &mut sums, buffer)[..width])
            .collect();
        let (pixels, _) = out.as_chunks_mut::<3>();
        match (model, rows.as_slice()) {
            (ColourModel::Grey, [grey, ..]) => {
                for (pixel, &grey) in pixels.iter_mut().zip(*grey) {
                    *pixel = [grey; 3];
                }
            }
            (ColourModel::Rgb, [red, green, blue, ..]) => {
                for (((pixel, &red), &green), &blue) in
                    pixels.iter_mut().zip(*red).zip(*green).zip(*blue)
                {
                    *pixel = [red, green, blue];
                }
            }
            (ColourModel::YCbCr, [luma, blue, red, ..]) => {
                for (((pixel, &luma), &blue), &red) in
                    pixels.iter_mut().zip(*luma).zip(*blue).zip(*red)
                {
                    *pixel = from_ycbcr(luma, blue, red);
                }
            }
            (ColourModel::Cmyk | ColourModel::Ycck, [first, second, third, black, ..]) => {
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    let stored = [first[x], second[x], third[x]];
                    let ink = if model == ColourModel::Ycck {
                        from_ycbcr(stored[0], stored[1], stored[2]).map(|light| 255 - light)
                    } else {
                        stored
                    };
                    *pixel = ink.map(|ink| under_black(ink, black[x]));
                }
            }
            // The frame header has as many components as the colour model.
            _ => {}
        }
    }
    rgb
}

/// Interleaves the samples of all planes as they are.
pub(super) fn interleaved(planes: &[Plane], (width, height): (usize, usize)) -> Vec<u8> {
    let mut samples = vec![0; width * height * planes.len()];
    let (mut buffer, mut sums) = (vec![0; width + 8], Vec::new());
    for (y, out) in samples.chunks_exact_mut(width * planes.len()).enumerate() {
        for (channel, plane) in planes.iter().enumerate() {
            let row = plane.stretched(y, true, &mut sums, &mut buffer);
            let out = out[channel..].iter_mut().step_by(planes.len());
            out.zip(row).for_each(|(out, &sample)| *out = sample);
        }
    }
    samples
}

/// Converts a colour with the factors of JFIF, rounded as libjpeg rounds.
#[inline(always)]
pub(super) fn from_ycbcr(luma: u8, blue: u8, red: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (luma, blue, red) = (i32::from(luma), i32::from(blue) - 128, i32::from(red) - 128);
    [
        luma + ((91_881 * red + HALF) >> 16),
        luma + ((-22_554 * blue - 46_802 * red + HALF) >> 16),
        luma + ((116_130 * blue + HALF) >> 16),
    ]
    .map(|value| value.clamp(0, 255) as u8)
}

/// Returns the light of one inverted ink under inverted black: JPEGs of CMYK store 255 for no ink,
/// as Adobe's programs write them.
fn under_black(ink: u8, black: u8) -> u8 {
    let (ink, black) = (255 - u32::from(ink), u32::from(black));
    let product = ink * black + 128;
    (black - ((product + (product >> 8)) >> 8)) as u8
}
