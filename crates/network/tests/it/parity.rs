//! The network gives the reference's numbers: ONNX Runtime's and candle-transformers' on the
//! formula's weights, and PyTorch's on real photographs where the reference data is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use imgclass_checkpoint::formula::FormulaWeights;
use imgclass_checkpoint::{Architecture, Checkpoint, WeightsSource};
use imgclass_image::{Limits, Preprocessing, Preprocessor, decode};
use imgclass_kernels::Isa;
use imgclass_network::{Classifier, ComputeType, Input, ModelOptions, Want, head};
use imgclass_test_support::shared;

use crate::{AnyResNet, Computes, FORMULA, Images, Rows, formula, load, options};

const STAGES: [&str; 5] = ["maxpool", "layer1", "layer2", "layer3", "layer4"];

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("f32 numbers")
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| {
            if d.is_nan() {
                f32::INFINITY
            } else {
                d.max(max)
            }
        })
}

fn largest(a: &[f32]) -> f32 {
    a.iter().fold(0.0, |max, x| x.abs().max(max))
}

fn run_with_taps(net: &dyn AnyResNet, images: &Images) -> (Rows, HashMap<String, Vec<f32>>) {
    let mut taps = HashMap::new();
    let rows = net.run_with_taps(images, &mut |name, values| {
        taps.insert(name.to_owned(), values);
    });
    (rows, taps)
}

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/resnet50_formula.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).expect("the golden file")
}

#[test]
fn the_formula_gives_the_recorded_weights_bit_for_bit() {
    let golden = golden();
    let mut seen = 0;
    for (key, recorded) in &golden {
        let Some(name) = key.strip_prefix("formula.").filter(|name| *name != "input") else {
            continue;
        };
        let dims: &[usize] = match name {
            "conv1.weight" => &[64, 3, 7, 7],
            "fc.weight" => &[1000, 2048],
            "fc.bias" => &[1000],
            other if other.contains("conv") || other.ends_with("downsample.0.weight") => {
                &golden_dims(other)
            }
            _ => &[64],
        };
        let values = FormulaWeights { seed: 0 }.values(name, dims);
        let recorded = numbers(recorded);
        assert_eq!(values[..recorded.len()], recorded[..], "{name}");
        seen += 1;
    }
    assert!(seen >= 5, "the golden file names only {seen} tensors");
}

/// The dimensions of a residual block's convolution, from its name.
fn golden_dims(name: &str) -> [usize; 4] {
    let part = |i: usize| name.split('.').nth(i).unwrap_or_default();
    let stage: u32 = part(0)
        .trim_start_matches("layer")
        .parse()
        .expect("a stage");
    let first = part(1) == "0";
    let width = 32usize << stage;
    let input = if first && stage > 1 {
        width * 2
    } else if first {
        64
    } else {
        width * 4
    };
    match part(2) {
        "conv1" => [width, input, 1, 1],
        "conv2" => [width, width, 3, 3],
        "conv3" => [width * 4, width, 1, 1],
        _ => [width * 4, input, 1, 1],
    }
}

#[test]
fn every_instruction_set_gives_onnx_runtimes_logits_and_features_at_every_recorded_size() {
    let golden = golden();
    for isa in Isa::available() {
        let net = load(
            &FORMULA,
            &Architecture::RESNET50,
            1000,
            Computes::Kernels(isa, 2),
        );
        // The portable path is slow: it proves itself on the small sizes.
        let sizes: &[(usize, usize, usize)] = if isa.name() == "portable" {
            &[(2, 64, 64), (1, 97, 130)]
        } else {
            &[(2, 64, 64), (1, 96, 96), (1, 97, 130), (1, 224, 224)]
        };
        for &(n, h, w) in sizes {
            let out = net.run(&Images::formula(n, h, w));
            for (what, found) in [("logits", &out.logits), ("features", &out.features)] {
                let recorded = numbers(&golden[&format!("{h}x{w}.{what}")]);
                let error = furthest(found, &recorded) / largest(&recorded).max(1.0);
                assert!(error < 1e-4, "{isa} {h}x{w} {what}: {error}");
            }
        }
    }
}

