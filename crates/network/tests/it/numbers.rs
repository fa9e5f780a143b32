//! The network in bfloat16 and in 8-bit integers: the same bits everywhere, and on the reference's
//! photographs the classes of the network in float32.

use std::sync::Arc;

use imgclass_checkpoint::{Architecture, WeightsSource};
use imgclass_image::Preprocessing;
use imgclass_kernels::{Isa, ThreadPool};
use imgclass_network::resnet::ResNet;
use imgclass_network::{
    Backend, Classifier, ComputeType, CpuBackend, CpuNumbers, Input, ModelOptions, Normalisation,
    STEM, Scales, Want,
};
use imgclass_test_support::shared;

use crate::parity::{real_in, reference_photographs, top1_of};
use crate::{Images, formula, options};

/// The formula's ResNet-18 in a type.
fn small(dtype: ComputeType) -> Classifier {
    let options = ModelOptions {
        dtype: Some(dtype),
        ..options()
    };
    Classifier::load(&WeightsSource::random(Architecture::RESNET18), &options)
        .expect("the formula always loads")
}

/// Some scale for each layer of a network.
fn some_scales(blocks: usize, convs: usize) -> Scales {
    let names = (1..=4).flat_map(|stage| {
        (0..blocks).flat_map(move |block| {
            (1..=convs).map(move |conv| format!("layer{stage}.{block}.conv{conv}"))
        })
    });
    let names = std::iter::once(STEM.to_owned()).chain(names);
    Scales::new(
        names
            .enumerate()
            .map(|(i, name)| (name, 0.01 + 0.0005 * i as f32)),
    )
}

/// Images of noise, of the size that the formula's network takes.
fn images(n: usize) -> Vec<Input> {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..n)
        .map(|_| Input::Pixels((0..3 * 224 * 224).map(|_| byte()).collect()))
        .collect()
}

/// The logits of images that run in batches of `together`, as bits.
fn logits(classifier: &Classifier, images: &[Input], together: usize) -> Vec<u32> {
    let outputs = images.chunks(together).flat_map(|group| {
        let group: Vec<&Input> = group.iter().collect();
        classifier.run_batch(&group, &[]).expect("a forward pass")
    });
    outputs
        .flat_map(|output| output.logits)
        .map(f32::to_bits)
        .collect()
}

