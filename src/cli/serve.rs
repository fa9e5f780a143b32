//! `imgclass serve` runs the HTTP service: it listens, loads the model, serves, and stops on a
//! signal.
//!
//! It listens before it loads, so that health checks are answered while a checkpoint is downloaded.

mod heads;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use self::heads::HeadLoader;
use super::{Failure, runtime, service};
use crate::api::{self, ApiState, Server, Stop};
use crate::config::{AccessArgs, ConnectionArgs, HeadArgs, ServerArgs, ServiceArgs};
use crate::metrics::Metrics;
use crate::service::Service;

/// How often free memory is given back to the system.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// The arguments of `imgclass serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    connections: ConnectionArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    heads: HeadArgs,
    #[command(flatten)]
    service: ServiceArgs,
}

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(args));
    // Name look-ups and decoding that nobody waits for any more must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen()?;
    args.heads.check_names(&args.server.served_model_name)?;
    let metrics = Arc::new(Metrics::new()?);
    let listening = listen(args, &metrics).await?;
    let service = tokio::select! {
        service = service::start(&args.service, metrics.clone()) => Arc::new(service?),
        signal = signals.next() => {
            tracing::info!(signal, "stopping before the model was loaded");
            return Ok(ExitCode::SUCCESS);
        }
    };
    metrics.model_loaded(&service)?;
    let heads = HeadLoader::start(&args.heads, service.clone(), metrics.clone()).await?;
    tokio::spawn(heads.keep_up_to_date(signals.reload.clone()));
    listening.state.loaded(service.clone());
    let address = listening.address;
    tracing::info!(%address, docs = %format!("http://{address}/docs"), "ready");

    let giving_back = tokio::spawn(give_back_memory(service.clone()));
    let signal = signals.next().await;
    giving_back.abort();
    // The service says that it is not ready before the log says that it is stopping, so that
    // whoever reads the log can rely on it.
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

/// Gives memory back that a burst of requests has left free, whenever no request is under way.
async fn give_back_memory(service: Arc<Service>) {
    let mut ticks = tokio::time::interval(GIVE_BACK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if service.in_flight() == 0 {
            // It fails only if the runtime ends.
            let _ = tokio::task::spawn_blocking(imgclass_malloc::give_back).await;
        }
    }
}

/// A server that answers requests, at first only to say that the model is not loaded yet.
struct Listening {
    address: SocketAddr,
    state: ApiState,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<bool>,
}

/// Binds every port and starts to serve.
///
/// This happens before anything is loaded, so that a port that is taken is known at once.
async fn listen(args: &ServeArgs, metrics: &Arc<Metrics>) -> Result<Listening, Failure> {
    let hostname = &args.server.hostname;
    let limits = args.connections.limits();
    let port = args.server.port()?;
    let server = Server::bind(hostname, port, limits, "--hostname and --port").await?;
    let server = server.with_metrics(metrics.clone());
    let address = server.address();
    let metrics_port = args.connections.metrics_port();
    let state = ApiState::loading(args.server.http_limits())
        .served_as(&args.server.served_model_name)
        .under(&args.server.root_path)
        .with_unknown_below(args.heads.unknown_below)
        .with_access(args.access.load()?)
        .with_body_memory(args.connections.max_body_bytes.as_u64())
        .with_metrics(metrics.clone(), metrics_port.is_some());
    if let Some(port) = metrics_port {
        let server = Server::bind(hostname, port, limits, "--metrics-port").await?;
        tracing::info!(address = %server.address(), "metrics");
        // Metrics are served until the process ends, so that a shutdown can be watched too.
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

/// Shuts the service down in three steps.
///
/// 1. It goes on serving for `--shutdown-delay`.
/// 2. It takes no further connections, and finishes the requests that it has accepted.
/// 3. It ends the model's workers.
async fn shut_down(service: &Arc<Service>, listening: Listening, args: &ServeArgs) {
    tokio::time::sleep(*args.server.shutdown_delay).await;
    // Sending fails only if the server has already ended, and then there is nothing to stop.
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
        tracing::warn!("the model's workers did not end in time");
    }
}

/// The signals: SIGINT and SIGTERM end the service, and SIGHUP asks for the heads to be read again.
struct Signals {
    /// Is notified at each SIGHUP. One that comes while the service loads is not lost.
    reload: Arc<tokio::sync::Notify>,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts to listen. From then on the signals do not end the process by themselves.
    #[cfg(unix)]
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            reload: Arc::default(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal and returns its name.
    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: heads are read again; other settings need a restart");
                    self.reload.notify_one();
                }
            }
        }
    }

    #[cfg(not(unix))]
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            reload: Arc::default(),
        })
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}
