//! The two products of logistic regression, on all threads, by the kernels of the network.
//!
//! Both are matrix products with the features. The logits are the weights times the features, and
//! the gradient is the errors times the features. The rows of features are cut into chunks, and each
//! chunk is packed once for either product. In the kernels' layout the classes take the place of
//! pixels, so that the output of one product is the input of the other:
//!
//! ```text
//! weights                    logits, errors             gradient
//! [dims/16][classes][16] ──► [rows/16][classes][16] ──► [dims/16][classes][16]
//! ```
//!
//! Sixteen rows lie side by side in the middle, so their softmax is computed in vectors. There is no
//! matrix of all rows times all classes: each chunk's logits are used before the next chunk's.

use std::sync::{Mutex, PoisonError};

use imgclass_kernels::{BLOCK, BatchDims, Isa, PackedLinear, ThreadPool};
use imgclass_kernels::{blocked_to_nchw, nchw_to_blocked};

use crate::examples::Examples;
use crate::softmax::BlockErrors;

/// The most rows of a chunk. The logits of 512 rows and 10,000 classes are 20 MB.
const CHUNK: usize = 512;

/// The most numbers that are kept packed. Each is packed twice, so this is 1 GB. Chunks beyond it are
/// packed each time that they are used.
const MOST_KEPT: usize = 128 << 20;

/// Some rows of features, packed for both products.
pub(crate) struct Rows<'a> {
    examples: &'a Examples,
    chunks: Vec<Chunk>,
}

/// At most [`CHUNK`] rows: pictures, or their mirrored forms.
struct Chunk {
    pictures: Vec<usize>,
    mirrored: bool,
    packed: Option<PackedRows>,
}

/// The features of a chunk, packed.
struct PackedRows {
    /// Multiplies by each row: from `[dims/16][classes][16]` to `[rows/16][classes][16]`.
    by_row: PackedLinear,
    /// Multiplies by each feature: from `[rows/16][classes][16]` to `[dims/16][classes][16]`.
    by_feature: PackedLinear,
}

/// How many numbers may still be kept packed.
#[derive(Debug)]
pub(crate) struct PackedBudget(usize);

impl Default for PackedBudget {
    fn default() -> Self {
        Self(MOST_KEPT)
    }
}

impl PackedBudget {
    /// Keeps nothing.
    pub(crate) fn none() -> Self {
        Self(0)
    }
}

/// A linear function of the features for each class, in the kernels' layout.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameters {
    /// The weights `[dims/16][classes][16]`, with zeros past the last feature, and then a bias for
    /// each class.
    pub(crate) values: Vec<f32>,
    pub(crate) classes: usize,
    pub(crate) dims: usize,
}

impl Parameters {
    pub(crate) fn zero(classes: usize, dims: usize) -> Self {
        Self {
            values: vec![0.0; classes * (dims.next_multiple_of(BLOCK) + 1)],
            classes,
            dims,
        }
    }

    /// Makes parameters of weights `[classes, dims]`, without biases.
    pub(crate) fn of_weights(weights: &[f32], dims: usize) -> Self {
        let classes = weights.len() / dims;
        let mut values = nchw_to_blocked(weights, dims, one_pixel_each(classes));
        values.resize(values.len() + classes, 0.0);
        Self {
            values,
            classes,
            dims,
        }
    }

    /// Returns the weights, `[dims/16][classes][16]`, and the biases, `[classes]`.
    pub(crate) fn split(&self) -> (&[f32], &[f32]) {
        self.values.split_at(self.values.len() - self.classes)
    }

    /// Returns the weights as `[classes, dims]`.
    pub(crate) fn weights(&self) -> Vec<f32> {
        blocked_to_nchw(self.split().0, self.dims, one_pixel_each(self.classes))
    }

    /// Returns the biases, one for each class.
    pub(crate) fn bias(&self) -> &[f32] {
        self.split().1
    }

    /// Sets the biases.
    pub(crate) fn set_bias(&mut self, bias: &[f32]) {
        let weights = self.values.len() - self.classes;
        self.values[weights..].copy_from_slice(bias);
    }
}

/// The layout of activations in which each class is an image of one pixel.
fn one_pixel_each(classes: usize) -> BatchDims {
    BatchDims {
        n: classes,
        h: 1,
        w: 1,
    }
}

impl PackedRows {
    fn new(examples: &Examples, pictures: &[usize], mirrored: bool) -> Self {
        let (isa, count, dims) = (Isa::detect(), pictures.len(), examples.dims());
        let mut rows = Vec::with_capacity(count * dims);
        for &picture in pictures {
            rows.extend_from_slice(examples.form(picture, mirrored));
        }
        let mut columns = vec![0f32; rows.len()];
        for (i, row) in rows.chunks_exact(dims).enumerate() {
            for (x, column) in row.iter().zip(columns.chunks_exact_mut(count)) {
                column[i] = *x;
            }
        }
        Self {
            by_row: PackedLinear::new(isa, dims, &rows, &vec![0.0; count]),
            by_feature: PackedLinear::new(isa, count, &columns, &vec![0.0; dims]),
        }
    }
}

