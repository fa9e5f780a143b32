//! What an operator sees of the running binary: log lines, traces, metrics on their own port, ports
//! that are taken, and the load generator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::support::binary::{Running, http, imgclass, port_of};
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn every_line_of_a_request_has_its_id_and_its_callers_trace_and_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Running::start(folder.path(), &["--api-key", "sesame"], &[]);
    let headers = format!(
        "X-Request-Id: my-id\r\nX-API-Key: sesame\r\nTraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"
    );
    let answer = serving.classify(&headers);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("x-request-id: my-id"),
        "{answer}"
    );
    let answered = serving
        .log
        .iter()
        .find(|line| line["message"] == "answered")
        .expect("a line");
    assert_eq!(
        (answered["status"].as_u64(), answered["path"].as_str()),
        (Some(200), Some("/classify_image/"))
    );
    assert_eq!(answered["span"]["id"], "my-id");
    assert_eq!(answered["span"]["trace_id"], TRACE);

    serving.get(
        "/v1/model?key=sesame",
        "X-API-Key: wrong-sesame\r\nX-Request-Id: bad id\r\n",
    );
    let refused = serving
        .log
        .iter()
        .find(|line| line["message"] == "answered")
        .expect("a line");
    assert_eq!(
        (refused["status"].as_u64(), refused["problem"].as_str()),
        (Some(401), Some("unauthorized"))
    );
    let id = refused["span"]["id"].as_str().expect("an id");
    assert!(id.len() == 16 && id != "bad id", "{id}");
    for line in serving.start.iter().chain([&answered, &refused]) {
        assert!(!line.to_string().contains("sesame"), "{line}");
    }
}

/// One exported request: its path and its body.
fn collector() -> (u16, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, exported) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|n| n > 0) {}
            let length = head.to_lowercase();
            let length = length
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next());
            let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or(0)];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = reader.get_mut().write_all(answer);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let _ = sender.send((path, body));
        }
    });
    (port, exported)
}

#[cfg(unix)]
#[test]
fn spans_go_to_the_collector_under_the_callers_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, exported) = collector();
    let endpoint = format!("http://127.0.0.1:{port}");
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut serving = Running::start(folder.path(), &[], &environment);
    let answer = serving.classify(&format!("Traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(
        serving.terminate(),
        Some(0),
        "what waits is exported before the end"
    );
    let id: Vec<u8> = (0..32)
        .step_by(2)
        .map(|i| u8::from_str_radix(&TRACE[i..i + 2], 16).expect("digits"))
        .collect();
    let mut all = Vec::new();
    for (path, body) in exported.try_iter() {
        assert_eq!(path, "/v1/traces");
        all.extend(body);
    }
    let holds = |part: &[u8]| all.windows(part.len()).any(|window| window == part);
    assert!(holds(&id), "the caller's trace goes on");
    for part in [
        "imgclass",
        "request",
        "fetch",
        "decode",
        "model",
        "http.route",
        "/classify_image/",
    ] {
        assert!(
            holds(part.as_bytes()),
            "{part} is not among {} bytes",
            all.len()
        );
    }
    // Field 6 of a span is its kind, and 2 a server's (opentelemetry/proto/trace/v1/trace.proto).
    assert!(holds(&[6 << 3, 2]));
    assert!(!holds(b"base64"), "no image and no URL leaves with a trace");
}

#[cfg(unix)]
#[test]
fn a_collector_that_is_not_there_stops_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let closed = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port();
    let endpoint = format!("http://127.0.0.1:{closed}");
    let mut serving = Running::start(
        folder.path(),
        &[],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)],
    );
    assert!(serving.classify("").starts_with("HTTP/1.1 200"));
    assert_eq!(serving.terminate(), Some(0));
}

