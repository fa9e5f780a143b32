//! Clients, image hosts and models that behave badly, against the real server on a real socket:
//! each costs itself, and nobody else.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::pictures::example;
use crate::support::serving::{CONNECTIONS, HTTP, Serving, answer, classify, exchange, rest};
use imgclass::api::ApiState;
use imgclass::config::{ConnectionLimits, HttpLimits};
use imgclass_network::{Input, Network, NetworkError, Output, Want};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers at once.
struct Quick;

impl Network for Quick {
    fn run_batch(&self, images: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
        Ok(images.iter().map(|_| output()).collect())
    }
}

fn output() -> Output {
    Output {
        logits: vec![0.0; 1000],
        ..Output::default()
    }
}

/// Tells when a batch begins, and runs it only when it is allowed to.
struct Gated {
    begun: tokio::sync::mpsc::UnboundedSender<usize>,
    leave: Mutex<Receiver<()>>,
}

impl Gated {
    fn new() -> (
        Arc<Self>,
        Sender<()>,
        tokio::sync::mpsc::UnboundedReceiver<usize>,
    ) {
        let (begin, begun) = tokio::sync::mpsc::unbounded_channel();
        let (gate, leave) = channel();
        let model = Self {
            begun: begin,
            leave: Mutex::new(leave),
        };
        (Arc::new(model), gate, begun)
    }
}

impl Network for Gated {
    fn run_batch(&self, images: &[&Input], want: &[Want]) -> Result<Vec<Output>, NetworkError> {
        let _ = self.begun.send(images.len());
        let _ = self.leave.lock().expect("nobody panics").recv();
        Quick.run_batch(images, want)
    }
}

/// Panics on its first batch.
#[derive(Default)]
struct PanicsOnce(AtomicUsize);

impl Network for PanicsOnce {
    fn run_batch(&self, images: &[&Input], want: &[Want]) -> Result<Vec<Output>, NetworkError> {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "injected");
        Quick.run_batch(images, want)
    }
}

async fn quick(http: HttpLimits, connections: ConnectionLimits) -> Serving {
    Serving::start(Arc::new(Quick), &[], http, connections).await
}

/// A service, a host that takes its fetches and says nothing unless told to, and the host's port.
async fn with_a_silent_host(idle_timeout: &str) -> (Serving, TcpListener, u16) {
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = host.local_addr().expect("an address").port();
    let arguments = [
        "--fetch-allow-cidr",
        "127.0.0.0/8",
        "--fetch-allow-port",
        &port.to_string(),
        "--fetch-idle-timeout",
        idle_timeout,
    ];
    let serving = Serving::start(Arc::new(Quick), &arguments, HTTP, CONNECTIONS).await;
    (serving, host, port)
}