#[test]
fn every_stage_has_onnx_runtimes_mean_and_root_mean_square() {
    let golden = golden();
    let net = load(
        &FORMULA,
        &Architecture::RESNET50,
        1000,
        Computes::Kernels(Isa::detect(), 2),
    );
    let (_, taps) = run_with_taps(&*net, &Images::formula(2, 64, 64));
    for stage in STAGES {
        let values = &taps[stage];
        for (i, image) in values.chunks(values.len() / 2).enumerate() {
            let count = image.len() as f64;
            let mean = image.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let rms = (image.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count).sqrt();
            for (what, found) in [("mean", mean), ("rms", rms)] {
                let recorded = f64::from(numbers(&golden[&format!("64x64.{stage}.{what}")])[i]);
                assert!(
                    (found - recorded).abs() < 1e-4 * recorded.abs(),
                    "{stage} {what}: {found}, recorded {recorded}"
                );
            }
        }
    }
}

#[test]
fn the_packed_network_gives_candle_transformers_logits_at_every_size_it_takes() {
    let yardstick = candle_transformers::models::resnet::resnet50(1000, formula())
        .expect("the yardstick loads");
    let load_on = |by| load(&FORMULA, &Architecture::RESNET50, 1000, by);
    let packed = load_on(Computes::Kernels(Isa::detect(), 2));
    let candle = load_on(Computes::Candle(DType::F32));
    for (n, h, w) in [(1, 32, 32), (2, 64, 96), (1, 224, 224), (1, 65, 33)] {
        let images = Images::formula(n, h, w);
        let expected = candle_nn::Module::forward(&yardstick, &images.tensor());
        let expected = numbers(&expected.expect("the yardstick's forward"));
        for (name, net) in [("packed", &packed), ("candle", &candle)] {
            let found = net.run(&images).logits;
            let error = furthest(&found, &expected);
            assert!(error < 1e-3, "{name} {n}x{h}x{w}: {error}");
        }
    }
}

