//! The training of a head, from features to a classifier with its evaluation: [`train`] is the whole
//! recipe.
//!
//! | module | what it does |
//! |---|---|
//! | `scaling` | centres and scales the features, and brings the classifier back to their units |
//! | `plan` | decides how much is done |
//! | `trainer` | fits classifiers to some folds |
//! | `choice` | chooses `C` on held-out pictures |
//! | `held_out` | asks classifiers about pictures that they have not seen |
//! | `summary` | makes the evaluation of those answers |

mod choice;
mod held_out;
mod plan;
mod scaling;
mod summary;
mod trainer;

use std::io;
use std::num::NonZeroUsize;

use imgclass_kernels::ThreadPool;

use self::choice::choose;
use self::plan::Plan;
use self::scaling::Scaling;
use self::summary::{notes, summarise};
use self::trainer::{FitCount, Trainer};
use crate::duplicates;
use crate::evaluation::{TriedC, UnknownScore};
use crate::examples::Examples;
use crate::familiarity::{Familiarity, mean_directions, quantiles};
use crate::folds::{mix, stratified};
use crate::head::{Head, NetworkId, Recipe};
use crate::reduction::Directions;
use crate::rows::Parameters;
use crate::statistics::{auroc, false_positive_rate};

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
    /// folds as it has pictures. Where all classes have fewer, there are as many folds as the
    /// largest class has pictures.
    pub folds: usize,
    /// How classes are weighted.
    pub class_weights: ClassWeights,
    /// scikit-learn's `C` for the features as they are. `None` chooses it by cross-validation.
    pub c: Option<f64>,
    /// How many threads compute. The result does not depend on it.
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
}

