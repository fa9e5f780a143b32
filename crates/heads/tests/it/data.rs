//! Features made by a formula.

use std::num::NonZeroUsize;

use imgclass_heads::{ClassWeights, Examples, NetworkId, Picture, TrainingOptions};

/// Returns a number from 0 to 1 that looks random, as `golden/make_logistic.py` does.
pub(crate) fn mix(x: usize) -> f32 {
    let mut z = (x as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
}

/// Returns pictures whose features say their class, more or less: `distance` is how far the classes
/// are apart.
pub(crate) fn pictures(
    labels: &[usize],
    classes: usize,
    dims: usize,
    distance: f32,
) -> Vec<Picture> {
    let picture = |(i, &label): (usize, &usize)| {
        let feature =
            |j: usize| mix(1000 * i + j) + if j % classes == label { distance } else { 0.0 };
        Picture {
            name: format!("{i}.jpg"),
            label: format!("class {label}"),
            features: (0..dims).map(feature).collect(),
            mirrored: None,
        }
    };
    labels.iter().enumerate().map(picture).collect()
}

/// Returns pictures of classes of equal size.
pub(crate) fn balanced(count: usize, classes: usize, dims: usize, distance: f32) -> Examples {
    let labels: Vec<usize> = (0..count).map(|i| i % classes).collect();
    Examples::new(pictures(&labels, classes, dims, distance)).expect("usable examples")
}

pub(crate) fn options() -> TrainingOptions {
    TrainingOptions {
        folds: 5,
        class_weights: ClassWeights::None,
        c: None,
        threads: NonZeroUsize::new(2).expect("not zero"),
        network: NetworkId {
            digest: "00ff".to_owned(),
            architecture: "resnet50 v1.5".to_owned(),
            preprocessing: "224".to_owned(),
            compute_dtype: "f32".to_owned(),
            name: "test".to_owned(),
        },
        program: "test 1".to_owned(),
    }
}