impl<'a> Rows<'a> {
    /// Packs some pictures, or their mirrored forms.
    pub(crate) fn new(
        examples: &'a Examples,
        pictures: &[usize],
        mirrored: bool,
        budget: &mut PackedBudget,
    ) -> Self {
        let chunk = |pictures: &[usize]| {
            let numbers = pictures.len() * examples.dims();
            let packed = budget.0.checked_sub(numbers).map(|left| {
                budget.0 = left;
                PackedRows::new(examples, pictures, mirrored)
            });
            Chunk {
                pictures: pictures.to_vec(),
                mirrored,
                packed,
            }
        };
        Self {
            examples,
            chunks: pictures.chunks(CHUNK).map(chunk).collect(),
        }
    }

    /// Returns the classes of the rows.
    pub(crate) fn classes(&self) -> impl Iterator<Item = usize> {
        let pictures = self.chunks.iter().flat_map(|chunk| &chunk.pictures);
        pictures.map(|&picture| self.examples.classes()[picture])
    }

    /// Adds the gradient of the logistic loss to `gradient`, which is laid out as
    /// [`Parameters::values`], and returns the loss. A row counts as much as `row_weights` has for
    /// its class.
    pub(crate) fn add_gradient(
        &self,
        pool: &ThreadPool,
        values: &[f32],
        row_weights: &[f32],
        gradient: &mut [f32],
        space: &mut Vec<f32>,
    ) -> f64 {
        let classes = row_weights.len();
        let (weights, bias) = values.split_at(values.len() - classes);
        let (weights_gradient, bias_gradient) = gradient.split_at_mut(weights.len());
        let mut bias_sums = vec![0f64; classes];
        let mut loss = 0.0;
        for chunk in &self.chunks {
            chunk.with_packed(self.examples, |packed| {
                let blocks = chunk.pictures.len().div_ceil(BLOCK);
                space.resize(blocks * (BLOCK + 1) * classes, 0.0);
                let (errors, class_sums) = space.split_at_mut(blocks * BLOCK * classes);
                packed.by_row.blocked_into(pool, weights, classes, errors);
                let work = errors.chunks_exact_mut(BLOCK * classes);
                let work = work.zip(class_sums.chunks_exact_mut(classes));
                let work = work.zip(chunk.pictures.chunks(BLOCK));
                let losses = each_on_pool(pool, work, |((logits, class_sums), pictures)| {
                    let mut labels = [0; BLOCK];
                    for (label, &picture) in labels.iter_mut().zip(pictures) {
                        *label = self.examples.classes()[picture];
                    }
                    BlockErrors {
                        logits,
                        bias,
                        labels: &labels[..pictures.len()],
                        row_weights,
                        class_sums,
                    }
                    .run()
                });
                loss += losses.iter().sum::<f64>();
                for sums in class_sums.chunks_exact(classes) {
                    for (sum, part) in bias_sums.iter_mut().zip(sums) {
                        *sum += f64::from(*part);
                    }
                }
                let onto = &mut *weights_gradient;
                packed
                    .by_feature
                    .add_blocked_onto(pool, errors, classes, onto);
            });
        }
        for (gradient, sum) in bias_gradient.iter_mut().zip(bias_sums) {
            *gradient += sum as f32;
        }
        loss
    }

    /// Returns the products of some vectors, which have the place of classes, with the covariance of
    /// the rows times their number.
    pub(crate) fn covariance_times(&self, pool: &ThreadPool, vectors: &Parameters) -> Parameters {
        let count = vectors.classes;
        let mut sums = Parameters::zero(count, vectors.dims);
        let of_weights = vectors.split().0.len();
        let mut space = Vec::new();
        for chunk in &self.chunks {
            chunk.with_packed(self.examples, |packed| {
                space.resize(chunk.pictures.len().next_multiple_of(BLOCK) * count, 0.0);
                let by_row = &packed.by_row;
                by_row.blocked_into(pool, vectors.split().0, count, &mut space);
                let onto = &mut sums.values[..of_weights];
                packed
                    .by_feature
                    .add_blocked_onto(pool, &space, count, onto);
            });
        }
        sums
    }

    /// Calls `look` with each picture and its logits, in any order and on all threads. Returns what
    /// it returned, in the order of the rows.
    pub(crate) fn look_at_logits<T: Send>(
        &self,
        pool: &ThreadPool,
        parameters: &Parameters,
        look: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let classes = parameters.classes;
        let (weights, bias) = parameters.split();
        let mut space = Vec::new();
        let mut found = Vec::new();
        for chunk in &self.chunks {
            chunk.with_packed(self.examples, |packed| {
                let blocks = chunk.pictures.len().div_ceil(BLOCK);
                space.resize(blocks * BLOCK * classes, 0.0);
                packed
                    .by_row
                    .blocked_into(pool, weights, classes, &mut space);
                let work = space.chunks_exact(BLOCK * classes);
                let work = work.zip(chunk.pictures.chunks(BLOCK));
                let of_blocks = each_on_pool(pool, work, |(block, pictures)| {
                    let mut logits = vec![0f32; classes];
                    let of_row = |(lane, &picture): (usize, &usize)| {
                        let of_classes = block.as_chunks::<BLOCK>().0.iter().zip(bias);
                        for (logit, (lanes, bias)) in logits.iter_mut().zip(of_classes) {
                            *logit = lanes[lane] + bias;
                        }
                        look(picture, &mut logits)
                    };
                    pictures.iter().enumerate().map(of_row).collect::<Vec<T>>()
                });
                found.extend(of_blocks.into_iter().flatten());
            });
        }
        found
    }
}