/// Trains a head. `progress` is called after each fit, from any thread.
///
/// 1. The features are centred and scaled. The bias is not penalised, so centring changes nothing
///    but the number of steps, and `C` means the same for every network.
/// 2. Nearly equal pictures are found, and folds are made in which they stay together.
/// 3. `C` is chosen on held-out pictures. Of the values whose logistic loss cannot be told from the
///    least one, the most accurate is taken.
/// 4. With that `C`, each fold's pictures are judged by a classifier of the other folds. The
///    temperature and the whole evaluation are made of these answers.
/// 5. The head itself is fitted to all pictures.
///
/// Where pictures times classes are very many, the folds are fitted to the main directions of the
/// features alone. The head is always fitted to all features, from there on.
///
/// The result depends on the examples, the options and the processor's instruction set, but not on
/// the number of threads.
///
/// # Errors
/// If the operating system refuses a thread.
pub fn train(
    examples: Examples,
    options: &TrainingOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> io::Result<Training> {
    train_as_planned(examples, options, progress, Plan::new)
}

/// Trains a head as `plan` says for the scaled examples, the only `C` and the number of folds.
fn train_as_planned(
    mut examples: Examples,
    options: &TrainingOptions,
    progress: &(dyn Fn(Progress) + Sync),
    plan: impl FnOnce(&Examples, Option<f64>, usize) -> Plan,
) -> io::Result<Training> {
    let pool = ThreadPool::new(options.threads)?;
    let scaling = Scaling::apply(&mut examples);

    let similar = duplicates::find(&examples, &pool);
    let pairs = similar.as_deref().unwrap_or_default();
    let groups = duplicates::groups(examples.len(), pairs);
    let folds = options.folds.min(largest_class(&examples)).max(2);
    let assigned = stratified(examples.classes(), &groups, folds, mix);

    // C * |x|² has no unit, so the C of scaled features is scikit-learn's times the scale squared.
    let plan = plan(&examples, options.c.map(|c| c * scaling.squared()), folds);
    let count = FitCount::new(progress, plan.most_fits());
    let over = |examples| {
        let weights = options.class_weights;
        Trainer::new(examples, &pool, &assigned, folds, weights, &count)
    };
    let directions = plan
        .reduces_features
        .then(|| Directions::find(&examples, &pool));
    let directions = directions.flatten();
    let reduced = directions.as_ref().map(|d| d.reduce(&examples, &pool));

    let trainer = over(reduced.as_ref().unwrap_or(&examples));
    let tried = trainer.try_values(&plan.search);
    let c = choose(&tried);
    let fits = trainer.fit_folds(c, plan.precision_of_folds);
    let (temperature, answers) = trainer.answers(&fits);
    let curve = trainer.curve(c, plan.shares, &answers);

    let (trainer, start) = match &directions {
        None => (trainer, mean(fits)),
        Some(directions) => {
            drop(trainer);
            (over(&examples), directions.lift(&mean(fits), &pool))
        }
    };
    let (known, unknown) = trainer.familiarity_scores();
    let parameters = trainer.fit_all(c, plan.precision, start);

    let mut evaluation = summarise(&examples, &answers, pairs);
    evaluation.folds = folds;
    evaluation.tried = tried
        .iter()
        .map(|tried| TriedC {
            c: tried.c / scaling.squared(),
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
    evaluation.notes = notes(&examples, &evaluation, similar.as_deref(), options.folds);

    let all: Vec<usize> = (0..examples.len()).collect();
    let (weights, bias) = scaling.undo(&parameters, temperature as f32);
    let head = Head {
        labels: examples.labels().to_vec(),
        dims: examples.dims(),
        weights,
        bias,
        familiarity: Familiarity {
            directions: mean_directions(&examples, &all),
            quantiles: quantiles(known),
            mean: scaling.mean.clone(),
        },
        network: options.network.clone(),
        recipe: Recipe {
            program: options.program.clone(),
            c: c / scaling.squared(),
            temperature,
            class_weights: match options.class_weights {
                ClassWeights::None => "none".to_owned(),
                ClassWeights::Balanced => "balanced".to_owned(),
            },
            flips: examples.has_mirrored(),
        },
        evaluation,
    };
    Ok(Training {
        head,
        folds: assigned,
    })
}

/// Returns the mean of some classifiers.
fn mean(classifiers: Vec<Parameters>) -> Parameters {
    let share = 1.0 / classifiers.len() as f32;
    let sum = classifiers.into_iter().reduce(|mut sum, other| {
        for (sum, x) in sum.values.iter_mut().zip(other.values) {
            *sum += x;
        }
        sum
    });
    let mut mean = sum.unwrap_or_else(|| Parameters::zero(0, 0));
    mean.values.iter_mut().for_each(|x| *x *= share);
    mean
}

/// Returns how many pictures the largest class has.
fn largest_class(examples: &Examples) -> usize {
    let mut counts = vec![0usize; examples.labels().len()];
    for &class in examples.classes() {
        counts[class] += 1;
    }
    counts.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Picture;

    #[test]
    fn many_classes_are_learned_from_fewer_features_and_answered_from_all() {
        let (classes, per_class, dims) = (60, 3, 1024);
        let number = |seed: usize, j: usize| {
            let mixed = mix(seed << 20 | j) >> 40;
            (mixed as f32 / (1 << 23) as f32 - 1.0) / (1.0 + j as f32 / 50.0)
        };
        let features = |class: usize, of_class: usize| -> Vec<f32> {
            let own = 1 + classes + class * per_class + of_class;
            let feature = |j: usize| 3.0 + number(1 + class, j) + 0.7 * number(own, j);
            (0..dims).map(feature).collect()
        };
        let pictures = (0..classes * per_class).map(|i| Picture {
            name: i.to_string(),
            label: format!("{:02}", i % classes),
            features: features(i % classes, i / classes),
            mirrored: None,
        });
        let options = TrainingOptions {
            folds: 5,
            class_weights: ClassWeights::Balanced,
            c: None,
            threads: NonZeroUsize::MIN,
            network: NetworkId::default(),
            program: String::new(),
        };
        let examples = Examples::new(pictures).unwrap();
        let fits = std::sync::Mutex::new(Vec::new());
        let progress = |progress: Progress| fits.lock().unwrap().push(progress);
        let training = train_as_planned(examples, &options, &progress, Plan::large).unwrap();

        let evaluation = &training.head.evaluation;
        assert!(evaluation.accuracy > 0.9, "{evaluation:?}");
        // No class has more than three pictures.
        assert_eq!(evaluation.folds, 3);
        assert!(
            evaluation
                .notes
                .join(" ")
                .contains("in 3 folds instead of 5")
        );
        let fits = fits.into_inner().unwrap();
        assert_eq!(fits.len(), evaluation.tried.len() + 3 + 1);
        assert!(fits.len() <= fits[0].of, "{fits:?}");
        // A picture of each class that nobody has seen.
        let right = (0..classes).filter(|&class| {
            let fit = training
                .head
                .answer(&features(class, per_class + 1000))
                .unwrap();
            held_out::most_probable(&fit.logits) == class
        });
        assert!(right.count() > classes * 9 / 10);
    }
}
