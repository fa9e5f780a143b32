use imgclass_heads::{
    ClassWeights, ExampleError, Examples, Picture, Training, TrainingOptions, train,
};
use serde_json::Value;

use crate::data::{balanced, mix, options, pictures};

fn trained(examples: Examples, options: &TrainingOptions) -> Training {
    train(examples, options, &|_| {}).unwrap()
}

#[test]
fn the_optimum_is_the_one_that_scikit_learn_finds() {
    let golden: Value = serde_json::from_str(include_str!("../golden/logistic.json")).unwrap();
    let labels: Vec<usize> = (0..90).map(|i| [0, 1, 0, 2, 0, 1][i % 6]).collect();
    for case in golden["cases"].as_array().unwrap() {
        let examples = Examples::new(pictures(&labels, 3, 12, 0.4)).unwrap();
        let options = TrainingOptions {
            c: case["c"].as_f64(),
            class_weights: match case["class_weights"].as_str().unwrap() {
                "none" => ClassWeights::None,
                _ => ClassWeights::Balanced,
            },
            ..options()
        };
        let head = trained(examples, &options).head;
        let temperature = head.recipe.temperature as f32;
        let expected: Vec<f32> = serde_json::from_value::<Vec<Vec<f32>>>(case["weights"].clone())
            .unwrap()
            .concat();
        let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
        for (found, expected) in head.weights().iter().zip(&expected) {
            let off = (found * temperature - expected).abs();
            assert!(
                off < 1e-2 * largest,
                "C {}: {} {expected}",
                case["c"],
                found * temperature
            );
        }
        let expected: Vec<f32> = serde_json::from_value(case["bias"].clone()).unwrap();
        for (found, expected) in head.bias().iter().zip(&expected) {
            assert!(
                (found * temperature - expected).abs() < 1e-2 * largest.max(1.0),
                "{found} {expected}"
            );
        }
    }
}

#[test]
fn classes_that_lie_apart_are_learned_and_the_unknown_is_told_from_them() {
    let training = trained(balanced(300, 4, 64, 1.0), &options());
    let evaluation = &training.head.evaluation;
    assert!(evaluation.accuracy > 0.97, "{evaluation:?}");
    let [low, high] = evaluation.accuracy_interval;
    assert!(low < evaluation.accuracy && evaluation.accuracy <= high);
    assert!(
        evaluation.expected_calibration_error < 0.1,
        "{evaluation:?}"
    );
    let unknown = evaluation.unknown.unwrap();
    assert!(
        unknown.auroc > 0.9 && unknown.false_positive_rate < 0.4,
        "{unknown:?}"
    );
    assert!(
        evaluation
            .curve
            .windows(2)
            .all(|pair| pair[0].pictures_per_class < pair[1].pictures_per_class)
    );

    let member: Vec<f32> = (0..64)
        .map(|j| mix(77_000_000 + j) + if j % 4 == 2 { 1.0 } else { 0.0 })
        .collect();
    let stranger: Vec<f32> = (0..64)
        .map(|j| mix(78_000_000 + j) + if j % 8 == 5 { 3.0 } else { -1.0 })
        .collect();
    let fit = training.head.answer(&member).unwrap();
    let best = fit
        .logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .unwrap()
        .0;
    assert_eq!(training.head.labels()[best], "class 2");
    assert!(fit.known > 0.05, "{}", fit.known);
    assert!(training.head.answer(&stranger).unwrap().known < 0.05);
    assert_eq!(training.head.answer(&member[1..]), None);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let with = |threads: usize| {
        let options = TrainingOptions {
            threads: threads.try_into().unwrap(),
            ..options()
        };
        trained(balanced(80, 3, 20, 0.3), &options)
            .head
            .to_bytes()
            .unwrap()
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn a_label_that_is_wrong_is_named() {
    let labels: Vec<usize> = (0..120).map(|i| i % 3).collect();
    let mut pictures = pictures(&labels, 3, 48, 1.0);
    pictures[30].label = "class 2".to_owned();
    let evaluation = trained(Examples::new(pictures).unwrap(), &options())
        .head
        .evaluation;
    let suspect = &evaluation.suspects[0];
    assert_eq!(
        (suspect.name.as_str(), suspect.looks_like.as_str()),
        ("30.jpg", "class 0")
    );
}

#[test]
fn near_duplicates_across_classes_are_named_and_stay_in_one_fold() {
    let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
    let mut pictures = pictures(&labels, 3, 48, 0.5);
    let copied = |of: &[f32]| {
        of.iter()
            .enumerate()
            .map(|(j, x)| x + 0.01 * mix(j))
            .collect::<Vec<f32>>()
    };
    pictures[7].features = copied(&pictures[12].features);
    pictures[50].features = copied(&pictures[2].features);
    let training = trained(Examples::new(pictures).unwrap(), &options());
    let found = &training.head.evaluation.near_duplicates;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].first.as_str(), found[0].second.as_str()),
        ("7.jpg", "12.jpg")
    );
    assert_eq!(training.head.evaluation.near_duplicates_within_classes, 1);
    assert_eq!(training.folds[7], training.folds[12]);
    assert_eq!(training.folds[2], training.folds[50]);
}