#[test]
fn an_image_has_the_same_logits_in_any_batch_and_with_any_number_of_threads() {
    let input = Images::formula(6, 64, 64);
    let bits = |threads: usize, first: usize, n: usize| {
        let net = load(
            &FORMULA,
            &Architecture::RESNET50,
            1000,
            Computes::Kernels(Isa::detect(), threads),
        );
        let logits = net.run(&input.narrow(first, n)).logits;
        logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let alone: Vec<u32> = (0..6).flat_map(|image| bits(1, image, 1)).collect();
    // Stages run different numbers of images together: 1 and 4 with two threads, 2 and 8 with four.
    for (threads, n) in [(1, 6), (2, 1), (2, 3), (3, 5), (4, 6)] {
        assert!(
            bits(threads, 0, n) == alone[..n * 1000],
            "{threads} threads, batch of {n}"
        );
    }
}

#[test]
fn a_class_activation_map_averages_to_the_class_logit() {
    let classifier = crate::untrained();
    let image = vec![0.25; classifier.input_len()];
    let want = Want {
        features: true,
        feature_map: true,
    };
    let outputs = classifier
        .run_prepared(&[&image], want)
        .expect("a forward pass");
    let bias = FormulaWeights { seed: 0 }.values("fc.bias", &[1000]);
    for class in [0, 385, 999] {
        let map = classifier
            .class_activation_map(&outputs[0], class)
            .expect("a map");
        assert_eq!(map.len(), 49);
        let mean = map.iter().sum::<f32>() / 49.0;
        let logit = outputs[0].logits[class];
        assert!(
            (mean + bias[class] - logit).abs() < 1e-3,
            "class {class}: {mean} + {}, logit {logit}",
            bias[class]
        );
    }
    assert!(classifier.class_activation_map(&outputs[0], 1000).is_none());
}

#[test]
fn in_a_mixed_batch_each_image_gives_what_it_was_asked_for_with_the_bits_it_has_alone() {
    let classifier = crate::untrained();
    let images: Vec<Vec<f32>> = (0..3)
        .map(|i| vec![0.25 * i as f32 - 0.2; classifier.input_len()])
        .collect();
    let inputs: Vec<Input> = images.iter().cloned().map(Input::Planar).collect();
    let inputs: Vec<&Input> = inputs.iter().collect();
    let wants =
        [(false, false), (true, false), (false, true)].map(|(features, feature_map)| Want {
            features,
            feature_map,
        });
    let outputs = classifier
        .run_batch(&inputs, &wants)
        .expect("a forward pass");
    for ((image, want), together) in images.iter().zip(wants).zip(&outputs) {
        assert_eq!(together.features.is_some(), want.features);
        assert_eq!(together.feature_map.is_some(), want.feature_map);
        let alone = classifier
            .run_prepared(&[image], want)
            .expect("a forward pass");
        assert!(alone[0] == *together, "{want:?}");
    }
    assert_eq!(outputs[1].features.as_ref().map(Vec::len), Some(2048));
    assert_eq!(
        outputs[2].feature_map.as_ref().map(Vec::len),
        Some(2048 * 49)
    );
}

fn real(test: &str) -> Option<Classifier> {
    real_in(test, ComputeType::F32, None).map(|load| load())
}

/// Returns a function that loads the real weights in a type, where they are there.
pub(crate) fn real_in(
    test: &str,
    dtype: ComputeType,
    cache: Option<PathBuf>,
) -> Option<impl Fn() -> Classifier> {
    let weights = shared("weights/resnet50.safetensors", test)?;
    let options = ModelOptions {
        dtype: Some(dtype),
        cache,
        ..options()
    };
    Some(move || {
        Classifier::load(&WeightsSource::local(&weights), &options).expect("the real weights load")
    })
}

/// Returns the folder of the reference data and its table of photographs, where they are there.
pub(crate) fn reference_photographs(test: &str) -> Option<(PathBuf, Vec<Row>)> {
    let images = shared("reference/images.tsv", test)?;
    Some((shared("", test)?, table(&images)))
}

#[test]
fn every_stage_of_a_photograph_is_within_a_thousandth_of_the_reference() {
    let test = "stage outputs of a photograph";
    let (Some(weights), Some(layers)) = (
        shared("weights/resnet50.safetensors", test),
        shared("reference/layers.safetensors", test),
    ) else {
        return;
    };
    let reference = candle_core::safetensors::load(layers, &Device::Cpu).expect("the reference");
    let weights = Checkpoint::open(&weights).expect("the weights");
    let input = &reference["input"];
    let size = (
        input.dim(1).expect("a height"),
        input.dim(2).expect("a width"),
    );
    let input = Images::new(&numbers(input), 1, size);
    for backend in [
        Computes::Kernels(Isa::detect(), 2),
        Computes::Kernels(Isa::named("portable").expect("always there"), 2),
        Computes::Candle(DType::F32),
    ] {
        let tensors = weights.checked_tensors().expect("whole");
        let net = load(&tensors, &Architecture::RESNET50, 1000, backend);
        let (out, taps) = run_with_taps(&*net, &input);
        for stage in STAGES {
            let expected = numbers(&reference[stage]);
            let error = furthest(&taps[stage], &expected) / largest(&expected);
            assert!(error < 1e-3, "{stage}: {error}");
        }
        let features = furthest(&out.features, &numbers(&reference["global_pool"]));
        let logits = furthest(&out.logits, &numbers(&reference["fc"]));
        assert!(
            features < 1e-3 && logits < 1e-4,
            "features {features}, logits {logits}"
        );
    }
}

#[test]
fn the_features_and_the_class_activation_map_of_a_photograph_are_the_references() {
    let test = "the class activation map of a photograph";
    let (Some(classifier), Some(layers)) =
        (real(test), shared("reference/layers.safetensors", test))
    else {
        return;
    };
    let reference = candle_core::safetensors::load(layers, &Device::Cpu).expect("the reference");
    let want = Want {
        features: true,
        feature_map: true,
    };
    let output = &classifier
        .run_prepared(&[&numbers(&reference["input"])], want)
        .expect("a forward pass")[0];
    let features = output.features.as_ref().expect("features");
    assert!(furthest(features, &numbers(&reference["global_pool"])) < 1e-3);
    let map = classifier.class_activation_map(output, 385).expect("a map");
    let expected = numbers(&reference["cam"]);
    assert!(furthest(&map, &expected) < 1e-3 * largest(&expected).max(1.0));
}

/// A row of a table of the reference.
pub(crate) struct Row {
    pub(crate) file: String,
    /// What is on the picture, where the table says it.
    pub(crate) class: Option<usize>,
    /// What the reference sees.
    pub(crate) top1: usize,
    pub(crate) margin: f32,
}

/// Rows of a table of the reference: `file`, `top1` and, where there is one, `margin`.
fn table(path: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).expect("a table");
    let mut lines = text
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let header = lines.next().expect("a heading");
    let column = |name: &str| header.iter().position(|h| *h == name);
    let (file, class, top1, margin) = (
        column("file").expect("file"),
        column("class_index"),
        column("top1").expect("top1"),
        column("margin"),
    );
    lines
        .map(|row| Row {
            file: row[file].to_owned(),
            class: class.map(|class| row[class].parse().expect("a class")),
            top1: row[top1].parse().expect("a class"),
            margin: margin.map_or(f32::INFINITY, |m| row[m].parse().expect("a number")),
        })
        .collect()
}

