//! `imgclass serve`: listen, load, serve, stop. Listens before it loads, so that health checks are answered while a checkpoint comes.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Failure, load, runtime};
use crate::api::{self, ApiState, Server, Stop};
use crate::config::{AccessArgs, ConnectionArgs, ServerArgs, ServiceArgs};
use crate::metrics::Metrics;
use crate::service::Service;

/// Serve the HTTP interface.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    connections: ConnectionArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    service: ServiceArgs,
}

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(args));
    // Name look-ups and decoding that nobody waits for any more must not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen()?;
    let metrics = Arc::new(Metrics::new()?);
    let listening = listen(args, &metrics).await?;
    let service = tokio::select! {
        service = load::service(&args.service, metrics.clone()) => Arc::new(service?),
        signal = signals.next() => {
            tracing::info!(signal, "stopping before the model was loaded");
            return Ok(ExitCode::SUCCESS);
        }
    };
    metrics.model_loaded(&service)?;
    listening.state.loaded(service.clone());
    let address = listening.address;
    tracing::info!(%address, docs = %format!("http://{address}/docs"), "ready");

    let signal = signals.next().await;
    // First not ready, then the words: who reads them may rely on it.
    service.drain();
    tracing::info!(signal, "stopping; a second signal ends at once");
    tokio::select! {
        () = shut_down(&service, listening, args) => Ok(ExitCode::SUCCESS),
        signal = signals.next() => {
            tracing::warn!(signal, "ended by a second signal");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A server that answers, if only that nothing is loaded yet.
struct Listening {
    address: SocketAddr,
    state: ApiState,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<bool>,
}

/// Binds every port, so that one that is taken is known before anything is loaded, and serves.
async fn listen(args: &ServeArgs, metrics: &Arc<Metrics>) -> Result<Listening, Failure> {
    let hostname = &args.server.hostname;
    let limits = args.connections.limits();
    let port = args.server.port()?;
    let server = Server::bind(hostname, port, limits, "--hostname and --port").await?;
    let server = server.with_metrics(metrics.clone());
    let address = server.address();
    let metrics_port = args.connections.metrics_port;
    let state = ApiState::loading(args.server.http_limits())
        .served_as(&args.server.served_model_name)
        .with_access(args.access.access()?)
        .with_body_memory(args.connections.max_body_bytes.as_u64())
        .with_metrics(metrics.clone(), metrics_port.is_some());
    if let Some(port) = metrics_port {
        let server = Server::bind(hostname, port, limits, "--metrics-port").await?;
        tracing::info!(address = %server.address(), "metrics");
        // Served to the very end: a shutdown is worth watching too.
        let stop = Stop {
            signal: std::future::pending(),
            patience: Duration::ZERO,
        };
        tokio::spawn(server.run(api::metrics_app(state.clone()), stop));
    }
    tracing::info!("listening on {address}, and loading");
    let (stop, stopped) = oneshot::channel::<()>();
    let stop_when = Stop {
        signal: async { stopped.await.unwrap_or(()) },
        patience: *args.server.shutdown_timeout,
    };
    let serving = tokio::spawn(server.run(api::app(state.clone()), stop_when));
    Ok(Listening {
        address,
        state,
        stop,
        serving,
    })
}

/// Serves on for the delay; then no further connections, what was accepted finishes, the worker ends.
async fn shut_down(service: &Arc<Service>, listening: Listening, args: &ServeArgs) {
    tokio::time::sleep(*args.server.shutdown_delay).await;
    // The receiver is gone only if the server has ended by itself.
    let _ = listening.stop.send(());
    match listening.serving.await {
        Ok(true) => tracing::info!("all connections are closed"),
        Ok(false) => tracing::warn!("connections were cut off: they did not finish in time"),
        Err(error) => tracing::error!("the server's task failed: {error}"),
    }
    let patience = *args.server.shutdown_timeout;
    let service = service.clone();
    let ended = tokio::task::spawn_blocking(move || service.stop(patience)).await;
    if !matches!(ended, Ok(true)) {
        tracing::warn!("the model's worker did not end in time");
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    #[cfg(not(unix))]
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}
