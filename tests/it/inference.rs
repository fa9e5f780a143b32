//! Others' protocols: the Open Inference Protocol V2 with its binary tensors, and TensorFlow
//! Serving's predict. Routes, forms, errors, and that an image has the same numbers as everywhere
//! else.

use crate::support::pictures::{base64, data_url, png};
use crate::support::service::{LIMITS, SERVICE, body, client, client_of, service};
use imgclass::api::{ApiState, app};
use poem::test::TestClient;
use serde_json::{Value, json};

const INFER: &str = "/v2/models/resnet50/infer";
const PREDICT: &str = "/v1/models/resnet50:predict";

async fn get(path: &str) -> (u16, Value) {
    let (status, answer) = body(client().get(path).send().await).await;
    (status.as_u16(), answer)
}

async fn post(path: &str, request: &Value) -> (u16, Value) {
    let (status, answer) = body(client().post(path).body_json(request).send().await).await;
    (status.as_u16(), answer)
}

/// Logits, probabilities and the best class of a picture, by `/v1/classify`'s word.
async fn classes(picture: &[u8]) -> Vec<Value> {
    let request = json!({"images": [{"base64": base64(picture)}], "top_k": 1000});
    let (_, answer) = post("/v1/classify", &request).await;
    answer["results"][0]["predictions"]
        .as_array()
        .expect("classes")
        .clone()
}

fn bytes_input(pictures: &[&[u8]]) -> Value {
    let data: Vec<String> = pictures.iter().map(|picture| base64(picture)).collect();
    json!({"name": "image", "datatype": "BYTES", "shape": [pictures.len()], "data": data})
}

fn floats(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().expect("numbers").iter();
    numbers
        .map(|x| x.as_f64().expect("a number") as f32)
        .collect()
}

#[tokio::test]
async fn the_server_and_the_model_describe_themselves() {
    let (status, server) = get("/v2").await;
    assert_eq!((status, &server["name"]), (200, &json!("imgclass")));
    assert_eq!(
        server["extensions"],
        json!([
            "classification",
            "binary_tensor_data",
            "model_configuration",
            "statistics"
        ])
    );
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/resnet50/ready",
        "/v2/models/resnet50/versions/1/ready",
    ] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
    let (_, model) = get("/v2/models/resnet50").await;
    assert_eq!(model["versions"], json!(["1"]));
    let shapes = |list: &Value| -> Vec<(Value, Value, Value)> {
        let tensors = list.as_array().expect("tensors").iter();
        tensors
            .map(|t| (t["name"].clone(), t["datatype"].clone(), t["shape"].clone()))
            .collect()
    };
    assert_eq!(
        shapes(&model["inputs"]),
        [
            (json!("input"), json!("FP32"), json!([-1, 3, 224, 224])),
            (json!("image"), json!("BYTES"), json!([-1])),
        ]
    );
    assert_eq!(
        shapes(&model["outputs"]),
        [
            (json!("logits"), json!("FP32"), json!([-1, 1000])),
            (json!("probabilities"), json!("FP32"), json!([-1, 1000])),
            (json!("features"), json!("FP32"), json!([-1, 2048])),
        ]
    );
    let (_, status) = get("/v1/models/resnet50").await;
    assert_eq!(status["model_version_status"][0]["state"], "AVAILABLE");
    let (_, metadata) = get("/v1/models/resnet50/metadata").await;
    assert_eq!(metadata["model_spec"]["version"], "1");
}

#[tokio::test]
async fn an_operator_names_the_model() {
    let state = ApiState::loading(LIMITS).served_as("pictures");
    state.loaded(SERVICE.clone());
    let client = TestClient::new(app(state));
    for path in ["/v2/models/pictures", "/v1/models/pictures"] {
        client.get(path).send().await.assert_status_is_ok();
    }
    let (status, answer) = body(client.get("/v2/models/resnet50").send().await).await;
    assert_eq!(status.as_u16(), 404);
    assert!(
        answer["error"]
            .as_str()
            .expect("a text")
            .contains("pictures")
    );
}

