//! The training of a head, from features to a classifier with its evaluation.
//!
//! 1. The features are centred and scaled. The bias is not penalised, so centring changes nothing
//!    but the number of steps, and `C` means the same for every network.
//! 2. Nearly equal pictures are found, and folds are made in which they stay together.
//! 3. `C` is chosen on held-out pictures. Each fold starts from its solution for the `C` before, and
//!    the search ends where larger values only get worse. Of the values whose logistic loss cannot
//!    be told from the least one, the most accurate is taken.
//! 4. With that `C`, the folds give the held-out answers of all pictures. The temperature and the
//!    whole evaluation are made of them.
//! 5. The head itself is fitted to all pictures.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::calibration::{calibration_error, temperature};
use crate::duplicates::{self, SimilarPair};
use crate::evaluation::{
    ClassScore, Confusion, CurvePoint, Evaluation, NearDuplicate, Suspect, TriedC, UnknownScore,
};
use crate::examples::Examples;
use crate::familiarity::{Familiarity, cosines, mean_directions, quantiles};
use crate::folds::{mix, stratified};
use crate::head::{Head, NetworkId, Recipe};
use crate::logistic::{Parameters, Problem, loss_to_probabilities};
use crate::product::dot;
use crate::statistics::{auroc, false_positive_rate, wilson_interval};

/// The values of `C` that are tried, for features whose mean squared length is 1. They are half a
/// decade apart: a smaller step changes accuracy by less than its own uncertainty.
const GRID: [f64; 10] = [
    0.1, 0.316, 1.0, 3.16, 10.0, 31.6, 100.0, 316.0, 1000.0, 3160.0,
];

/// The length of the gradient at which a fit for the choice of `C` ends, as a share of its length at
/// zero.
const ROUGH: f64 = 1e-3;

/// The same for the fits that the evaluation and the head are made of.
const FINE: f64 = 5e-5;

/// The most steps of a fit.
const STEPS: usize = 400;

/// The most multiplications of a fit, which bound its steps where there are very many classes.
const FIT_WORK: f64 = 1e13;

/// The most multiplications in one evaluation of the objective for which everything is done. Above
/// it, fewer values of `C` are tried, on one fold alone, and there is no curve.
const USUAL_WORK: f64 = 4e9;

/// The most entries of a list in the evaluation.
const LISTED: usize = 100;

/// A picture looks mislabelled if another class has at least this probability ...
const SUSPECT_OTHER: f64 = 0.5;

/// ... and its own class at most this one.
const SUSPECT_OWN: f64 = 0.1;

/// How classes are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassWeights {
    /// Every picture counts the same, so large classes count for more.
    None,
    /// Every class counts the same, so pictures of small classes count for more.
    Balanced,
}

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainingOptions {
    /// How many folds are held out, at least 2. A class with fewer pictures is held out in as many
    /// folds as it has pictures.
    pub folds: usize,
    /// How classes are weighted.
    pub class_weights: ClassWeights,
    /// scikit-learn's `C` for the features as they are. `None` chooses it by cross-validation.
    pub c: Option<f64>,
    /// How many folds are fitted at one time. The result does not depend on it.
    pub threads: NonZeroUsize,
    /// The network whose features these are.
    pub network: NetworkId,
    /// The name of the program for the recipe.
    pub program: String,
}

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many fits are done.
    pub done: usize,
    /// How many there will be at most.
    pub of: usize,
}

/// What a training gives.
#[derive(Debug, Clone)]
pub struct Training {
    /// The head.
    pub head: Head,
    /// Each picture's fold, so that others can repeat the evaluation.
    pub folds: Vec<usize>,
    /// The held-out logits of each picture `[pictures, classes]`, with the temperature.
    pub held_out: Vec<f32>,
}

