//! `imgclass bench`: how fast the forward pass is on this machine, or, with `--url`, how a running service does under load. Measures and
//! prints; changes nothing.

mod files;
mod forward;
mod generator;
mod url;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Failure;

/// Measure the forward pass, or with --url a running service.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    forward: forward::ForwardArgs,

    #[command(flatten)]
    url: url::UrlArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One JSON object
    Json,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match args.url.base() {
        Some(base) => url::run(&base, &args.url, args.format),
        None => forward::run(&args.forward, args.format),
    }
}