#[tokio::test]
async fn encoded_images_have_the_numbers_that_they_have_everywhere() {
    let (first, second) = (png(60, 40), png(30, 50));
    let expected = classes(&first).await;
    let request = json!({"id": "a-7", "inputs": [bytes_input(&[&first, &second])]});
    let (status, answer) = post(INFER, &request).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (
            &answer["model_name"],
            &answer["model_version"],
            &answer["id"]
        ),
        (&json!("resnet50"), &json!("1"), &json!("a-7"))
    );
    let outputs = answer["outputs"].as_array().expect("outputs");
    let names: Vec<&Value> = outputs.iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["logits", "probabilities", "features"]);
    assert_eq!(outputs[1]["shape"], json!([2, 1000]));
    let probabilities = floats(&outputs[1]["data"]);
    assert_eq!(
        (probabilities.len(), floats(&outputs[2]["data"]).len()),
        (2000, 4096)
    );
    for class in &expected {
        let index = class["index"].as_u64().expect("an index") as usize;
        assert_eq!(
            f64::from(probabilities[index]) as f32,
            class["probability"].as_f64().expect("a number") as f32
        );
    }

    let request = json!({
        "inputs": [{"name": "input", "datatype": "BYTES", "shape": [1, 1], "data": [[data_url(&first)]]}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    });
    let (status, answer) = post("/v2/models/resnet50/versions/1/infer", &request).await;
    assert_eq!(status, 200, "{answer}");
    let output = &answer["outputs"][0];
    assert_eq!(
        (&output["datatype"], &output["shape"]),
        (&json!("BYTES"), &json!([1, 3]))
    );
    for (text, class) in output["data"]
        .as_array()
        .expect("texts")
        .iter()
        .zip(&expected)
    {
        let expected = format!(
            "{}:{}:{}",
            class["probability"],
            class["index"],
            class["label"].as_str().expect("a label")
        );
        assert_eq!(text, &expected);
    }
}

/// A request with its JSON's length in the header and tensors behind it.
async fn post_binary(header: &Value, tensors: &[u8]) -> poem::test::TestResponse {
    let json = header.to_string();
    let length = json.len().to_string();
    let body = [json.as_bytes(), tensors].concat();
    let client = client();
    let request = client
        .post(INFER)
        .header("inference-header-content-length", length)
        .content_type("application/octet-stream")
        .body(body);
    request.send().await
}

#[tokio::test]
async fn binary_tensors_go_in_and_come_out() {
    let picture = png(60, 40);
    let expected = classes(&picture).await;
    let tensor = [&(picture.len() as u32).to_le_bytes(), &picture[..]].concat();
    let header = json!({
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": tensor.len()}}],
        "outputs": [
            {"name": "probabilities", "parameters": {"binary_data": true}},
            {"name": "logits", "parameters": {"binary_data": true, "classification": 1}},
            {"name": "features"},
        ],
    });
    let response = post_binary(&header, &tensor).await;
    response.assert_status_is_ok();
    response.assert_content_type("application/octet-stream");
    let length: usize = response
        .0
        .header("inference-header-content-length")
        .expect("a length")
        .parse()
        .expect("a number");
    let bytes = response.0.into_body().into_bytes().await.expect("a body");
    let answer: Value = serde_json::from_slice(&bytes[..length]).expect("JSON");
    let size = |i: usize| answer["outputs"][i]["parameters"]["binary_data_size"].as_u64();
    assert_eq!(size(0), Some(4000));
    assert_eq!(
        answer["outputs"][2]["data"].as_array().map(Vec::len),
        Some(2048)
    );
    let tail = &bytes[length..];
    assert_eq!(tail.len() as u64, 4000 + size(1).expect("a size"));
    let best = expected[0]["index"].as_u64().expect("an index") as usize;
    let probability = f32::from_le_bytes(tail[best * 4..][..4].try_into().expect("4 bytes"));
    assert_eq!(
        probability,
        expected[0]["probability"].as_f64().expect("a number") as f32
    );
    let text = std::str::from_utf8(&tail[4004..]).expect("a text");
    assert!(
        text.ends_with(&format!(
            ":{best}:{}",
            expected[0]["label"].as_str().expect("a label")
        )),
        "{text}"
    );
}

