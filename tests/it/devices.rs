//! What runs on a GPU, as far as it can be shown without one: candle's operations on the CPU in every type, pixels normalised on the device,
//! devices that are absent, out of memory or lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::sync::Arc;

use crate::support::pictures::example;
use crate::support::serving::{Serving, classify, exchange};
use imgclass::service::NotReady;
use imgclass_checkpoint::{Architecture, Overrides, Preset, WeightsSource};
use imgclass_image::{Filter, Limits, Preprocessing, Preprocessor, Resize, RgbImage, Size, decode};
use imgclass_network::{
    Classifier, ComputePath, ComputeType, DeviceChoice, GpuPath, Input, ModelOptions, Network,
    NetworkError, Output, Want, head,
};
use imgclass_test_support::shared;

/// The formula's network on a device that every machine has.
fn load(
    source: &WeightsSource,
    device: DeviceChoice,
    dtype: Option<ComputeType>,
) -> Result<Classifier, NetworkError> {
    let options = ModelOptions {
        device,
        dtype,
        ..crate::support::model::options()
    };
    Classifier::load(source, &options)
}

fn untrained(device: DeviceChoice, dtype: Option<ComputeType>) -> Classifier {
    load(
        &WeightsSource::random(Architecture::RESNET50),
        device,
        dtype,
    )
    .expect("the formula always loads")
}

/// The furthest that two rows lie from each other, as a share of the largest number of the second.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let furthest = found.iter().zip(expected).fold(0.0f32, |max, (a, b)| {
        if a.is_finite() {
            max.max((a - b).abs())
        } else {
            f32::INFINITY
        }
    });
    furthest / largest
}

/// A picture of coloured stripes and ramps.
fn picture(width: u32, height: u32, step: u32) -> RgbImage {
    let pixel = |x, y| [x * step + y, x / 3 + 2 * y, (x ^ y) * step].map(|v: u32| v as u8);
    let data = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)))
        .collect();
    RgbImage::new(width, height, data).expect("a picture with pixels")
}

fn torchvision() -> Preprocessor {
    Preprocessor::new(Preprocessing::default()).expect("valid")
}

/// Each type with the share of the largest number by which logits and features may differ from our kernels' in f32.
const TOLERANCES: [(ComputeType, f32); 3] = [
    (ComputeType::F32, 1e-5),
    (ComputeType::F16, 4e-3),
    (ComputeType::BF16, 3e-2),
];

#[test]
fn candles_path_gives_our_kernels_logits_and_features_in_every_type() {
    let preprocessing = torchvision();
    let inputs = [1, 9].map(|step| preprocessing.apply(&picture(300, 260, step)));
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let want = Want {
        features: true,
        feature_map: true,
    };
    let expected = untrained(DeviceChoice::Cpu, None)
        .run_prepared(&inputs, want)
        .expect("a forward");
    for (dtype, tolerance) in TOLERANCES {
        let classifier = untrained(DeviceChoice::Candle, Some(dtype));
        assert_eq!(classifier.info().compute_dtype, dtype);
        assert_eq!(classifier.info().compute_path, ComputePath::Candle);
        let found = classifier
            .run_prepared(&inputs, want)
            .expect("a forward pass");
        for (found, expected) in found.iter().zip(&expected) {
            let parts = [
                ("logits", &found.logits, &expected.logits),
                (
                    "features",
                    found.features.as_ref().unwrap(),
                    expected.features.as_ref().unwrap(),
                ),
                (
                    "map",
                    found.feature_map.as_ref().unwrap(),
                    expected.feature_map.as_ref().unwrap(),
                ),
            ];
            for (what, found, expected) in parts {
                let error = error(found, expected);
                assert!(error < tolerance, "{dtype} {what}: {error}");
            }
        }
    }
}

#[test]
fn pixels_are_what_the_prepared_input_was_normalised_from() {
    // The second crop is larger than what the resize leaves: black surrounds it.
    for (resize, (height, width)) in [(256, (224, 224)), (20, (37, 50))] {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let preprocessing = Preprocessor::new(Preprocessing {
            resize: Resize::ShorterSide(resize),
            filter: Filter::Bicubic,
            crop: Size { height, width },
            mean,
            std,
            ..Preprocessing::default()
        })
        .expect("valid");
        for (width, height) in [(300, 260), (64, 301), (47, 20)] {
            let picture = picture(width, height, 3);
            let (prepared, pixels) = (
                preprocessing.apply(&picture),
                preprocessing.pixels(&picture),
            );
            let area = prepared.len() / 3;
            assert_eq!(pixels.len(), prepared.len());
            for (i, byte) in pixels.iter().enumerate() {
                let (channel, position) = (i % 3, i / 3);
                let value = (f32::from(*byte) / 255.0 - mean[channel]) / std[channel];
                let found = prepared[channel * area + position];
                assert_eq!(found.to_bits(), value.to_bits(), "{width}x{height} {i}");
            }
        }
    }
}

