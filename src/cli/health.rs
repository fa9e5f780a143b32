//! `imgclass health` asks a running service whether it is ready.
//!
//! Container health checks use it: the container image has no other HTTP client.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Failure, block_on, output};
use crate::config::{Port, ServerArgs};

/// The longest time for an answer. A service that takes longer to say that it is ready is not
/// ready.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The arguments of `imgclass health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// The address of the service [default: this machine, at the port that `serve` would take]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The port of a service on this machine, if --url is not given
    // No conflict with --url: the variable is often set for the service itself.
    #[arg(long, env = "IMGCLASS_PORT")]
    port: Option<Port>,
}

pub(super) fn run(args: &HealthArgs) -> Result<ExitCode, Failure> {
    let base = match &args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!(
            "http://127.0.0.1:{}",
            ServerArgs::port_or_default(args.port.clone())?
        ),
    };
    let url = format!("{base}/health/ready");
    let status = block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        Ok(client.get(&url).send().await?.status())
    })?;
    output::print(format!("{url}: {status}\n"))?;
    Ok(if status.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
