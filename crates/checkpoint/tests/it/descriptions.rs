//! Configurations as training programs leave them: what a checkpoint is said to be, and that the
//! weights beside it open.

use std::path::Path;

use imgclass_checkpoint::{
    Architecture, CheckpointError, Description, OpenCheckpoint, Overrides, Probabilities,
    WeightsSource,
};
use imgclass_image::{Filter, Resize, Size};
use imgclass_test_support::checkpoints::{in_transformers, renamed, safetensors, tensors};
use serde_json::{Value, json};

/// A folder with a configuration and, if there are to be some, a ResNet-18 of so many classes.
fn folder(config: &Value, classes: Option<usize>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    if let Some(classes) = classes {
        let weights = safetensors(&tensors(&Architecture::RESNET18, classes));
        std::fs::write(folder.path().join("model.safetensors"), weights).expect("written");
    }
    folder
}

fn open(folder: &Path) -> Result<OpenCheckpoint, CheckpointError> {
    let source = WeightsSource::local(&folder.join("model.safetensors"));
    let opened = OpenCheckpoint::open(&source, &Overrides::default())?;
    opened.check_tensors()?;
    Ok(opened)
}

fn names(opened: &OpenCheckpoint) -> Vec<&str> {
    opened.labels.iter().map(|label| &*label.name).collect()
}

/// timm's form of a network that was fine-tuned from one with 1000 classes.
fn fine_tuned() -> Value {
    json!({
        "architecture": "resnet18", "num_classes": 4, "num_features": 512,
        "label_names": ["a", "b", "c", "d"],
        "pretrained_cfg": {
            "tag": "a1_in1k", "custom_load": false, "input_size": [3, 224, 224],
            "test_input_size": [3, 288, 288], "interpolation": "bicubic", "crop_pct": 0.95,
            "test_crop_pct": 1.0, "crop_mode": "center", "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225], "num_classes": 1000, "first_conv": "conv1",
            "classifier": "fc"
        }
    })
}

/// Returns a configuration with some of the fields at its root replaced.
fn with(mut config: Value, changes: Value) -> Value {
    let changes = changes.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(changes);
    config
}

#[test]
fn a_checkpoint_that_timm_has_fine_tuned_has_the_classes_at_the_root_of_its_configuration() {
    let plain = fine_tuned();
    let table = json!({ "0": "a", "1": "b", "2": "c", "3": "d" });
    let gaps = json!({ "0": "a", "2": "c" });
    let mut within = with(plain.clone(), json!({ "label_names": null }));
    within["pretrained_cfg"]["label_names"] = json!(["e", "f", "g", "h"]);
    let arguments = json!({
        "num_classes": 4, "in_chans": 3, "global_pool": "avg", "output_stride": 32,
        "act_layer": "relu", "block_args": {}, "zero_init_last": false, "drop_rate": 0.2,
        "stem_type": "", "channels": [64, 128, 256, 512], "anything": null
    });
    let cases = [
        (plain.clone(), ["a", "b", "c", "d"]),
        (
            with(plain.clone(), json!({ "label_names": table })),
            ["a", "b", "c", "d"],
        ),
        (
            with(plain.clone(), json!({ "label_names": gaps })),
            ["a", "class 1", "c", "class 3"],
        ),
        (
            with(
                plain.clone(),
                json!({ "model_args": arguments, "global_pool": "avg" }),
            ),
            ["a", "b", "c", "d"],
        ),
        (
            with(
                plain.clone(),
                json!({ "num_classes": null, "model_args": { "num_classes": 4 } }),
            ),
            ["a", "b", "c", "d"],
        ),
        (
            with(plain, json!({ "label_names": null })),
            ["class 0", "class 1", "class 2", "class 3"],
        ),
        (within, ["e", "f", "g", "h"]),
    ];
    for (config, expected) in cases {
        let folder = folder(&config, Some(4));
        let opened = open(folder.path()).unwrap_or_else(|e| panic!("{config}: {e}"));
        assert_eq!(names(&opened), expected, "{config}");
        assert_eq!(opened.info.preprocessing.crop, Size::square(288));
        assert_eq!(opened.info.probabilities, Probabilities::Exclusive);
    }
}

