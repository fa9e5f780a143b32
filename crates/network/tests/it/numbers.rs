//! The network in bfloat16 and in 8-bit integers: the same bits everywhere, and on the reference's
//! photographs the classes of the network in float32.

use std::collections::HashMap;
use std::sync::Arc;

use imgclass_checkpoint::{
    Architecture, OpenCheckpoint, Overrides, Preset, Variant, WeightsSource,
};
use imgclass_image::Preprocessing;
use imgclass_kernels::{Isa, ThreadPool};
use imgclass_network::resnet::ResNet;
use imgclass_network::{
    Backend, Classifier, ComputeType, CpuBackend, CpuNumbers, DeviceChoice, Input, ModelOptions,
    Normalisation, STEM, Scales, Want,
};
use imgclass_test_support::{checkpoints, shared};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use crate::parity::{real_in, reference_photographs, top1_of};
use crate::{FORMULA, Images, options};

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
    images_of(n, 224)
}

/// Images of noise that are `side` pixels wide and high.
fn images_of(n: usize, side: usize) -> Vec<Input> {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..n)
        .map(|_| Input::Pixels((0..3 * side * side).map(|_| byte()).collect()))
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
                let net = ResNet::load(&FORMULA, &architecture, 1000, backend).expect("loads");
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

/// The tensors and the description of a file of 8-bit integers, to be changed and written again.
struct QuantisedFile {
    description: serde_json::Value,
    tensors: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>,
}

impl QuantisedFile {
    fn parse(bytes: &[u8]) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).expect("a header");
        let entry = &metadata.metadata().as_ref().expect("metadata")["imgclass"];
        let entry: serde_json::Value = serde_json::from_str(entry).expect("JSON");
        let tensors = SafeTensors::deserialize(bytes).expect("tensors");
        let tensor = |(name, view): (String, TensorView)| {
            let dims = view.shape().to_vec();
            (name, view.dtype(), dims, view.data().to_vec())
        };
        Self {
            description: entry["quantised"].clone(),
            tensors: tensors.tensors().into_iter().map(tensor).collect(),
        }
    }

    fn bytes_of(&mut self, name: &str) -> &mut Vec<u8> {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.0 == name);
        &mut tensor.expect("the tensor").3
    }

    fn set_float(&mut self, name: &str, value: f32) {
        self.bytes_of(name)[..4].copy_from_slice(&value.to_le_bytes());
    }

    /// The file with the digest that belongs to its numbers.
    fn write(&self) -> Vec<u8> {
        let write = |metadata| {
            let views = self.tensors.iter().map(|(name, dtype, dims, bytes)| {
                (
                    name,
                    TensorView::new(*dtype, dims.clone(), bytes).expect("fits"),
                )
            });
            safetensors::serialize(views, metadata).expect("writes")
        };
        let plain = write(None);
        let header = u64::from_le_bytes(plain[..8].try_into().expect("8 bytes")) as usize;
        let text = self.description.to_string();
        let sha256 = Sha256::new()
            .chain_update(&plain[8 + header..])
            .chain_update(&text)
            .finalize();
        let entry = format!(
            "{{\"sha256\":\"{}\",\"quantised\":{text}}}",
            hex::encode(sha256)
        );
        write(Some(HashMap::from([("imgclass".to_owned(), entry)])))
    }
}

/// The formula's ResNet-18 as a file of 8-bit integers.
fn quantised_small() -> Vec<u8> {
    let source = WeightsSource::random(Architecture::RESNET18);
    let checkpoint = OpenCheckpoint::open(&source, &Overrides::default()).expect("the formula");
    let options = ModelOptions {
        dtype: Some(ComputeType::Int8),
        ..options()
    };
    let quantised = imgclass_network::quantise_checkpoint(&checkpoint, &options, false);
    quantised.expect("the formula is quantised").bytes
}

