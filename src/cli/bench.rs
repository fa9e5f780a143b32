//! `imgclass bench` measures how fast forward passes are on this machine, or, with `--url`, how a
//! running service behaves under load.
//!
//! `forward` measures passes and `cores` how far the cores are apart. `url` describes the load on a
//! service and its results, `generator` sends the requests, and `files` serves the images that the
//! service is asked to fetch.

mod cores;
mod files;
mod forward;
mod generator;
mod url;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Failure;

/// The arguments of `imgclass bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// The format of the result
    #[arg(long, value_enum, default_value_t = BenchFormat::Table)]
    format: BenchFormat,

    #[command(flatten)]
    forward: forward::ForwardArgs,

    #[command(flatten)]
    url: url::UrlArgs,
}

/// The format of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchFormat {
    /// A table for people
    Table,
    /// One JSON object, for programs
    Json,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match args.url.base() {
        Some(base) => url::run(&base, &args.url, args.format),
        None => forward::run(&args.forward, args.format),
    }
}