#[test]
fn a_configuration_of_timm_from_before_it_had_a_pretrained_cfg_is_read() {
    let config = json!({
        "architecture": "resnet18", "num_classes": 4, "num_features": 512,
        "input_size": [3, 160, 160], "interpolation": "bilinear", "crop_pct": 0.8,
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "labels": ["a", "b", "c", "d"]
    });
    let folder = folder(&config, Some(4));
    let opened = open(folder.path()).expect("it opens");
    assert_eq!(names(&opened), ["a", "b", "c", "d"]);
    let preprocessing = &opened.info.preprocessing;
    assert_eq!(preprocessing.resize, Resize::ShorterSide(200));
    assert_eq!(preprocessing.filter, Filter::Bilinear);
}

#[test]
fn an_argument_that_makes_another_network_is_refused_with_its_value() {
    let table = [
        ("output_stride", json!(8)),
        ("act_layer", json!("silu")),
        ("global_pool", json!("catavgmax")),
        ("stem_width", json!(32)),
        ("aa_layer", json!("blurpool")),
        ("block_args", json!({ "attn_layer": "se" })),
        ("unheard_of", json!(true)),
    ];
    for (name, value) in table {
        let config = with(
            fine_tuned(),
            json!({ "model_args": { name: value.clone() } }),
        );
        let folder = folder(&config, None);
        let said = Description::read(&folder.path().join("config.json"), None)
            .expect_err(name)
            .to_string();
        assert!(
            said.contains(&format!("`{name}`")) && said.contains(&value.to_string()),
            "{said}"
        );
    }
    let out_of_range = json!({ "label_names": { "0": "a", "99999999999": "b" } });
    for config in [
        out_of_range,
        json!({ "label_names": { "x": "a" } }),
        json!({ "label_names": 7 }),
    ] {
        let folder = folder(&with(fine_tuned(), config), None);
        let said = Description::read(&folder.path().join("config.json"), None).expect_err("a key");
        assert!(said.to_string().contains("label_names"), "{said}");
    }
}

#[test]
fn logits_become_probabilities_as_transformers_pipeline_makes_them() {
    let config = |classes: usize, problem: Value| {
        let labels: serde_json::Map<_, _> = (0..classes)
            .map(|index| (index.to_string(), format!("label {index}").into()))
            .collect();
        json!({
            "model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512], "id2label": labels, "problem_type": problem
        })
    };
    use Probabilities::{Exclusive, Independent};
    let table = [
        (4, json!("multi_label_classification"), Independent),
        (4, json!("single_label_classification"), Exclusive),
        (4, json!("regression"), Exclusive),
        (4, Value::Null, Exclusive),
        (1, json!("single_label_classification"), Independent),
        (1, json!("regression"), Independent),
        (1, Value::Null, Independent),
    ];
    for (classes, problem, expected) in table {
        let folder = folder(&config(classes, problem.clone()), None);
        let named = renamed(tensors(&Architecture::RESNET18, classes), in_transformers);
        std::fs::write(folder.path().join("model.safetensors"), safetensors(&named))
            .expect("written");
        let opened = open(folder.path()).expect("it opens");
        assert_eq!(opened.info.probabilities, expected, "{classes} {problem}");
    }
    let wrapped = with(
        fine_tuned(),
        json!({ "problem_type": "multi_label_classification" }),
    );
    let wrapped = folder(&wrapped, Some(4));
    let opened = open(wrapped.path()).expect("it opens");
    assert_eq!(opened.info.probabilities, Independent);
    let odd = folder(&config(4, json!("ranking")), None);
    let said = Description::read(&odd.path().join("config.json"), None).expect_err("no such type");
    assert!(said.to_string().contains("problem_type"), "{said}");
}

