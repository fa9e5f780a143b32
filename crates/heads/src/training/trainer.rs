//! Fits classifiers to some of the pictures.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use imgclass_kernels::ThreadPool;

use super::plan::{ROUGH, multiplications};
use super::{ClassWeights, Progress};
use crate::examples::Examples;
use crate::folds::mix;
use crate::logistic::Problem;
use crate::rows::{PackedBudget, Parameters, Rows};

/// The most steps of a fit.
const STEPS: usize = 400;

/// The most multiplications of a fit, which bound its steps where there are very many classes.
const FIT_WORK: f64 = 1e13;

/// The steps of a fit that are taken in any case.
const FEWEST_STEPS: usize = 20;

/// The most weights of a classifier for which each thread fits a fold of its own. Larger ones are
/// fitted one after the other by all threads, as the optimiser takes many times their memory.
const SMALL_FIT: usize = 1 << 20;

/// What all fits of one training share.
pub(super) struct Trainer<'a> {
    pub(super) examples: &'a Examples,
    pub(super) pool: &'a ThreadPool,
    pub(super) folds: Vec<Fold<'a>>,
    pub(super) class_weights: Vec<f32>,
    count: &'a FitCount<'a>,
}

/// Counts the fits of a training, and tells how far it is.
pub(super) struct FitCount<'a> {
    progress: &'a (dyn Fn(Progress) + Sync),
    done: AtomicUsize,
    expected: usize,
}

impl<'a> FitCount<'a> {
    pub(super) fn new(progress: &'a (dyn Fn(Progress) + Sync), expected: usize) -> Self {
        Self {
            progress,
            done: AtomicUsize::new(0),
            expected,
        }
    }

    fn add_one(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        (self.progress)(Progress {
            done: done.min(self.expected),
            of: self.expected,
        });
    }
}

/// The pictures of a fold.
pub(super) struct Fold<'a> {
    pub(super) pictures: Vec<usize>,
    /// Their features.
    pub(super) plain: Rows<'a>,
    /// The features of their mirrored forms, where there are any.
    mirrored: Option<Rows<'a>>,
}

impl<'a> Fold<'a> {
    fn new(examples: &'a Examples, pictures: Vec<usize>, budget: &mut PackedBudget) -> Self {
        Self {
            plain: Rows::new(examples, &pictures, false, budget),
            mirrored: examples
                .has_mirrored()
                .then(|| Rows::new(examples, &pictures, true, budget)),
            pictures,
        }
    }

    /// Returns all rows that are learned from.
    fn rows(&self) -> impl Iterator<Item = &Rows<'a>> {
        [&self.plain].into_iter().chain(&self.mirrored)
    }
}

impl<'a> Trainer<'a> {
    pub(super) fn new(
        examples: &'a Examples,
        pool: &'a ThreadPool,
        assigned: &[usize],
        folds: usize,
        class_weights: ClassWeights,
        count: &'a FitCount<'a>,
    ) -> Self {
        let classes = examples.labels().len();
        let mut counts = vec![0usize; classes];
        for &class in examples.classes() {
            counts[class] += 1;
        }
        let class_weights = match class_weights {
            ClassWeights::None => vec![1.0; classes],
            ClassWeights::Balanced => counts
                .iter()
                .map(|&count| examples.len() as f32 / (classes * count.max(1)) as f32)
                .collect(),
        };
        let mut budget = PackedBudget::default();
        let fold = |fold: usize| {
            let pictures = (0..assigned.len()).filter(|&i| assigned[i] == fold);
            Fold::new(examples, pictures.collect(), &mut budget)
        };
        Self {
            examples,
            pool,
            folds: (0..folds).map(fold).collect(),
            class_weights,
            count,
        }
    }

    /// Returns a classifier that knows nothing.
    pub(super) fn zero(&self) -> Parameters {
        Parameters::zero(self.examples.labels().len(), self.examples.dims())
    }

    /// Runs `work` for the first `folds` folds. The results are in the order of the folds.
    pub(super) fn each_fold<T: Send>(
        &self,
        folds: usize,
        work: impl Fn(usize) -> T + Sync,
    ) -> Vec<T> {
        let weights = self.examples.labels().len() * self.examples.dims();
        if folds < 2 || weights > SMALL_FIT {
            return (0..folds).map(work).collect();
        }
        let slots: Vec<Mutex<Option<T>>> = (0..folds).map(|_| Mutex::new(None)).collect();
        self.pool.for_each_alone(folds, |fold| {
            let result = work(fold);
            *slots[fold].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        let results = slots.into_iter();
        let results = results.map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
        results.flatten().collect()
    }

    /// Moves `parameters` to the optimum for all folds but one.
    pub(super) fn fit_others(
        &self,
        fold: usize,
        c: f64,
        precision: f64,
        parameters: &mut Parameters,
    ) {
        let others = self.folds.iter().enumerate().filter(|(i, _)| *i != fold);
        let rows = others.flat_map(|(_, other)| other.rows()).collect();
        self.fit(rows, c, precision, parameters);
    }

    /// Fits a classifier to all folds but one, for each fold.
    pub(super) fn fit_folds(&self, c: f64, precision: f64) -> Vec<Parameters> {
        self.each_fold(self.folds.len(), |fold| {
            let mut parameters = self.zero();
            self.fit_others(fold, c, precision, &mut parameters);
            parameters
        })
    }

    /// Fits a classifier to a share of the pictures of each class in all folds but one.
    pub(super) fn fit_share(&self, fold: usize, c: f64, share: f64) -> Parameters {
        let others = self.folds.iter().enumerate().filter(|(i, _)| *i != fold);
        let pictures = others.flat_map(|(_, other)| &other.pictures).copied();
        let pictures = self.share_of_each_class(pictures.collect(), share);
        let fold = Fold::new(self.examples, pictures, &mut PackedBudget::default());
        let mut parameters = self.zero();
        self.fit(fold.rows().collect(), c, ROUGH, &mut parameters);
        parameters
    }

    /// Fits a classifier to all pictures, from `start` on.
    pub(super) fn fit_all(&self, c: f64, precision: f64, start: Parameters) -> Parameters {
        let mut parameters = start;
        let rows = self.folds.iter().flat_map(Fold::rows).collect();
        self.fit(rows, c, precision, &mut parameters);
        parameters
    }

    fn fit(&self, rows: Vec<&Rows<'_>>, c: f64, precision: f64, parameters: &mut Parameters) {
        let problem = Problem {
            rows,
            class_weights: &self.class_weights,
            c,
        };
        let steps = (FIT_WORK / multiplications(self.examples)) as usize;
        let steps = steps.clamp(FEWEST_STEPS, STEPS);
        problem.fit(self.pool, parameters, precision, steps);
        self.count.add_one();
    }

    /// Keeps a share of the pictures of each class, at least one.
    fn share_of_each_class(&self, mut pictures: Vec<usize>, share: f64) -> Vec<usize> {
        let mut counts = vec![0usize; self.examples.labels().len()];
        for &picture in &pictures {
            counts[self.examples.classes()[picture]] += 1;
        }
        let mut left: Vec<usize> = counts
            .iter()
            .map(|&count| ((count as f64 * share).round() as usize).max(1))
            .collect();
        pictures.sort_by_key(|&picture| mix(picture));
        pictures.retain(|&picture| {
            let left = &mut left[self.examples.classes()[picture]];
            let kept = *left > 0;
            *left -= usize::from(kept);
            kept
        });
        pictures.sort_unstable();
        pictures
    }
}
