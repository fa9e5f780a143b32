//! The evaluation: what the answers for held-out pictures say to people.

use std::collections::{BTreeMap, BTreeSet};

use super::held_out::Answer;
use super::largest_class;
use crate::calibration::calibration_error;
use crate::duplicates::SimilarPair;
use crate::evaluation::{ClassScore, Confusion, Evaluation, NearDuplicate, Suspect};
use crate::examples::Examples;
use crate::statistics::wilson_interval;

/// The most entries of a list in the evaluation.
const LISTED: usize = 100;

/// A picture looks mislabelled if another class has at least this probability ...
const SUSPECT_OTHER: f64 = 0.5;

/// ... and its own class at most this one.
const SUSPECT_OWN: f64 = 0.1;

/// Makes the evaluation of held-out answers, all but what needs further fits.
pub(super) fn summarise(
    examples: &Examples,
    answers: &[Answer],
    pairs: &[SimilarPair],
) -> Evaluation {
    let labels = examples.labels();
    let classes = labels.len();
    let name = |class: usize| labels[class].clone();
    let mut confidences = Vec::with_capacity(examples.len());
    let (mut top5, mut loss) = (0, 0.0);
    let mut counts = vec![[0usize; 3]; classes];
    let mut confused = BTreeMap::<(usize, usize), usize>::new();
    let mut suspects = Vec::new();
    for (picture, answer) in answers.iter().enumerate() {
        let (label, found) = (examples.classes()[picture], answer.found);
        loss += answer.loss;
        top5 += usize::from(answer.better < 5);
        confidences.push((answer.probability, found == label));
        counts[label][0] += 1;
        counts[found][1] += 1;
        if found == label {
            counts[label][2] += 1;
        } else {
            *confused.entry((label, found)).or_default() += 1;
            let (other, own) = (answer.probability, answer.of_label);
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
pub(super) fn notes(
    examples: &Examples,
    evaluation: &Evaluation,
    similar: Option<&[SimilarPair]>,
    wanted_folds: usize,
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
    if evaluation.folds < wanted_folds {
        notes.push(format!(
            "No class has more than {} pictures, so they were held out in {} folds instead of \
             {wanted_folds}: the classifiers of the evaluation have learned from fewer pictures than the \
             head.",
            largest_class(examples),
            evaluation.folds
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
    let mut shared = BTreeMap::<(usize, usize), BTreeSet<usize>>::new();
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