#[test]
fn metrics_may_have_a_port_of_their_own_and_two_services_cannot_share_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Running::start(
        folder.path(),
        &["--metrics-port", "0", "--api-key", "k"],
        &[],
    );
    let metrics = serving
        .start
        .iter()
        .find(|line| line["message"] == "metrics")
        .expect("a line");
    let port = port_of(metrics["address"].as_str().expect("an address"));
    assert!(
        serving.get("/metrics", "").starts_with("HTTP/1.1 404"),
        "not on the main port any more"
    );
    let text = http(port, "GET /metrics HTTP/1.1\r\n", "");
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("\nimgclass_ready 1\n"),
        "{text}"
    );
    assert!(http(port, "GET /v1/model HTTP/1.1\r\n", "").starts_with("HTTP/1.1 404"));

    let main = serving.port.to_string();
    let port = port.to_string();
    for (arguments, option) in [
        (
            ["--port", main.as_str(), "--metrics-port", "0"],
            "--hostname and --port",
        ),
        (
            ["--port", "0", "--metrics-port", port.as_str()],
            "--metrics-port",
        ),
    ] {
        let output = imgclass(folder.path())
            .args(["--hostname", "127.0.0.1", "--weights", "random"])
            .args(arguments)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("cannot listen on 127.0.0.1:") && said.contains(option),
            "{said}"
        );
    }
}

#[test]
fn bench_loads_a_running_service_in_a_closed_and_in_an_open_loop() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Running::start(
        folder.path(),
        &["--api-key", "k", "--max-concurrent-requests", "2"],
        &[],
    );
    let url = format!("http://127.0.0.1:{}/", serving.port);
    let bench = |arguments: &[&str]| {
        let output = imgclass(folder.path())
            .args(["bench", "--url", &url, "--duration", "300ms"])
            .args(arguments)
            .output()
            .expect("the binary runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        (
            output.status.code(),
            text,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let json = |arguments: &[&str]| {
        let (code, text, said) = bench(&[arguments, &["--format", "json", "--key", "k"]].concat());
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let closed = json(&["--clients", "1"]);
    let count =
        |report: &Value, status: &str| report["statuses"][status]["count"].as_u64().unwrap_or(0);
    assert!(
        count(&closed, "200") >= 1 && closed["images_per_second"].as_f64() > Some(0.0),
        "{closed}"
    );
    assert_eq!(
        closed["requests"].as_u64(),
        Some(count(&closed, "200")),
        "{closed}"
    );
    let open = json(&["--rate", "200"]);
    assert_eq!(open["requests"], 60, "as many as are due: {open}");
    assert!(
        count(&open, "200") >= 1 && count(&open, "200") + count(&open, "503") == 60,
        "{open}"
    );
    let (code, table, _) = bench(&["--clients", "2", "--key", "k"]);
    assert!(
        code == Some(0) && table.contains("closed loop of 2 clients") && table.contains("median"),
        "{table}"
    );
    let (code, table, said) = bench(&["--clients", "1"]);
    assert!(
        code == Some(1) && table.contains("401") && said.contains("no request was answered"),
        "{table}{said}"
    );
}

#[cfg(unix)]
#[test]
fn while_the_shutdown_delay_runs_it_is_not_ready_and_serves_on_and_a_second_signal_ends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut serving = Running::start(folder.path(), &["--shutdown-delay", "10m"], &[]);
    assert!(serving.get("/health/ready", "").starts_with("HTTP/1.1 200"));
    serving.signal();
    serving.until_logged("stopping; a second signal");
    let ready = serving.get("/health/ready", "");
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("shutting-down"),
        "{ready}"
    );
    assert!(serving.get("/health/live", "").starts_with("HTTP/1.1 200"));
    let answer = serving.classify("");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(serving.terminate(), Some(1));
}

#[cfg(unix)]
#[test]
fn a_stop_waits_for_a_request_in_flight_until_its_patience_or_a_second_signal_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = host.local_addr().expect("an address").port();
    for (patience, second, code) in [("10m", true, 1), ("100ms", false, 0)] {
        let mut serving = Running::start(
            folder.path(),
            &[
                "--fetch-allow-cidr",
                "127.0.0.0/8",
                "--fetch-allow-port",
                &port.to_string(),
                "--fetch-idle-timeout",
                "1h",
                "--fetch-timeout",
                "1h",
                "--request-timeout",
                "1h",
                "--shutdown-timeout",
                patience,
            ],
            &[],
        );
        let mut client = TcpStream::connect(("127.0.0.1", serving.port)).expect("a connection");
        let body = format!(r#"{{"user_id": "u", "image_url": "http://127.0.0.1:{port}/a.jpg"}}"#);
        let length = body.len();
        write!(
            client,
            "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let _fetch = host.accept().expect("the service fetches");
        serving.signal();
        serving.until_logged("stopping; a second signal");
        if second {
            serving.signal();
        }
        assert_eq!(serving.end(), Some(code), "patience of {patience}");
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(
            answer.is_empty(),
            "a request that is cut off gets no half answer"
        );
    }
}