/// Trains a head. `progress` is called after each fit, from any thread.
///
/// The result depends on the examples and the options alone: not on the number of threads, and not
/// on the processor.
pub fn train(
    mut examples: Examples,
    options: &TrainingOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Training {
    let (mean, scale) = centre_and_scale(&mut examples);
    let similar = duplicates::find(&examples);
    let pairs = similar.as_deref().unwrap_or_default();
    let groups = duplicates::groups(examples.len(), pairs);
    let folds = options.folds.clamp(2, examples.len().max(2));
    let assigned = stratified(examples.classes(), &groups, folds, mix);
    let trainer = Trainer::new(&examples, assigned, folds, options, progress);

    // C * |x|² has no unit, so the C of scaled features is scikit-learn's times the scale squared.
    let squared = f64::from(scale).powi(2);
    let grid = match options.c {
        Some(c) => vec![c * squared],
        None if trainer.work() > USUAL_WORK => GRID.into_iter().step_by(3).collect(),
        None => GRID.to_vec(),
    };
    let judging_folds = if trainer.work() > USUAL_WORK {
        1
    } else {
        folds
    };
    let tried = trainer.try_each(&grid, judging_folds);
    let c = choose(&tried);

    let fits = trainer.fit_folds(c, FINE, 1.0);
    let mut held_out = trainer.held_out_logits(&fits);
    let temperature = temperature(&held_out, examples.classes(), examples.labels().len());
    for logit in &mut held_out {
        *logit /= temperature as f32;
    }
    let (known, unknown) = trainer.familiarity_scores();
    let curve = trainer.curve(c, &held_out);
    let parameters = trainer.fit_all(c, &fits);

    let mut evaluation = evaluate(&examples, &held_out, pairs);
    evaluation.folds = folds;
    evaluation.tried = tried
        .iter()
        .map(|tried| TriedC {
            c: tried.c / squared,
            ..*tried
        })
        .collect();
    evaluation.curve = curve;
    evaluation.unknown = auroc(&known, &unknown)
        .zip(false_positive_rate(&known, &unknown))
        .map(|(auroc, false_positive_rate)| UnknownScore {
            auroc,
            false_positive_rate,
        });
    evaluation.notes = notes(&examples, &evaluation, similar.as_deref());

    let all: Vec<usize> = (0..examples.len()).collect();
    let (weights, bias) = in_original_units(&parameters, &mean, scale, temperature as f32);
    let head = Head {
        labels: examples.labels().to_vec(),
        dims: examples.dims(),
        weights,
        bias,
        familiarity: Familiarity {
            directions: mean_directions(&examples, &all),
            quantiles: quantiles(known),
            mean,
        },
        network: options.network.clone(),
        recipe: Recipe {
            program: options.program.clone(),
            c: c / squared,
            temperature,
            class_weights: match options.class_weights {
                ClassWeights::None => "none".to_owned(),
                ClassWeights::Balanced => "balanced".to_owned(),
            },
            flips: examples.has_mirrored(),
        },
        evaluation,
    };
    Training {
        head,
        folds: trainer.assigned,
        held_out,
    }
}

/// Centres the features and scales them to a mean squared length of 1. Returns the mean and the
/// scale that they were divided by.
fn centre_and_scale(examples: &mut Examples) -> (Vec<f32>, f32) {
    let mut sums = vec![0f64; examples.dims()];
    for picture in 0..examples.len() {
        for (sum, x) in sums.iter_mut().zip(examples.row(picture)) {
            *sum += f64::from(*x);
        }
    }
    let count = examples.len().max(1) as f64;
    let mean: Vec<f32> = sums.into_iter().map(|sum| (sum / count) as f32).collect();
    examples.shift_and_scale(&mean, 1.0);
    let squares = (0..examples.len()).map(|picture| {
        let row = examples.row(picture);
        dot(row, row)
    });
    let scale = (squares.sum::<f64>() / count).sqrt() as f32;
    // All pictures are the same: there is nothing to scale.
    let scale = if scale > 0.0 && scale.is_finite() {
        scale
    } else {
        1.0
    };
    examples.shift_and_scale(&vec![0.0; examples.dims()], scale);
    (mean, scale)
}

/// Undoes the centring and the scaling, and divides by the temperature.
fn in_original_units(
    parameters: &Parameters,
    mean: &[f32],
    scale: f32,
    temperature: f32,
) -> (Vec<f32>, Vec<f32>) {
    let weights: Vec<f32> = parameters
        .weights()
        .iter()
        .map(|w| w / scale / temperature)
        .collect();
    let bias = parameters
        .bias()
        .iter()
        .zip(weights.chunks_exact(parameters.dims));
    let bias =
        bias.map(|(bias, weights)| (f64::from(bias / temperature) - dot(weights, mean)) as f32);
    let bias = bias.collect();
    (weights, bias)
}

/// Returns the `C` with the best accuracy among those whose loss is within a standard error of the
/// least loss. Loss alone is the steadier measure; among equals, accuracy is what people want.
fn choose(tried: &[TriedC]) -> f64 {
    let least = tried
        .iter()
        .min_by(|a, b| a.log_loss.total_cmp(&b.log_loss));
    let Some(least) = least else { return 1.0 };
    let bound = least.log_loss + least.log_loss_error;
    let equal = tried.iter().filter(|tried| tried.log_loss <= bound);
    let best = equal.max_by(|a, b| {
        a.accuracy
            .total_cmp(&b.accuracy)
            .then(b.log_loss.total_cmp(&a.log_loss))
    });
    best.unwrap_or(least).c
}

/// What a classifier is worth on some held-out pictures.
#[derive(Debug, Clone, Copy, Default)]
struct Judgement {
    /// The sum of the weighted losses, and of their squares.
    loss: f64,
    squares: f64,
    weight: f64,
    right: usize,
    pictures: usize,
}

/// What all fits of one training share.
struct Trainer<'a> {
    examples: &'a Examples,
    assigned: Vec<usize>,
    folds: usize,
    class_weights: Vec<f32>,
    threads: usize,
    progress: &'a (dyn Fn(Progress) + Sync),
    fits: AtomicUsize,
    expected_fits: usize,
}