fn torchvision() -> Preprocessor {
    Preprocessor::new(Preprocessing::default()).expect("valid")
}

/// Returns each picture's first class and logits.
pub(crate) fn top1_of(
    classifier: &Classifier,
    shared: &Path,
    rows: &[Row],
) -> Vec<(usize, Vec<f32>)> {
    let limits = Limits {
        max_pixels: 1 << 27,
        max_side: 1 << 16,
        max_decoded_bytes: 1 << 30,
    };
    let preprocessing = torchvision();
    let inputs: Vec<Vec<f32>> = rows
        .iter()
        .map(|row| {
            let bytes = std::fs::read(shared.join(&row.file)).expect("a picture");
            preprocessing
                .apply(&decode(&bytes, &limits).unwrap_or_else(|e| panic!("{}: {e}", row.file)))
        })
        .collect();
    inputs
        .chunks(8)
        .flat_map(|chunk| {
            let chunk: Vec<&[f32]> = chunk.iter().map(Vec::as_slice).collect();
            classifier
                .run_prepared(&chunk, Want::default())
                .expect("a forward pass")
        })
        .map(|output| (head::top_k(&output.logits, 1)[0].0, output.logits))
        .collect()
}

#[test]
fn photographs_have_the_reference_top_1_through_our_own_decoding_and_preprocessing() {
    let test = "the top-1 of 200 photographs";
    let (Some(classifier), Some((root, rows))) = (real(test), reference_photographs(test)) else {
        return;
    };
    let found = top1_of(&classifier, &root, &rows);
    let mut same = 0;
    for (row, (top1, _)) in rows.iter().zip(&found) {
        same += usize::from(*top1 == row.top1);
        if *top1 != row.top1 {
            eprintln!(
                "{}: {top1}, the reference says {} with a margin of {}",
                row.file, row.top1, row.margin
            );
        }
        assert!(
            *top1 == row.top1 || row.margin <= 0.1,
            "{}: {top1} instead of {}",
            row.file,
            row.top1
        );
    }
    assert!(same >= 198, "only {same} of {} agree", rows.len());
}

#[test]
fn one_picture_in_every_format_has_the_reference_top_1() {
    let test = "one picture in 27 formats";
    let (Some(classifier), Some(formats)) = (real(test), shared("reference/formats.tsv", test))
    else {
        return;
    };
    let Some(root) = shared("", test) else { return };
    let rows = table(&formats);
    for (row, (top1, _)) in rows.iter().zip(top1_of(&classifier, &root, &rows)) {
        assert_eq!(top1, row.top1, "{}", row.file);
    }
}
