//! The HTTP interface as applications see it: the contract, its errors, the specification. Through
//! the routes themselves, with no socket.

use crate::support::pictures::{data_url, png};
use crate::support::service::{self, SERVICE, body, service};
use imgclass::api::{ApiState, app, specification};
use imgclass::config::{Access, ApiKey, HttpLimits};
use imgclass::service::Service;
use poem::http::{Method, StatusCode};
use poem::test::TestClient;
use serde_json::{Value, json};
use std::sync::Arc;

const LIMITS: HttpLimits = HttpLimits {
    payload_limit: 256 * 1024,
    ..service::LIMITS
};

fn client() -> TestClient<impl poem::Endpoint> {
    client_of(SERVICE.clone())
}

fn client_of(service: Arc<Service>) -> TestClient<impl poem::Endpoint> {
    service::client_within(LIMITS, service)
}

fn png_url() -> String {
    data_url(&png(40, 30))
}

#[tokio::test]
async fn the_contract_holds_with_and_without_the_last_slash() {
    for path in ["/classify_image/", "/classify_image"] {
        let request = json!({"user_id": "123", "image_url": png_url()});
        let response = client().post(path).body_json(&request).send().await;
        response.assert_header("x-model", "random (untrained)");
        assert!(
            response
                .0
                .header("server-timing")
                .expect("timings")
                .contains("inference;dur="),
            "{path}"
        );
        let (status, answer) = body(response).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let object = answer.as_object().expect("an object");
        assert_eq!(
            object.keys().collect::<Vec<_>>(),
            ["user_id", "prediction"],
            "exactly these names"
        );
        assert_eq!(answer["user_id"], "123");
        let prediction = answer["prediction"].as_array().expect("an array");
        assert_eq!(prediction.len(), 5);
        let probabilities: Vec<f64> = prediction
            .iter()
            .map(|p| p["probability"].as_f64().expect("a number"))
            .collect();
        assert!(
            probabilities.is_sorted_by(|a, b| a >= b),
            "{probabilities:?}"
        );
        for entry in prediction {
            assert_eq!(
                entry
                    .as_object()
                    .expect("an object")
                    .keys()
                    .collect::<Vec<_>>(),
                ["className", "probability"]
            );
        }
    }
}

#[tokio::test]
async fn top_k_says_how_many_classes_the_answer_names() {
    for (top_k, expected) in [
        (json!(1), 1),
        (json!(7), 7),
        (json!(1000), 1000),
        (Value::Null, 5),
    ] {
        let request = json!({"user_id": "u", "image_url": png_url(), "top_k": top_k});
        let (status, answer) = body(
            client()
                .post("/classify_image/")
                .body_json(&request)
                .send()
                .await,
        )
        .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let prediction = answer["prediction"].as_array().expect("an array");
        assert_eq!(prediction.len(), expected);
        let sum: f64 = prediction
            .iter()
            .map(|p| p["probability"].as_f64().expect("a number"))
            .sum();
        assert!(
            sum < 1.0 + 1e-4 && (expected < 1000 || sum > 1.0 - 1e-4),
            "{sum}"
        );
    }
}

