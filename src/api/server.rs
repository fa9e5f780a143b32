//! Listening and stopping. Binds first, so that a taken port is known before a model is loaded; serves until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use poem::listener::TcpAcceptor;
use thiserror::Error;
use tokio::net::TcpListener;

use super::{ApiState, app};

/// The address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {reason}; choose another with --hostname and --port")]
pub struct BindError {
    address: String,
    reason: std::io::Error,
}

/// A bound listener.
pub struct Server {
    acceptor: TcpAcceptor,
    address: SocketAddr,
}

impl Server {
    /// Binds `hostname:port`; port 0 takes a free one.
    pub async fn bind(hostname: &str, port: u16) -> Result<Self, BindError> {
        let error = |reason| BindError {
            address: format!("{hostname}:{port}"),
            reason,
        };
        let listener = TcpListener::bind((hostname, port)).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        Ok(Self {
            acceptor: TcpAcceptor::from_tokio(listener).map_err(error)?,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves; then takes no further connections, and gives those that are open `patience` to finish.
    pub async fn run(
        self,
        state: ApiState,
        stop: impl Future<Output = ()>,
        patience: Duration,
    ) -> std::io::Result<()> {
        poem::Server::new_with_acceptor(self.acceptor)
            .run_with_graceful_shutdown(app(state), stop, Some(patience))
            .await
    }
}