#[test]
fn logits_are_the_same_bits_on_every_instruction_set_in_any_batch_and_on_any_threads() {
    let images = Images::formula(3, 64, 64);
    let every: &[(usize, usize)] = &[(1, 3), (3, 1)];
    for (architecture, blocks, convs, runs) in [
        (Architecture::RESNET18, 2, 2, every),
        (Architecture::RESNET50, 6, 3, &every[1..]),
    ] {
        let scales = Arc::new(some_scales(blocks, convs));
        for numbers in [CpuNumbers::Bf16, CpuNumbers::Int8(scales)] {
            let bits = |isa, threads: usize, together: usize| -> Vec<u32> {
                let threads = threads.try_into().expect("threads");
                let backend = CpuBackend::with_numbers(
                    isa,
                    Arc::new(ThreadPool::new(threads).expect("threads")),
                    Normalisation::of(&Preprocessing::default()),
                    numbers.clone(),
                );
                let net = ResNet::load(&formula(), &architecture, 1000, backend).expect("loads");
                let batches = (0..3).step_by(together).flat_map(|first| {
                    let batch = images.narrow(first, together);
                    let inputs: Vec<&Input> = batch.images.iter().collect();
                    let logits = net.forward(&inputs, batch.size).expect("runs").logits;
                    net.backend().rows_to_vec(logits).expect("numbers")
                });
                batches.map(f32::to_bits).collect()
            };
            let expected = bits(Isa::detect(), 1, 1);
            assert!(expected.iter().any(|bits| *bits != expected[0]));
            for isa in Isa::available() {
                for &(threads, together) in runs {
                    assert!(
                        bits(isa, threads, together) == expected,
                        "{numbers:?} on {isa}, {threads} threads"
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_that_were_normalised_outside_give_the_bits_that_bytes_give() {
    let classifier = small(ComputeType::Int8);
    let images = images(1);
    let pixels = images[0].pixels().expect("bytes");
    let preprocessing = &classifier.info().checkpoint.preprocessing;
    let normalisation = imgclass_network::Normalisation::of(preprocessing);
    let planes = (0..3).flat_map(|plane| {
        let (factor, addend) = (normalisation.factor[plane], normalisation.addend[plane]);
        let bytes = pixels.iter().skip(plane).step_by(3);
        bytes.map(move |&byte| f32::from(byte) * factor + addend)
    });
    let planar = [Input::Planar(planes.collect())];
    assert_eq!(
        logits(&classifier, &planar, 1),
        logits(&classifier, &images, 1)
    );
}

#[test]
fn features_and_feature_maps_of_each_type_are_near_those_of_float32() {
    let images = images(1);
    let output = |dtype| {
        let classifier = small(dtype);
        let want = Want {
            features: true,
            feature_map: true,
        };
        let mut outputs = classifier.run_batch(&[&images[0]], &[want]).expect("runs");
        let output = outputs.remove(0);
        (
            output.features.expect("features"),
            output.feature_map.expect("a feature map"),
        )
    };
    let (features, map) = output(ComputeType::F32);
    let error = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
        let difference = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
        (difference / squares(&mut a.iter().copied())).sqrt()
    };
    for (dtype, allowed) in [(ComputeType::BF16, 0.03), (ComputeType::Int8, 0.15)] {
        let found = output(dtype);
        let (of_features, of_map) = (error(&features, &found.0), error(&map, &found.1));
        eprintln!("{dtype}: features {of_features}, feature map {of_map}");
        assert!(of_features < allowed && of_map < 2.0 * allowed, "{dtype}");
    }
}

#[test]
fn ranges_are_kept_for_the_next_start_and_measured_again_where_the_file_is_damaged() {
    let test = "the ranges' file";
    let folder = std::env::temp_dir().join(format!("imgclass-ranges-{}", std::process::id()));
    let Some(load) = real_in(test, ComputeType::Int8, Some(folder.clone())) else {
        return;
    };
    let first = load();
    let file = || {
        let mut files = std::fs::read_dir(&folder).expect("a folder");
        files.next().expect("a file").expect("a file").path()
    };
    let kept = std::fs::read_to_string(file()).expect("the ranges");
    let second = load();
    assert_eq!(first.info().fidelity, second.info().fidelity);
    let images = images(1);
    let expected = logits(&first, &images, 1);
    assert_eq!(logits(&second, &images, 1), expected);
    std::fs::write(file(), &kept[..kept.len() / 2]).expect("writes");
    assert_eq!(logits(&load(), &images, 1), expected);
    assert_eq!(std::fs::read_to_string(file()).expect("the ranges"), kept);
    std::fs::remove_dir_all(&folder).expect("the folder");
}

#[test]
fn the_reference_photographs_keep_their_classes_in_each_type() {
    let test = "the number types on 200 photographs";
    let Some((root, rows)) = reference_photographs(test) else {
        return;
    };
    if shared("weights", test).is_none() {
        return;
    }
    let right = |found: &[(usize, Vec<f32>)]| {
        let hits = rows.iter().zip(found);
        hits.filter(|(row, (top1, _))| row.class == Some(*top1))
            .count()
    };
    // The reference's own classes are right for 170 of the 200.
    for (dtype, least_same, least_right, margin) in [
        (ComputeType::BF16, 199, 169, 0.1),
        (ComputeType::Int8, 195, 169, 1.0),
    ] {
        let Some(load) = real_in(test, dtype, None) else {
            return;
        };
        let classifier = load();
        let found = top1_of(&classifier, &root, &rows);
        let mut same = 0;
        for (row, (top1, _)) in rows.iter().zip(&found) {
            if *top1 == row.top1 {
                same += 1;
            } else {
                eprintln!(
                    "{dtype} {}: {top1} for {}, margin {}",
                    row.file, row.top1, row.margin
                );
                assert!(row.margin <= margin, "{dtype}: {}", row.file);
            }
        }
        let right = right(&found);
        eprintln!(
            "{dtype}: same {same}, right {right}, {:?}",
            classifier.info().fidelity
        );
        assert!(
            same >= least_same && right >= least_right,
            "{dtype}: {same} same, {right} right"
        );
    }
}

#[test]
fn a_folder_for_calibration_without_pictures_and_for_another_type_is_refused() {
    let folder = std::env::temp_dir().join(format!("imgclass-calibrate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("notes.txt"), "no picture").expect("a file");
    for (dtype, folder, expected) in [
        (ComputeType::Int8, folder.join("absent"), "absent"),
        (ComputeType::Int8, folder.clone(), "it holds no picture"),
        (ComputeType::BF16, folder.clone(), "bf16 needs no pictures"),
    ] {
        let options = ModelOptions {
            dtype: Some(dtype),
            calibrate: Some(folder),
            ..options()
        };
        let loaded = Classifier::load(&WeightsSource::random(Architecture::RESNET18), &options);
        let error = loaded.err().expect("a refusal").to_string();
        assert!(error.contains(expected), "{error}");
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
}
