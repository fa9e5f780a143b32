//! `weights convert` on PyTorch's and Keras' files, which are written here byte by byte.
//!
//! A converted file gives the network that the original holds. A file that would run code, or that
//! holds another kind of network, is refused by name and leaves nothing behind.

use std::path::Path;

use crate::support::binary::{run, text};
use hdf5_writer::{DatasetBuilder, Hdf5Builder, Hdf5Writer, WriteOptions};
use imgclass_checkpoint::{Architecture, Variant, WeightsSource};
use imgclass_image::{Channels, Scale};
use imgclass_network::{Classifier, Want};
use imgclass_test_support::checkpoints::{
    archived, in_transformers, pickled_dict, pth, renamed, tensors, zip,
};
use safetensors::Dtype;

const CLASSES: usize = 5;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn image(classifier: &Classifier) -> Vec<f32> {
    let wave = |i: usize| ((i % 251) as f32 / 125.0) - 1.0;
    (0..classifier.input_len()).map(wave).collect()
}

/// Returns the logits that a weights file gives, with the configuration beside it.
fn logits(weights: &Path) -> Vec<f32> {
    let source = WeightsSource::local(weights);
    let classifier =
        Classifier::load(&source, &crate::support::model::options()).expect("it loads");
    let image = image(&classifier);
    let outputs = classifier.run_prepared(&[&image], Want::default());
    outputs.expect("a forward pass").remove(0).logits
}

/// Returns the logits of the network whose weights the formula makes.
fn expected(architecture: &Architecture) -> Vec<f32> {
    let folder = folder();
    let file = folder.path().join("expected.safetensors");
    let bytes = imgclass_test_support::checkpoints::safetensors(&tensors(architecture, CLASSES));
    std::fs::write(&file, bytes).expect("written");
    logits(&file)
}

#[test]
fn a_pytorch_file_becomes_a_checkpoint_with_the_same_logits_whatever_its_names_and_wrapping() {
    let architecture = Architecture::RESNET18;
    let plain = tensors(&architecture, CLASSES);
    let expected = expected(&architecture);
    let mut counted = plain.clone();
    let counter = (
        "bn1.num_batches_tracked".to_owned(),
        vec![],
        Dtype::I64,
        vec![7; 8],
    );
    counted.push(counter);
    let wrapped = |key: &str, tensors: &imgclass_test_support::checkpoints::Tensors| {
        let mut pickle = b"\x80\x02}(".to_vec();
        pickle.extend(
            [
                imgclass_test_support::checkpoints::text("epoch"),
                b"K\x07".to_vec(),
            ]
            .concat(),
        );
        pickle.extend(
            [
                imgclass_test_support::checkpoints::text(key),
                pickled_dict(tensors),
            ]
            .concat(),
        );
        pickle.extend(b"u.");
        archived(&pickle, tensors)
    };
    let prefixed = renamed(plain.clone(), |name| format!("module.{name}"));
    let others = renamed(plain.clone(), in_transformers);
    let cases = [
        ("plain.pth", pth(&plain)),
        ("counted.pth", pth(&counted)),
        ("checkpoint.pth.tar", wrapped("state_dict", &plain)),
        ("wrapped.pt", wrapped("model", &prefixed)),
        ("pytorch_model.bin", pth(&others)),
    ];
    for (name, bytes) in cases {
        let folder = folder();
        std::fs::write(folder.path().join(name), bytes).expect("written");
        let output = run(
            folder.path(),
            &["weights", "convert", name, "-o", "ours.safetensors"],
        );
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert!(
            text(&output.stdout).contains("ResNet-18, 5 classes"),
            "{name}"
        );
        assert!(
            logits(&folder.path().join("ours.safetensors")) == expected,
            "{name}"
        );
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .collect();
        assert_eq!(left.len(), 3, "{name} leaves a temporary file");
    }
}

