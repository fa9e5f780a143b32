//! Access to the interface: keys, rates, and the origins of web pages.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use imgclass::api::{ApiState, app};
use imgclass::config::{AccessArgs, HttpLimits};
use imgclass::metrics::Metrics;
use poem::http::Method;
use poem::test::{TestClient, TestRequestBuilder, TestResponse};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    access: AccessArgs,
}

/// The status of a request that passes the guard.
///
/// The service in these tests is still loading and answers 503, so they need no model.
const PASSED: u16 = 503;

fn client(arguments: &[&str]) -> TestClient<impl poem::Endpoint> {
    let arguments = Arguments::parse_from([&["test"], arguments].concat());
    let access = arguments.access.load().expect("rules");
    let limits = HttpLimits {
        max_images: 32,
        payload_limit: 1024,
        body_timeout: Duration::from_secs(10),
    };
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let state = ApiState::loading(limits)
        .with_access(access)
        .with_metrics(metrics, false);
    TestClient::new(app(state))
}

async fn status<E: poem::Endpoint>(request: TestRequestBuilder<'_, E>) -> u16 {
    request.send().await.0.status().as_u16()
}

fn header<'a>(response: &'a TestResponse, name: &str) -> Option<&'a str> {
    response
        .0
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("ASCII"))
}

#[tokio::test]
async fn a_right_key_passes_in_either_header_and_nothing_else_does() {
    let client = client(&["--api-key", "first-key", "--api-key", "second,third"]);
    let cases = [
        ("authorization", "Bearer first-key", PASSED),
        ("authorization", "bearer  second", PASSED),
        ("authorization", "BEARER third ", PASSED),
        ("x-api-key", "first-key", PASSED),
        ("x-api-key", "first-ke", 401),
        ("x-api-key", "first-keyy", 401),
        ("x-api-key", "FIRST-KEY", 401),
        ("x-api-key", "second,third", 401),
        ("x-api-key", "", 401),
        ("authorization", "first-key", 401),
        ("authorization", "Basic first-key", 401),
        ("authorization", "Bearer", 401),
        ("authorization", "Bearer ", 401),
        ("cookie", "first-key", 401),
    ];
    for (name, value, expected) in cases {
        let found = status(client.get("/v1/model").header(name, value)).await;
        assert_eq!(found, expected, "{name}: {value}");
    }
    let response = client.post("/classify_image/").body("{}").send().await;
    assert_eq!(header(&response, "www-authenticate"), Some("Bearer"));
    response.assert_content_type("application/problem+json");
    let text = response.0.into_body().into_string().await.expect("a text");
    assert!(text.contains("\"code\":\"unauthorized\""), "{text}");
}

#[tokio::test]
async fn with_keys_only_what_probes_and_readers_need_is_open() {
    let client = client(&["--api-key", "k"]);
    for path in [
        "/health/live",
        "/metrics",
        "/docs",
        "/docs/",
        "/openapi.json",
    ] {
        assert_eq!(status(client.get(path)).await, 200, "{path}");
    }
    assert_eq!(status(client.get("/health/ready")).await, 503);
    for path in [
        "/v1/labels",
        "/v1/model",
        "/nothing",
        "/docs/..",
        "/health/live/x",
        "/%64ocs",
    ] {
        assert_eq!(status(client.get(path)).await, 401, "{path}");
    }
    assert_eq!(status(client.post("/classify_image/")).await, 401);
    assert_eq!(status(client.post("/classify_image")).await, 401);
}

#[tokio::test]
async fn the_page_and_the_documentation_have_a_rate_of_their_own_and_probes_have_none() {
    let client = client(&["--rate-limit", "0.01", "--rate-limit-burst", "1"]);
    for _ in 0..100 {
        assert_eq!(status(client.get("/health/live")).await, 200);
    }
    let mut passed = 0;
    for _ in 0..100 {
        match status(client.get("/docs")).await {
            200 => passed += 1,
            other => assert_eq!(other, 429),
        }
    }
    assert!((20..30).contains(&passed), "a page load passes: {passed}");
    assert_eq!(status(client.get("/v1/model")).await, PASSED);
}

#[test]
fn keys_come_from_a_file_too_and_one_that_holds_none_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys");
    let file = path.to_str().expect("UTF-8");
    let access = |arguments: &[&str]| {
        let arguments = [&["test", "--api-key-file", file], arguments].concat();
        Arguments::parse_from(arguments).access.load()
    };
    let said = access(&[]).expect_err("no file").to_string();
    assert!(said.contains(file), "{said}");
    let table = [
        ("# whose\none\n\n  two  \n", Ok(2)),
        ("", Err("it holds none")),
        ("# nothing but words\n", Err("it holds none")),
        ("one\ntwo words\n", Err("line 2")),
    ];
    for (text, expected) in table {
        std::fs::write(&path, text).expect("written");
        match (access(&[]), expected) {
            (Ok(access), Ok(keys)) => assert_eq!(access.keys.len(), keys, "{text:?}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{text:?}: {found:?}"),
        }
    }
    std::fs::write(&path, "sesame").expect("written");
    assert_eq!(access(&["--api-key", "two"]).expect("rules").keys.len(), 2);
    assert!(!format!("{:?}", access(&[]).expect("rules")).contains("sesame"));
}

