//! An image on its way into the network: prepared numbers, or pixels that the model's device normalises. It decodes and resizes nothing.

use candle_core::{DType, Device, Result, Tensor};

use imgclass_image::{Channels, Preprocessing};

/// One image as the model takes it, of the network's height and width.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Planar `[3, height, width]` and normalised: what our CPU kernels read.
    Planar(Vec<f32>),
    /// Interleaved `[height, width, 3]`, red, green, blue: a quarter of the bytes, for a device at the end of a bus.
    Pixels(Vec<u8>),
}

impl Input {
    /// How many numbers it holds.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Planar(numbers) => numbers.len(),
            Self::Pixels(bytes) => bytes.len(),
        }
    }

    /// The numbers of an image that came prepared.
    pub fn planar(&self) -> Option<&[f32]> {
        match self {
            Self::Planar(numbers) => Some(numbers),
            Self::Pixels(_) => None,
        }
    }

    /// The bytes of an image that the model is to normalise.
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

/// The checkpoint's normalisation as a factor and an addend per plane, on the device.
pub(super) struct Normaliser {
    device: Device,
    /// Whether the network's planes are blue, green, red.
    reversed: bool,
    factor: Tensor,
    addend: Tensor,
}

impl Normaliser {
    pub(super) fn new(preprocessing: &Preprocessing, device: &Device) -> Result<Self> {
        // (x / top - mean) / std, with everything that does not depend on x worked out beforehand and not in f32.
        let top = 255.0 / f64::from(preprocessing.scale.maximum());
        let per_channel = |f: &dyn Fn(f64, f64) -> f64| {
            let values: Vec<f32> = preprocessing
                .mean
                .iter()
                .zip(&preprocessing.std)
                .map(|(&mean, &std)| f(f64::from(mean), f64::from(std)) as f32)
                .collect();
            Tensor::from_vec(values, (1, 3, 1, 1), device)
        };
        Ok(Self {
            device: device.clone(),
            reversed: preprocessing.channels == Channels::Bgr,
            factor: per_channel(&|_, std| 1.0 / (top * std))?,
            addend: per_channel(&|mean, std| -mean / std)?,
        })
    }

    /// Images, each interleaved `[height, width, 3]`, as one normalised batch `(n, 3, height, width)` in f32. Bytes are what is uploaded.
    pub(super) fn batch(
        &self,
        images: &[&[u8]],
        (height, width): (usize, usize),
    ) -> Result<Tensor> {
        let pixels = Tensor::from_vec(
            images.concat(),
            (images.len(), height, width, 3),
            &self.device,
        )?;
        let planes = pixels.permute((0, 3, 1, 2))?.contiguous()?;
        let planes = match self.reversed {
            true => planes.flip(&[1])?,
            false => planes,
        };
        planes
            .to_dtype(DType::F32)?
            .broadcast_mul(&self.factor)?
            .broadcast_add(&self.addend)
    }
}