#[test]
fn options_go_into_the_configuration_and_a_configuration_beside_the_file_goes_along() {
    let folder = folder();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    };
    let convert = |arguments: &[&str]| {
        let arguments = [&["weights", "convert"], arguments].concat();
        let output = run(folder.path(), &arguments);
        (output.status.code(), text(&output.stderr))
    };
    write("net.pth", &pth(&tensors(&Architecture::RESNET50, 3)));
    write(
        "labels.txt",
        b"red\nn02504458\tAfrican elephant, Loxodonta africana\nblue, azure\n",
    );
    write("short.txt", b"red\ngreen\n");
    let (code, error) = convert(&["net.pth", "--labels", "short.txt"]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("there are 2 of them") && error.contains("3 classes"),
        "{error}"
    );
    assert!(!folder.path().join("net.safetensors").exists());
    assert!(!folder.path().join("config.json").exists());
    let (code, error) = convert(&[
        "net.pth",
        "--labels",
        "labels.txt",
        "--variant",
        "v1",
        "--preprocessing",
        "caffe",
    ]);
    assert_eq!(code, Some(0), "{error}");
    let source = WeightsSource::local(&folder.path().join("net.safetensors"));
    let classifier =
        Classifier::load(&source, &crate::support::model::options()).expect("it loads");
    let info = classifier.info();
    assert_eq!(info.checkpoint.architecture.variant(), Variant::V1);
    assert_eq!(info.checkpoint.preprocessing.channels, Channels::Bgr);
    assert_eq!(info.checkpoint.preprocessing.scale, Scale::Byte);
    assert_eq!(
        info.checkpoint.preprocessing.mean,
        [103.939, 116.779, 123.68]
    );
    let names: Vec<_> = classifier
        .labels()
        .iter()
        .map(|l| l.name.as_str())
        .collect();
    assert_eq!(names, ["red", "African elephant", "blue"]);
    let elephant = classifier.labels().get(1).expect("a label");
    assert_eq!(elephant.wnid.as_deref(), Some("n02504458"));
    assert_eq!(elephant.names.len(), 2);

    // Files that exist are not overwritten, and not mixed up with those of another conversion.
    let (code, error) = convert(&["net.pth"]);
    assert!(
        code == Some(1) && error.contains("net.safetensors is there already"),
        "{error}"
    );
    let (code, error) = convert(&["net.pth", "-o", "other.safetensors", "--variant", "v1.5"]);
    assert!(
        code == Some(1) && error.contains("which decides variant"),
        "{error}"
    );
    let (code, error) = convert(&["net.pth", "-o", "other.safetensors"]);
    assert_eq!(code, Some(0), "{error}");
    let other = folder.path().join("other.safetensors");
    assert!(logits(&other) == logits(&folder.path().join("net.safetensors")));
}

/// Returns the variables of a Keras network: the name of the layer, the name of the variable, and
/// the shape and values in Keras' layout.
///
/// `bias` is the value of every convolution's bias, which torchvision's networks do not have.
fn keras(architecture: &Architecture, bias: f32) -> Vec<(String, String, Vec<usize>, Vec<f32>)> {
    let mut variables = Vec::new();
    for (name, dims) in architecture.tensors(CLASSES) {
        let parts: Vec<&str> = name.split('.').collect();
        let layer = match parts[..] {
            ["conv1", _] => "conv1_conv".to_owned(),
            ["bn1", _] => "conv1_bn".to_owned(),
            ["fc", _] => "predictions".to_owned(),
            [stage, block, ref rest @ ..] => {
                let number = |text: &str| -> usize { text.parse().expect("a number") };
                let (index, kind) = match rest[..rest.len() - 1] {
                    ["downsample", "0"] => (0, "conv"),
                    ["downsample", "1"] => (0, "bn"),
                    [conv] if conv.starts_with("conv") => (number(&conv[4..]), "conv"),
                    [bn] => (number(&bn[2..]), "bn"),
                    ref other => panic!("{other:?}"),
                };
                let (stage, block) = (number(&stage[5..]) + 1, number(block) + 1);
                format!("conv{stage}_block{block}_{index}_{kind}")
            }
            ref other => panic!("{other:?}"),
        };
        let mut values = imgclass_test_support::checkpoints::values(&name, &dims);
        let is_norm = layer.ends_with("_bn");
        let variable = match (parts[parts.len() - 1], is_norm) {
            ("weight", false) => "kernel",
            ("bias", false) => "bias",
            ("weight", true) => "gamma",
            ("bias", true) => "beta",
            ("running_mean", _) => "moving_mean",
            (_, _) => "moving_variance",
        };
        let dims = match dims[..] {
            [o, i, h, w] => {
                let at = |h_: usize, w_: usize, i_: usize, o_: usize| {
                    values[((o_ * i + i_) * h + h_) * w + w_]
                };
                let mut moved = Vec::with_capacity(values.len());
                for (h_, w_) in (0..h * w).map(|tap| (tap / w, tap % w)) {
                    for (i_, o_) in (0..i * o).map(|at| (at / o, at % o)) {
                        moved.push(at(h_, w_, i_, o_));
                    }
                }
                variables.push((layer.clone(), "bias".to_owned(), vec![o], vec![bias; o]));
                values = moved;
                vec![h, w, i, o]
            }
            [o, i] => {
                values = (0..i * o).map(|at| values[at % o * i + at / o]).collect();
                vec![i, o]
            }
            _ => dims,
        };
        if variable == "moving_mean" {
            // The mean of the batch norm after the convolution subtracts the bias again.
            values.iter_mut().for_each(|mean| *mean += bias);
        }
        variables.push((layer, variable.to_owned(), dims, values));
    }
    variables
}