#[test]
fn two_classes_with_the_same_pictures_are_named() {
    let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
    let mut pictures = pictures(&labels, 3, 48, 0.5);
    for i in (0..60).step_by(3) {
        pictures[i + 1].features = pictures[i].features.clone();
    }
    let evaluation = trained(Examples::new(pictures).unwrap(), &options())
        .head
        .evaluation;
    let notes = evaluation.notes.join(" ");
    assert!(
        notes.contains("20 of 20 pictures of class \"class 0\" are also in class \"class 1\""),
        "{notes}"
    );
}

#[test]
fn weights_help_small_classes() {
    let labels: Vec<usize> = (0..200).map(|i| usize::from(i % 10 == 0)).collect();
    let recall = |class_weights| {
        let examples = Examples::new(pictures(&labels, 2, 16, 0.15)).unwrap();
        let options = TrainingOptions {
            class_weights,
            ..options()
        };
        trained(examples, &options).head.evaluation.class_scores[1].recall
    };
    let (plain, balanced) = (recall(ClassWeights::None), recall(ClassWeights::Balanced));
    assert!(balanced > plain + 0.1, "{plain} {balanced}");
}

#[test]
fn mirrored_pictures_are_learned_from_and_never_judged() {
    let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
    let mut pictures = pictures(&labels, 3, 24, 0.6);
    for (i, picture) in pictures.iter_mut().enumerate() {
        picture.mirrored = Some(
            picture
                .features
                .iter()
                .enumerate()
                .map(|(j, x)| x + 0.1 * mix(i * 7 + j))
                .collect(),
        );
    }
    let training = trained(Examples::new(pictures.clone()).unwrap(), &options());
    assert!(training.head.recipe.flips);
    assert_eq!(training.head.evaluation.pictures, 60);
    pictures[4].mirrored = None;
    assert!(matches!(
        Examples::new(pictures),
        Err(ExampleError::Features { .. })
    ));
}

#[test]
fn what_cannot_be_trained_on_says_why() {
    let cases = [
        (vec![], "there are no pictures"),
        (
            vec![picture("1", "a", &[1.0]), picture("2", "a", &[2.0])],
            "all 2 pictures are of one class, \"a\"",
        ),
        (
            vec![
                picture("1", "a", &[1.0]),
                picture("2", "a", &[2.0]),
                picture("3", "b", &[2.0]),
            ],
            "class \"b\" has one picture, \"3\"",
        ),
        (
            vec![picture("1", " ", &[1.0])],
            "the class of \"1\" has no name",
        ),
        (
            vec![picture("1", &"\u{1f319}".repeat(1001), &[1.0])],
            "the class of \"1\" has a name of 1001 characters, and it may have 1000",
        ),
        (vec![picture("1", "a", &[f32::NAN])], "not a finite number"),
        (
            vec![picture("1", "a", &[1.0]), picture("2", "a", &[1.0, 2.0])],
            "there are 2 of them, and other pictures have 1",
        ),
    ];
    for (pictures, expected) in cases {
        let error = Examples::new(pictures).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn odd_data_give_a_head_with_finite_numbers() {
    let changed = |change: fn(&mut f32)| {
        let mut pictures = pictures(&[0, 1, 0, 1, 0, 1], 2, 5, 1.0);
        let features = pictures
            .iter_mut()
            .flat_map(|picture| &mut picture.features);
        features.for_each(change);
        pictures
    };
    for pictures in [
        changed(|x| *x = 0.5),
        changed(|x| *x *= 1e15),
        changed(|x| *x *= 1e-30),
    ] {
        let head = trained(Examples::new(pictures).unwrap(), &options()).head;
        let bytes = head.to_bytes().unwrap();
        let read = imgclass_heads::Head::from_bytes(&bytes).unwrap();
        assert_eq!(read.weights(), head.weights());
        assert!(head.evaluation.log_loss.is_finite());
    }
}

#[test]
fn ten_thousand_classes_are_taken_and_more_are_refused() {
    let pictures = |classes: usize| {
        (0..2 * classes)
            .map(move |i| picture(&format!("{i}"), &format!("{}", i % classes), &[mix(i)]))
    };
    let examples = Examples::new(pictures(10_000)).unwrap();
    assert_eq!(examples.labels().len(), 10_000);
    let error = Examples::new(pictures(10_001)).unwrap_err();
    assert_eq!(error, ExampleError::TooManyClasses(10_001));
}

fn picture(name: &str, label: &str, features: &[f32]) -> Picture {
    Picture {
        name: name.to_owned(),
        label: label.to_owned(),
        features: features.to_vec(),
        mirrored: None,
    }
}
