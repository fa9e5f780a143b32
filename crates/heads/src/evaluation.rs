//! What a head is worth, measured on pictures that were held out. It is part of the head's file,
//! of the report for people, and of its JSON: the names of the fields are part of the interface.

use serde::{Deserialize, Serialize};

/// The measurements of a training. All shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// How many pictures the head was trained on.
    pub pictures: usize,
    /// How many classes there are.
    pub classes: usize,
    /// How many folds were held out, one after the other.
    pub folds: usize,
    /// The share of held-out pictures whose most probable class is right.
    pub accuracy: f64,
    /// Its 95 % interval, by Wilson's score.
    pub accuracy_interval: [f64; 2],
    /// The share of held-out pictures of which one of the five most probable classes is right.
    pub top5: f64,
    /// Its 95 % interval.
    pub top5_interval: [f64; 2],
    /// The mean of the classes' recall, which does not depend on how many pictures each class has.
    pub balanced_accuracy: f64,
    /// The mean logistic loss of held-out pictures, with the temperature.
    pub log_loss: f64,
    /// How far confidence is from accuracy on held-out pictures, with the temperature.
    pub expected_calibration_error: f64,
    /// The values of `C` that were tried.
    pub tried: Vec<TriedC>,
    /// How accuracy grows with the number of pictures.
    pub curve: Vec<CurvePoint>,
    /// How well pictures of other classes are told from those of the trained classes.
    pub unknown: Option<UnknownScore>,
    /// The classes, in their order.
    pub class_scores: Vec<ClassScore>,
    /// The pairs of confused classes, the most frequent first, at most 100.
    pub confusions: Vec<Confusion>,
    /// The pictures that look mislabelled, the surest first, at most 100.
    pub suspects: Vec<Suspect>,
    /// The pictures that are nearly the same and are in different classes, the most similar first,
    /// at most 100.
    pub near_duplicates: Vec<NearDuplicate>,
    /// How many pairs of nearly the same pictures there are within classes. They are always held
    /// out together.
    pub near_duplicates_within_classes: usize,
    /// What the user should know, in sentences.
    pub notes: Vec<String>,
}

/// A value of `C`, and what held-out pictures said of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedC {
    /// scikit-learn's `C` for the features as they are: the inverse of the penalty.
    pub c: f64,
    /// The mean logistic loss.
    pub log_loss: f64,
    /// Its standard error.
    pub log_loss_error: f64,
    /// The share of right answers.
    pub accuracy: f64,
}

/// The accuracy with fewer pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The mean number of pictures of a class that were learned from.
    pub pictures_per_class: f64,
    /// The share of right answers on held-out pictures.
    pub accuracy: f64,
}

/// How well the unknown is recognised: each class in turn is treated as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UnknownScore {
    /// The probability that a picture of a trained class fits better than one of another class.
    pub auroc: f64,
    /// The share of other pictures that pass where 95 % of the trained classes' pictures pass.
    pub false_positive_rate: f64,
}

/// One class on held-out pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// The class.
    pub label: String,
    /// How many pictures it has.
    pub pictures: usize,
    /// The share of its pictures that were recognised.
    pub recall: f64,
    /// Its 95 % interval.
    pub recall_interval: [f64; 2],
    /// The share of the pictures taken for this class that are of this class; absent where none was
    /// taken for it.
    pub precision: Option<f64>,
}

/// How often one class was taken for another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// The class.
    pub label: String,
    /// What it was taken for.
    pub taken_for: String,
    /// How many pictures.
    pub pictures: usize,
}

/// A picture whose label looks wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// The picture's name.
    pub name: String,
    /// Its class.
    pub label: String,
    /// What it looks like.
    pub looks_like: String,
    /// The probability of that.
    pub probability: f64,
    /// The probability of its own class.
    pub probability_of_label: f64,
}

/// Two pictures in different classes that are nearly the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearDuplicate {
    /// The first picture's name.
    pub first: String,
    /// Its class.
    pub first_label: String,
    /// The second picture's name.
    pub second: String,
    /// Its class.
    pub second_label: String,
    /// The cosine of their centred features: 1 for the same picture.
    pub similarity: f64,
}
