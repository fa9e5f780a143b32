//! `imgclass bench --url` measures how a running service behaves under load.
//!
//! This file has its options, the requests that they describe, and the report at the end.
//! `generator` sends the requests.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::generator::{self, Load, LoadPlan, LoadSummary, RequestTally};
use super::{BenchFormat, files};
use crate::cli::{Failure, block_on, output, progress};
use crate::config::values::{parse_duration, rate_parser};

/// The image that is posted if no option names one, as a `data:` URL.
const EXAMPLE_IMAGE: &str = include_str!("../../api/example_image.txt");

/// The options of the load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load on a running service")]
pub(super) struct UrlArgs {
    /// Measure the service at this address, such as http://localhost:8000, instead of the forward
    /// pass
    #[arg(long, value_name = "URL")]
    url: Option<::url::Url>,

    /// The number of clients, each of which sends its next request when it has its answer (a closed
    /// loop)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        requires = "url"
    )]
    clients: u32,

    /// The number of requests a second, sent whether or not earlier ones are answered (an open
    /// loop)
    ///
    /// The latency of a request counts from the time at which it was due.
    #[arg(
        long,
        value_name = "N",
        value_parser = rate_parser(0.01..=100_000.0),
        conflicts_with = "clients",
        requires = "url"
    )]
    rate: Option<f64>,

    /// How long to send requests
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = parse_duration,
        requires = "url"
    )]
    duration: humantime::Duration,

    /// The longest time for an answer; a later one counts as none
    #[arg(
        long,
        value_name = "TIME",
        default_value = "60s",
        value_parser = parse_duration,
        requires = "url"
    )]
    timeout: humantime::Duration,

    /// An image, or a folder of images, to post as data: URLs in turn (repeatable) [default: a
    /// small example]
    #[arg(long, value_name = "FILE", requires = "url")]
    image: Vec<PathBuf>,

    /// A port of 127.0.0.1 on which to serve the images of --image, whose URLs are then posted
    ///
    /// The service must be allowed to fetch from there: --fetch-allow-cidr 127.0.0.1/32 and
    /// --fetch-allow-port with this port.
    #[arg(long, value_name = "PORT", requires = "image")]
    image_port: Option<u16>,

    /// The URL of an image to post, which the service fetches; several are posted in turn
    /// (repeatable)
    #[arg(long, value_name = "URL", requires = "url", conflicts_with = "image")]
    image_url: Vec<String>,

    /// The API key to send with each request
    #[arg(long, value_name = "KEY", requires = "url")]
    key: Option<String>,
}

impl UrlArgs {
    /// Returns the address of the service without a slash at the end, or `None` if --url is not
    /// given.
    pub(super) fn base(&self) -> Option<String> {
        let url = self.url.as_ref()?;
        Some(url.as_str().trim_end_matches('/').to_owned())
    }

    /// Returns how requests follow each other.
    fn load(&self) -> Load {
        let clients = self.clients;
        self.rate
            .map_or(Load::Closed { clients }, |per_second| Load::Open {
                per_second,
            })
    }

    /// Prepares the bodies of the requests, and serves the images if --image-port asks for it.
    async fn prepare_bodies(&self) -> Result<Vec<Bytes>, Failure> {
        let mut images = Vec::new();
        for path in &self.image {
            images.extend(read_images(path)?);
        }
        if images.is_empty() && !self.image.is_empty() {
            return Err("the folders named by --image hold no file".into());
        }
        let urls = match self.image_port {
            Some(port) => files::serve(images, port).await?,
            None if !images.is_empty() => images.iter().map(data_url).collect(),
            None if !self.image_url.is_empty() => self.image_url.clone(),
            None => vec![EXAMPLE_IMAGE.trim().to_owned()],
        };
        let body = |url: &String| json!({"user_id": "bench", "image_url": url}).to_string();
        Ok(urls.iter().map(|url| Bytes::from(body(url))).collect())
    }
}

/// What was measured. The names of the fields are those of its JSON.
#[derive(Debug, Serialize)]
struct LoadReport {
    url: String,
    #[serde(flatten)]
    load: Load,
    /// The time from the first request to the last answer.
    seconds: f64,
    requests: u64,
    /// The number of answers with status 200 in a second.
    images_per_second: f64,
    #[serde(flatten)]
    summary: LoadSummary,
}

pub(super) fn run(base: &str, args: &UrlArgs, format: BenchFormat) -> Result<ExitCode, Failure> {
    block_on(measure(base, args, format))
}

async fn measure(base: &str, args: &UrlArgs, format: BenchFormat) -> Result<ExitCode, Failure> {
    let plan = LoadPlan {
        endpoint: format!("{base}/classify_image/"),
        bodies: args.prepare_bodies().await?,
        load: args.load(),
        duration: *args.duration,
        timeout: *args.timeout,
        key: args.key.clone(),
    };
    let bar = progress::clock_bar(u64::try_from(plan.duration.as_millis())?);
    let show = |elapsed: Duration, tally: &RequestTally| {
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!(
            "{} answers, {} of them 200",
            tally.answers(),
            tally.good()
        ));
    };
    let (tally, elapsed) = generator::run(plan, show).await?;
    bar.finish_and_clear();
    let good = tally.good();
    let report = LoadReport {
        url: base.to_owned(),
        load: args.load(),
        seconds: elapsed.as_secs_f64(),
        requests: tally.answers() + tally.failures(),
        images_per_second: good as f64 / elapsed.as_secs_f64().max(1e-9),
        summary: tally.summary(),
    };
    output::print(match format {
        BenchFormat::Json => serde_json::to_string(&report)? + "\n",
        BenchFormat::Table => table(&report)?,
    })?;
    if good == 0 {
        return Err("no request was answered with 200".into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats the result for people.
fn table(report: &LoadReport) -> Result<String, Failure> {
    let mut text = String::new();
    writeln!(
        text,
        "{}: {}, {:.1} s, {} requests: {:.1} images/s",
        report.url, report.load, report.seconds, report.requests, report.images_per_second
    )?;
    writeln!(
        text,
        "{:<8} {:>9} {:>10} {:>10} {:>10} {:>10}  latency in ms",
        "status", "count", "median", "p90", "p99", "max"
    )?;
    for (status, latency) in &report.summary.statuses {
        writeln!(
            text,
            "{status:<8} {:>9} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
            latency.count, latency.median_ms, latency.p90_ms, latency.p99_ms, latency.max_ms
        )?;
    }
    for (error, count) in &report.summary.errors {
        writeln!(text, "{count} without an answer: {error}")?;
    }
    Ok(text)
}

/// Reads a file, or the files of a folder in the order of their names.
fn read_images(path: &Path) -> Result<Vec<Bytes>, Failure> {
    let mut images = Vec::new();
    for entry in walkdir::WalkDir::new(path).max_depth(1).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            let file = entry.path();
            let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
            images.push(Bytes::from(bytes));
        }
    }
    Ok(images)
}

/// Encodes an image as a `data:` URL.
fn data_url(image: &Bytes) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(image);
    // The media type need not be right: the service tells an image's format from its bytes.
    format!("data:image/jpeg;base64,{data}")
}
