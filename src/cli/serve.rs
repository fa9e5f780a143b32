//! `imgclass serve`: listen, load, serve, stop. Listens before it loads, so that health checks are answered while a checkpoint comes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;

use super::{Failure, load, runtime};
use crate::api::{ApiState, Server};
use crate::config::{ServerArgs, ServiceArgs};
use crate::engine::NoObserver;
use crate::service::Service;

/// Serve the HTTP interface.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
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
    let server = Server::bind(&args.server.hostname, args.server.port()?).await?;
    let address = server.address();
    let state =
        ApiState::loading(args.server.http_limits()).served_as(&args.server.served_model_name);
    let (stop, stopped) = oneshot::channel::<()>();
    let patience = *args.server.shutdown_timeout;
    let serving = server.run(
        state.clone(),
        async { stopped.await.unwrap_or(()) },
        patience,
    );
    let serving = tokio::spawn(serving);

    let service = tokio::select! {
        service = load::service(&args.service, Arc::new(NoObserver)) => Arc::new(service?),
        signal = signals.next() => {
            tracing::info!(signal, "stopping before the model was loaded");
            return Ok(ExitCode::SUCCESS);
        }
    };
    state.loaded(service.clone());
    tracing::info!(%address, docs = %format!("http://{address}/docs"), "ready");

    let signal = signals.next().await;
    tracing::info!(signal, "stopping; a second signal ends at once");
    tokio::select! {
        () = shut_down(&service, stop, serving, args) => Ok(ExitCode::SUCCESS),
        signal = signals.next() => {
            tracing::warn!(signal, "ended by a second signal");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Not ready at once, serving on for the delay; then no further connections, what was accepted finishes, the worker ends.
async fn shut_down(
    service: &Arc<Service>,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    args: &ServeArgs,
) {
    service.drain();
    tokio::time::sleep(*args.server.shutdown_delay).await;
    // The receiver is gone only if the server has ended by itself.
    let _ = stop.send(());
    match serving.await {
        Ok(Ok(())) => tracing::info!("all connections are closed"),
        Ok(Err(error)) => tracing::error!("the server ended with an error: {error}"),
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