impl<'a> Trainer<'a> {
    fn new(
        examples: &'a Examples,
        assigned: Vec<usize>,
        folds: usize,
        options: &TrainingOptions,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        let classes = examples.labels().len();
        let mut counts = vec![0usize; classes];
        for &class in examples.classes() {
            counts[class] += 1;
        }
        let class_weights = match options.class_weights {
            ClassWeights::None => vec![1.0; classes],
            ClassWeights::Balanced => counts
                .iter()
                .map(|&count| examples.len() as f32 / (classes * count.max(1)) as f32)
                .collect(),
        };
        let tried = if options.c.is_some() { 1 } else { GRID.len() };
        let mut trainer = Self {
            examples,
            assigned,
            folds,
            class_weights,
            threads: options.threads.get(),
            progress,
            fits: AtomicUsize::new(0),
            expected_fits: (tried + 1 + SHARES.len()) * folds + 1,
        };
        if trainer.work() > USUAL_WORK {
            trainer.expected_fits = tried.div_ceil(3) + folds + 1;
        }
        trainer
    }

    /// Returns how many multiplications one evaluation of the objective takes.
    fn work(&self) -> f64 {
        let forms = if self.examples.has_mirrored() {
            2.0
        } else {
            1.0
        };
        2.0 * forms
            * self.examples.len() as f64
            * self.examples.dims() as f64
            * self.examples.labels().len() as f64
    }

    /// Returns the pictures that are in a fold, or all others.
    fn pictures(&self, fold: usize, held_out: bool) -> Vec<usize> {
        (0..self.examples.len())
            .filter(|&i| (self.assigned[i] == fold) == held_out)
            .collect()
    }

    /// Runs `work` for each fold on up to as many threads as allowed. The results are in the order
    /// of the folds.
    fn each_fold<T: Send>(&self, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.each_of(self.folds, work)
    }

