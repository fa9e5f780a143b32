//! The minimum of a smooth convex function, by L-BFGS (Nocedal and Wright, "Numerical
//! Optimization", algorithm 7.5).
//!
//! A step is tried at its full length first and halved, or shortened to the minimum of a parabola,
//! until it lowers the function enough (Armijo's rule). The functions here are strictly convex, so
//! every step gives a pair with a positive curvature.

use std::collections::VecDeque;

use imgclass_kernels::ThreadPool;

use crate::product::dot;
use crate::rows::each_on_pool;

/// How many pairs of steps and gradient differences are kept, where memory allows.
const MEMORY: usize = 10;

/// The most numbers in all pairs, 512 MB, as long as three pairs fit.
const MEMORY_NUMBERS: usize = 128 << 20;

/// The share of the decrease that the slope promises which a step must reach.
const SUFFICIENT: f64 = 1e-4;

/// When a search ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// The search ends where the gradient is no longer than this.
    pub(crate) gradient: f64,
    /// The search ends after this many steps.
    pub(crate) steps: usize,
}

/// One step of the past: the change of the point and of the gradient, and their inverse product.
struct Pair {
    step: Vec<f32>,
    change: Vec<f32>,
    inverse: f64,
}

/// Moves `point` to the minimum of `function`, which returns its value and writes its gradient.
/// Returns how many steps were taken.
pub(crate) fn minimise(
    pool: &ThreadPool,
    point: &mut [f32],
    stop: Stop,
    mut function: impl FnMut(&[f32], &mut [f32]) -> f64,
) -> usize {
    let vectors = Vectors(pool);
    let mut gradient = vec![0f32; point.len()];
    let mut next_gradient = vec![0f32; point.len()];
    let mut next = vec![0f32; point.len()];
    let mut direction = vec![0f32; point.len()];
    let mut pairs: VecDeque<Pair> = VecDeque::new();
    let memory = (MEMORY_NUMBERS / (2 * point.len().max(1))).clamp(3, MEMORY);
    let mut value = function(point, &mut gradient);
    for taken in 0..stop.steps {
        let length = vectors.dot(&gradient, &gradient).sqrt();
        if length <= stop.gradient || !length.is_finite() {
            return taken;
        }
        vectors.point_down(&pairs, &gradient, &mut direction);
        let mut slope = vectors.dot(&direction, &gradient);
        if slope >= 0.0 {
            // Rounding has spoilt the memory: start again from the steepest descent.
            pairs.clear();
            vectors.point_down(&pairs, &gradient, &mut direction);
            slope = -length * length;
        }
        // Nothing is known of the scale before the first step.
        let mut size = if pairs.is_empty() {
            1.0 / length.max(1.0)
        } else {
            1.0
        };
        let accepted = loop {
            vectors.combine(&mut next, point, size as f32, &direction);
            let found = function(&next, &mut next_gradient);
            if found <= value + SUFFICIENT * size * slope {
                break Some(found);
            }
            if size < 1e-8 {
                break None;
            }
            // The minimum of the parabola through the value, the slope and what was found.
            let parabola = -slope * size * size / (2.0 * (found - value - slope * size));
            size = if parabola.is_finite() {
                parabola.clamp(0.1 * size, 0.5 * size)
            } else {
                0.1 * size
            };
        };
        // No step lowers the function: this is the minimum as far as the numbers go.
        let Some(found) = accepted else {
            return taken;
        };
        // The oldest pair makes room for the new one.
        let oldest = (pairs.len() == memory).then(|| pairs.pop_front()).flatten();
        let mut pair = oldest.unwrap_or_else(|| Pair {
            step: vec![0.0; point.len()],
            change: vec![0.0; point.len()],
            inverse: 0.0,
        });
        vectors.combine(&mut pair.step, &next, -1.0, point);
        vectors.combine(&mut pair.change, &next_gradient, -1.0, &gradient);
        let curvature = vectors.dot(&pair.step, &pair.change);
        if curvature > 1e-12 * vectors.dot(&pair.change, &pair.change) {
            pair.inverse = 1.0 / curvature;
            pairs.push_back(pair);
        }
        point.copy_from_slice(&next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = found;
    }
    stop.steps
}

/// How many numbers of a vector one thread takes at a time. Sums are made piece by piece, so they do
/// not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// The operations on long vectors, on the threads of a pool.
struct Vectors<'a>(&'a ThreadPool);

