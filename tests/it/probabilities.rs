//! What becomes of logits: probabilities that exclude each other or not, errors where they are not
//! finite, and labels that cannot steer a terminal or a spreadsheet.

use std::path::Path;

use imgclass_checkpoint::{Architecture, WeightsSource};
use imgclass_network::Classifier;
use imgclass_test_support::checkpoints::{Tensors, safetensors, tensors};
use serde_json::{Value, json};

use crate::support::binary::{run, text};
use crate::support::pictures::{data_url, png, write_picture};
use crate::support::service::{body, client, client_of, service_of};

/// Writes a ResNet-18 with a configuration in timm's form.
fn write_network(folder: &Path, weights: &Tensors, more: Value) {
    let mut config = json!({
        "architecture": "resnet18",
        "pretrained_cfg": { "input_size": [3, 64, 64], "interpolation": "bilinear" }
    });
    let fields = more.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(fields);
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.join("net.safetensors"), safetensors(weights)).expect("written");
}

#[tokio::test]
async fn a_network_for_several_labels_gives_independent_probabilities_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    write_network(
        folder.path(),
        &tensors(&Architecture::RESNET18, 4),
        json!({ "num_classes": 4, "label_names": ["cat", "dog", "cow", "pig"],
            "problem_type": "multi_label_classification" }),
    );
    let source = WeightsSource::local(&folder.path().join("net.safetensors"));
    let options = crate::support::model::options();
    let classifier = Classifier::load(&source, &options).expect("it loads");
    let client = client_of(service_of(classifier, &[]));
    let (_, model) = body(client.get("/v1/model").send().await).await;
    assert_eq!(model["probabilities"], "independent", "{model}");

    let picture = data_url(&png(64, 64));
    let request = json!({ "images": [{ "url": picture }], "top_k": 4 });
    let (status, answer) = body(client.post("/v1/classify").body_json(&request).send().await).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["probabilities"], "independent");
    let name = model["name"].as_str().expect("a name");
    let inference = json!({ "inputs": [{ "name": "image", "datatype": "BYTES", "shape": [1],
        "data": [picture] }], "outputs": [{ "name": "logits" }, { "name": "probabilities" }] });
    let route = format!("/v2/models/{name}/infer");
    let (status, outputs) = body(client.post(route).body_json(&inference).send().await).await;
    assert_eq!(status, 200, "{outputs}");
    let numbers = |output: usize, class: usize| outputs["outputs"][output]["data"][class].as_f64();
    let predict = json!({ "instances": [{ "b64": picture.split(',').nth(1) }] });
    let route = format!("/v1/models/{name}:predict");
    let (status, rows) = body(client.post(route).body_json(&predict).send().await).await;
    assert_eq!(status, 200, "{rows}");
    let predictions = answer["results"][0]["predictions"].as_array();
    for prediction in predictions.expect("predictions") {
        let class = prediction["index"].as_u64().expect("an index") as usize;
        let logit = numbers(0, class).expect("a logit");
        let expected = 1.0 / (1.0 + (-logit).exp());
        let row = rows["predictions"][0]["probabilities"][class].as_f64();
        for found in [prediction["probability"].as_f64(), numbers(1, class), row] {
            let found = found.expect("a probability");
            assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
        }
    }
}

#[tokio::test]
async fn probabilities_that_sum_to_1_are_the_rule_and_need_no_word() {
    let (_, model) = body(client().get("/v1/model").send().await).await;
    assert_eq!(model["probabilities"], "exclusive");
    let request = json!({ "images": [{ "url": data_url(&png(64, 64)) }] });
    let (_, answer) = body(
        client()
            .post("/v1/classify")
            .body_json(&request)
            .send()
            .await,
    )
    .await;
    assert!(answer.get("probabilities").is_none(), "{answer}");
}

#[tokio::test]
async fn an_input_too_large_for_the_network_is_an_error_and_not_an_answer_without_numbers() {
    let numbers = vec![3e38f32; 3 * 224 * 224];
    let input =
        json!({ "name": "input", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": numbers });
    let request = json!({ "inputs": [input] });
    let route = "/v2/models/resnet50/infer";
    let (status, answer) = body(client().post(route).body_json(&request).send().await).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer.to_string().contains("not finite"), "{answer}");
}

#[test]
fn weights_that_overflow_are_an_error_with_exit_code_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut weights = tensors(&Architecture::RESNET18, 3);
    // An image of zeros, as at the start, does not show it.
    weights[0].3 = vec![1e37f32; 64 * 3 * 49]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    write_network(folder.path(), &weights, json!({}));
    write_picture(&folder.path().join("a.png"), 0);
    for format in ["table", "csv", "jsonl"] {
        let arguments = [
            "classify",
            "--weights",
            "net.safetensors",
            "--format",
            format,
            "a.png",
        ];
        let output = run(folder.path(), &arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{format}: {said}");
        assert!(said.contains("not finite"), "{format}: {said}");
    }
}

#[test]
fn labels_cannot_steer_a_terminal_or_become_formulas() {
    let folder = tempfile::tempdir().expect("a folder");
    let labels = [
        "\u{1b}]0;pwned\u{7}red",
        "=cmd|' /C calc'!A0",
        "a\nb\u{202e}c",
        "größer, 猫",
    ];
    write_network(
        folder.path(),
        &tensors(&Architecture::RESNET18, 4),
        json!({ "num_classes": 4, "label_names": labels }),
    );
    write_picture(&folder.path().join("a.png"), 0);
    let classify = |format: &str| {
        let arguments = [
            "classify",
            "--weights",
            "net.safetensors",
            "--format",
            format,
            "a.png",
        ];
        let output = run(folder.path(), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    for format in ["table", "csv"] {
        let found = classify(format);
        assert!(!found.contains(steers), "{format}: {found:?}");
        for part in ["\\u{1b}]0;pwned\\u{7}red", "a\\nb\\u{202e}c", "größer"] {
            assert!(found.contains(part), "{format}: {part} is not in {found}");
        }
        assert_eq!(found.lines().count(), 5, "{format}: {found}");
    }
    assert!(classify("csv").contains(",'=cmd|' /C calc'!A0,"));
    // JSON has escapes of its own, and keeps the label.
    let line: Value = serde_json::from_str(&classify("jsonl")).expect("JSON");
    let found: Vec<&Value> = line["predictions"]
        .as_array()
        .expect("predictions")
        .iter()
        .map(|prediction| &prediction["label"])
        .collect();
    assert!(found.contains(&&json!(labels[0])), "{found:?}");
}