fn hdf5(datasets: Vec<(String, Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let builder = datasets
        .into_iter()
        .fold(Hdf5Builder::new(), |file, (path, dims, values)| {
            let dims: Vec<u64> = dims.into_iter().map(|d| d as u64).collect();
            file.dataset(DatasetBuilder::typed_data(path, dims, &values).expect("a dataset"))
        });
    let plan = builder.into_plan().expect("a plan");
    let writer = Hdf5Writer::new(std::io::Cursor::new(Vec::new()), WriteOptions::default());
    writer.finish(plan).expect("written").into_inner()
}

/// Writes a Keras 3 archive.
///
/// Its variables have numbers, and its layers have a class and a number. The names are in a
/// configuration.
fn keras_archive(variables: Vec<(String, String, Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let (mut layers, mut keys) = (Vec::new(), std::collections::HashMap::new());
    let mut counts = std::collections::HashMap::<&str, usize>::new();
    let datasets = variables
        .into_iter()
        .map(|(layer, variable, dims, values)| {
            let (class, snake) = match layer.rsplit('_').next() {
                Some("conv") => ("Conv2D", "conv2d"),
                Some("bn") => ("BatchNormalization", "batch_normalization"),
                _ => ("Dense", "dense"),
            };
            let key = keys.entry(layer.clone()).or_insert_with(|| {
                layers
                    .push(serde_json::json!({ "class_name": class, "config": { "name": layer } }));
                let count = counts.entry(snake).or_default();
                *count += 1;
                if *count == 1 {
                    snake.to_owned()
                } else {
                    format!("{snake}_{}", *count - 1)
                }
            });
            let number = match &*variable {
                "kernel" | "gamma" => 0,
                "bias" | "beta" => 1,
                "moving_mean" => 2,
                _ => 3,
            };
            (format!("layers/{key}/vars/{number}"), dims, values)
        });
    let weights = hdf5(datasets.collect());
    let config = serde_json::json!({ "class_name": "Functional", "config": { "layers": layers } });
    zip(&[
        ("metadata.json", b"{}"),
        ("config.json", config.to_string().as_bytes()),
        ("model.weights.h5", &weights),
    ])
}

#[test]
fn a_keras_file_becomes_a_checkpoint_of_the_first_version_with_keras_epsilon_and_caffes_preprocessing()
 {
    let architecture = Architecture::RESNET50;
    let by_name = |root: &str| {
        let variables = keras(&architecture, 0.0).into_iter();
        let datasets = variables.map(|(layer, variable, dims, values)| {
            (format!("{root}{layer}/{layer}/{variable}:0"), dims, values)
        });
        hdf5(datasets.collect())
    };
    let cases = [
        ("weights.h5", by_name("")),
        ("model.h5", by_name("model_weights/")),
        ("model.keras", keras_archive(keras(&architecture, 0.0))),
    ];
    let mut all = Vec::new();
    for (name, bytes) in cases {
        let folder = folder();
        std::fs::write(folder.path().join(name), bytes).expect("written");
        let output = run(folder.path(), &["weights", "convert", name]);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let weights = folder.path().join(name).with_extension("safetensors");
        let source = WeightsSource::local(&weights);
        let classifier =
            Classifier::load(&source, &crate::support::model::options()).expect("it loads");
        let info = classifier.info();
        assert_eq!(info.checkpoint.architecture.name(), "resnet50");
        assert_eq!(info.checkpoint.architecture.variant(), Variant::V1);
        assert_eq!(info.checkpoint.architecture.batch_norm_epsilon(), 1.001e-5);
        assert_eq!(info.checkpoint.preprocessing.channels, Channels::Bgr);
        all.push(logits(&weights));
    }
    assert!(all[0] == all[1] && all[0] == all[2]);
    let reference = {
        // The same network under torchvision's names, with a configuration that describes Keras'.
        let folder = folder();
        let weights = folder.path().join("ours.safetensors");
        let bytes =
            imgclass_test_support::checkpoints::safetensors(&tensors(&architecture, CLASSES));
        std::fs::write(&weights, bytes).expect("written");
        let config = r#"{"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 224, 224]},
            "imgclass": {"variant": "v1", "batch_norm_epsilon": 1.001e-5}}"#;
        std::fs::write(folder.path().join("config.json"), config).expect("written");
        logits(&weights)
    };
    assert!(all[0] == reference);
}

#[test]
fn the_bias_of_keras_convolutions_is_taken_off_the_mean_behind_them() {
    let folder = folder();
    let file = keras_archive(keras(&Architecture::RESNET50, 0.25));
    std::fs::write(folder.path().join("a.keras"), file).expect("written");
    std::fs::write(
        folder.path().join("b.keras"),
        keras_archive(keras(&Architecture::RESNET50, 0.0)),
    )
    .expect("written");
    let logits = ["a", "b"].map(|name| {
        let place = format!("{name}/{name}.safetensors");
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        let file = format!("{name}.keras");
        let output = run(folder.path(), &["weights", "convert", &file, "-o", &place]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        logits(&folder.path().join(place))
    });
    for (a, b) in logits[0].iter().zip(&logits[1]) {
        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{a}, {b}");
    }
}

#[test]
fn a_file_that_names_code_or_is_damaged_is_refused_by_name_and_nothing_of_it_is_run_or_left() {
    let folder = folder();
    let good = tensors(&Architecture::RESNET18, CLASSES);
    let proof = folder.path().join("proof");
    let command = imgclass_test_support::checkpoints::text(&format!("touch {}", proof.display()));
    let hostile = |pickle: Vec<u8>| archived(&pickle, &vec![]);
    let reduce = |global: &str| [b"\x80\x02c", global.as_bytes(), &command, b"\x85R."].concat();
    let nested = [
        b"\x80\x02".to_vec(),
        b"N".to_vec(),
        vec![0x85; 100_000],
        b".".to_vec(),
    ]
    .concat();
    // Each step makes a pair of the object with itself, which doubles its size.
    let mut bomb = b"\x80\x02Kpq\x00".to_vec();
    bomb.extend(b"h\x00h\x00\x86q\x00".repeat(60));
    bomb.push(b'.');
    let mut late = b"\x80\x02".to_vec();
    late.extend(pickled_dict(&good));
    late.extend(
        [
            b"cposix\nsystem\n".to_vec(),
            command.clone(),
            b"\x85R0.".to_vec(),
        ]
        .concat(),
    );
    let mut cut = pth(&good);
    cut.truncate(cut.len() / 2);
    let mut missing = good.clone();
    missing.retain(|(name, ..)| name != "layer3.1.bn2.running_var");
    let mut short = good.clone();
    short[0].3.truncate(100);
    let mut nan = good.clone();
    nan[0].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let other = vec![("encoder.weight".to_owned(), vec![1], Dtype::F32, vec![0; 4])];
    let mut integers = good.clone();
    integers[0].2 = Dtype::I64;
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "system.pth",
            hostile(reduce("posix\nsystem\n")),
            &["posix.system", "nothing in it was run"],
        ),
        (
            "eval.pth",
            hostile(reduce("builtins\neval\n")),
            &["builtins.eval"],
        ),
        (
            "torch.pth",
            hostile(reduce("torch\nload\n")),
            &["torch.load"],
        ),
        (
            "module.pth",
            hostile(reduce("torchvision.models.resnet\nResNet\n")),
            &["torchvision.models.resnet.ResNet", "state_dict"],
        ),
        (
            "stack.pth",
            hostile(
                [
                    b"\x80\x04".to_vec(),
                    imgclass_test_support::checkpoints::text("os"),
                    imgclass_test_support::checkpoints::text("system"),
                    b"\x93.".to_vec(),
                ]
                .concat(),
            ),
            &["names"],
        ),
        (
            "inst.pth",
            hostile(b"\x80\x02(ios\nsystem\n.".to_vec()),
            &["names"],
        ),
        ("late.pth", archived(&late, &good), &["posix.system"]),
        ("nested.pth", hostile(nested), &["no dictionary"]),
        ("bomb.pth", hostile(bomb), &["no dictionary"]),
        (
            "long.pth",
            hostile(b"\x80\x02X\xff\xff\xff\xffabc".to_vec()),
            &["in the middle of a text"],
        ),
        (
            "endless.pth",
            hostile(b"\x80\x02}".to_vec()),
            &["ends in the middle"],
        ),
        (
            "integer.pth",
            hostile([b"\x80\x02\x8a\x40".to_vec(), vec![1; 64], b".".to_vec()].concat()),
            &["64 bits"],
        ),
        (
            "empty.pth",
            hostile(b"\x80\x02}.".to_vec()),
            &["no weights"],
        ),
        (
            "number.pth",
            hostile(b"\x80\x02K\x01.".to_vec()),
            &["no dictionary"],
        ),
        ("cut.pth", cut, &["cut.pth"]),
        (
            "legacy.pth",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(),
            &["before PyTorch 1.6"],
        ),
        (
            "zip.pth",
            zip(&[("a.txt", b"hello")]),
            &["without a data.pkl"],
        ),
        (
            "missing.pth",
            pth(&missing),
            &["layer3.1.bn2.running_var", "ResNet-18"],
        ),
        (
            "short.pth",
            pth(&short),
            &["conv1.weight", "beyond its storage"],
        ),
        ("nan.pth", pth(&nan), &["conv1.weight", "NaN"]),
        (
            "integers.pth",
            pth(&integers),
            &["conv1.weight", "LongStorage"],
        ),
        ("other.pth", pth(&other), &["encoder.weight"]),
        (
            "text.pth",
            b"hello".to_vec(),
            &["neither PyTorch's zip nor HDF5"],
        ),
        (
            "other.h5",
            hdf5(vec![(
                "block14_sepconv2/pointwise_kernel:0".to_owned(),
                vec![1, 1, 1, 1],
                vec![0.0],
            )]),
            &["block14_sepconv2", "another network"],
        ),
        (
            "cut.h5",
            hdf5(vec![("a/kernel:0".to_owned(), vec![2, 2], vec![0.0; 4])])[..60].to_vec(),
            &["cut.h5"],
        ),
        (
            "odd.keras",
            zip(&[("model.weights.h5", b"x"), ("config.json", b"{}")]),
            &["config.json"],
        ),
    ];
    for (name, bytes, parts) in cases {
        std::fs::write(folder.path().join(name), bytes).expect("written");
        let output = run(
            folder.path(),
            &["weights", "convert", name, "-o", "out.safetensors"],
        );
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        for part in parts {
            assert!(said.contains(part), "{name}: {part} is not in: {said}");
        }
        assert!(!proof.exists(), "{name} ran code");
        std::fs::remove_file(folder.path().join(name)).expect("removed");
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .collect();
        assert!(left.is_empty(), "{name} left {left:?}");
    }
}