#[test]
fn bytes_are_normalised_in_the_order_and_on_the_scale_of_a_checkpoint_from_caffe() {
    let options = ModelOptions {
        device: DeviceChoice::Candle,
        overrides: Overrides {
            preprocessing: Some(Preset::Caffe),
            ..Overrides::default()
        },
        ..crate::support::model::options()
    };
    let source = WeightsSource::random(Architecture::RESNET50);
    let classifier = Classifier::load(&source, &options).expect("the formula always loads");
    let preprocessing = classifier.info().checkpoint.preprocessing.clone();
    assert_eq!(preprocessing, Preprocessing::caffe());
    let preprocessing = Preprocessor::new(preprocessing).expect("valid");
    let picture = picture(240, 320, 7);
    let planar = Input::Planar(preprocessing.apply(&picture));
    let pixels = Input::Pixels(preprocessing.pixels(&picture));
    let run = |input| {
        classifier
            .run_batch(&[input], &[])
            .expect("a pass")
            .remove(0)
    };
    let error = error(&run(&pixels).logits, &run(&planar).logits);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn images_that_cross_the_bus_as_bytes_get_the_logits_of_images_that_came_prepared() {
    let preprocessing = torchvision();
    let pictures = [2, 7, 13].map(|step| picture(240, 320, step));
    let planar: Vec<Input> = pictures
        .iter()
        .map(|p| Input::Planar(preprocessing.apply(p)))
        .collect();
    let pixels: Vec<Input> = pictures
        .iter()
        .map(|p| Input::Pixels(preprocessing.pixels(p)))
        .collect();
    // Of each kind one, and not in the order in which they are uploaded.
    let mixed = [&pixels[0], &planar[1], &pixels[2]];
    for device in [DeviceChoice::Cpu, DeviceChoice::Candle] {
        let classifier = untrained(device, None);
        assert!(classifier.takes_pixels(), "{device}");
        let run = |inputs: &[&Input], wants: &[Want]| {
            classifier.run_batch(inputs, wants).expect("a forward pass")
        };
        let expected = run(&planar.iter().collect::<Vec<_>>(), &[]);
        let wants = [false, false, true].map(|features| Want {
            features,
            ..Want::default()
        });
        for inputs in [pixels.iter().collect::<Vec<_>>(), mixed.to_vec()] {
            let outputs = run(&inputs, &wants);
            for (i, (found, expected)) in outputs.iter().zip(&expected).enumerate() {
                let error = error(&found.logits, &expected.logits);
                assert!(error < 1e-5, "{device}: {error}");
                assert_eq!(
                    found.features.is_some(),
                    i == 2,
                    "{device}: wants keep their image"
                );
            }
        }
        let short = Input::Pixels(vec![0; 12]);
        let refused = classifier
            .run_batch(&[&pixels[0], &short], &[])
            .expect_err("too short");
        assert!(
            matches!(refused, NetworkError::Input { found: 12, .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_device_or_a_type_that_is_not_there_is_an_error_that_says_what_is() {
    let mut cases = vec![
        (
            DeviceChoice::Cpu,
            Some(ComputeType::F16),
            vec!["`cpu`", "f16", "f32", "--dtype"],
        ),
        (
            DeviceChoice::Candle,
            Some(ComputeType::Int8),
            vec!["`candle`", "int8", "--device cpu"],
        ),
    ];
    if cfg!(not(feature = "cuda")) {
        let words = vec![
            "`cuda:3`",
            "--features cuda",
            "found instead: the CPU",
            "--device cpu",
        ];
        cases.push((DeviceChoice::Cuda(3), None, words));
    }
    if cfg!(not(feature = "metal")) {
        let words = vec!["`metal`", "--features metal", "found instead", "the CPU"];
        cases.push((DeviceChoice::Metal, Some(ComputeType::F16), words));
    }
    for (device, dtype, words) in cases {
        let text = load(
            &WeightsSource::random(Architecture::RESNET50),
            device,
            dtype,
        )
        .err()
        .expect("no such device")
        .to_string();
        for word in words {
            assert!(
                text.contains(word),
                "{device} {dtype:?}: {text}: lacks {word}"
            );
        }
    }
    let auto = untrained(DeviceChoice::Auto, Some(ComputeType::F32));
    assert!(!auto.info().device.is_empty());
}

#[test]
fn devices_and_types_are_written_as_they_are_read() {
    for text in ["auto", "cpu", "candle", "cuda:0", "cuda:7", "metal"] {
        assert_eq!(
            text.parse::<DeviceChoice>().expect("a device").to_string(),
            text
        );
    }
    assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
        assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
    }
    for text in ["f32", "f16", "bf16", "int8"] {
        assert_eq!(
            text.parse::<ComputeType>().expect("a type").to_string(),
            text
        );
    }
    for text in ["auto", "fused", "fixed", "candle"] {
        assert_eq!(text.parse::<GpuPath>().expect("a path").to_string(), text);
    }
    assert!("cudnn".parse::<GpuPath>().is_err());
    for text in ["", "float16", "F16", "u8"] {
        assert!(text.parse::<ComputeType>().is_err(), "{text}");
    }
}

/// A device that fails every batch.
struct Failing(fn() -> NetworkError);

impl Network for Failing {
    fn run_batch(&self, _: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
        Err((self.0)())
    }
}

#[tokio::test]
async fn a_device_without_memory_or_lost_answers_503_and_the_service_is_not_ready() {
    type Case = (fn() -> NetworkError, NotReady, &'static str);
    let cases: [Case; 2] = [
        (
            || NetworkError::OutOfDeviceMemory {
                reason: "CUDA_ERROR_OUT_OF_MEMORY".to_owned(),
            },
            NotReady::OutOfDeviceMemory,
            "device-out-of-memory",
        ),
        (
            || NetworkError::DeviceLost {
                reason: "CUDA_ERROR_ECC_UNCORRECTABLE".to_owned(),
            },
            NotReady::DeviceLost,
            "device-lost",
        ),
    ];
    for (fault, not_ready, code) in cases {
        let serving = Serving::start_with(Arc::new(Failing(fault)), |state| state).await;
        assert_eq!(serving.service.ready(), Ok(()));
        let text = exchange(&serving, &classify(example(), "close")).await;
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        assert!(text.to_lowercase().contains("retry-after: 5"), "{text}");
        assert!(
            text.contains(code) && !text.contains("CUDA_ERROR"),
            "{text}"
        );
        assert_eq!(serving.service.ready(), Err(not_ready));
        let ready = "GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let text = exchange(&serving, ready).await;
        assert!(
            text.starts_with("HTTP/1.1 503") && text.contains(code),
            "{text}"
        );
        let live = "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let text = exchange(&serving, live).await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
}

/// The checkpoint's top-1 of the first photographs of the reference, in a type.
fn top1(classifier: &Classifier, root: &Path, files: &[&str]) -> Vec<usize> {
    let limits = Limits {
        max_pixels: 1 << 27,
        max_side: 1 << 16,
        max_decoded_bytes: 1 << 30,
    };
    let preprocessing = torchvision();
    let input = |file: &&str| {
        let bytes = std::fs::read(root.join(file)).expect("a picture");
        Input::Pixels(preprocessing.pixels(&decode(&bytes, &limits).expect("decodes")))
    };
    let inputs: Vec<Input> = files.iter().map(input).collect();
    let batches = inputs
        .chunks(8)
        .map(|batch| batch.iter().collect::<Vec<_>>());
    batches
        .flat_map(|batch| classifier.run_batch(&batch, &[]).expect("a forward pass"))
        .map(|output| head::top_k(&output.logits, 1)[0].0)
        .collect()
}

#[test]
fn photographs_have_the_reference_top_1_in_every_type() {
    let test = "the top-1 of photographs in half precision";
    let (Some(weights), Some(table), Some(root)) = (
        shared("weights/resnet50.safetensors", test),
        shared("reference/images.tsv", test),
        shared("", test),
    ) else {
        return;
    };
    // Candle's CPU takes its time: docs/benchmarks.md has the figures of all 200.
    let asked = std::env::var("IMGCLASS_TEST_PHOTOGRAPHS").ok();
    let count: usize = asked.and_then(|n| n.parse().ok()).unwrap_or(6);
    let text = std::fs::read_to_string(table).expect("a table");
    let mut lines = text
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let header = lines.next().expect("a heading");
    let column = |name: &str| header.iter().position(|h| *h == name).expect("a column");
    let (file, class, margin) = (column("file"), column("top1"), column("margin"));
    let number = |text: &str| text.parse::<f32>().expect("a number");
    let rows: Vec<_> = lines.take(count).collect();
    let files: Vec<&str> = rows.iter().map(|row| row[file]).collect();
    let source = WeightsSource::local(&weights);
    for (dtype, _) in TOLERANCES {
        let classifier = load(&source, DeviceChoice::Candle, Some(dtype)).expect("loads");
        let found = top1(&classifier, &root, &files);
        let mut same = 0;
        for (row, top1) in rows.iter().zip(&found) {
            let agrees = row[class] == top1.to_string();
            same += usize::from(agrees);
            if !agrees {
                eprintln!(
                    "{dtype} {}: {top1} instead of {}, margin {}",
                    row[file], row[class], row[margin]
                );
            }
            assert!(
                agrees || number(row[margin]) < 0.5,
                "{dtype} {}: {top1}",
                row[file]
            );
        }
        eprintln!("{dtype}: {same} of {}", rows.len());
    }
}
