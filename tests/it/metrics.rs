//! What Prometheus sees: names, labels and counts, and that no label takes a value that a stranger
//! chooses.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::support::pictures::example;
use crate::support::service::{LIMITS, observed_service};
use imgclass::api::{ApiState, app, metrics_app};
use imgclass::metrics::Metrics;
use imgclass::service::{Observer as _, Phase, Service};
use imgclass_engine::Observer;
use poem::test::TestClient;
use serde_json::json;

/// A service, and the metrics that count what it does; shared by the tests that need a loaded one.
static SERVING: LazyLock<(Arc<Service>, Arc<Metrics>)> = LazyLock::new(|| {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let service = observed_service(&["--max-concurrent-requests", "1"], metrics.clone());
    metrics.model_loaded(&service).expect("a model's labels");
    (service, metrics)
});

fn state() -> ApiState {
    let (service, metrics) = &*SERVING;
    let state = ApiState::loading(LIMITS).with_metrics(metrics.clone(), false);
    state.loaded(service.clone());
    state
}

async fn scrape(client: &TestClient<impl poem::Endpoint>) -> String {
    let response = client.get("/metrics").send().await;
    response.assert_status_is_ok();
    response.assert_header("content-type", "text/plain; version=0.0.4");
    response.0.into_body().into_string().await.expect("a text")
}

/// The value of a series, written as Prometheus writes it; 0 where it is not there yet.
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn requests_phases_rejections_and_batches_are_counted() {
    let client = TestClient::new(app(state()));
    let good = json!({"user_id": "u", "image_url": example()});
    let before = scrape(&client).await;
    let status = async |request: poem::test::TestRequestBuilder<'_, _>| {
        request.send().await.0.status().as_u16()
    };

    assert_eq!(
        status(client.post("/classify_image/").body_json(&good)).await,
        200
    );
    assert_eq!(
        status(client.post("/classify_image").body_json(&good)).await,
        200
    );
    assert_eq!(status(client.post("/classify_image/").body("{")).await, 400);
    let place = SERVING.0.admit().expect("a place");
    assert_eq!(
        status(client.post("/classify_image/").body_json(&good)).await,
        503
    );
    let full = scrape(&client).await;
    drop(place);
    for unknown in ["/stranger/1", "/stranger/2", "/%22%0a"] {
        assert_eq!(status(client.get(unknown)).await, 404);
    }
    let strange = poem::http::Method::from_bytes(b"STRANGER").expect("a method");
    assert_eq!(status(client.request(strange, "/v1/model")).await, 405);

    let after = scrape(&client).await;
    let route = |route: &str, status: &str, method: &str| {
        format!(
            "imgclass_http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}"
        )
    };
    let grown: [(&str, f64); 13] = [
        (&route("/classify_image/", "200", "POST"), 2.0),
        (&route("/classify_image/", "400", "POST"), 1.0),
        (&route("/classify_image/", "503", "POST"), 1.0),
        (&route("unmatched", "404", "GET"), 3.0),
        (&route("/v1/model", "405", "other"), 1.0),
        ("imgclass_rejections_total{reason=\"overloaded\"}", 1.0),
        (
            "imgclass_http_request_duration_seconds_count{route=\"/classify_image/\"}",
            4.0,
        ),
        (
            "imgclass_phase_duration_seconds_count{phase=\"fetch\"}",
            2.0,
        ),
        (
            "imgclass_phase_duration_seconds_count{phase=\"decode\"}",
            2.0,
        ),
        (
            "imgclass_phase_duration_seconds_count{phase=\"queue\"}",
            2.0,
        ),
        (
            "imgclass_phase_duration_seconds_count{phase=\"inference\"}",
            2.0,
        ),
        (
            "imgclass_phase_duration_seconds_count{phase=\"total\"}",
            2.0,
        ),
        ("imgclass_batch_size_sum", 2.0),
    ];
    for (series, by) in grown {
        assert_eq!(
            value(&after, series) - value(&before, series),
            by,
            "{series} in\n{after}"
        );
    }
    assert_eq!(value(&full, "imgclass_requests_in_flight"), 1.0);
    assert_eq!(value(&after, "imgclass_requests_in_flight"), 0.0);
    assert_eq!(value(&after, "imgclass_ready"), 1.0);
    let lower = after.to_lowercase();
    assert!(
        !lower.contains("stranger") && !after.contains("%22"),
        "{after}"
    );
}