#[tokio::test]
async fn a_prepared_tensor_has_the_same_numbers_in_json_and_in_bytes() {
    let numbers: Vec<f32> = (0..3 * 224 * 224)
        .map(|i| (i % 255) as f32 / 64.0 - 2.0)
        .collect();
    let input = |more: Value| {
        let mut input = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 224, 224]});
        input
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        json!({"inputs": [input], "outputs": [{"name": "logits"}]})
    };
    let (status, flat) = post(INFER, &input(json!({"data": numbers}))).await;
    assert_eq!(status, 200, "{flat}");
    let nested: Vec<&[f32]> = numbers.chunks(224).collect();
    let (_, nested) = post(INFER, &input(json!({"data": nested}))).await;
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let header = input(json!({"parameters": {"binary_data_size": bytes.len()}}));
    let (_, binary) = body(post_binary(&header, &bytes).await).await;
    assert_eq!(flat["outputs"], nested["outputs"]);
    assert_eq!(flat["outputs"], binary["outputs"]);
}

#[tokio::test]
async fn every_kind_of_bad_inference_request_is_an_error_in_the_protocols_own_form() {
    let picture = png(20, 20);
    let good = &picture[..];
    let fp32 = |shape: Value, data: Value| json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": data}]});
    let with = |name: &str, value: Value| {
        let mut request = json!({"inputs": [bytes_input(&[good])]});
        request[name] = value;
        request
    };
    let cases = [
        (json!([]), 400, "a JSON object with inputs"),
        (json!({}), 400, "inputs"),
        (json!({"inputs": []}), 400, "expected one input"),
        (
            json!({"inputs": [bytes_input(&[good]), bytes_input(&[good])]}),
            400,
            "expected one input",
        ),
        (
            json!({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [""]}]}),
            400,
            "no input x",
        ),
        (
            json!({"inputs": [{"name": "input", "datatype": "INT8", "shape": [1], "data": [1]}]}),
            400,
            "INT8",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}),
            400,
            "neither",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["QQ=="]}]}),
            400,
            "has 1 elements",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [5]}]}),
            400,
            "not numbers",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["!!"]}]}),
            400,
            "base64",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [5, "x"]}]}),
            400,
            "inputs[0].data[0]: a BYTES tensor in JSON holds texts, not numbers",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}]}),
            422,
            "at least one",
        ),
        (
            json!({"inputs": [bytes_input(&[good; 5])]}),
            422,
            "limit of 4",
        ),
        (
            json!({"inputs": [bytes_input(&[good, b"%PDF-1.7"])]}),
            415,
            "image 1: ",
        ),
        (
            json!({"inputs": [bytes_input(&[&good[..50]])]}),
            422,
            "image 0: ",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["http://127.0.0.1/"]}]}),
            422,
            "http or https",
        ),
        (fp32(json!([1, 3, 224]), json!([0])), 400, "[1, 3, 224]"),
        (
            fp32(json!([1, 3, 224, 224]), json!([0, 1])),
            400,
            "has 2 elements",
        ),
        (
            fp32(json!([1, 3, 224, 224]), json!(["a"])),
            400,
            "not texts",
        ),
        (fp32(json!([-1, 3, 224, 224]), json!([0])), 400, "-1"),
        (fp32(json!([1, 3, 224, 224]), json!([null])), 400, "null"),
        (
            with("outputs", json!([{"name": "nope"}])),
            400,
            "no output nope",
        ),
        (
            with(
                "outputs",
                json!([{"name": "logits", "parameters": {"classification": 1001}}]),
            ),
            400,
            "1 to 1000",
        ),
        (
            with(
                "outputs",
                json!([{"name": "features", "parameters": {"classification": 1}}]),
            ),
            400,
            "no classes",
        ),
        (
            with("parameters", json!({"classification": "all"})),
            400,
            "parameters.classification: ",
        ),
        (
            with("outputs", json!([{"name": "logits"}, {"name": "logits"}])),
            400,
            "outputs[1].name: logits stands there twice",
        ),
        (
            with("outputs", vec![json!({"name": "logits"}); 100_000].into()),
            400,
            "outputs: more than 4 elements",
        ),
        (
            with(
                "outputs",
                json!([{"name": "logits", "parameters": {"shared_memory_region": "r"}}]),
            ),
            400,
            "outputs[0].parameters.shared_memory_region: ",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}}]}),
            400,
            "parameters.shared_memory_region: ",
        ),
        (
            fp32(json!([1, 1, 1, 1, 1, 1, 1]), json!([0])),
            400,
            "inputs[0].shape: more than 6 elements",
        ),
        (
            fp32(json!([1, 3, 224, 224]), json!(vec![0; 3 * 224 * 224 + 1])),
            400,
            "more elements than its shape, which has 150528",
        ),
        (
            json!({"inputs": [bytes_input(&[good])], "id": "x".repeat(65_537)}),
            400,
            "id: ",
        ),
    ];
    for (request, status, part) in cases {
        let (found, answer) = post(INFER, &request).await;
        assert_eq!(
            answer.as_object().map(serde_json::Map::len),
            Some(1),
            "{answer}"
        );
        let text = answer["error"].as_str().expect("a text");
        assert!(
            found == status && text.contains(part),
            "{request}: {found} {text}"
        );
    }
    let binary = |size: usize| json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 224, 224], "parameters": {"binary_data_size": size}}]});
    let nan = f32::NAN.to_le_bytes().repeat(3 * 224 * 224);
    let cases: [(Value, &[u8], &str); 4] = [
        (binary(100), &[0; 50], "binary_data_size"),
        (binary(4), &[0; 8], "follow the last tensor"),
        (binary(6), &[0; 6], "no whole number"),
        (binary(nan.len()), &nan, "not finite"),
    ];
    for (header, tensors, part) in cases {
        let (status, answer) = body(post_binary(&header, tensors).await).await;
        let text = answer["error"].as_str().expect("a text");
        assert!(
            status.as_u16() == 400 && text.contains(part),
            "{header}: {text}"
        );
    }
    let cut = json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]});
    let (_, answer) = body(post_binary(&cut, &[9, 0, 0, 0, 1, 2]).await).await;
    assert!(
        answer["error"]
            .as_str()
            .expect("a text")
            .contains("cut off"),
        "{answer}"
    );
}

