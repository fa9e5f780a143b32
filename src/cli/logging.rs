//! Where log lines go and what they look like. On standard error, so that standard output holds only results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging: `RUST_LOG` decides what is written, else `default_level`.
pub(super) fn start(default_level: &str, json: bool) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that somebody (a test) has started logging before, which is as good.
    let _ = if json {
        lines.json().flatten_event(true).try_init().is_ok()
    } else {
        lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init()
            .is_ok()
    };
}