#[test]
fn a_quantised_file_gives_the_bits_of_the_float_checkpoint_in_8_bit_integers() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("small.safetensors");
    std::fs::write(&file, quantised_small()).expect("writes");
    let float = small(ComputeType::Int8);
    let images = images(2);
    let expected = logits(&float, &images, 2);
    for (device, dtype) in [
        (DeviceChoice::Cpu, None),
        (DeviceChoice::Auto, Some(ComputeType::Int8)),
    ] {
        let options = ModelOptions {
            device,
            dtype,
            ..options()
        };
        let loaded = Classifier::load(&WeightsSource::local(&file), &options).expect("loads");
        assert_eq!(logits(&loaded, &images, 2), expected, "{dtype:?}");
        let info = loaded.info();
        assert_eq!(info.compute_dtype, ComputeType::Int8);
        assert_eq!(info.fidelity, float.info().fidelity);
        let (of_file, of_float) = (&info.checkpoint, &float.info().checkpoint);
        assert_eq!(of_file.architecture, of_float.architecture);
        assert_eq!(of_file.preprocessing, of_float.preprocessing);
        assert_eq!(of_file.float_digest(), of_float.float_digest());
        assert!(!of_file.trained);
    }
}

#[test]
fn a_quantised_file_that_is_damaged_or_does_not_fit_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("small.safetensors");
    let whole = quantised_small();
    let refusal = |bytes: &[u8], options: &ModelOptions| {
        std::fs::write(&path, bytes).expect("writes");
        let loaded = Classifier::load(&WeightsSource::local(&path), options);
        loaded.err().map(|error| error.to_string())
    };
    let parsed = QuantisedFile::parse(&whole);
    assert_eq!(refusal(&parsed.write(), &options()), None);
    for cut in [4, 1000, whole.len() / 2, whole.len() - 1] {
        let error = refusal(&whole[..cut], &options()).expect("a refusal");
        assert!(error.contains("safetensors"), "{cut}: {error}");
    }
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    let error = refusal(&flipped, &options()).expect("a refusal");
    assert!(error.contains("it was damaged or changed"), "{error}");

    type Change = fn(&mut QuantisedFile);
    let changes: [(Change, &str); 13] = [
        (
            |file| file.set_float("conv1.scale", 0.0),
            "tensor `conv1.scale`: expected normal numbers above zero, found 0 at element 0",
        ),
        (
            |file| file.set_float("layer1.0.conv1.scale", -0.5),
            "`layer1.0.conv1.scale`: expected normal numbers above zero, found -0.5",
        ),
        (
            |file| file.set_float("layer4.1.conv2.output_scale", f32::NAN),
            "`layer4.1.conv2.output_scale`: expected finite numbers, found NaN",
        ),
        (
            |file| file.set_float("fc.scale", f32::INFINITY),
            "`fc.scale`: expected finite numbers, found inf",
        ),
        (
            |file| file.set_float("layer2.0.conv1.output_scale", 1e-40),
            "normal numbers above zero",
        ),
        (
            |file| file.set_float("fc.bias", f32::NAN),
            "`fc.bias`: expected finite numbers, found NaN",
        ),
        (
            |file| file.description["recipe"] = 1.into(),
            "it was made by recipe 1, and this version of imgclass has recipe",
        ),
        (
            |file| file.description["architecture"] = "resnet19".into(),
            "`resnet19` is no network",
        ),
        (
            |file| file.description["architecture"] = "resnet34".into(),
            "do not fit ResNet-34: tensor",
        ),
        (
            |file| file.description["preprocessing"]["std"][0] = 0.into(),
            "std",
        ),
        (
            |file| file.description["classes"] = 7.into(),
            "tensor `fc.weight`: expected shape [7, 512]",
        ),
        (
            |file| {
                file.tensors
                    .retain(|tensor| tensor.0 != "layer3.1.conv2.weight")
            },
            "tensor `layer3.1.conv2.weight`: expected shape [256, 256, 3, 3] of I8 or BF16, \
             found no such tensor",
        ),
        (
            |file| {
                let twin = file.tensors[0].clone();
                file.tensors
                    .push(("extra".to_owned(), twin.1, twin.2, twin.3));
            },
            "tensor `extra`: expected no tensor of this name",
        ),
    ];
    for (change, expected) in changes {
        let mut file = QuantisedFile::parse(&whole);
        change(&mut file);
        let error = refusal(&file.write(), &options()).expect(expected);
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }

    type Ask = fn(&mut ModelOptions);
    let with = |change: Ask| {
        let mut options = options();
        change(&mut options);
        options
    };
    let asked: [(Ask, &str); 6] = [
        (
            |options| options.dtype = Some(ComputeType::F32),
            "do not compute in f32: leave --dtype out, or name the float checkpoint",
        ),
        (
            |options| options.dtype = Some(ComputeType::BF16),
            "do not compute in bf16",
        ),
        (
            |options| options.device = DeviceChoice::Candle,
            "take --device cpu",
        ),
        (
            |options| options.calibrate = Some("pictures".into()),
            "--calibrate is for a float checkpoint",
        ),
        (
            |options| options.overrides.preprocessing = Some(Preset::Caffe),
            "give --preprocessing to `imgclass weights quantize` instead",
        ),
        (
            |options| options.overrides.variant = Some(Variant::V1),
            "give --variant to `imgclass weights quantize` instead",
        ),
    ];
    for (change, expected) in asked {
        let error = refusal(&whole, &with(change)).expect(expected);
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }
}