#[tokio::test]
async fn unknown_models_versions_and_methods_are_errors_in_the_protocols_own_form() {
    let client = client();
    let request = json!({"inputs": [], "instances": []});
    let cases = [
        (client.get("/v2/models/other"), 404),
        (client.get("/v2/models/other/ready"), 404),
        (client.get("/v2/models/resnet50/versions/2"), 404),
        (client.get("/v2/nowhere"), 404),
        (
            client.post("/v2/models/other/infer").body_json(&request),
            404,
        ),
        (client.get(INFER), 405),
        (client.post("/v2/models/resnet50"), 405),
        (client.get("/v1/models/other"), 404),
        (client.get("/v1/models/resnet50/versions/7"), 404),
        (
            client.post("/v1/models/other:predict").body_json(&request),
            404,
        ),
        (client.post("/v1/models/resnet50").body_json(&request), 405),
        (client.get(PREDICT), 405),
        (
            client
                .post("/v1/models/resnet50:classify")
                .body_json(&request),
            404,
        ),
        (client.post(INFER).body(vec![b' '; 5 << 20]), 413),
        (client.post(PREDICT).body(vec![b' '; 5 << 20]), 413),
        (client.post(PREDICT).body("{"), 400),
    ];
    for (request, expected) in cases {
        let (status, answer) = body(request.send().await).await;
        assert_eq!(status.as_u16(), expected, "{answer}");
        assert!(answer["error"].is_string(), "{answer}");
        assert_eq!(
            answer.as_object().map(serde_json::Map::len),
            Some(1),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn loading_and_overload_are_said_in_the_protocols_own_form() {
    let client = TestClient::new(app(ApiState::loading(LIMITS)));
    client
        .get("/v2/health/live")
        .send()
        .await
        .assert_status_is_ok();
    for path in [
        "/v2/health/ready",
        "/v2/models/resnet50/ready",
        "/v2/models/resnet50",
    ] {
        let response = client.get(path).send().await;
        response.assert_header_exist("retry-after");
        let (status, answer) = body(response).await;
        assert!(
            status.as_u16() == 503 && answer["error"].is_string(),
            "{path}: {answer}"
        );
    }
    let (_, answer) = body(client.get("/v1/models/resnet50").send().await).await;
    assert_eq!(answer["model_version_status"][0]["state"], "LOADING");
    for (asked, listed) in [("", 1), ("{}", 1), ("{\"ready\":true}", 0)] {
        let index = client.post("/v2/repository/index").body(asked);
        let (status, answer) = body(index.send().await).await;
        let models = answer.as_array().map(Vec::len);
        assert_eq!(
            (status.as_u16(), models),
            (200, Some(listed)),
            "{asked}: {answer}"
        );
    }
    let full = service(&["--max-concurrent-requests", "1"]);
    let _place = full.admit().expect("a place");
    let client = client_of(full);
    let requests = [
        (INFER, json!({"inputs": [bytes_input(&[&png(9, 9)])]})),
        (PREDICT, json!({"instances": [{"b64": base64(&png(9, 9))}]})),
    ];
    for (path, request) in requests {
        let response = client.post(path).body_json(&request).send().await;
        response.assert_header("retry-after", "1");
        let (status, answer) = body(response).await;
        assert!(
            status.as_u16() == 503 && answer["error"].is_string(),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn tensorflow_servings_predict_takes_rows_and_columns() {
    let picture = png(60, 40);
    let expected = classes(&picture).await;
    let b64 = json!({"b64": base64(&picture)});
    let rows = [
        json!([b64, data_url(&picture), {"url": data_url(&picture)}]),
        json!([{"image_bytes": b64}, {"input": b64}, base64(&picture)]),
    ];
    let mut all = Vec::new();
    for instances in rows {
        let request = json!({"signature_name": "serving_default", "instances": instances});
        let (status, answer) = post(PREDICT, &request).await;
        assert_eq!(status, 200, "{answer}");
        all.extend(
            answer["predictions"]
                .as_array()
                .expect("predictions")
                .clone(),
        );
    }
    assert_eq!(all.len(), 6);
    for prediction in &all {
        assert_eq!(prediction, &all[0]);
        assert_eq!(prediction["classes"], expected[0]["index"]);
        for class in &expected {
            let index = class["index"].as_u64().expect("an index") as usize;
            assert_eq!(prediction["probabilities"][index], class["probability"]);
        }
    }
    let columns = [
        json!([b64]),
        b64.clone(),
        json!(data_url(&picture)),
        json!({"image_bytes": [b64]}),
        json!({"image_bytes": b64}),
        json!({"input": [base64(&picture)]}),
    ];
    for inputs in columns {
        let (status, answer) = post(
            "/v1/models/resnet50/versions/1:predict",
            &json!({"inputs": inputs, "signature_name": ""}),
        )
        .await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["outputs"]["classes"], json!([expected[0]["index"]]));
        assert_eq!(
            answer["outputs"]["probabilities"][0],
            all[0]["probabilities"]
        );
    }
}

#[tokio::test]
async fn every_kind_of_bad_predict_request_is_an_error_in_its_own_form() {
    let good = json!({"b64": base64(&png(20, 20))});
    let cases = [
        (json!({}), 400, "instances"),
        (
            json!({"instances": [good], "inputs": [good]}),
            400,
            "either",
        ),
        (
            json!({"instances": good}),
            400,
            "instances: invalid type: map",
        ),
        (json!({"instances": [5]}), 400, "b64"),
        (
            json!({"instances": [good], "signature_name": "classify_image"}),
            400,
            "classify_image",
        ),
        (json!({"instances": []}), 422, "at least one"),
        (json!({"instances": vec![&good; 5]}), 422, "limit of 4"),
        (
            json!({"instances": [good, {"b64": "!"}]}),
            400,
            "instances[1].b64: ",
        ),
        (
            json!({"instances": [{"image_bytes": {"image_bytes": good}}]}),
            400,
            "instances[0].image_bytes: unknown field",
        ),
        (
            json!({"instances": [{"b64": "", "key": 1}]}),
            400,
            "`key` is one key too many",
        ),
        (json!({"instances": [[[good]]]}), 400, "instances[0]: "),
        (
            json!({"instances": vec![json!("http://127.0.0.1/"); 2000]}),
            400,
            "more than 1024 images",
        ),
        (json!({"inputs": {}}), 400, "name of an input"),
        (
            json!({"instances": [good, {"b64": base64(b"%PDF-1.7")}]}),
            415,
            "image 1",
        ),
        (
            json!({"instances": ["http://127.0.0.1/a.png"]}),
            422,
            "http or https",
        ),
    ];
    for (request, status, part) in cases {
        let (found, answer) = post(PREDICT, &request).await;
        let text = answer["error"].as_str().expect("a text");
        assert!(
            found == status && text.contains(part),
            "{request}: {found} {text}"
        );
    }
}

#[tokio::test]
async fn null_stands_for_parameters_that_are_not_there() {
    let mut input = bytes_input(&[&png(9, 9)]);
    input["parameters"] = Value::Null;
    let request = json!({
        "id": null, "parameters": null, "inputs": [input], "outputs": null,
    });
    let (status, answer) = post(INFER, &request).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"].as_array().map(Vec::len), Some(3));
    let outputs = json!([{"name": "logits", "parameters": null}]);
    let request = json!({"inputs": [bytes_input(&[&png(9, 9)])], "outputs": outputs});
    assert_eq!(post(INFER, &request).await.0, 200);
}

#[tokio::test]
async fn clients_of_triton_kserve_and_tensorflow_serving_find_what_they_ask_for() {
    let (status, config) = get("/v2/models/resnet50/config").await;
    assert_eq!((status, &config["max_batch_size"]), (200, &json!(4)));
    assert_eq!(config["input"][1]["data_type"], "TYPE_STRING");
    for path in [
        "/v2/models/resnet50/stats",
        "/v2/models/stats",
        "/v2/models/resnet50/versions/1/stats",
    ] {
        let (status, statistics) = get(path).await;
        assert_eq!(status, 200, "{path}");
        assert_eq!(statistics["model_stats"][0]["name"], "resnet50");
    }
    let (_, index) = post("/v2/repository/index", &json!({})).await;
    assert_eq!(
        index,
        json!([{"name": "resnet50", "version": "1", "state": "READY", "reason": ""}])
    );
    assert_eq!(get("/v1/models").await.1, json!({"models": ["resnet50"]}));
    let (_, model) = get("/v1/models/resnet50").await;
    assert_eq!(
        (&model["name"], &model["ready"]),
        (&json!("resnet50"), &json!(true))
    );
    for path in [
        "/v1/models/resnet50/versions/1/metadata",
        "/v1/models/resnet50/labels/stable",
        "/v1/models/resnet50/labels/stable/metadata",
    ] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
    let (status, answer) = get("/v1/models/resnet50/labels/canary").await;
    assert!(
        status == 404
            && answer["error"]
                .as_str()
                .is_some_and(|text| text.contains("stable"))
    );
    let request = json!({"instances": [{"b64": base64(&png(9, 9))}]});
    assert_eq!(
        post("/v1/models/resnet50/labels/stable:predict", &request)
            .await
            .0,
        200
    );
}
