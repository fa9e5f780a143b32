//! An image on its way into the network: prepared numbers, or pixels that the network normalises.

use imgclass_image::{Channels, Preprocessing};
use imgclass_kernels::Pixels;

/// One image as the network takes it, of the network's height and width.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Planar `[3, height, width]` and normalised.
    Planar(Vec<f32>),
    /// Interleaved `[height, width, 3]`, red, green, blue. This is a quarter of the bytes, in the
    /// queue and on the way to a device at the end of a bus.
    Pixels(Vec<u8>),
}

impl Input {
    /// Returns how many numbers the image has.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Planar(numbers) => numbers.len(),
            Self::Pixels(bytes) => bytes.len(),
        }
    }

    /// Returns the numbers of an image that came prepared.
    pub fn planar(&self) -> Option<&[f32]> {
        match self {
            Self::Planar(numbers) => Some(numbers),
            Self::Pixels(_) => None,
        }
    }

    /// Returns the bytes of an image that the network is to normalise.
    pub fn pixels(&self) -> Option<&[u8]> {
        match self {
            Self::Planar(_) => None,
            Self::Pixels(bytes) => Some(bytes),
        }
    }
}

impl From<Vec<f32>> for Input {
    fn from(numbers: Vec<f32>) -> Self {
        Self::Planar(numbers)
    }
}

/// The checkpoint's normalisation of a byte: `byte * factor + addend`, for each plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// One factor per plane, in the planes' order.
    pub factor: [f32; 3],
    /// One addend per plane, in the planes' order.
    pub addend: [f32; 3],
    /// Whether the network's planes are blue, green, red.
    pub reversed: bool,
    /// The normalised value of each byte, for each plane, to the last bit as torchvision computes
    /// it.
    values: Box<[[f32; 256]; 3]>,
}

impl Normalisation {
    /// Returns the normalisation that a checkpoint was trained with.
    ///
    /// The formula is `(byte / top - mean) / std`. Everything in it that does not depend on the
    /// byte is computed here, once and in f64.
    #[must_use]
    pub fn of(preprocessing: &Preprocessing) -> Self {
        let top = 255.0 / f64::from(preprocessing.scale.maximum());
        let per_plane = |f: &dyn Fn(f64, f64) -> f64| -> [f32; 3] {
            std::array::from_fn(|i| {
                f(
                    f64::from(preprocessing.mean[i]),
                    f64::from(preprocessing.std[i]),
                ) as f32
            })
        };
        Self {
            factor: per_plane(&|_, std| 1.0 / (top * std)),
            addend: per_plane(&|mean, std| -mean / std),
            reversed: preprocessing.channels == Channels::Bgr,
            values: Box::new(std::array::from_fn(|i| {
                let divisor = 255.0 / f32::from(preprocessing.scale.maximum());
                let (mean, std) = (preprocessing.mean[i], preprocessing.std[i]);
                std::array::from_fn(|byte| (byte as f32 / divisor - mean) / std)
            })),
        }
    }

    /// Returns an image, interleaved `[height, width, 3]`, as normalised planes `[3, height,
    /// width]`.
    pub(crate) fn planar(&self, pixels: &[u8]) -> Vec<f32> {
        let (pixels, _) = pixels.as_chunks::<3>();
        let mut planes = Vec::with_capacity(3 * pixels.len());
        for (plane, values) in self.values.iter().enumerate() {
            let channel = self.channel(plane);
            planes.extend(
                pixels
                    .iter()
                    .map(|pixel| values[usize::from(pixel[channel])]),
            );
        }
        planes
    }

    /// Returns images of bytes as the stem reads them.
    pub(crate) fn pixels<'a>(&'a self, images: &'a [&'a [u8]]) -> Pixels<'a> {
        Pixels {
            images,
            channels: std::array::from_fn(|plane| self.channel(plane)),
            values: &self.values,
        }
    }

    /// Returns which of a pixel's bytes a plane takes.
    fn channel(&self, plane: usize) -> usize {
        if self.reversed { 2 - plane } else { plane }
    }

    /// Returns the bytes that the numbers of a prepared image are nearest to, interleaved `[height,
    /// width, 3]`.
    pub(crate) fn nearest_pixels(&self, planar: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; planar.len()];
        let (pixels, _) = bytes.as_chunks_mut::<3>();
        for (plane, numbers) in planar.chunks_exact(pixels.len().max(1)).enumerate() {
            let (factor, addend) = (1.0 / self.factor[plane], self.addend[plane]);
            let channel = self.channel(plane);
            for (pixel, number) in pixels.iter_mut().zip(numbers) {
                // The cast limits what is outside 0 to 255.
                pixel[channel] = ((number - addend) * factor + 0.5) as u8;
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgclass_image::Preprocessor;

    #[test]
    fn pixels_become_the_numbers_that_the_preprocessor_makes_of_them() {
        let pixels: Vec<u8> = (0..3 * 256).map(|i| (i * 7 % 256) as u8).collect();
        for preprocessing in [Preprocessing::default(), Preprocessing::caffe()] {
            let found = Normalisation::of(&preprocessing).planar(&pixels);
            let expected = Preprocessor::new(preprocessing)
                .expect("valid settings")
                .normalise(&pixels);
            assert_eq!(found, expected);
        }
    }
}
