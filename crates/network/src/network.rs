//! The trait that the engine calls, and the network that the service runs.

use std::num::NonZeroUsize;

use crate::backend::Backend;
use crate::error::NetworkError;
use crate::input::Input;
use crate::resnet::ResNet;

/// Says what a caller wants of an image beside its logits. Each costs a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Want {
    /// The pooled features.
    pub features: bool,
    /// The last stage's output, for class activation maps.
    pub feature_map: bool,
}

/// Holds one image's results.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// The logits, one per class.
    pub logits: Vec<f32>,
    /// The pooled features, where wanted:
    /// [`Architecture::features`](imgclass_checkpoint::Architecture::features) of them.
    pub features: Option<Vec<f32>>,
    /// The last stage's output `[features, h/32 * w/32]`, where wanted.
    pub feature_map: Option<Vec<f32>>,
}

/// A network that runs batches of images. The engine knows nothing else of it.
///
/// Tests of the engine and of the service bring networks that are slow, that fail or that panic.
pub trait Network: Send + Sync + 'static {
    /// Runs images as one batch and returns as many outputs, in the same order. The output of image
    /// `i` holds what `wants[i]` asks for; an image without an entry gives logits alone.
    ///
    /// # Errors
    /// [`NetworkError::Input`] if an image has the wrong size, and what the device says. After
    /// [`NetworkError::OutOfDeviceMemory`] the engine asks again with half of the images.
    fn run_batch(&self, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError>;

    /// Returns how many batches should run at one time. The engine starts a worker thread for each.
    fn passes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Whether images should come as [`Input::Pixels`] instead of [`Input::Planar`]. Both kinds are
    /// taken everywhere.
    fn prefers_pixels(&self) -> bool {
        false
    }

    /// Runs what later batches need in place, so that the first requests do not wait for it and a
    /// network that cannot run says so before the service is ready.
    ///
    /// Each worker thread calls it once before its first batch, because cuDNN keeps its state per
    /// thread.
    ///
    /// # Errors
    /// As [`Network::run_batch`], and [`NetworkError::NotFinite`] if a logit is not a number.
    fn warm_up(&self, _max_batch_size: usize) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// A ResNet that takes images of one size: the checkpoint's.
pub struct FixedSizeResNet<B: Backend> {
    net: ResNet<B>,
    /// Height and width, in pixels.
    input_size: (usize, usize),
}

impl<B: Backend> FixedSizeResNet<B> {
    /// Restricts a network to images of `input_size`, height and width in pixels.
    #[must_use]
    pub fn new(net: ResNet<B>, input_size: (usize, usize)) -> Self {
        Self { net, input_size }
    }

    /// Returns how many numbers an image has.
    fn input_len(&self) -> usize {
        3 * self.input_size.0 * self.input_size.1
    }
}

impl<B: Backend> Network for FixedSizeResNet<B> {
    fn run_batch(&self, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError> {
        let expected = self.input_len();
        if let Some(image) = images.iter().find(|image| image.len() != expected) {
            return Err(NetworkError::Input {
                expected,
                found: image.len(),
            });
        }
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let want_of = |image| wants.get(image).copied().unwrap_or_default();
        let backend = self.net.backend();
        let _place = backend.enter();
        let result = self.net.forward(images, self.input_size)?;
        let logits = split_rows(backend.rows_to_vec(result.logits)?, images.len());
        // Features are a few kilobytes an image, so they are fetched for the whole batch or not.
        let features = if (0..images.len()).any(|image| want_of(image).features) {
            split_rows(backend.rows_to_vec(result.features)?, images.len())
        } else {
            vec![Vec::new(); images.len()]
        };
        let outputs = logits.into_iter().zip(features).enumerate();
        let outputs = outputs.map(|(image, (logits, features))| {
            let want = want_of(image);
            let feature_map = want
                .feature_map
                .then(|| backend.activation_to_nchw(&result.feature_map, image..image + 1));
            Ok(Output {
                logits,
                features: want.features.then_some(features),
                feature_map: feature_map.transpose()?,
            })
        });
        outputs.collect()
    }

    fn passes(&self) -> NonZeroUsize {
        self.net.backend().passes()
    }

    fn prefers_pixels(&self) -> bool {
        self.net.backend().prefers_pixels()
    }

    /// Runs images of zeros in batches of every size that matters. That is one image, or each power
    /// of two and the largest batch if the backend prepares its code for each size.
    fn warm_up(&self, max_batch_size: usize) -> Result<(), NetworkError> {
        let sizes = if self.net.backend().prepares_each_batch_size() {
            powers_of_two_and(max_batch_size)
        } else {
            vec![1]
        };
        let image = if self.prefers_pixels() {
            Input::Pixels(vec![0; self.input_len()])
        } else {
            Input::Planar(vec![0.0; self.input_len()])
        };
        for size in sizes {
            let outputs = self.run_batch(&vec![&image; size], &[])?;
            let mut logits = outputs.iter().flat_map(|output| &output.logits);
            if !logits.all(|x| x.is_finite()) {
                return Err(NetworkError::NotFinite);
            }
        }
        Ok(())
    }
}

/// Splits `count` rows of equal length.
fn split_rows(values: Vec<f32>, count: usize) -> Vec<Vec<f32>> {
    let length = values.len() / count.max(1);
    values
        .chunks_exact(length.max(1))
        .map(<[f32]>::to_vec)
        .collect()
}

/// Returns the powers of two below `last`, and `last`.
fn powers_of_two_and(last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2));
    let mut sizes: Vec<usize> = powers.take_while(|size| *size < last).collect();
    sizes.push(last);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_warmed_up_at_each_power_of_two_and_at_the_largest_batch() {
        for (last, sizes) in [
            (1, vec![1]),
            (2, vec![1, 2]),
            (48, vec![1, 2, 4, 8, 16, 32, 48]),
            (64, vec![1, 2, 4, 8, 16, 32, 64]),
        ] {
            assert_eq!(powers_of_two_and(last), sizes);
        }
    }
}