#[test]
fn checkpoints_of_each_depth_type_and_number_of_classes_are_quantised() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fine-tuned.safetensors");
    // Small images, because the depths are what matters here.
    let side = 96;
    let as_bf16 = |tensors: checkpoints::Tensors| -> checkpoints::Tensors {
        let upper = |(name, dims, _, bytes): (String, Vec<usize>, _, Vec<u8>)| {
            let (numbers, _) = bytes.as_chunks::<4>();
            let bytes = numbers.iter().flat_map(|bytes| [bytes[2], bytes[3]]);
            (name, dims, safetensors::Dtype::BF16, bytes.collect())
        };
        tensors.into_iter().map(upper).collect()
    };
    let plain = |tensors: checkpoints::Tensors| tensors;
    type Form<'a> = &'a dyn Fn(checkpoints::Tensors) -> checkpoints::Tensors;
    let cases: [(Architecture, usize, Form<'_>, &str); 5] = [
        (Architecture::RESNET18, 7, &checkpoints::halved, "F16"),
        (Architecture::RESNET34, 1, &as_bf16, "BF16"),
        (Architecture::RESNET50, 3, &as_bf16, "BF16"),
        (Architecture::RESNET101, 5, &checkpoints::halved, "F16"),
        (Architecture::RESNET152, 2, &plain, "F32"),
    ];
    for (architecture, classes, form, stored) in cases {
        let tensors = form(checkpoints::tensors(&architecture, classes));
        std::fs::write(&path, checkpoints::safetensors(&tensors)).expect("writes");
        let config = serde_json::json!({
            "architecture": architecture.name(), "pretrained_cfg": { "input_size": [3, side, side] }
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writes");
        let options = ModelOptions {
            dtype: Some(ComputeType::Int8),
            ..options()
        };
        let loaded = Classifier::load(&WeightsSource::local(&path), &options).expect("loads");
        let info = loaded.info();
        assert_eq!(info.checkpoint.stored_type, stored);
        let images = images_of(1, side);
        let found = loaded.run_batch(&[&images[0]], &[]).expect("runs");
        assert_eq!(found[0].logits.len(), classes);
        eprintln!(
            "{architecture}: {:?}, wide {:?}",
            info.fidelity, info.wide_layers
        );
    }
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