#[tokio::test]
async fn every_kind_of_bad_request_gets_its_status_its_code_and_a_text_that_helps() {
    let ok = png_url();
    let request = |url: &str| json!({"user_id": "u", "image_url": url}).to_string();
    let top_k = |k: Value| json!({"user_id": "u", "image_url": ok, "top_k": k}).to_string();
    let huge = data_url(&vec![7u8; 300 * 1024]);
    let cases: Vec<(String, u16, &str, &str)> = vec![
        (String::new(), 400, "malformed-json", "EOF"),
        ("{".into(), 400, "malformed-json", "EOF"),
        ("\u{0}".into(), 400, "malformed-json", "line 1"),
        (
            format!("{} x", request(&ok)),
            400,
            "malformed-json",
            "trailing",
        ),
        (
            "[]".into(),
            422,
            "invalid-request",
            "expected a JSON object",
        ),
        ("5".into(), 422, "invalid-request", "expected a JSON object"),
        ("{}".into(), 422, "invalid-request", "user_id"),
        (
            json!({"user_id": "u"}).to_string(),
            422,
            "invalid-request",
            "image_url",
        ),
        (
            json!({"user_id": 5, "image_url": ok}).to_string(),
            422,
            "invalid-request",
            "user_id",
        ),
        (
            json!({"user_id": "u", "image_url": [ok]}).to_string(),
            422,
            "invalid-request",
            "image_url",
        ),
        (
            top_k(json!(0)),
            422,
            "invalid-request",
            "top_k: 0 is outside 1 to 1000",
        ),
        (top_k(json!(1001)), 422, "invalid-request", "top_k"),
        (top_k(json!(-1)), 422, "invalid-request", "top_k"),
        (top_k(json!(1.5)), 422, "invalid-request", "top_k"),
        (top_k(json!("5")), 422, "invalid-request", "top_k"),
        (request(""), 422, "image-unavailable", "http or https"),
        (
            request("ftp://example.com/a.jpg"),
            422,
            "image-unavailable",
            "http or https",
        ),
        (
            request("file:///etc/passwd"),
            422,
            "image-unavailable",
            "http or https",
        ),
        (
            request("http://127.0.0.1/a.jpg"),
            422,
            "image-unavailable",
            "http or https",
        ),
        (
            request("http://[::ffff:169.254.169.254]/latest"),
            422,
            "image-unavailable",
            "http or https",
        ),
        (
            request("data:text/plain;base64,aGk="),
            422,
            "invalid-request",
            "image_url: ",
        ),
        (
            request("data:image/png;base64,!!"),
            422,
            "invalid-request",
            "base64",
        ),
        (
            request(&data_url(b"%PDF-1.7 not a picture")),
            415,
            "unsupported-image",
            "JPEG",
        ),
        (
            request(&data_url(&png(40, 30)[..60])),
            422,
            "invalid-image",
            "PNG",
        ),
        (request(&huge), 413, "payload-too-large", "262144"),
    ];
    for (text, status, code, detail) in cases {
        let start: String = text.chars().take(90).collect();
        let response = client().post("/classify_image/").body(text).send().await;
        response.assert_content_type("application/problem+json");
        let (found, problem) = body(response).await;
        assert_eq!(
            (found.as_u16(), problem["code"].as_str()),
            (status, Some(code)),
            "{start}: {problem}"
        );
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:imgclass:problem:{code}"));
        assert!(
            problem["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        let text = problem["detail"].as_str().expect("a detail");
        assert!(text.contains(detail), "{start}: {text}");
    }
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_problems_too() {
    let client = client();
    let cases = [
        (client.get("/nope"), 404, "not-found"),
        (client.get("/classify_image/extra"), 404, "not-found"),
        (client.get("/classify_image/"), 405, "method-not-allowed"),
        (client.post("/health/live"), 405, "method-not-allowed"),
    ];
    for (request, status, code) in cases {
        let response = request.send().await;
        response.assert_content_type("application/problem+json");
        let (found, problem) = body(response).await;
        assert_eq!(
            (found.as_u16(), problem["code"].as_str()),
            (status, Some(code)),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn a_request_id_is_echoed_where_it_can_be_and_replaced_where_it_cannot() {
    for (sent, kept) in [
        ("abc-1.2_3", true),
        ("", false),
        ("with space", false),
        ("quote\"", false),
        (&"x".repeat(129), false),
    ] {
        let response = client()
            .get("/nope")
            .header("x-request-id", sent)
            .send()
            .await;
        let echoed = response.0.header("x-request-id").expect("an id").to_owned();
        assert_eq!(echoed == sent, kept, "{sent}: {echoed}");
        let (_, problem) = body(response).await;
        assert_eq!(
            problem["instance"],
            format!("urn:imgclass:request:{echoed}")
        );
    }
}

#[tokio::test]
async fn until_the_model_is_loaded_the_service_lives_and_is_not_ready() {
    let client = TestClient::new(app(ApiState::loading(LIMITS)));
    client
        .get("/health/live")
        .send()
        .await
        .assert_status_is_ok();
    let request = json!({"user_id": "u", "image_url": png_url()});
    let waiting = [
        client.get("/health/ready"),
        client.get("/v1/model"),
        client.post("/classify_image/").body_json(&request),
    ];
    for request in waiting {
        let response = request.send().await;
        response.assert_header_exist("retry-after");
        let (status, problem) = body(response).await;
        assert_eq!(
            (status.as_u16(), problem["code"].as_str()),
            (503, Some("not-ready"))
        );
    }
}

#[tokio::test]
async fn a_draining_service_is_not_ready_and_goes_on_serving() {
    let service = service(&[]);
    let client = client_of(service.clone());
    client
        .get("/health/ready")
        .send()
        .await
        .assert_status_is_ok();
    service.drain();
    let (status, problem) = body(client.get("/health/ready").send().await).await;
    assert_eq!(
        (status.as_u16(), problem["code"].as_str()),
        (503, Some("shutting-down"))
    );
    client
        .get("/health/live")
        .send()
        .await
        .assert_status_is_ok();
    let request = json!({"user_id": "u", "image_url": png_url()});
    client
        .post("/classify_image/")
        .body_json(&request)
        .send()
        .await
        .assert_status_is_ok();
}

#[tokio::test]
async fn a_full_service_refuses_at_once_and_says_when_to_come_back() {
    let service = service(&["--max-concurrent-requests", "1"]);
    let client = client_of(service.clone());
    let place = service.admit().expect("a place");
    let request = json!({"user_id": "u", "image_url": png_url()});
    let response = client
        .post("/classify_image/")
        .body_json(&request)
        .send()
        .await;
    response.assert_header("retry-after", "1");
    let (status, problem) = body(response).await;
    assert_eq!(
        (status.as_u16(), problem["code"].as_str()),
        (503, Some("overloaded"))
    );
    client
        .get("/health/ready")
        .send()
        .await
        .assert_status_is_ok();
    drop(place);
    client
        .post("/classify_image/")
        .body_json(&request)
        .send()
        .await
        .assert_status_is_ok();
}

#[tokio::test]
async fn a_picture_over_the_limit_of_pixels_is_too_large() {
    let client = client_of(service(&["--max-pixels", "1000"]));
    let request = json!({"user_id": "u", "image_url": png_url()});
    let (status, problem) = body(
        client
            .post("/classify_image/")
            .body_json(&request)
            .send()
            .await,
    )
    .await;
    assert_eq!(
        (status.as_u16(), problem["code"].as_str()),
        (413, Some("image-too-large")),
        "{problem}"
    );
}

#[tokio::test]
async fn a_deadline_that_passes_is_said() {
    let client = client_of(service(&["--request-timeout", "1ms"]));
    let large = data_url(&png(1500, 40));
    let request = json!({"user_id": "u", "image_url": large});
    let (status, problem) = body(
        client
            .post("/classify_image/")
            .body_json(&request)
            .send()
            .await,
    )
    .await;
    assert_eq!(
        (status.as_u16(), problem["code"].as_str()),
        (504, Some("deadline-passed")),
        "{problem}"
    );
}

#[tokio::test]
async fn the_labels_and_the_model_say_what_is_loaded() {
    let (_, labels) = body(client().get("/v1/labels").send().await).await;
    let labels = labels["labels"].as_array().expect("an array");
    assert_eq!(labels.len(), 1000);
    for (index, wnid, label) in [
        (0, "n01440764", "tench"),
        (385, "n02504013", "Indian elephant"),
        (999, "n15075141", "toilet tissue"),
    ] {
        let found = &labels[index];
        assert_eq!(
            (
                found["index"].as_u64(),
                found["wnid"].as_str(),
                found["label"].as_str()
            ),
            (Some(index as u64), Some(wnid), Some(label))
        );
    }
    let (_, model) = body(client().get("/v1/model").send().await).await;
    assert!(
        !model.to_string().contains("null"),
        "what is absent is left out: {model}"
    );
    let expected = [
        ("/id", json!("random")),
        ("/trained", json!(false)),
        ("/status", json!("untrained")),
        ("/device", json!("cpu")),
        ("/compute_path", json!("kernels")),
        ("/classes", json!(1000)),
        ("/preprocessing/resize", json!([256])),
        ("/preprocessing/crop", json!([224, 224])),
        ("/preprocessing/interpolation", json!("bilinear")),
        ("/limits/max_payload_bytes", json!(262144)),
    ];
    for (pointer, value) in expected {
        assert_eq!(model.pointer(pointer), Some(&value), "{pointer} in {model}");
    }
    assert!(model["instruction_set"].is_string());
}

#[tokio::test]
async fn the_labels_are_the_references() {
    let Some(path) =
        imgclass_test_support::shared("imagenet_labels.tsv", "labels against the reference")
    else {
        return;
    };
    let reference = std::fs::read_to_string(path).expect("a table");
    let labels = SERVICE.labels();
    for (line, label) in reference.lines().zip(labels.iter()) {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(
            (Some(columns[1]), columns[2]),
            (label.wnid.as_deref(), label.names.join(", ").as_str())
        );
    }
}

#[tokio::test]
async fn the_served_specification_is_the_committed_one() {
    let committed = include_str!("../../openapi.json");
    assert!(
        specification() == committed,
        "openapi.json is out of date: run `cargo run -- openapi > openapi.json`"
    );
    let response = client().get("/openapi.json").send().await;
    response.assert_content_type("application/json");
    assert!(response.0.into_body().into_string().await.expect("a text") == committed);
}

#[tokio::test]
async fn every_operation_is_described_and_the_contract_names_every_error() {
    let spec: Value = serde_json::from_str(&specification()).expect("JSON");
    for (path, operations) in spec["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            for field in ["summary", "description", "operationId"] {
                assert!(
                    operation[field]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{method} {path}: {field}"
                );
            }
        }
    }
    let responses = spec
        .pointer("/paths/~1classify_image~1/post/responses")
        .expect("the contract")
        .as_object();
    let statuses: Vec<&str> = responses
        .expect("responses")
        .keys()
        .map(String::as_str)
        .collect();
    for status in [
        "200", "400", "408", "413", "415", "422", "500", "503", "504",
    ] {
        assert!(
            statuses.contains(&status),
            "{status} is not among {statuses:?}"
        );
    }
}

#[tokio::test]
async fn the_documentation_page_needs_no_other_server() {
    let response = client().get("/docs").send().await;
    response.assert_status_is_ok();
    let page = response.0.into_body().into_string().await.expect("a page");
    assert!(page.contains("SwaggerUIBundle") && page.contains("/classify_image/"));
    let tags = page.split('<').filter(|tag| {
        ["script", "link", "img", "iframe"]
            .iter()
            .any(|name| tag.starts_with(name))
    });
    let outside: Vec<&str> = tags
        .filter(|tag| {
            tag.split('>')
                .next()
                .is_some_and(|tag| tag.contains("http"))
        })
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

/// Returns the status, the code and the detail of an answer to `bytes` with a `Content-Encoding`.
async fn encoded(encoding: &str, bytes: Vec<u8>) -> (u16, String) {
    let client = client();
    let request = client.post("/classify_image/").body(bytes);
    let response = request.header("content-encoding", encoding).send().await;
    if response.0.status().as_u16() == 415 {
        response.assert_header("accept-encoding", "gzip, deflate");
    }
    let (status, answer) = body(response).await;
    let code = answer["code"].as_str().unwrap_or_default().to_owned();
    (status.as_u16(), code)
}

#[tokio::test]
async fn compressed_bodies_are_read_within_the_limits_and_other_encodings_are_415() {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use std::io::Write;
    let request = json!({"user_id": "u", "image_url": png_url()}).to_string();
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    };
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(request.as_bytes()).expect("in memory");
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
    raw.write_all(request.as_bytes()).expect("in memory");
    let good = gzip(request.as_bytes());
    let bomb = gzip(&vec![b' '; LIMITS.payload_limit + 1]);
    let after_empty_ones = |members: usize| [gzip(b"").repeat(members), good.clone()].concat();
    assert!(bomb.len() < 1000, "{}", bomb.len());
    let cases = [
        ("gzip", good.clone(), 200, ""),
        ("X-GZip", good.clone(), 200, ""),
        ("identity, gzip", good.clone(), 200, ""),
        ("gzip", after_empty_ones(1023), 200, ""),
        ("gzip", after_empty_ones(1024), 400, "malformed-encoding"),
        ("deflate", zlib.finish().expect("in memory"), 200, ""),
        ("deflate", raw.finish().expect("in memory"), 200, ""),
        ("identity", request.clone().into(), 200, ""),
        ("gzip", bomb, 413, "payload-too-large"),
        (
            "gzip",
            good[..good.len() - 9].to_vec(),
            400,
            "malformed-encoding",
        ),
        ("gzip", request.clone().into(), 400, "malformed-encoding"),
        ("deflate", request.clone().into(), 400, "malformed-encoding"),
        ("gzip, gzip", gzip(&good), 415, "unsupported-encoding"),
        ("br", request.clone().into(), 415, "unsupported-encoding"),
        ("zstd", request.into(), 415, "unsupported-encoding"),
    ];
    for (encoding, bytes, status, code) in cases {
        let found = encoded(encoding, bytes).await;
        assert_eq!(found, (status, code.to_owned()), "{encoding}");
    }
}

#[tokio::test]
async fn what_a_request_does_not_name_is_skipped_and_never_kept() {
    let noise = "[{\"\":0},".repeat(10_000) + "0" + &"]".repeat(10_000);
    let request = format!(
        "\u{feff}{{\"more\":{noise},\"user_id\":\"u\",\"image_url\":\"{}\"}}",
        png_url()
    );
    let (status, answer) = body(client().post("/classify_image/").body(request).send().await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let long = format!("{{\"{}\":0}}", "x".repeat(200_000));
    let (_, answer) = body(client().post("/v1/classify").body(long).send().await).await;
    let detail = answer["detail"].as_str().expect("a text");
    assert!(
        detail.contains("unknown field") && detail.len() < 1100,
        "{detail}"
    );
}

#[tokio::test]
async fn the_documentation_runs_no_script_but_its_own() {
    for path in ["/docs", "/openapi.json", "/"] {
        let response = client().get(path).send().await;
        response.assert_header("x-content-type-options", "nosniff");
        let policy = response
            .0
            .header("content-security-policy")
            .expect("a policy");
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let scripts = policy.split(';').find(|part| part.contains("script-src"));
        assert!(!scripts.unwrap_or_default().contains("unsafe"), "{policy}");
    }
}

#[tokio::test]
async fn every_route_of_the_specification_names_its_methods_where_it_refuses_one() {
    let document: Value = serde_json::from_str(&specification()).expect("JSON");
    let client = client();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let allowed = if item.get("post").is_some() {
            "POST"
        } else {
            "GET, HEAD"
        };
        let response = client.request(Method::DELETE, path).send().await;
        response.assert_status(StatusCode::METHOD_NOT_ALLOWED);
        response.assert_header("allow", allowed);
    }
    for (path, allowed) in [
        ("/docs", "GET, HEAD"),
        ("/v2/models/resnet50/infer", "POST"),
        ("/v2/repository/index", "POST"),
        ("/v1/models/resnet50", "GET, HEAD"),
        ("/v1/models/resnet50:predict", "POST"),
    ] {
        let response = client.request(Method::DELETE, path).send().await;
        response.assert_status(StatusCode::METHOD_NOT_ALLOWED);
        response.assert_header("allow", allowed);
    }
}

#[test]
fn the_specification_says_what_the_framework_cannot_say() {
    let document: Value = serde_json::from_str(&specification()).expect("JSON");
    let schema = |name: &str| document["components"]["schemas"][name].clone();
    let image = schema("ImageReference");
    assert_eq!(
        image["not"]["anyOf"][0]["required"],
        json!(["url", "base64"])
    );
    assert_eq!(image["additionalProperties"], false);
    let explain = schema("ExplainRequest");
    let class = &explain["properties"]["class"]["oneOf"];
    assert_eq!(
        (&class[0]["type"], &class[1]["type"]),
        (&json!("string"), &json!("integer"))
    );
    assert_eq!(explain["properties"]["format"]["nullable"], true);
    let form =
        &document["paths"]["/v1/explain"]["post"]["requestBody"]["content"]["multipart/form-data"];
    let fields: Vec<&str> = form["schema"]["properties"]
        .as_object()
        .expect("fields")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        fields,
        ["image", "url", "class", "model", "format", "opacity"]
    );
    assert_eq!(form["schema"]["properties"]["class"]["type"], "string");
}

#[tokio::test]
async fn the_interface_works_under_a_path_whether_the_proxy_removes_it_or_not() {
    let state = ApiState::loading(LIMITS).under("/vision");
    state.loaded(SERVICE.clone());
    let client = TestClient::new(app(state));
    for path in [
        "/",
        "/vision/",
        "/vision/page.js",
        "/page.js",
        "/vision/v1/model",
        "/vision/v2",
    ] {
        client.get(path).send().await.assert_status_is_ok();
    }
    let bare = client.get("/vision").send().await;
    bare.assert_status(StatusCode::PERMANENT_REDIRECT);
    bare.assert_header("location", "/vision/");
    client
        .get("/visionary")
        .send()
        .await
        .assert_status(StatusCode::NOT_FOUND);
    let (_, document) = body(client.get("/vision/openapi.json").send().await).await;
    assert_eq!(document["servers"], json!([{"url": "/vision"}]));
    let forwarded = [("/a/b/", "/a/b"), ("/x\"y", "/vision"), ("", "/vision")];
    for (prefix, expected) in forwarded {
        let request = client
            .get("/openapi.json")
            .header("x-forwarded-prefix", prefix);
        let (_, document) = body(request.send().await).await;
        assert_eq!(document["servers"][0]["url"], expected, "{prefix}");
    }
    let page = client
        .get("/vision/")
        .send()
        .await
        .0
        .into_body()
        .into_string()
        .await;
    let page = page.expect("a page");
    assert!(page.contains("<base href=\"/vision/\">"), "{page}");
    let relative = page.replace("<base href=\"/vision/\">", "");
    assert!(!relative.contains("=\"/"), "every link is relative");
}

#[tokio::test]
async fn the_specification_asks_for_keys_where_the_service_does() {
    let keys = vec![ApiKey::of(b"k")];
    let access = Access {
        keys,
        ..Access::default()
    };
    let keyed = TestClient::new(app(ApiState::loading(LIMITS).with_access(access)));
    let (_, document) = body(keyed.get("/openapi.json").send().await).await;
    assert_eq!(
        document["components"]["securitySchemes"]["bearer"]["scheme"],
        "bearer"
    );
    assert_eq!(
        document["paths"]["/health/live"]["get"]["security"],
        json!([])
    );
    let (_, open) = body(client().get("/openapi.json").send().await).await;
    assert!(open.get("security").is_none() && open["components"].get("securitySchemes").is_none());
    assert!(open["info"].get("summary").is_none());
}