impl Chunk {
    /// Calls `work` with the packed rows, which are packed for this call if they are not kept.
    fn with_packed<T>(&self, examples: &Examples, work: impl FnOnce(&PackedRows) -> T) -> T {
        match &self.packed {
            Some(packed) => work(packed),
            None => work(&PackedRows::new(examples, &self.pictures, self.mirrored)),
        }
    }
}

/// Calls `task` with each item on the threads of a pool. The results are in the order of the items.
pub(crate) fn each_on_pool<I: Send, T: Send>(
    pool: &ThreadPool,
    items: impl Iterator<Item = I>,
    task: impl Fn(I) -> T + Sync,
) -> Vec<T> {
    let slots: Vec<Mutex<(Option<I>, Option<T>)>> =
        items.map(|item| Mutex::new((Some(item), None))).collect();
    pool.for_each(slots.len(), |i| {
        let mut slot = slots[i].lock().unwrap_or_else(PoisonError::into_inner);
        slot.1 = slot.0.take().map(&task);
    });
    let results = slots.into_iter();
    let results = results.map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
    results.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Picture;
    use std::num::NonZeroUsize;

    /// Numbers from -1 to 1.
    fn numbers(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin()).collect()
    }

    fn examples(count: usize, classes: usize, dims: usize) -> Examples {
        let picture = |i: usize| Picture {
            name: String::new(),
            label: format!("{:05}", i % classes),
            features: numbers(dims, 0.7 + 0.013 * i as f32),
            mirrored: Some(numbers(dims, 0.9 + 0.011 * i as f32)),
        };
        Examples::new((0..count).map(picture)).unwrap()
    }

    #[test]
    fn the_gradient_and_the_logits_are_those_of_plain_sums_whether_packed_before_or_not() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        for (count, classes, dims) in [(40, 3, 5), (33, 2, 16), (700, 19, 33)] {
            let examples = examples(count, classes, dims);
            let pictures: Vec<usize> = (0..count).rev().collect();
            let weights = numbers(classes * dims, 1.3);
            let mut parameters = Parameters::of_weights(&weights, dims);
            parameters.set_bias(&numbers(classes, 0.37));
            let row_weights: Vec<f32> = (0..classes).map(|i| 0.5 + i as f32).collect();
            for mirrored in [false, true] {
                // By definition, in f64.
                let mut loss = 0.0;
                let mut sums = vec![0f64; classes * (dims + 1)];
                let mut all_logits = Vec::new();
                for &picture in &pictures {
                    let row = examples.form(picture, mirrored);
                    let logit = |class: usize| {
                        let weights = weights[class * dims..][..dims].iter().zip(row);
                        let dot: f64 = weights.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        dot + f64::from(parameters.bias()[class])
                    };
                    let logits: Vec<f64> = (0..classes).map(logit).collect();
                    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                    let label = examples.classes()[picture];
                    let weight = f64::from(row_weights[label]);
                    loss += weight * (sum.ln() - logits[label]);
                    for class in 0..classes {
                        let known = if class == label { 1.0 } else { 0.0 };
                        let error = weight * (logits[class].exp() / sum - known);
                        for (sum, x) in sums[class * dims..].iter_mut().zip(row) {
                            *sum += error * f64::from(*x);
                        }
                        sums[classes * dims + class] += error;
                    }
                    all_logits.push(logits);
                }
                for mut budget in [PackedBudget::default(), PackedBudget(600 * dims)] {
                    let rows = Rows::new(&examples, &pictures, mirrored, &mut budget);
                    let mut gradient = Parameters::zero(classes, dims);
                    let found = rows.add_gradient(
                        &pool,
                        &parameters.values,
                        &row_weights,
                        &mut gradient.values,
                        &mut Vec::new(),
                    );
                    assert!((found / loss - 1.0).abs() < 1e-6, "{found} {loss}");
                    let found = [gradient.weights(), gradient.bias().to_vec()].concat();
                    let largest = sums.iter().fold(0f64, |max, x| max.max(x.abs()));
                    for (found, exact) in found.iter().zip(&sums) {
                        let off = (f64::from(*found) - exact).abs();
                        assert!(off < 3e-6 * largest, "{classes} {dims}: {found} {exact}");
                    }
                    let logits =
                        rows.look_at_logits(&pool, &parameters, |i, row| (i, row.to_vec()));
                    for ((picture, found), (exact, expected)) in
                        logits.iter().zip(all_logits.iter().zip(&pictures))
                    {
                        assert_eq!(picture, expected);
                        for (found, exact) in found.iter().zip(exact) {
                            assert!((f64::from(*found) - exact).abs() < 1e-5);
                        }
                    }
                }
            }
        }
    }
}