#[test]
fn every_configuration_of_the_collected_cases_is_read() {
    let test = "collected configurations";
    let Some(cases) = imgclass_test_support::shared("cases/checkpoints", test) else {
        return;
    };
    let mut count = 0;
    for case in std::fs::read_dir(cases).expect("the cases") {
        let case = case.expect("a case").path();
        let preprocessor = case.join("preprocessor_config.json");
        let preprocessor = preprocessor.is_file().then_some(preprocessor);
        let read = Description::read(&case.join("config.json"), preprocessor.as_deref());
        let read = read.unwrap_or_else(|e| panic!("{e}"));
        let (classes, _) = read.classes.expect("a number of classes");
        let labels = read.labels.expect("labels");
        assert_eq!(labels.len(), classes, "{}", case.display());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn what_is_not_one_safetensors_file_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("written");
    };
    write("none/readme.md", b"");
    write("one/model.safetensors", b"");
    write("two/a.safetensors", b"");
    write("two/b.safetensors", b"");
    write("split/model-00001-of-00002.safetensors", b"");
    write("split/model-00002-of-00002.safetensors", b"");
    write("net.pth", b"PK\x03\x04 and more");
    write("net.h5", b"\x89HDF\r\n");
    let mut header = (9u64 << 20).to_le_bytes().to_vec();
    header.resize(10 << 20, b' ');
    write("header.safetensors", &header);
    let table: [(&str, &[&str]); 8] = [
        ("none", &["a folder", "name a file"]),
        ("one", &["a folder", "one/model.safetensors"]),
        ("two", &["a folder", "2 of them", "two/a.safetensors"]),
        ("split", &["a folder", "max_shard_size"]),
        (
            "split/model-00002-of-00002.safetensors",
            &["split", "max_shard_size"],
        ),
        ("net.pth", &["weights convert", "net.pth"]),
        ("net.h5", &["weights convert", "net.h5"]),
        ("header.safetensors", &["header", "9437184"]),
    ];
    for (name, parts) in table {
        let source = WeightsSource::local(&folder.path().join(name));
        let error = OpenCheckpoint::open(&source, &Overrides::default()).map(|_| ());
        let said = error.expect_err(name).to_string();
        for part in parts {
            assert!(said.contains(part), "{name}: {part} is not in: {said}");
        }
    }
}

/// A safetensors file of any header.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

#[test]
fn a_last_layer_of_absurd_shape_costs_nothing_and_names_are_shown_without_control_characters() {
    let tensor = |name: &str, shape: &str, end: usize| {
        format!(r#"{name:?}: {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {end}]}}"#)
    };
    let long = "x".repeat(1 << 20);
    let table = [
        (
            tensor("fc.weight", "[1000000000000000000, 0]", 0),
            "[1000000000000000000, 0]",
        ),
        (tensor("fc.weight", "[300000, 0]", 0), "[300000, 0]"),
        (
            r#""\u001b[31mred\u0007\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#
                .to_owned(),
            r"`\u{1b}[31mred\u{7}\n`",
        ),
        (tensor(&long, "[0]", 0), "xxx..."),
    ];
    for (header, part) in table {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, with_header(&format!("{{{header}}}"), &[])).expect("written");
        let error = open(folder.path()).map(|_| ()).expect_err(part);
        let said = error.to_string();
        assert!(said.contains(part), "{part} is not in: {said}");
        assert!(said.len() < 1000 && !said.contains('\u{1b}'), "{said}");
    }
}

#[test]
fn weights_of_double_precision_are_read_and_numbers_beyond_single_precision_are_refused() {
    use safetensors::Dtype;
    let mut all = tensors(&Architecture::RESNET18, 2);
    for (_, _, dtype, bytes) in &mut all {
        *dtype = Dtype::F64;
        let singles = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        *bytes = singles.flat_map(|x| f64::from(x).to_le_bytes()).collect();
    }
    let folder = folder(
        &json!({ "architecture": "resnet18", "pretrained_cfg": {} }),
        None,
    );
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, safetensors(&all)).expect("written");
    assert_eq!(
        open(folder.path()).expect("it opens").info.stored_type,
        "F64"
    );
    all[0].3[..8].copy_from_slice(&1e300f64.to_le_bytes());
    std::fs::write(&path, safetensors(&all)).expect("written");
    let said = open(folder.path())
        .map(|_| ())
        .expect_err("infinite")
        .to_string();
    assert!(said.contains("inf at element 0"), "{said}");
}
