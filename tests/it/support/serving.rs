//! A service in the test's own process behind a socket on loopback, and clients that speak HTTP by
//! hand, well or badly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imgclass::api::{ApiState, Server, Stop, app};
use imgclass::config::{ConnectionLimits, HttpLimits};
use imgclass::metrics::Metrics;
use imgclass::service::{Service, ServiceOptions};
use imgclass_network::Network;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::service::{CLASSIFIER, options, service_with_model};

/// Bounds of HTTP that no well-behaved client of a test reaches.
pub(crate) const HTTP: HttpLimits = HttpLimits {
    max_images: 32,
    payload_limit: 256 * 1024,
    body_timeout: Duration::from_secs(60),
};

/// Bounds of connections that no well-behaved client of a test reaches.
pub(crate) const CONNECTIONS: ConnectionLimits = ConnectionLimits {
    max_connections: 100,
    header_timeout: Duration::from_secs(60),
    keep_alive_timeout: Duration::from_secs(60),
};

/// A server that listens on a free port of loopback.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) service: Arc<Service>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<bool>,
}

impl Serving {
    pub(crate) async fn start(
        model: Arc<dyn Network>,
        arguments: &[&str],
        http: HttpLimits,
        connections: ConnectionLimits,
    ) -> Self {
        Self::listen(
            model,
            &options(&CLASSIFIER, arguments),
            ApiState::loading(http),
            connections,
        )
        .await
    }

    /// Starts with the usual bounds, but calls a batch stuck after a time of the test's own.
    pub(crate) async fn start_impatient(model: Arc<dyn Network>, stuck_after: Duration) -> Self {
        let mut options = options(&CLASSIFIER, &[]);
        options.engine.stuck_after = stuck_after;
        Self::listen(model, &options, ApiState::loading(HTTP), CONNECTIONS).await
    }

    /// Starts with the usual bounds and with what `change` does to the state.
    pub(crate) async fn start_with(
        model: Arc<dyn Network>,
        change: impl FnOnce(ApiState) -> ApiState,
    ) -> Self {
        let state = change(ApiState::loading(HTTP));
        Self::listen(model, &options(&CLASSIFIER, &[]), state, CONNECTIONS).await
    }

    async fn listen(
        model: Arc<dyn Network>,
        options: &ServiceOptions,
        state: ApiState,
        connections: ConnectionLimits,
    ) -> Self {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let service = service_with_model(model, options, metrics.clone());
        let state = state.with_metrics(metrics.clone(), false);
        state.loaded(service.clone());
        let server = Server::bind("127.0.0.1", 0, connections, "--port")
            .await
            .expect("a port");
        let server = server.with_metrics(metrics.clone());
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let stop_when = Stop {
            signal: async { stopped.await.unwrap_or(()) },
            patience: Duration::from_secs(60),
        };
        let task = tokio::spawn(server.run(app(state), stop_when));
        Self {
            address,
            metrics,
            service,
            stop,
            task,
        }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address)
            .await
            .expect("a connection")
    }

    /// Returns the value of a series of the metrics; 0 where it is not there.
    pub(crate) fn count(&self, series: &str) -> f64 {
        let text = self.metrics.text(Some(&self.service)).expect("a text");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a series of the metrics has a value, for what the server does in a task of its
    /// own.
    pub(crate) async fn until(&self, series: &str, value: f64) {
        while self.count(series) != value {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Tells the server to stop; the returned task ends with it.
    pub(crate) fn stop(self) -> JoinHandle<bool> {
        self.stop.send(()).expect("the server runs");
        self.task
    }
}

/// Returns a request to classify a picture.
pub(crate) fn classify(image_url: &str, connection: &str) -> String {
    let body = format!(r#"{{"user_id": "u", "image_url": "{image_url}"}}"#);
    let length = body.len();
    format!(
        "POST /classify_image/ HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Reads until the server closes.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .await
        .expect("closed, not reset");
    String::from_utf8(bytes).expect("UTF-8")
}

/// Reads one answer from a connection that may stay open; `None` where the server closes first.
pub(crate) async fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length: usize = length
                .lines()
                .next()
                .expect("a line")
                .parse()
                .expect("a number");
            if body.len() >= length {
                return Some(text);
            }
        }
        match stream.read(&mut buffer).await.expect("closed, not reset") {
            0 if bytes.is_empty() => return None,
            0 => panic!("an answer broke off: {text}"),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Sends a whole request and reads to the connection's end.
pub(crate) async fn exchange(serving: &Serving, request: &str) -> String {
    let mut stream = serving.connect().await;
    stream.write_all(request.as_bytes()).await.expect("sent");
    rest(&mut stream).await
}