#[test]
fn what_could_not_work_is_refused_when_the_command_line_is_read() {
    let table: [&[&str]; 11] = [
        &["--api-key", ""],
        &["--api-key", "two words"],
        &["--api-key", "a,,b"],
        &["--cors-allow-origin", "example.com"],
        &["--cors-allow-origin", "https://example.com/"],
        &["--cors-allow-origin", "https://*.example.com"],
        &["--rate-limit", "0"],
        &["--rate-limit", "NaN"],
        &["--rate-limit", "-1"],
        &["--rate-limit-burst", "5"],
        &["--trusted-proxies", "17"],
    ];
    for arguments in table {
        let parsed = Arguments::try_parse_from([&["test"], arguments].concat());
        assert!(parsed.is_err(), "{arguments:?}");
    }
}

#[tokio::test]
async fn over_the_rate_is_429_with_a_time_to_wait_and_probes_do_not_count() {
    let client = client(&["--rate-limit", "0.1", "--rate-limit-burst", "2"]);
    for _ in 0..5 {
        assert_eq!(status(client.get("/health/live")).await, 200);
    }
    for _ in 0..2 {
        assert_eq!(status(client.get("/v1/model")).await, PASSED);
    }
    let response = client.get("/v1/model").send().await;
    assert_eq!(response.0.status().as_u16(), 429);
    let wait: u32 = header(&response, "retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    assert!((1..=10).contains(&wait), "{wait}");
    let metrics = client
        .get("/metrics")
        .send()
        .await
        .0
        .into_body()
        .into_string()
        .await;
    let metrics = metrics.expect("a text");
    assert!(
        metrics.contains("imgclass_rejections_total{reason=\"rate-limited\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn each_key_has_its_own_rate_and_guessing_keys_has_the_addresss() {
    let client = client(&["--api-key", "a", "--api-key", "b", "--rate-limit", "0.01"]);
    let with = async |key: &str| status(client.get("/v1/model").header("x-api-key", key)).await;
    assert_eq!([with("a").await, with("b").await], [PASSED, PASSED]);
    assert_eq!([with("a").await, with("b").await], [429, 429]);
    assert_eq!([with("c").await, with("d").await], [401, 429]);
}

#[tokio::test]
async fn forwarded_addresses_count_only_as_far_as_proxies_are_trusted() {
    let ask = async |client: &TestClient<_>, forwarded: &str| {
        status(client.get("/v1/model").header("x-forwarded-for", forwarded)).await
    };
    let nobody = client(&["--rate-limit", "0.01"]);
    assert_eq!(ask(&nobody, "192.0.2.1").await, PASSED);
    assert_eq!(
        ask(&nobody, "192.0.2.2").await,
        429,
        "a header that nobody vouches for makes no new caller"
    );
    let one = client(&["--rate-limit", "0.01", "--trusted-proxies", "1"]);
    let table = [
        ("192.0.2.1", PASSED),
        ("192.0.2.2", PASSED),
        ("198.51.100.7, 192.0.2.1", 429),
        ("192.0.2.3, 198.51.100.7", PASSED),
        ("::ffff:192.0.2.1", 429),
        ("2001:db8:0:1::1", PASSED),
        ("2001:db8:0:1:ffff::2", 429),
        ("2001:db8:0:2::1", PASSED),
        ("no address", PASSED),
        ("none here either", 429),
    ];
    for (forwarded, expected) in table {
        assert_eq!(ask(&one, forwarded).await, expected, "{forwarded}");
    }
}

#[tokio::test]
async fn allowed_origins_may_read_answers_and_errors_and_others_are_served_without() {
    let client = client(&[
        "--cors-allow-origin",
        "https://a.example,http://localhost:3000",
        "--api-key",
        "k",
    ]);
    for (origin, allowed) in [
        ("https://a.example", true),
        ("http://localhost:3000", true),
        ("https://b.example", false),
        ("http://a.example", false),
        ("https://a.example.evil", false),
        ("null", false),
    ] {
        for path in ["/health/live", "/v1/model", "/nowhere"] {
            let response = client.get(path).header("origin", origin).send().await;
            let expected = allowed.then_some(origin);
            assert_eq!(
                header(&response, "access-control-allow-origin"),
                expected,
                "{origin} {path}"
            );
            assert_eq!(header(&response, "vary"), Some("Origin"));
        }
        let preflight = client
            .request(Method::OPTIONS, "/classify_image/")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type, x-api-key")
            .send()
            .await;
        assert_eq!(
            header(&preflight, "access-control-allow-origin"),
            allowed.then_some(origin)
        );
        assert_eq!(
            preflight.0.status().as_u16() == 204,
            allowed,
            "{origin}: browsers send no key with this"
        );
    }
}

#[tokio::test]
async fn without_an_allow_list_no_page_may_read_and_a_star_opens_all() {
    let closed = client(&[])
        .get("/health/live")
        .header("origin", "https://a.example")
        .send()
        .await;
    assert_eq!(header(&closed, "access-control-allow-origin"), None);
    assert_eq!(header(&closed, "vary"), None);
    let open = client(&["--cors-allow-origin", "*"])
        .get("/health/live")
        .header("origin", "https://a.example")
        .send()
        .await;
    assert_eq!(header(&open, "access-control-allow-origin"), Some("*"));
}