#[tokio::test]
#[expect(
    clippy::disallowed_types,
    reason = "the start of a process is a time of the wall clock"
)]
async fn the_model_the_build_and_the_process_are_told() {
    let client = TestClient::new(app(state()));
    if cfg!(target_os = "linux") {
        work_for_a_second(&client).await;
    }
    let text = scrape(&client).await;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        value(
            &text,
            &format!("imgclass_build_info{{version=\"{version}\"}}")
        ),
        1.0
    );
    assert!(
        text.contains("imgclass_model_info{") && text.contains("model=\"random\""),
        "{text}"
    );
    for name in [
        "imgclass_runtime_workers",
        "imgclass_connections_total",
        "imgclass_queue_depth",
    ] {
        assert!(
            text.contains(&format!("\n{name} ")),
            "{name} is missing from\n{text}"
        );
    }
    if cfg!(target_os = "linux") {
        let table = [
            ("process_resident_memory_bytes", 10e6),
            ("process_virtual_memory_bytes", 10e6),
            ("process_open_fds", 3.0),
            ("process_max_fds", 3.0),
            ("process_threads", 1.0),
            ("process_cpu_seconds_total", 0.01),
            ("process_start_time_seconds", 1.6e9),
        ];
        for (name, at_least) in table {
            assert!(
                value(&text, name) >= at_least,
                "{name} is {}",
                value(&text, name)
            );
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs_f64();
        assert!(value(&text, "process_start_time_seconds") <= now + 2.0);
    }
}

#[tokio::test]
async fn what_the_engine_tells_is_counted() {
    let metrics = Metrics::new().expect("metrics");
    metrics.worker_panicked();
    metrics.jobs_dropped(2, 3);
    metrics.batch_finished(8, Duration::from_millis(5));
    let text = metrics.text(None).expect("a text");
    let table = [
        ("imgclass_worker_panics_total", 1.0),
        ("imgclass_jobs_dropped_total{reason=\"abandoned\"}", 2.0),
        ("imgclass_jobs_dropped_total{reason=\"deadline\"}", 3.0),
        ("imgclass_batch_size_bucket{le=\"6\"}", 0.0),
        ("imgclass_batch_size_bucket{le=\"8\"}", 1.0),
        ("imgclass_ready", 0.0),
    ];
    for (series, expected) in table {
        assert_eq!(value(&text, series), expected, "{series} in\n{text}");
    }
}

#[tokio::test]
async fn on_a_port_of_their_own_the_metrics_leave_the_main_one() {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let state = ApiState::loading(LIMITS).with_metrics(metrics, true);
    let main = TestClient::new(app(state.clone()));
    main.get("/metrics")
        .send()
        .await
        .assert_status(poem::http::StatusCode::NOT_FOUND);
    let apart = TestClient::new(metrics_app(state));
    assert!(scrape(&apart).await.contains("imgclass_ready 0"));
    apart
        .get("/v1/model")
        .send()
        .await
        .assert_status(poem::http::StatusCode::NOT_FOUND);
}

/// Uses processor time until the metrics show some: the collector counts whole seconds, and this
/// test alone would take less than one. Gives up after a minute; the caller's assertion fails then.
async fn work_for_a_second(client: &TestClient<impl poem::Endpoint>) {
    let start = std::time::Instant::now();
    while value(&scrape(client).await, "process_cpu_seconds_total") < 1.0
        && start.elapsed() < Duration::from_secs(60)
    {
        let turn = std::time::Instant::now();
        while turn.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
    }
}

/// The names of metrics in a text of queries, without what a histogram appends.
fn metric_names(queries: &str) -> std::collections::BTreeSet<&str> {
    queries
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("imgclass_") || word.starts_with("process_"))
        .map(|word| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter()
                .find_map(|end| word.strip_suffix(end))
                .unwrap_or(word)
        })
        .collect()
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    // Its own, as other tests count on the shared ones. Labelled metrics appear with their first
    // count.
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    metrics.batch_finished(1, Duration::from_millis(1));
    metrics.phase_finished(Phase::Total, Duration::from_millis(1));
    let loading = ApiState::loading(LIMITS).with_metrics(metrics, false);
    let client = TestClient::new(app(loading));
    let body = json!({"user_id": "u", "image_url": "https://example.org/a.jpg"});
    let early = client
        .post("/classify_image/")
        .body_json(&body)
        .send()
        .await;
    early.assert_status(poem::http::StatusCode::SERVICE_UNAVAILABLE);
    let text = scrape(&client).await;
    let dashboard = include_str!("../../deploy/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    let ids: std::collections::BTreeSet<_> =
        panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "panels have ids of their own");
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("targets"))
        .map(|target| target["expr"].as_str().expect("a query"))
        .collect();
    assert!(queries.len() >= panels.len(), "every panel shows something");
    let alerts = include_str!("../../deploy/prometheus-rules.yml");
    for name in metric_names(&queries.join(" ")).union(&metric_names(alerts)) {
        let declared = text.contains(&format!("# TYPE {name} "));
        assert!(declared, "{name} is not among:\n{text}");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let text = scrape(&TestClient::new(app(state()))).await;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        // Not by a macro: what those print is shown for failing tests only.
        let _ = std::io::stderr().write_all(
            b"\n*** SKIPPED: promtool check metrics: promtool is not installed (Debian: apt-get install prometheus) ***\n",
        );
        return;
    };
    let mut input = promtool.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("written");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
