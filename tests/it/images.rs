//! The routes about images: every form of request, every error, results of mixed batches, and the
//! reference's numbers.

use std::collections::HashMap;

use crate::support::pictures::{base64, data_url, png};
use crate::support::service::{SERVICE, body, client, client_of, service, service_of};
use candle_core::{Device, Tensor};
use imgclass_checkpoint::{Architecture, WeightsSource};
use imgclass_network::Classifier;
use serde_json::{Value, json};

const ROUTES: [&str; 3] = ["/v1/classify", "/v1/embeddings", "/v1/explain"];

/// A multipart body of fields: name, file name if it is a file, content.
fn form(fields: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    for (name, file, content) in fields {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        let head =
            format!("--frontier\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"--frontier--\r\n");
    ("multipart/form-data; boundary=frontier".to_owned(), bytes)
}

async fn post(path: &str, request: &Value) -> (u16, Value) {
    let (status, answer) = body(client().post(path).body_json(request).send().await).await;
    (status.as_u16(), answer)
}

async fn post_bytes(path: &str, content_type: &str, bytes: Vec<u8>) -> (u16, Value) {
    let client = client();
    let request = client
        .post(path)
        .header("content-type", content_type)
        .body(bytes);
    let (status, answer) = body(request.send().await).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn one_image_has_the_same_numbers_in_every_form_and_on_every_route() {
    let picture = png(60, 40);
    let (status, answer) = post(
        "/v1/classify",
        &json!({"images": [{"base64": base64(&picture)}], "top_k": 1000}),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    let expected = &answer["results"][0]["predictions"];
    assert_eq!(expected.as_array().map(Vec::len), Some(1000));

    let (kind, fields) = form(&[
        ("image", Some("a.png"), &picture),
        ("url", None, data_url(&picture).as_bytes()),
        ("top_k", None, b"1000"),
    ]);
    let (status, answer) = post_bytes("/v1/classify", &kind, fields).await;
    assert_eq!(status, 200, "{answer}");
    for result in answer["results"].as_array().expect("results") {
        assert_eq!(&result["predictions"], expected);
    }
    for kind in [
        "image/png",
        "image/x-anything",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ] {
        let (_, answer) = post_bytes("/v1/classify?top_k=1000", kind, picture.clone()).await;
        assert_eq!(&answer["results"][0]["predictions"], expected, "{kind}");
    }

    let contract = json!({"user_id": "u", "image_url": data_url(&picture), "top_k": 1000});
    let (_, answer) = post("/classify_image/", &contract).await;
    for (ours, entry) in expected
        .as_array()
        .expect("an array")
        .iter()
        .zip(answer["prediction"].as_array().expect("an array"))
    {
        assert_eq!(ours["probability"], entry["probability"]);
        assert_eq!(ours["label"], entry["className"]);
    }
    let request = json!({"images": [{"base64": base64(&picture)}], "format": "grid"});
    let (_, answer) = post("/v1/explain", &request).await;
    assert_eq!(answer["results"][0]["explanation"]["class"], expected[0]);
}

#[tokio::test]
async fn one_bad_image_never_fails_its_neighbours() {
    let good = base64(&png(60, 40));
    let images = json!([
        {"base64": good},
        {"base64": "!!"},
        {"base64": base64(b"%PDF-1.7")},
        {"url": "http://127.0.0.1/x.png"},
    ]);
    for (path, member) in [
        ("/v1/classify", "predictions"),
        ("/v1/embeddings", "embedding"),
        ("/v1/explain?format=grid", "explanation"),
    ] {
        let (status, alone) = post(path, &json!({"images": [{"base64": good}]})).await;
        assert_eq!(status, 200, "{alone}");
        let (status, answer) = post(path, &json!({"images": images})).await;
        assert_eq!(status, 200, "{answer}");
        let results = answer["results"].as_array().expect("results");
        assert_eq!(results.len(), 4);
        assert_eq!(results[0], alone["results"][0], "{path}");
        assert!(!results[0][member].is_null(), "{path}: {}", results[0]);
        let expected = [
            (422, "invalid-request", "images[1].base64"),
            (415, "unsupported-image", "PDF"),
            (422, "image-unavailable", "http or https"),
        ];
        for (result, (status, code, detail)) in results[1..].iter().zip(expected) {
            assert_eq!(result.as_object().map(serde_json::Map::len), Some(1));
            let error = &result["error"];
            assert_eq!(
                (&error["status"], &error["code"]),
                (&json!(status), &json!(code))
            );
            let text = error["detail"].as_str().expect("a detail");
            assert!(text.contains(detail), "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_bad_request_gets_its_status_its_code_and_the_field() {
    let image = json!({"base64": base64(&png(20, 20))});
    let with = |name: &str, value: Value| {
        let mut request = json!({"images": [image]});
        request[name] = value;
        request.to_string()
    };
    let json_cases = [
        (
            "/v1/classify",
            with("model", json!("resnet50, resnet50")),
            422,
            "invalid-request",
            "resnet50 is named twice",
        ),
        ("/v1/classify", "{".to_owned(), 400, "malformed-json", "EOF"),
        (
            "/v1/classify",
            "[]".to_owned(),
            422,
            "invalid-request",
            "JSON object",
        ),
        (
            "/v1/classify",
            "{}".to_owned(),
            422,
            "invalid-request",
            "images",
        ),
        (
            "/v1/classify",
            json!({"images": []}).to_string(),
            422,
            "invalid-request",
            "at least one",
        ),
        (
            "/v1/classify",
            json!({"images": vec![&image; 5]}).to_string(),
            422,
            "invalid-request",
            "limit of 4",
        ),
        (
            "/v1/classify",
            json!({"images": [{}]}).to_string(),
            422,
            "invalid-request",
            "images[0]",
        ),
        (
            "/v1/classify",
            json!({"images": [image, {"url": "a", "base64": "b"}]}).to_string(),
            422,
            "invalid-request",
            "images[1]",
        ),
        (
            "/v1/classify",
            json!({"images": [{"url": 5}]}).to_string(),
            422,
            "invalid-request",
            "images[0].url",
        ),
        (
            "/v1/classify",
            json!({"images": [{"uri": "x"}]}).to_string(),
            422,
            "invalid-request",
            "uri",
        ),
        (
            "/v1/classify",
            with("top_k", json!(0)),
            422,
            "invalid-request",
            "top_k",
        ),
        (
            "/v1/classify",
            with("top_k", json!(1001)),
            422,
            "invalid-request",
            "top_k",
        ),
        (
            "/v1/classify",
            with("min_probability", json!(1.5)),
            422,
            "invalid-request",
            "min_probability",
        ),
        (
            "/v1/classify",
            with("topk", json!(1)),
            422,
            "invalid-request",
            "topk",
        ),
        (
            "/v1/classify?top_k=0",
            json!({"images": [image]}).to_string(),
            422,
            "invalid-request",
            "top_k",
        ),
        (
            "/v1/classify?min_probability=x",
            json!({"images": [image]}).to_string(),
            422,
            "invalid-request",
            "min_probability",
        ),
        (
            "/v1/embeddings",
            with("normalize", json!("yes")),
            422,
            "invalid-request",
            "normalize",
        ),
        (
            "/v1/explain",
            with("class", json!("no such thing")),
            422,
            "invalid-request",
            "no such thing",
        ),
        (
            "/v1/explain",
            with("class", json!(1000)),
            422,
            "invalid-request",
            "1000",
        ),
        (
            "/v1/explain",
            with("class", json!("crane")),
            422,
            "invalid-request",
            "[134, 517]",
        ),
        (
            "/v1/explain",
            with("class", json!([1])),
            422,
            "invalid-request",
            "class",
        ),
        (
            "/v1/explain",
            with("format", json!("jpeg")),
            422,
            "invalid-request",
            "format",
        ),
        (
            "/v1/explain",
            with("opacity", json!(2)),
            422,
            "invalid-request",
            "opacity",
        ),
        (
            "/v1/explain?format=tiff",
            json!({"images": [image]}).to_string(),
            422,
            "invalid-request",
            "format",
        ),
        (
            "/v1/explain",
            json!({"images": [image, image]}).to_string(),
            422,
            "invalid-request",
            "grid",
        ),
    ];
    let raw = |bytes: &[u8]| ("image/png".to_owned(), bytes.to_vec());
    let mut cases: Vec<_> = json_cases
        .into_iter()
        .map(|(path, text, status, code, detail)| {
            let request = ("application/json".to_owned(), text.into_bytes());
            (path, request, status, code, detail)
        })
        .collect();
    for path in ROUTES {
        cases.extend([
            (path, raw(b""), 422, "invalid-request", "empty"),
            (path, raw(b"%PDF-1.7"), 415, "unsupported-image", "JPEG"),
            (path, raw(&png(20, 20)[..50]), 422, "invalid-image", "PNG"),
            (
                path,
                raw(&vec![7; 5 << 20]),
                413,
                "payload-too-large",
                "4194304",
            ),
            (
                path,
                ("multipart/form-data".to_owned(), b"x".to_vec()),
                400,
                "malformed-form",
                "boundary",
            ),
            (
                path,
                (
                    "multipart/form-data; boundary=b".to_owned(),
                    b"--b\r\n".to_vec(),
                ),
                400,
                "malformed-form",
                "",
            ),
            (path, form(&[]), 422, "invalid-request", "at least one"),
            (
                path,
                form(&[("colour", None, b"red")]),
                422,
                "invalid-request",
                "colour",
            ),
        ]);
    }
    cases.push((
        "/v1/classify",
        form(&[("a", Some("a.png"), &png(20, 20)), ("top_k", None, b"many")]),
        422,
        "invalid-request",
        "top_k",
    ));
    // A long text is no number, and is not looked into: its JSON could be of any size.
    let long = format!("5{}", " ".repeat(100));
    let options: &[(&str, Option<&str>, &[u8])] = &[
        ("a", Some("a.png"), &png(20, 20)),
        ("top_k", None, long.as_bytes()),
    ];
    cases.push((
        "/v1/classify",
        form(options),
        422,
        "invalid-request",
        "top_k",
    ));
    cases.push((
        "/v1/classify",
        form(&[("url", None, b"http://a.example/\xff")]),
        400,
        "malformed-form",
        "url: the field holds bytes that are no UTF-8",
    ));
    for (path, (kind, bytes), status, code, detail) in cases {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let (found, problem) = post_bytes(path, &kind, bytes).await;
        assert_eq!(
            (found, problem["code"].as_str()),
            (status, Some(code)),
            "{path} {start}: {problem}"
        );
        let text = problem["detail"].as_str().expect("a detail");
        assert!(text.contains(detail), "{path} {start}: {text}");
    }
}

#[tokio::test]
async fn top_k_and_min_probability_bound_what_is_named_and_the_body_wins_over_the_query() {
    let images = json!([{"base64": base64(&png(60, 40))}]);
    let (_, all) = post("/v1/classify", &json!({"images": images, "top_k": 1000})).await;
    let all = all["results"][0]["predictions"]
        .as_array()
        .expect("all")
        .clone();
    let third = all[2]["probability"].clone();
    let cases = [
        ("", json!({}), 5),
        ("?top_k=7", json!({}), 7),
        ("?top_k=7", json!({"top_k": 2}), 2),
        ("", json!({"min_probability": third}), 3),
        ("", json!({"min_probability": 1}), 0),
        (
            "?min_probability=1",
            json!({"min_probability": 0, "top_k": 4}),
            4,
        ),
    ];
    for (query, mut request, expected) in cases {
        request["images"] = images.clone();
        let (status, answer) = post(&format!("/v1/classify{query}"), &request).await;
        assert_eq!(status, 200, "{answer}");
        let found = answer["results"][0]["predictions"]
            .as_array()
            .expect("some");
        assert_eq!(found[..], all[..expected], "{query} {request}");
    }
}

#[tokio::test]
async fn embeddings_have_2048_numbers_and_length_1_where_it_is_asked_for() {
    let images = json!([{"base64": base64(&png(60, 40))}]);
    let embedding = |answer: &Value| -> Vec<f64> {
        let numbers = answer["results"][0]["embedding"]
            .as_array()
            .expect("numbers");
        numbers
            .iter()
            .map(|x| x.as_f64().expect("a number"))
            .collect()
    };
    let (status, answer) = post("/v1/embeddings", &json!({"images": images})).await;
    assert_eq!((status, &answer["dimensions"]), (200, &json!(2048)));
    let plain = embedding(&answer);
    assert_eq!(plain.len(), 2048);
    let length = plain.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (_, answer) = post("/v1/embeddings?normalize=true", &json!({"images": images})).await;
    for (unit, plain) in embedding(&answer).iter().zip(&plain) {
        assert!((unit - plain / length).abs() < 1e-6);
    }
}

async fn picture_of(path: &str, request: &Value) -> image::DynamicImage {
    let response = client().post(path).body_json(request).send().await;
    response.assert_status_is_ok();
    response.assert_content_type("image/png");
    let bytes = response.0.into_body().into_bytes().await.expect("a body");
    image::load_from_memory(&bytes).expect("a PNG")
}

#[tokio::test]
async fn an_explanation_is_drawn_where_the_network_looks_and_nowhere_else() {
    // Twice as wide as high: the network sees 224 of the middle 512 by 256.
    let picture = png(400, 200);
    let request = |format: &str, opacity: f64| json!({"images": [{"base64": base64(&picture)}], "format": format, "opacity": opacity});
    let plain = picture_of("/v1/explain", &request("overlay", 0.0))
        .await
        .to_rgb8();
    let original = image::load_from_memory(&picture).expect("a PNG").to_rgb8();
    assert!(plain == original, "at opacity 0 the picture is as it was");
    let over = picture_of("/v1/explain", &request("overlay", 1.0))
        .await
        .to_rgb8();
    let alone = picture_of("/v1/explain", &request("heatmap", 0.5))
        .await
        .to_rgba8();
    assert_eq!(alone.dimensions(), (400, 200));
    let inside = |x: u32, y: u32| (113..287).contains(&x) && (13..187).contains(&y);
    let outside = |x: u32, y: u32| !(112..288).contains(&x) || !(12..188).contains(&y);
    for (x, y, pixel) in alone.enumerate_pixels() {
        if inside(x, y) {
            assert_eq!(pixel.0[3], 255, "{x},{y}");
            assert_eq!(over.get_pixel(x, y).0, pixel.0[..3], "{x},{y}");
        } else if outside(x, y) {
            assert_eq!(pixel.0[3], 0, "{x},{y}");
            assert_eq!(over.get_pixel(x, y), original.get_pixel(x, y), "{x},{y}");
        }
    }
    // The brightest and the darkest colour of the map both occur.
    assert!(
        alone
            .pixels()
            .any(|p| p.0[..3] == imgclass_image::colour(1.0))
    );
    assert!(alone.pixels().any(|p| p.0 == [0, 0, 4, 255]));

    let (_, answer) = post("/v1/explain", &request("grid", 0.5)).await;
    let explanation = &answer["results"][0]["explanation"];
    let region = json!({"left": 112.5, "top": 12.5, "width": 175.0, "height": 175.0});
    assert_eq!(explanation["region"], region);
    assert_eq!(
        (&explanation["image_width"], &explanation["image_height"]),
        (&json!(400), &json!(200))
    );
}

#[tokio::test]
async fn a_large_picture_is_explained_at_a_size_for_screens() {
    let request = json!({"images": [{"base64": base64(&png(1500, 300))}]});
    let drawn = picture_of("/v1/explain", &request).await;
    assert_eq!((drawn.width(), drawn.height()), (1024, 205));
}

#[tokio::test]
async fn a_class_is_named_by_its_index_its_wordnet_id_or_its_name() {
    let images = json!([{"base64": base64(&png(60, 40))}]);
    for class in [
        json!(386),
        json!("386"),
        json!("n02504458"),
        json!("african ELEPHANT"),
        json!("Loxodonta africana"),
    ] {
        let request = json!({"images": images, "class": class, "format": "grid"});
        let (status, answer) = post("/v1/explain", &request).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(
            answer["results"][0]["explanation"]["class"]["index"], 386,
            "{class}"
        );
    }
}

#[tokio::test]
async fn the_model_says_what_it_is_called_and_how_many_images_a_request_may_have() {
    let (_, model) = body(client().get("/v1/model").send().await).await;
    assert_eq!(model["name"], "resnet50");
    assert_eq!(model["limits"]["max_images_per_request"], 4);
}

#[tokio::test]
async fn the_model_says_which_network_it_is_and_its_embeddings_are_as_wide_as_its_features() {
    let eighteen = WeightsSource::random(Architecture::RESNET18);
    let eighteen =
        Classifier::load(&eighteen, &crate::support::model::options()).expect("it loads");
    let table = [
        (SERVICE.clone(), "resnet50", json!("v1.5"), 2048),
        (service_of(eighteen, &[]), "resnet18", Value::Null, 512),
    ];
    for (service, architecture, variant, features) in table {
        let client = client_of(service);
        let (_, model) = body(client.get("/v1/model").send().await).await;
        assert_eq!(model["architecture"], architecture);
        assert_eq!(model.get("variant").unwrap_or(&Value::Null), &variant);
        assert_eq!(model["features"], features);
        assert_eq!(model["labels"], "imagenet-1k");
        assert_eq!(model["preprocessing"]["channels"], "rgb");
        assert_eq!(model["preprocessing"]["scale"], 1);
        let request = client
            .post("/v1/embeddings")
            .header("content-type", "image/png");
        let (status, answer) = body(request.body(png(60, 40)).send().await).await;
        assert_eq!(status, 200, "{answer}");
        let embedding = answer["results"][0]["embedding"].as_array().map(Vec::len);
        assert_eq!(
            embedding,
            Some(features),
            "{architecture}: {}",
            answer["dimensions"]
        );
    }
}

#[tokio::test]
async fn a_full_service_a_deadline_and_a_picture_over_the_limit_are_said_as_everywhere() {
    let picture = png(60, 40);
    let full = service(&["--max-concurrent-requests", "1"]);
    let place = full.admit().expect("a place");
    for path in ROUTES {
        let client = client_of(full.clone());
        let request = client.post(path).header("content-type", "image/png");
        let response = request.body(picture.clone()).send().await;
        response.assert_header("retry-after", "1");
        let (status, problem) = body(response).await;
        assert_eq!(
            (status.as_u16(), &problem["code"]),
            (503, &json!("overloaded")),
            "{path}"
        );
    }
    drop(place);
    let cases = [
        ("--request-timeout", "1ms", 504, "deadline-passed"),
        ("--max-pixels", "1000", 413, "image-too-large"),
    ];
    for (flag, value, status, code) in cases {
        let service = service(&[flag, value]);
        for path in ROUTES {
            let client = client_of(service.clone());
            let request = client.post(path).header("content-type", "image/png");
            let (found, problem) = body(request.body(picture.clone()).send().await).await;
            assert_eq!(
                (found.as_u16(), &problem["code"]),
                (status, &json!(code)),
                "{path}"
            );
        }
    }
    // A place is given back however a request ends.
    assert!(SERVICE.admit().is_ok());
}

/// The reference's photograph as it is sent, its features and its map.
fn reference(test: &str) -> Option<(Vec<u8>, HashMap<String, Tensor>, Classifier)> {
    let weights = imgclass_test_support::shared("weights/resnet50.safetensors", test)?;
    let layers = imgclass_test_support::shared("reference/layers.safetensors", test)?;
    let tensors = candle_core::safetensors::load(&layers, &Device::Cpu).expect("the reference");
    let bytes = std::fs::read(&layers).expect("the reference");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let names = header.metadata().clone().expect("metadata");
    let file = names
        .values()
        .find(|value| value.ends_with(".jpg"))
        .expect("the photograph's name");
    let photograph = imgclass_test_support::shared(file, test)
        .or_else(|| imgclass_test_support::shared(&format!("images/{file}"), test))?;
    let model = Classifier::load(
        &WeightsSource::local(&weights),
        &crate::support::model::options(),
    );
    Some((
        std::fs::read(photograph).expect("a photograph"),
        tensors,
        model.expect("loads"),
    ))
}

#[tokio::test]
async fn a_photograph_has_the_references_features_and_class_activation_map() {
    let Some((photograph, tensors, model)) = reference("features and map over HTTP") else {
        return;
    };
    let client = client_of(service_of(model, &[]));
    let numbers = |name: &str| -> Vec<f32> {
        let flat = tensors[name].flatten_all().and_then(|t| t.to_vec1());
        flat.expect("numbers")
    };
    let flat = |value: &Value| -> Vec<f32> {
        let rows = value.as_array().expect("an array").iter();
        let cells =
            rows.flat_map(|row| row.as_array().cloned().unwrap_or_else(|| vec![row.clone()]));
        cells
            .map(|x| x.as_f64().expect("a number") as f32)
            .collect()
    };
    let request = json!({"images": [{"base64": base64(&photograph)}], "format": "grid"});
    let (_, explained) = body(client.post("/v1/explain").body_json(&request).send().await).await;
    let request = json!({"images": [{"base64": base64(&photograph)}]});
    let (_, embedded) = body(
        client
            .post("/v1/embeddings")
            .body_json(&request)
            .send()
            .await,
    )
    .await;
    let found = [
        ("cam", flat(&explained["results"][0]["explanation"]["grid"])),
        ("global_pool", flat(&embedded["results"][0]["embedding"])),
    ];
    for (name, found) in found {
        let expected = numbers(name);
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0f32, |max, x| x.abs().max(max));
        // Decoders round JPEGs differently by a fraction of a 255th: a hundredth of the largest
        // number covers that.
        let furthest = found
            .iter()
            .zip(&expected)
            .fold(0f32, |max, (a, b)| (a - b).abs().max(max));
        assert!(furthest < 1e-2 * largest, "{name}: {furthest} of {largest}");
    }
}