impl Vectors<'_> {
    fn dot(&self, a: &[f32], b: &[f32]) -> f64 {
        let pieces = a.chunks(PIECE).zip(b.chunks(PIECE));
        each_on_pool(self.0, pieces, |(a, b)| dot(a, b))
            .iter()
            .sum()
    }

    /// Adds `scale` times `x` to `y`.
    fn add_scaled(&self, y: &mut [f32], scale: f32, x: &[f32]) {
        let pieces = y.chunks_mut(PIECE).zip(x.chunks(PIECE));
        each_on_pool(self.0, pieces, |(y, x)| {
            for (y, x) in y.iter_mut().zip(x) {
                *y += scale * x;
            }
        });
    }

    /// Writes `a` plus `scale` times `b`.
    fn combine(&self, out: &mut [f32], a: &[f32], scale: f32, b: &[f32]) {
        let pieces = out.chunks_mut(PIECE).zip(a.chunks(PIECE));
        each_on_pool(self.0, pieces.zip(b.chunks(PIECE)), |((out, a), b)| {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = a + scale * b;
            }
        });
    }

    fn multiply(&self, x: &mut [f32], factor: f32) {
        each_on_pool(self.0, x.chunks_mut(PIECE), |x| {
            x.iter_mut().for_each(|x| *x *= factor);
        });
    }

    /// Writes the direction of the next step: minus the approximate inverse of the second derivative
    /// times the gradient.
    fn point_down(&self, pairs: &VecDeque<Pair>, gradient: &[f32], direction: &mut [f32]) {
        self.combine(direction, gradient, -2.0, gradient);
        let mut factors = Vec::with_capacity(pairs.len());
        for pair in pairs.iter().rev() {
            let factor = pair.inverse * self.dot(&pair.step, direction);
            self.add_scaled(direction, -factor as f32, &pair.change);
            factors.push(factor);
        }
        if let Some(last) = pairs.back() {
            let scale = 1.0 / (last.inverse * self.dot(&last.change, &last.change));
            self.multiply(direction, scale as f32);
        }
        for (pair, factor) in pairs.iter().zip(factors.iter().rev()) {
            let back = pair.inverse * self.dot(&pair.change, direction);
            self.add_scaled(direction, (factor - back) as f32, &pair.step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    fn pool() -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(2).unwrap()).unwrap()
    }

    #[test]
    fn the_minimum_of_a_narrow_valley_is_found() {
        // The condition number is 1000.
        let scales: Vec<f32> = (0..20).map(|i| 10f32.powf(i as f32 / 19.0 * 3.0)).collect();
        let mut point = vec![0f32; 20];
        let stop = Stop {
            gradient: 1e-3,
            steps: 500,
        };
        let steps = minimise(&pool(), &mut point, stop, |x, gradient| {
            let mut value = 0.0;
            for ((x, scale), gradient) in x.iter().zip(&scales).zip(gradient) {
                value += 0.5 * f64::from(scale * (x - 1.0) * (x - 1.0));
                *gradient = scale * (x - 1.0);
            }
            value
        });
        assert!(steps < 150, "{steps}");
        assert!(point.iter().all(|x| (x - 1.0).abs() < 1e-3), "{point:?}");
    }

    #[test]
    fn a_function_that_is_not_finite_ends_the_search() {
        let mut point = vec![1f32; 3];
        let stop = Stop {
            gradient: 1e-6,
            steps: 100,
        };
        minimise(&pool(), &mut point, stop, |_, gradient| {
            gradient.fill(f32::NAN);
            f64::NAN
        });
        assert_eq!(point, [1.0; 3]);
    }
}