    /// Does the same for the first `folds` folds.
    fn each_of<T: Send>(&self, folds: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, T)>> = Mutex::default();
        thread::scope(|scope| {
            for _ in 0..self.threads.min(folds) {
                scope.spawn(|| {
                    loop {
                        let fold = next.fetch_add(1, Ordering::Relaxed);
                        if fold >= folds {
                            break;
                        }
                        let result = work(fold);
                        results
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push((fold, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
        results.sort_by_key(|(fold, _)| *fold);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Fits some pictures, from `start` on.
    fn fit(&self, pictures: &[usize], c: f64, precision: f64, start: &mut Parameters) {
        let (rows, classes) = self.examples.training_rows(pictures);
        let problem = Problem {
            rows,
            classes,
            class_weights: &self.class_weights,
            c,
        };
        let steps = ((FIT_WORK / self.work()) as usize).clamp(STEPS / 10, STEPS);
        problem.fit(start, precision, steps);
        let done = self.fits.fetch_add(1, Ordering::Relaxed) + 1;
        (self.progress)(Progress {
            done: done.min(self.expected_fits),
            of: self.expected_fits,
        });
    }

    /// Tries each value of `C` on the first `folds` folds, from the smallest value on, until the loss
    /// has risen twice.
    fn try_each(&self, grid: &[f64], folds: usize) -> Vec<TriedC> {
        let (classes, dims) = (self.examples.labels().len(), self.examples.dims());
        let starts: Vec<Mutex<Parameters>> = (0..folds)
            .map(|_| Mutex::new(Parameters::zero(classes, dims)))
            .collect();
        let mut tried: Vec<TriedC> = Vec::new();
        for &c in grid {
            let sums = self.each_of(folds, |fold| {
                let mut parameters = starts[fold].lock().unwrap_or_else(|e| e.into_inner());
                self.fit(&self.pictures(fold, false), c, ROUGH, &mut parameters);
                self.judge(&parameters, &self.pictures(fold, true))
            });
            let all = sums.iter().fold(Judgement::default(), |a, b| Judgement {
                loss: a.loss + b.loss,
                squares: a.squares + b.squares,
                weight: a.weight + b.weight,
                right: a.right + b.right,
                pictures: a.pictures + b.pictures,
            });
            let count = all.pictures as f64;
            let variance = (all.squares / count - (all.loss / count).powi(2)).max(0.0);
            tried.push(TriedC {
                c,
                log_loss: all.loss / all.weight,
                log_loss_error: (variance * count).sqrt() / all.weight,
                accuracy: all.right as f64 / count,
            });
            let losses: Vec<f64> = tried.iter().map(|tried| tried.log_loss).collect();
            let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
            if let [.., before, last] = losses[..]
                && before > best
                && last > before
            {
                break;
            }
        }
        tried
    }

    /// Judges a classifier by some pictures.
    fn judge(&self, parameters: &Parameters, pictures: &[usize]) -> Judgement {
        let rows: Vec<&[f32]> = pictures.iter().map(|&i| self.examples.row(i)).collect();
        let mut logits = parameters.logits(&rows);
        let mut judgement = Judgement {
            pictures: pictures.len(),
            ..Judgement::default()
        };
        for (row, &picture) in logits.chunks_exact_mut(parameters.classes).zip(pictures) {
            let label = self.examples.classes()[picture];
            judgement.right += usize::from(most_probable(row) == label);
            let weight = f64::from(self.class_weights[label]);
            let loss = weight * loss_to_probabilities(row, label);
            judgement.loss += loss;
            judgement.squares += loss * loss;
            judgement.weight += weight;
        }
        judgement
    }

    /// Fits all folds anew, each to a share of its pictures.
    fn fit_folds(&self, c: f64, precision: f64, share: f64) -> Vec<Parameters> {
        self.each_fold(|fold| {
            let mut parameters =
                Parameters::zero(self.examples.labels().len(), self.examples.dims());
            let pictures = self.share_of_each_class(self.pictures(fold, false), share);
            self.fit(&pictures, c, precision, &mut parameters);
            parameters
        })
    }

    /// Keeps a share of the pictures of each class, at least one.
    fn share_of_each_class(&self, mut pictures: Vec<usize>, share: f64) -> Vec<usize> {
        if share >= 1.0 {
            return pictures;
        }
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

    /// Returns each picture's logits by the classifier of its fold, `[pictures, classes]`.
    fn held_out_logits(&self, fits: &[Parameters]) -> Vec<f32> {
        let classes = self.examples.labels().len();
        let mut all = vec![0f32; self.examples.len() * classes];
        for (fold, parameters) in fits.iter().enumerate() {
            let pictures = self.pictures(fold, true);
            let rows: Vec<&[f32]> = pictures.iter().map(|&i| self.examples.row(i)).collect();
            let logits = parameters.logits(&rows);
            for (row, picture) in logits.chunks_exact(classes).zip(pictures) {
                all[picture * classes..][..classes].copy_from_slice(row);
            }
        }
        all
    }

    /// Returns how well each picture fits when it is held out, and how well it fits the other
    /// classes, as a picture of an unknown class would.
    fn familiarity_scores(&self) -> (Vec<f32>, Vec<f32>) {
        let scores = self.each_fold(|fold| {
            let directions = mean_directions(self.examples, &self.pictures(fold, false));
            let score = |picture: usize| {
                let cosines = cosines(self.examples.row(picture), &directions);
                let class = self.examples.classes()[picture];
                let best = |known: bool| {
                    let allowed = cosines
                        .iter()
                        .enumerate()
                        .filter(|(i, _)| known || *i != class);
                    allowed.map(|(_, cosine)| *cosine).fold(-1.0, f32::max)
                };
                (picture, best(true), best(false))
            };
            self.pictures(fold, true)
                .into_iter()
                .map(score)
                .collect::<Vec<_>>()
        });
        let mut scores: Vec<_> = scores.into_iter().flatten().collect();
        scores.sort_by_key(|(picture, ..)| *picture);
        scores
            .into_iter()
            .map(|(_, known, unknown)| (known, unknown))
            .unzip()
    }

    /// Measures the accuracy with fewer pictures; the last point is that of `held_out`.
    fn curve(&self, c: f64, held_out: &[f32]) -> Vec<CurvePoint> {
        let classes = self.examples.labels().len();
        let learned = self.examples.len() as f64 * (self.folds - 1) as f64 / self.folds as f64;
        let per_class = learned / classes as f64;
        let mut curve = Vec::new();
        if self.work() <= USUAL_WORK {
            for share in SHARES {
                // Below two pictures of a class a share means nothing.
                if per_class * share < 2.0 {
                    continue;
                }
                let fits = self.fit_folds(c, ROUGH, share);
                curve.push(CurvePoint {
                    pictures_per_class: per_class * share,
                    accuracy: accuracy(
                        &self.held_out_logits(&fits),
                        self.examples.classes(),
                        classes,
                    ),
                });
            }
        }
        curve.push(CurvePoint {
            pictures_per_class: per_class,
            accuracy: accuracy(held_out, self.examples.classes(), classes),
        });
        curve
    }

    /// Fits all pictures, from the mean of the folds' solutions on.
    fn fit_all(&self, c: f64, fits: &[Parameters]) -> Parameters {
        let mut parameters = Parameters::zero(self.examples.labels().len(), self.examples.dims());
        for fit in fits {
            for (sum, x) in parameters.values.iter_mut().zip(&fit.values) {
                *sum += x / fits.len() as f32;
            }
        }
        let all: Vec<usize> = (0..self.examples.len()).collect();
        self.fit(&all, c, FINE, &mut parameters);
        parameters
    }
}

/// The shares of the pictures with which the curve is measured, beside all of them.
const SHARES: [f64; 3] = [0.125, 0.25, 0.5];

/// Returns the index of the largest number; of equal ones the first.
fn most_probable(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

fn accuracy(logits: &[f32], labels: &[usize], classes: usize) -> f64 {
    let right = logits
        .chunks_exact(classes)
        .zip(labels)
        .filter(|(row, label)| most_probable(row) == **label);
    right.count() as f64 / labels.len().max(1) as f64
}

/// Makes the evaluation of held-out logits, all but what needs further fits.
fn evaluate(examples: &Examples, held_out: &[f32], pairs: &[SimilarPair]) -> Evaluation {
    let labels = examples.labels();
    let classes = labels.len();
    let name = |class: usize| labels[class].clone();
    let mut confidences = Vec::with_capacity(examples.len());
    let (mut top5, mut loss) = (0, 0.0);
    let mut counts = vec![[0usize; 3]; classes];
    let mut confused = std::collections::BTreeMap::<(usize, usize), usize>::new();
    let mut suspects = Vec::new();
    for (picture, logits) in held_out.chunks_exact(classes).enumerate() {
        let label = examples.classes()[picture];
        let mut row = logits.to_vec();
        loss += loss_to_probabilities(&mut row, label);
        let found = most_probable(&row);
        let better = row
            .iter()
            .enumerate()
            .filter(|(i, p)| **p > row[label] || (**p == row[label] && *i < label));
        top5 += usize::from(better.count() < 5);
        confidences.push((f64::from(row[found]), found == label));
        counts[label][0] += 1;
        counts[found][1] += 1;
        if found == label {
            counts[label][2] += 1;
        } else {
            *confused.entry((label, found)).or_default() += 1;
            let (other, own) = (f64::from(row[found]), f64::from(row[label]));
            if other >= SUSPECT_OTHER && own <= SUSPECT_OWN {
                suspects.push(Suspect {
                    name: examples.names()[picture].clone(),
                    label: name(label),
                    looks_like: name(found),
                    probability: other,
                    probability_of_label: own,
                });
            }
        }
    }
    let right = confidences.iter().filter(|(_, right)| *right).count();
    let pictures = examples.len();
    let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
    let class_scores: Vec<ClassScore> = counts
        .iter()
        .zip(labels)
        .map(|(&[pictures, taken, right], label)| ClassScore {
            label: label.clone(),
            pictures,
            recall: share(right, pictures),
            recall_interval: wilson_interval(right, pictures),
            precision: (taken > 0).then(|| share(right, taken)),
        })
        .collect();
    let mut confused: Vec<_> = confused.into_iter().collect();
    confused.sort_by_key(|(pair, count)| (usize::MAX - count, *pair));
    suspects.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    suspects.truncate(LISTED);
    let class_of = |picture: usize| examples.classes()[picture];
    let (across, within): (Vec<_>, Vec<_>) = pairs
        .iter()
        .partition(|pair| class_of(pair.first) != class_of(pair.second));
    Evaluation {
        pictures,
        classes,
        accuracy: share(right, pictures),
        accuracy_interval: wilson_interval(right, pictures),
        top5: share(top5, pictures),
        top5_interval: wilson_interval(top5, pictures),
        balanced_accuracy: class_scores.iter().map(|class| class.recall).sum::<f64>()
            / classes as f64,
        log_loss: loss / pictures.max(1) as f64,
        expected_calibration_error: calibration_error(&confidences),
        confusions: confused
            .into_iter()
            .take(LISTED)
            .map(|((label, taken_for), pictures)| Confusion {
                label: name(label),
                taken_for: name(taken_for),
                pictures,
            })
            .collect(),
        class_scores,
        suspects,
        near_duplicates: across
            .into_iter()
            .take(LISTED)
            .map(|pair: &SimilarPair| NearDuplicate {
                first: examples.names()[pair.first].clone(),
                first_label: name(class_of(pair.first)),
                second: examples.names()[pair.second].clone(),
                second_label: name(class_of(pair.second)),
                similarity: f64::from(pair.similarity),
            })
            .collect(),
        near_duplicates_within_classes: within.len(),
        ..Evaluation::default()
    }
}

/// Says in sentences what the user should know.
fn notes(
    examples: &Examples,
    evaluation: &Evaluation,
    similar: Option<&[SimilarPair]>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let few: Vec<&str> = evaluation
        .class_scores
        .iter()
        .filter(|class| class.pictures < 10)
        .map(|class| class.label.as_str())
        .collect();
    if let [first, ..] = few[..] {
        notes.push(format!(
            "{} of {} classes have fewer than 10 pictures, such as {first:?}: their figures are \
             rough, and more pictures will help most there.",
            few.len(),
            evaluation.classes
        ));
    }
    match similar {
        None => notes.push(format!(
            "There are too many pictures ({}) to look for near-duplicates. If there are any, \
             accuracy is overstated.",
            examples.len()
        )),
        Some(pairs) => notes.extend(same_pictures(examples, pairs)),
    }
    if let [.., before, last] = evaluation.curve[..] {
        let gain = last.accuracy - before.accuracy;
        let [low, high] = evaluation.accuracy_interval;
        let advice = if gain > (high - low) / 4.0 {
            "more pictures will very likely help"
        } else if gain > 0.005 {
            "more pictures may help a little"
        } else {
            "more pictures of the same kind will hardly help"
        };
        notes.push(format!(
            "With twice the pictures ({:.0} instead of {:.0} of a class), accuracy went from {:.1} % to \
             {:.1} %: {advice}.",
            last.pictures_per_class,
            before.pictures_per_class,
            100.0 * before.accuracy,
            100.0 * last.accuracy
        ));
    }
    notes
}

/// Names the pairs of classes that share many pictures.
fn same_pictures(examples: &Examples, pairs: &[SimilarPair]) -> Vec<String> {
    let mut shared =
        std::collections::BTreeMap::<(usize, usize), std::collections::BTreeSet<usize>>::new();
    let mut counts = vec![0usize; examples.labels().len()];
    for &class in examples.classes() {
        counts[class] += 1;
    }
    for pair in pairs {
        let (a, b) = (
            examples.classes()[pair.first],
            examples.classes()[pair.second],
        );
        if a != b {
            let (small, large) = if (counts[a], a) <= (counts[b], b) {
                (a, b)
            } else {
                (b, a)
            };
            let of_small = if a == small { pair.first } else { pair.second };
            shared.entry((small, large)).or_default().insert(of_small);
        }
    }
    let labels = examples.labels();
    let mostly = shared
        .into_iter()
        .filter(|((small, _), pictures)| 2 * pictures.len() >= counts[*small]);
    mostly
        .take(10)
        .map(|((small, large), pictures)| {
            format!(
                "{} of {} pictures of class {:?} are also in class {:?}: no classifier can tell the \
                 two apart; merge them, or take the pictures out of one.",
                pictures.len(),
                counts[small],
                labels[small],
                labels[large]
            )
        })
        .collect()
}
