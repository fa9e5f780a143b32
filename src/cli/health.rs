//! `imgclass health`: asks a running service whether it is ready. For container health checks, where no other HTTP client is at hand.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Failure, runtime};
use crate::config::ServerArgs;

/// A service that takes longer than this to say that it is ready is not.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// The service to ask [default: this machine, at the port that `serve` would take]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The port on this machine
    #[arg(long, env = "IMGCLASS_PORT", conflicts_with = "url")]
    port: Option<u16>,
}

pub(super) fn run(args: &HealthArgs) -> Result<ExitCode, Failure> {
    let base = match &args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!(
            "http://127.0.0.1:{}",
            ServerArgs::port_or_default(args.port)?
        ),
    };
    let url = format!("{base}/health/ready");
    let status = runtime()?.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        client.get(&url).send().await.map(|answer| answer.status())
    })?;
    println!("{url}: {status}");
    Ok(if status.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
