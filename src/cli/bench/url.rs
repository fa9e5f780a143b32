//! `imgclass bench --url`: its options, the requests that they describe, and the table at the end. The load itself is the generator's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::generator::{self, Load, Plan, Summary, Tally};
use super::{Format, files};
use crate::cli::{Failure, progress, runtime};

/// The picture that is posted where none is named.
const EXAMPLE_IMAGE: &str = include_str!("../../api/example_image.txt");

/// Options of the load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load on a running service")]
pub(super) struct UrlArgs {
    /// Measure the service at this address, such as http://localhost:8000, instead of the forward pass
    #[arg(long, value_name = "URL")]
    url: Option<::url::Url>,

    /// Closed loop: so many clients, each asking again as soon as it has its answer
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000), requires = "url")]
    clients: u32,

    /// Open loop: so many requests a second whatever the answers; latencies count from when each was due
    #[arg(long, value_name = "N", value_parser = rate, conflicts_with = "clients", requires = "url")]
    rate: Option<f64>,

    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, requires = "url")]
    duration: humantime::Duration,

    /// The longest that an answer may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, requires = "url")]
    timeout: humantime::Duration,

    /// A picture, or a folder of pictures, to post as data: URLs, in turn (repeatable) [default: a small example]
    #[arg(long, value_name = "FILE", requires = "url")]
    image: Vec<PathBuf>,

    /// Serve the pictures of --image on this port of 127.0.0.1 and post their URLs; the service must be allowed to fetch from there
    #[arg(long, value_name = "PORT", requires = "image")]
    image_port: Option<u16>,

    /// An image URL for the service to fetch, in turn (repeatable)
    #[arg(long, value_name = "URL", requires = "url", conflicts_with = "image")]
    image_url: Vec<String>,

    /// The key to send
    #[arg(long, value_name = "KEY", requires = "url")]
    key: Option<String>,
}

impl UrlArgs {
    /// The service's address without a last slash, where one is named.
    pub(super) fn base(&self) -> Option<String> {
        let url = self.url.as_ref()?;
        Some(url.as_str().trim_end_matches('/').to_owned())
    }

    fn load(&self) -> Load {
        self.rate.map_or(
            Load::Closed {
                clients: self.clients,
            },
            |per_second| Load::Open { per_second },
        )
    }

    /// The bodies of requests, to be posted in turn.
    async fn bodies(&self) -> Result<Vec<Bytes>, Failure> {
        let mut pictures = Vec::new();
        for path in &self.image {
            pictures.extend(read(path)?);
        }
        if pictures.is_empty() && !self.image.is_empty() {
            return Err("the folders named by --image hold no file".into());
        }
        let urls = match self.image_port {
            Some(port) => files::serve(pictures, port).await?,
            None if !pictures.is_empty() => pictures.iter().map(data_url).collect(),
            None if !self.image_url.is_empty() => self.image_url.clone(),
            None => vec![EXAMPLE_IMAGE.trim().to_owned()],
        };
        let body = |url: &String| json!({"user_id": "bench", "image_url": url}).to_string();
        Ok(urls.iter().map(|url| Bytes::from(body(url))).collect())
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    url: String,
    #[serde(flatten)]
    load: Load,
    /// From the first request to the last answer.
    seconds: f64,
    requests: u64,
    /// Answers 200 in each second.
    images_per_second: f64,
    #[serde(flatten)]
    tally: Summary,
}

pub(super) fn run(base: &str, args: &UrlArgs, format: Format) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    let plan = Plan {
        endpoint: format!("{base}/classify_image/"),
        bodies: runtime.block_on(args.bodies())?,
        load: args.load(),
        duration: *args.duration,
        timeout: *args.timeout,
        key: args.key.clone(),
    };
    let bar = progress::clock(u64::try_from(plan.duration.as_millis())?);
    let show = |elapsed: Duration, tally: &Tally| {
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!(
            "{} answers, {} of them 200",
            tally.answers(),
            tally.good()
        ));
    };
    let (tally, elapsed) = runtime.block_on(generator::run(plan, show))?;
    bar.finish_and_clear();
    let good = tally.good();
    let report = Report {
        url: base.to_owned(),
        load: args.load(),
        seconds: elapsed.as_secs_f64(),
        requests: tally.answers() + tally.failures(),
        images_per_second: good as f64 / elapsed.as_secs_f64().max(1e-9),
        tally: tally.summary(),
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string(&report)?),
        Format::Table => print(&report),
    }
    if good == 0 {
        return Err("no request was answered with 200".into());
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    println!(
        "{}: {}, {:.1} s, {} requests: {:.1} images/s",
        report.url, report.load, report.seconds, report.requests, report.images_per_second
    );
    println!(
        "{:<8} {:>9} {:>10} {:>10} {:>10} {:>10}  latency in ms",
        "status", "count", "median", "p90", "p99", "max"
    );
    for (status, row) in &report.tally.statuses {
        println!(
            "{status:<8} {:>9} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
            row.count, row.median_ms, row.p90_ms, row.p99_ms, row.max_ms
        );
    }
    for (error, count) in &report.tally.errors {
        println!("{count} without an answer: {error}");
    }
}

/// A file, or the files right in a folder, in the order of their names.
fn read(path: &Path) -> Result<Vec<Bytes>, Failure> {
    let mut pictures = Vec::new();
    for entry in walkdir::WalkDir::new(path).max_depth(1).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            let file = entry.path();
            let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
            pictures.push(Bytes::from(bytes));
        }
    }
    Ok(pictures)
}

fn data_url(picture: &Bytes) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(picture);
    // The service decides by the bytes what an image is.
    format!("data:image/jpeg;base64,{data}")
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected requests a second from 0.01 to 100000".to_owned()),
    }
}

fn duration(text: &str) -> Result<humantime::Duration, String> {
    match text.parse::<humantime::Duration>() {
        Ok(time) if (Duration::from_millis(1)..=Duration::from_hours(24)).contains(&*time) => {
            Ok(time)
        }
        _ => Err("expected a time from 1ms to 24h, such as 10s".to_owned()),
    }
}