async fn serves(serving: &Serving) {
    let text = exchange(serving, &classify(example(), "close")).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_head_that_comes_too_slowly_ends_its_connection_however_it_drips() {
    let limits = ConnectionLimits {
        header_timeout: SHORT,
        ..CONNECTIONS
    };
    let serving = quick(HTTP, limits).await;
    for start in ["", "G", "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut stream = serving.connect().await;
        stream.write_all(start.as_bytes()).await.expect("sent");
        assert_eq!(
            rest(&mut stream).await,
            "",
            "closed without an answer after {start:?}"
        );
    }
    let (mut read, mut write) = serving.connect().await.into_split();
    let dripping = tokio::spawn(async move {
        let head = "GET /health/live HTTP/1.1\r\nX: "
            .bytes()
            .chain(std::iter::repeat(b'x'));
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        for byte in head {
            tick.tick().await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    // The end may be a reset here: bytes were still on their way.
    let mut bytes = Vec::new();
    let _ = read.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty());
    dripping.await.expect("the write fails in the end");
    serves(&serving).await;
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_its_time_and_a_busy_one_is_not() {
    let limits = ConnectionLimits {
        keep_alive_timeout: SHORT,
        ..CONNECTIONS
    };
    let (model, gate, mut begun) = Gated::new();
    let serving = Serving::start(model, &[], HTTP, limits).await;
    let mut busy = serving.connect().await;
    busy.write_all(classify(example(), "keep-alive").as_bytes())
        .await
        .expect("sent");
    begun.recv().await;
    let mut idle = serving.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    let text = rest(&mut idle).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    // The idle one has been closed for its time; the busy one, as old, has not.
    gate.send(()).expect("the model waits");
    let text = answer(&mut busy).await.expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_answered_408() {
    let limits = HttpLimits {
        max_images: 32,
        body_timeout: SHORT,
        ..HTTP
    };
    let serving = quick(limits, CONNECTIONS).await;
    let mut stream = serving.connect().await;
    let head = "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let text = rest(&mut stream).await;
    assert!(
        text.starts_with("HTTP/1.1 408") && text.contains("request-timeout"),
        "{text}"
    );
    assert_eq!(
        serving.count("imgclass_rejections_total{reason=\"request-timeout\"}"),
        1.0
    );
    serves(&serving).await;
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_at_the_limit() {
    let serving = quick(HTTP, CONNECTIONS).await;
    let (mut read, mut write) = serving.connect().await.into_split();
    let sending = tokio::spawn(async move {
        let head =
            "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        write.write_all(head.as_bytes()).await.expect("sent");
        let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
        // Endless, until the server has had enough.
        while write.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let mut text = vec![0; 64];
    let n = read
        .read(&mut text)
        .await
        .expect("an answer before the end");
    assert!(
        text[..n].starts_with(b"HTTP/1.1 413"),
        "{}",
        String::from_utf8_lossy(&text)
    );
    drop(read);
    sending.await.expect("it ends");
    serves(&serving).await;
}

#[tokio::test]
async fn a_client_that_sends_on_after_its_refusal_gets_to_read_it() {
    let serving = quick(HTTP, CONNECTIONS).await;
    // Far more than sockets buffer: the client is still sending when the answer comes.
    let body = vec![b'x'; 8 << 20];
    let mut stream = serving.connect().await;
    let length = body.len();
    let head =
        format!("POST /classify_image/ HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream
        .write_all(&body)
        .await
        .expect("sent, though nobody wants it");
    let text = rest(&mut stream).await;
    assert!(
        text.starts_with("HTTP/1.1 413") && text.contains("payload-too-large"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_vanishes_frees_its_place_and_its_fetch_is_given_up() {
    let (serving, host, port) = with_a_silent_host("60s").await;
    let request = classify(&format!("http://127.0.0.1:{port}/a.jpg"), "keep-alive");
    // A closed socket, and one that is closed half: who does not stay for the answer has left, in
    // either way.
    for half in [false, true] {
        let mut client = serving.connect().await;
        client.write_all(request.as_bytes()).await.expect("sent");
        let (mut fetch, _) = host.accept().await.expect("the service fetches");
        assert!(fetch.read(&mut [0; 512]).await.expect("a request") > 0);
        assert_eq!(serving.service.in_flight(), 1);
        if half {
            client.shutdown().await.expect("half closed");
            assert_eq!(rest(&mut client).await, "");
        } else {
            drop(client);
        }
        let mut unread = Vec::new();
        // Ends when the service hangs up on the host, which without a client it does at once.
        let _ = fetch.read_to_end(&mut unread).await;
    }
    serving
        .until("imgclass_http_requests_abandoned_total", 2.0)
        .await;
    serving.until("imgclass_requests_in_flight", 0.0).await;
    serves(&serving).await;
}

#[tokio::test]
async fn jobs_of_clients_that_vanished_cost_no_forward() {
    let (model, gate, mut begun) = Gated::new();
    let serving = Serving::start(model, &["--max-batch-size", "1"], HTTP, CONNECTIONS).await;
    let send = async || {
        let mut stream = serving.connect().await;
        stream
            .write_all(classify(example(), "close").as_bytes())
            .await
            .expect("sent");
        stream
    };
    let mut first = send().await;
    begun.recv().await;
    let gone = send().await;
    serving.until("imgclass_queue_depth", 1.0).await;
    let mut last = send().await;
    serving.until("imgclass_queue_depth", 2.0).await;
    drop(gone);
    serving
        .until("imgclass_http_requests_abandoned_total", 1.0)
        .await;
    (0..2).for_each(|_| gate.send(()).expect("the model waits"));
    for stream in [&mut first, &mut last] {
        assert!(rest(stream).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(
        serving.count("imgclass_jobs_dropped_total{reason=\"abandoned\"}"),
        1.0
    );
    assert_eq!(serving.count("imgclass_batch_size_count"), 2.0);
}

#[tokio::test]
async fn a_host_that_hangs_costs_its_request_and_the_others_go_on() {
    let (serving, host, port) = with_a_silent_host("200ms").await;
    let mut hanging = serving.connect().await;
    let request = classify(&format!("http://127.0.0.1:{port}/a.jpg"), "close");
    hanging.write_all(request.as_bytes()).await.expect("sent");
    let _held = host.accept().await.expect("the service fetches");
    serves(&serving).await;
    let text = rest(&mut hanging).await;
    assert!(
        text.starts_with("HTTP/1.1 422") && text.contains("image-unavailable"),
        "{text}"
    );
}

#[tokio::test]
async fn a_panic_of_the_model_is_500_for_its_batch_counted_and_survived() {
    let serving = Serving::start(Arc::new(PanicsOnce::default()), &[], HTTP, CONNECTIONS).await;
    let text = exchange(&serving, &classify(example(), "close")).await;
    assert!(
        text.starts_with("HTTP/1.1 500") && !text.contains("injected"),
        "{text}"
    );
    serves(&serving).await;
    serving.until("imgclass_worker_panics_total", 1.0).await;
    assert_eq!(serving.count("imgclass_ready"), 1.0);
}

#[tokio::test]
async fn a_stuck_worker_makes_the_service_not_ready_until_it_ends_and_leaves_it_alive() {
    let (model, gate, mut begun) = Gated::new();
    let serving = Serving::start_impatient(model, Duration::from_millis(20)).await;
    let mut waiting = serving.connect().await;
    let request = classify(example(), "close");
    waiting.write_all(request.as_bytes()).await.expect("sent");
    assert_eq!(begun.recv().await, Some(1));
    serving.until("imgclass_ready", 0.0).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let ready = exchange(&serving, &get("/health/ready")).await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("stuck"),
        "{ready}"
    );
    let live = exchange(&serving, &get("/health/live")).await;
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    gate.send(()).expect("the model waits");
    let answer = rest(&mut waiting).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serving.until("imgclass_ready", 1.0).await;
    let ready = exchange(&serving, &get("/health/ready")).await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
}

/// How many descriptors this process may have open.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    limit.unwrap_or(256)
}

#[tokio::test]
async fn thousands_of_idle_connections_are_bounded_told_so_and_make_room_again() {
    // A client's and the server's end are both ours.
    let many = (descriptors().saturating_sub(150) / 2).min(4000);
    let limits = ConnectionLimits {
        max_connections: many - 20,
        ..CONNECTIONS
    };
    let serving = quick(HTTP, limits).await;
    let mut idle = Vec::new();
    for _ in 0..limits.max_connections {
        idle.push(serving.connect().await);
    }
    for _ in 0..5 {
        let text = exchange(&serving, &classify(example(), "close")).await;
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
        assert!(
            head.starts_with("HTTP/1.1 503") && head.contains("Retry-After: 1"),
            "{text}"
        );
        let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(problem["code"], "too-many-connections");
    }
    assert_eq!(
        serving.count("imgclass_rejections_total{reason=\"too-many-connections\"}"),
        5.0
    );
    assert_eq!(
        serving.count("imgclass_connections"),
        limits.max_connections as f64
    );
    drop(idle);
    serving.until("imgclass_connections", 0.0).await;
    serves(&serving).await;
}

#[tokio::test]
async fn overload_is_refused_with_503_and_what_was_admitted_is_answered() {
    let (model, gate, mut begun) = Gated::new();
    let serving = Serving::start(
        model,
        &["--max-concurrent-requests", "3", "--queue-capacity", "1"],
        HTTP,
        CONNECTIONS,
    )
    .await;
    let mut admitted: Vec<TcpStream> = Vec::new();
    for places in 1..=3 {
        let mut stream = serving.connect().await;
        stream
            .write_all(classify(example(), "close").as_bytes())
            .await
            .expect("sent");
        admitted.push(stream);
        serving
            .until("imgclass_requests_in_flight", f64::from(places))
            .await;
    }
    begun.recv().await;
    for _ in 0..20 {
        let text = exchange(&serving, &classify(example(), "close")).await;
        assert!(
            text.starts_with("HTTP/1.1 503") && text.to_lowercase().contains("retry-after: 1"),
            "{text}"
        );
    }
    drop(gate);
    for stream in &mut admitted {
        assert!(rest(stream).await.starts_with("HTTP/1.1 200"));
    }
}

/// Asks on kept connections until nobody listens any more; tells after each answer.
async fn ask_on_and_on(address: SocketAddr, told: tokio::sync::mpsc::Sender<()>) {
    let request = classify(example(), "keep-alive");
    // A connection that was closed is replaced, until nobody listens any more.
    while let Ok(mut stream) = TcpStream::connect(address).await {
        // Who connects in the moment of the end may find nobody: nothing of that was accepted.
        if stream.write_all(request.as_bytes()).await.is_err()
            || stream.peek(&mut [0]).await.unwrap_or(0) == 0
        {
            break;
        }
        loop {
            let text = answer(&mut stream)
                .await
                .expect("what was sent is answered");
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            let _ = told.try_send(());
            if text.to_lowercase().contains("connection: close") {
                break;
            }
            stream.write_all(request.as_bytes()).await.expect("sent");
        }
    }
}

#[tokio::test]
async fn a_stop_under_load_answers_everything_that_was_sent_and_resets_nobody() {
    for _ in 0..10 {
        let serving = quick(HTTP, CONNECTIONS).await;
        let address = serving.address;
        let (told, mut stopping) = tokio::sync::mpsc::channel::<()>(1);
        let clients: Vec<_> = (0..8)
            .map(|_| tokio::spawn(ask_on_and_on(address, told.clone())))
            .collect();
        stopping.recv().await.expect("a first answer");
        assert!(
            serving.stop().await.expect("no panic"),
            "all connections finished"
        );
        for client in clients {
            client.await.expect("nobody was reset");
        }
    }
}

#[tokio::test]
async fn a_stop_waits_for_a_request_in_flight_and_not_for_idle_connections() {
    let (model, gate, mut begun) = Gated::new();
    let serving = Serving::start(model, &[], HTTP, CONNECTIONS).await;
    let mut idle = serving.connect().await;
    let mut busy = serving.connect().await;
    busy.write_all(classify(example(), "keep-alive").as_bytes())
        .await
        .expect("sent");
    begun.recv().await;
    let address = serving.address;
    let ended = serving.stop();
    assert_eq!(rest(&mut idle).await, "", "the idle one is closed");
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
    assert!(!ended.is_finished());
    gate.send(()).expect("the model waits");
    let text = rest(&mut busy).await;
    assert!(
        text.starts_with("HTTP/1.1 200") && text.to_lowercase().contains("connection: close"),
        "{text}"
    );
    assert!(ended.await.expect("no panic"));
}

/// A client that has sent all of a body but the last byte.
struct AlmostSent {
    length: usize,
    stream: TcpStream,
}

impl AlmostSent {
    async fn new(serving: &Serving, length: usize) -> Self {
        let mut stream = serving.connect().await;
        let head = "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let body = "x".repeat(length - 1);
        let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.expect("sent");
        Self { length, stream }
    }
}

/// Sends those bodies again that were refused. They take their memory as they arrive, and a small
/// body that came in between may have taken what they needed.
async fn send_again(serving: &Serving, held: &mut [AlmostSent]) {
    for sent in held {
        let mut byte = [0];
        let answered = tokio::time::timeout(Duration::from_millis(5), sent.stream.peek(&mut byte));
        if answered.await.is_ok() {
            *sent = AlmostSent::new(serving, sent.length).await;
        }
    }
}

#[tokio::test]
async fn bodies_that_are_received_at_one_time_have_a_bound_together() {
    let serving =
        Serving::start_with(Arc::new(Quick), |state| state.with_body_memory(200 * 1024)).await;
    // Two clients that announced 100 and 90 KiB, and send all but the last byte.
    let mut held = Vec::new();
    for length in [100 * 1024, 90 * 1024] {
        held.push(AlmostSent::new(&serving, length).await);
    }
    // There is room for small ones only, whether or not they say their length.
    while serves_or_503(&serving, 30 * 1024).await != 503 {
        send_again(&serving, &mut held).await;
    }
    let chunk = format!("7800\r\n{}\r\n", "x".repeat(0x7800));
    let head = "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let request = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}");
    let mut streamed = serving.connect().await;
    streamed.write_all(request.as_bytes()).await.expect("sent");
    assert!(rest(&mut streamed).await.starts_with("HTTP/1.1 503"));
    serves(&serving).await;
    held.remove(0);
    while serves_or_503(&serving, 30 * 1024).await != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bodies_that_are_only_announced_cost_nothing_and_are_found_out_early() {
    let limits = HttpLimits {
        body_timeout: Duration::from_mins(10),
        ..HTTP
    };
    let quick: Arc<dyn Network> = Arc::new(Quick);
    let memory = 2 * limits.payload_limit as u64;
    let serving = Serving::start_with(quick.clone(), |_| {
        ApiState::loading(limits).with_body_memory(memory)
    })
    .await;
    let head = format!(
        "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        limits.payload_limit
    );
    let mut announced = Vec::new();
    for _ in 0..8 {
        let mut stream = serving.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        announced.push(stream);
    }
    for _ in 0..20 {
        serves(&serving).await;
    }

    // A sixth of the time for a body is enough to see that nothing comes, or too little.
    let limits = HttpLimits {
        body_timeout: Duration::from_millis(600),
        ..HTTP
    };
    let serving = Serving::start(quick, &[], limits, CONNECTIONS).await;
    for sent in [0, 100_000] {
        let mut stream = serving.connect().await;
        let request = format!("{head}{}", "x".repeat(sent));
        let start = std::time::Instant::now();
        stream.write_all(request.as_bytes()).await.expect("sent");
        let text = rest(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn a_request_has_one_host() {
    let serving = quick(HTTP, CONNECTIONS).await;
    let cases = [
        ("HTTP/1.1", "Host: example.com\r\n", 200),
        ("HTTP/1.1", "Host: [::1]:8000\r\n", 200),
        ("HTTP/1.1", "Host:\r\n", 200),
        ("HTTP/1.0", "", 200),
        ("HTTP/1.1", "", 400),
        ("HTTP/1.1", "Host: a\r\nHost: a\r\n", 400),
        ("HTTP/1.0", "Host: a\r\nHost: b\r\n", 400),
        ("HTTP/1.1", "Host: a b\r\n", 400),
        ("HTTP/1.1", "Host: user@a\r\n", 400),
        ("HTTP/1.1", "Host: a/b\r\n", 400),
        ("HTTP/1.1", "Host: a:\r\n", 200),
        ("HTTP/1.1", "Host: a:65536\r\n", 400),
    ];
    for (version, hosts, status) in cases {
        let request = format!("GET /health/live {version}\r\n{hosts}Connection: close\r\n\r\n");
        let text = exchange(&serving, &request).await;
        let start = format!("{version} {status}");
        assert!(text.starts_with(&start), "{hosts:?}: {text}");
    }
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A client of HTTP/2 that sends what is written by hand, and reads nothing.
async fn connect_http2(serving: &Serving) -> TcpStream {
    let mut stream = serving.connect().await;
    let settings = frame(4, 0, 0, &[]);
    let start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
    stream.write_all(&start).await.expect("sent");
    stream
}

#[tokio::test]
async fn a_head_has_a_hundred_fields_at_most_however_short_they_are() {
    let serving = quick(HTTP, CONNECTIONS).await;
    // Beside Host and Connection.
    for (fields, status) in [(98, 200), (99, 431)] {
        let fields = "a:\r\n".repeat(fields);
        let request =
            format!("GET /health/live HTTP/1.1\r\nHost: x\r\n{fields}Connection: close\r\n\r\n");
        let text = exchange(&serving, &request).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
    }
    let mut stream = connect_http2(&serving).await;
    let cases = [
        (1, 100, "/health/live", 200, 2.0),
        (3, 101, "unmatched", 431, 1.0),
    ];
    for (stream_id, fields, route, status, answers) in cases {
        // GET, http, path and authority; a field `a` that enters the table, and its index again.
        let head = [
            &b"\x82\x86\x04\x0c/health/live\x01\x01x\x40\x01a\x00"[..],
            &vec![0xbe; fields - 1],
        ]
        .concat();
        let head = frame(1, 0x5, stream_id, &head);
        stream.write_all(&head).await.expect("sent");
        let labels = format!("method=\"GET\",route=\"{route}\",status=\"{status}\"");
        let series = format!("imgclass_http_requests_total{{{labels}}}");
        serving.until(&series, answers).await;
    }
}

#[tokio::test]
async fn large_bodies_leave_room_for_small_ones() {
    const MIB: usize = 1024 * 1024;
    let limits = HttpLimits {
        payload_limit: 3 * MIB,
        ..HTTP
    };
    let quick: Arc<dyn Network> = Arc::new(Quick);
    let serving = Serving::start_with(quick, |_| {
        ApiState::loading(limits).with_body_memory(8 * MIB as u64)
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(AlmostSent::new(&serving, limits.payload_limit).await);
    }
    // 6 MiB are taken. Of the other 2, large bodies may have 1.
    while serves_or_503(&serving, MIB + MIB / 4).await != 503 {
        send_again(&serving, &mut held).await;
    }
    for _ in 0..10 {
        assert_eq!(serves_or_503(&serving, MIB).await, 200);
    }
}

#[tokio::test]
async fn a_connection_among_many_that_are_busy_has_its_share_of_requests() {
    let (model, gate, _begun) = Gated::new();
    let serving = Serving::start(model, &[], HTTP, CONNECTIONS).await;
    // POST, http, path and authority; the bodies do not come.
    let head = b"\x83\x86\x04\x0c/v1/classify\x01\x01x";
    let ask = |requests: std::ops::Range<u32>| -> Vec<u8> {
        let frames = requests.flat_map(|request| frame(1, 0x4, 1 + 2 * request, head));
        frames.collect()
    };
    let refused = "imgclass_rejections_total{reason=\"overloaded\"}";
    let in_flight = "imgclass_requests_in_flight";
    let idle = connect_http2(&serving).await;
    let mut busy = Vec::new();
    for _ in 0..60 {
        let mut stream = serving.connect().await;
        let request = classify(example(), "close");
        stream.write_all(request.as_bytes()).await.expect("sent");
        busy.push(stream);
    }
    serving.until(in_flight, 60.0).await;
    // 2048 requests are 33 for each of 61 connections. The idle one has no share.
    let mut greedy = connect_http2(&serving).await;
    greedy.write_all(&ask(0..64)).await.expect("sent");
    serving.until(refused, 64.0 - 33.0).await;
    drop((gate, idle));
    for mut stream in busy {
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    // Alone it may have all that a connection may have. The last one is answered.
    greedy.write_all(&ask(64..94)).await.expect("sent");
    let last = frame(1, 0x5, 1 + 2 * 94, b"\x82\x86\x04\x0c/health/live\x01\x01x");
    greedy.write_all(&last).await.expect("sent");
    let answered =
        "imgclass_http_requests_total{method=\"GET\",route=\"/health/live\",status=\"200\"}";
    serving.until(answered, 1.0).await;
    assert_eq!(serving.count(refused), 64.0 - 33.0);
}

#[tokio::test]
async fn a_client_that_opens_no_window_is_closed_however_many_pings_it_sends() {
    let limits = ConnectionLimits {
        header_timeout: Duration::from_millis(300),
        ..CONNECTIONS
    };
    let serving = quick(HTTP, limits).await;
    let mut stream = serving.connect().await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let mut start = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
    for request in 0..64 {
        // GET, http, then the path and the authority as literals.
        let head = [&b"\x82\x86\x04\x05/docs\x01\x01x"[..]].concat();
        start.extend(frame(1, 0x5, 1 + 2 * request, &head));
    }
    stream.write_all(&start).await.expect("sent");
    let (mut read, mut write) = stream.into_split();
    let pinging = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if write.write_all(&frame(6, 0, 0, b"12345678")).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = Vec::new();
    // The end may be a reset here: PINGs were still on their way.
    let _ = read.read_to_end(&mut bytes).await;
    assert!(!bytes.is_empty());
    pinging.await.expect("it ends");
    serving.until("imgclass_connections", 0.0).await;
    let asked = serving
        .count("imgclass_http_requests_total{method=\"GET\",route=\"/docs\",status=\"200\"}");
    assert!(asked > 0.0, "the answers were made: {asked}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_after_its_time() {
    let limits = ConnectionLimits {
        header_timeout: Duration::from_millis(300),
        ..CONNECTIONS
    };
    let serving = quick(HTTP, limits).await;
    let mut stream = serving.connect().await;
    // Swagger UI, more often than sockets buffer.
    let request = "GET /docs HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20);
    stream.write_all(request.as_bytes()).await.expect("sent");
    serving.until("imgclass_connections", 1.0).await;
    serving.until("imgclass_connections", 0.0).await;
    // A slow reader is no such client.
    let mut slow = serving.connect().await;
    let request = "GET /docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    slow.write_all(request.as_bytes()).await.expect("sent");
    let (mut total, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        match slow.read(&mut buffer).await.expect("closed, not reset") {
            0 => break,
            n => total += n,
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(total > 1_000_000, "{total}");
}

/// The status of a request whose body was filled up to `length` bytes with blanks.
async fn serves_or_503(serving: &Serving, length: usize) -> u16 {
    let request = classify(example(), "close");
    let (_, body) = request.split_once("\r\n\r\n").expect("a body");
    let head = "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nConnection: close";
    let blanks = " ".repeat(length - body.len());
    let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}{blanks}");
    let mut stream = serving.connect().await;
    // A refusal may come before all is sent.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut status = [0; 12];
    match stream.read_exact(&mut status).await {
        Ok(_) => String::from_utf8_lossy(&status[9..])
            .parse()
            .expect("a status"),
        Err(_) => 0,
    }
}
