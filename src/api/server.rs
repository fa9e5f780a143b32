//! Listens, serves connections up to their limit, and stops when it is told to.
//!
//! Binding and serving are two steps, so that a port that is taken is known before a model is
//! loaded.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use poem::{Endpoint, Response};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{self, Crowd};
use crate::config::ConnectionLimits;
use crate::metrics::Metrics;

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {reason}; choose another with {options}")]
pub struct BindError {
    address: String,
    reason: std::io::Error,
    options: &'static str,
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: ConnectionLimits,
    metrics: Option<Arc<Metrics>>,
}

/// When and how to stop.
pub struct Stop<F> {
    /// The future that completes when the server is to stop.
    pub signal: F,
    /// How long the connections that are open may take to finish after that.
    pub patience: Duration,
}

/// The pause after a failed accept. What was lacking, descriptors or memory, comes back only when
/// other connections have ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections over the limit are told so at one time. Further ones are closed without an
/// answer.
const MAX_REFUSALS: usize = 64;

/// How long a refused client may take to read the refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// The answer to connections over the limit. It is written by hand, because no request was read.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n",
    "Connection: close\r\nContent-Length: 204\r\n\r\n",
    r#"{"type":"urn:imgclass:problem:too-many-connections","title":"Too many connections","status":503,"#,
    r#""detail":"all connections are taken; try again after the time in Retry-After","code":"too-many-connections"}"#
);

impl Server {
    /// Binds `hostname:port`; port 0 takes a free one. An error recommends the flags in `options`.
    ///
    /// # Errors
    /// [`BindError`] where the port is taken or the name is not an address of this machine.
    pub async fn bind(
        hostname: &str,
        port: u16,
        limits: ConnectionLimits,
        options: &'static str,
    ) -> Result<Self, BindError> {
        let error = |reason| BindError {
            address: format!("{hostname}:{port}"),
            reason,
            options,
        };
        // IPv6 addresses may stand in brackets, as in URLs.
        let bare = hostname
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        let host = bare.unwrap_or(hostname);
        let listener = TcpListener::bind((host, port)).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        Ok(Self {
            listener,
            address,
            limits,
            metrics: None,
        })
    }

    /// Counts the connections into `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics: Some(metrics),
            ..self
        }
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop.signal` completes. Then it takes no further connections and gives those
    /// that are open `stop.patience` to finish; returns whether all of them did.
    pub async fn run<E, F>(self, endpoint: E, stop: Stop<F>) -> bool
    where
        E: Endpoint<Output = Response> + 'static,
        F: Future<Output = ()>,
    {
        let (tell, stopping) = watch::channel(false);
        let mut open = Open {
            endpoint: Arc::new(endpoint),
            limits: self.limits,
            crowd: Crowd::new(self.metrics.clone()),
            metrics: self.metrics,
            stopping,
            connections: JoinSet::new(),
            refusals: JoinSet::new(),
        };
        tokio::pin! {
            let signal = stop.signal;
        }
        loop {
            tokio::select! {
                () = &mut signal => break,
                Some(_) = open.connections.join_next() => {}
                Some(_) = open.refusals.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => open.take(stream, peer),
                    Err(error) => {
                        tracing::warn!("cannot accept connections for the moment: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        open.take_waiting(self.listener);
        // The receiver is in `open`.
        let _ = tell.send(true);
        let all = async { while open.connections.join_next().await.is_some() {} };
        tokio::time::timeout(stop.patience, all).await.is_ok()
    }
}

/// The connections of a server. Those that are open when this value is dropped are closed.
struct Open<E> {
    endpoint: Arc<E>,
    limits: ConnectionLimits,
    metrics: Option<Arc<Metrics>>,
    stopping: watch::Receiver<bool>,
    connections: JoinSet<()>,
    crowd: Crowd,
    refusals: JoinSet<()>,
}

impl<E: Endpoint<Output = Response> + 'static> Open<E> {
    /// Serves a connection, or refuses it where there are too many.
    fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        // Connections that have ended make room.
        while self.connections.try_join_next().is_some() {}
        if self.connections.len() >= self.limits.max_connections {
            return self.refuse(stream);
        }
        let counted = Counted::new(self.metrics.clone());
        let serving = connection::serve(
            stream,
            peer,
            self.endpoint.clone(),
            self.limits,
            self.crowd.clone(),
            self.stopping.clone(),
        );
        self.connections.spawn(async move {
            let _counted = counted;
            serving.await;
        });
    }

    fn refuse(&mut self, stream: TcpStream) {
        if let Some(metrics) = &self.metrics {
            metrics.request_rejected("too-many-connections");
        }
        while self.refusals.try_join_next().is_some() {}
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.spawn(async move {
                let _ = tokio::time::timeout(REFUSAL_PATIENCE, write_refusal(stream)).await;
            });
        }
    }

    /// Takes the connections that the kernel has already accepted, which closing the listener would
    /// reset.
    fn take_waiting(&mut self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else {
            return;
        };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.take(stream, peer);
            }
        }
    }
}

/// Writes the refusal and reads what the client has sent. A socket that is closed with unread bytes
/// is reset, and the client can lose the answer by that.
async fn write_refusal(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(REFUSAL.as_bytes()).await?;
    stream.shutdown().await?;
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Counts a connection in the metrics until it is dropped.
struct Counted(Option<Arc<Metrics>>);

impl Counted {
    fn new(metrics: Option<Arc<Metrics>>) -> Self {
        if let Some(metrics) = &metrics {
            metrics.connection_opened();
        }
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(metrics) = &self.0 {
            metrics.connection_closed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::REFUSAL;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
