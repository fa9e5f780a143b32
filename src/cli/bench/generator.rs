//! The load generator sends requests in a closed or an open loop, and counts what becomes of them.
//!
//! In an open loop every request has a time at which it is due. It is sent then, whatever has
//! become of those before it, and its latency counts from then, even if it could be sent only
//! later. A service that stalls is so charged with every request that had to wait meanwhile. Load
//! generators that do not do this have the fault called "coordinated omission" (G. Tene, "How NOT
//! to Measure Latency").
//!
//! In a closed loop, each client sends its next request when it has its answer. It tells what a
//! number of patient clients see.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::Failure;

/// The number of requests at one time in an open loop; more would exhaust this machine's ports.
///
/// The time that a request waits because of this limit counts as latency too.
const MAX_IN_FLIGHT: usize = 8192;

/// The time between two updates of the progress.
const UPDATE_INTERVAL: Duration = Duration::from_millis(200);

/// How long a client of a closed loop waits after a request without an answer.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The longest latency that is counted exactly, in microseconds: a day, as the longest `--timeout`.
const MAX_MICROS: u64 = 24 * 3600 * 1_000_000;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "load", rename_all = "snake_case")]
pub(super) enum Load {
    /// Each client asks again as soon as it has its answer.
    Closed {
        /// The number of clients.
        clients: u32,
    },
    /// Requests are sent at a steady rate.
    Open {
        /// The number of requests a second.
        per_second: f64,
    },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { clients } => write!(f, "closed loop of {clients} clients"),
            Self::Open { per_second } => write!(f, "open loop at {per_second} requests/s"),
        }
    }
}

/// Describes the requests to send.
#[derive(Debug)]
pub(super) struct LoadPlan {
    /// The URL to which requests are posted.
    pub(super) endpoint: String,
    /// The bodies of the requests, at least one, which are posted in turn.
    pub(super) bodies: Vec<Bytes>,
    pub(super) load: Load,
    /// How long to send requests.
    pub(super) duration: Duration,
    /// The longest time for one request.
    pub(super) timeout: Duration,
    /// The API key to send with each request.
    pub(super) key: Option<String>,
}

/// Counts what became of the requests.
#[derive(Debug, Default)]
pub(super) struct RequestTally {
    /// The latencies in microseconds, by status.
    statuses: BTreeMap<u16, Histogram<u64>>,
    /// The number of requests without an answer, by the reason.
    errors: BTreeMap<&'static str, u64>,
}

/// The figures of a tally.
#[derive(Debug, Serialize)]
pub(super) struct LoadSummary {
    /// The latencies of the answers, by status.
    pub(super) statuses: BTreeMap<u16, LatencySummary>,
    /// The number of requests without an answer, by the reason.
    pub(super) errors: BTreeMap<&'static str, u64>,
}

/// The latencies of the answers with one status.
#[derive(Debug, Serialize)]
pub(super) struct LatencySummary {
    pub(super) count: u64,
    pub(super) median_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl RequestTally {
    fn record(
        &mut self,
        outcome: Result<u16, &'static str>,
        latency: Duration,
    ) -> Result<(), Failure> {
        match outcome {
            Err(error) => *self.errors.entry(error).or_default() += 1,
            Ok(status) => {
                let micros = u64::try_from(latency.as_micros()).unwrap_or(MAX_MICROS);
                let histogram = match self.statuses.entry(status) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(Histogram::new_with_bounds(1, MAX_MICROS, 3)?),
                };
                histogram.saturating_record(micros);
            }
        }
        Ok(())
    }

    /// Returns the number of requests that were answered.
    pub(super) fn answers(&self) -> u64 {
        self.statuses.values().map(Histogram::len).sum()
    }

    /// Returns the number of requests that were answered 200.
    pub(super) fn good(&self) -> u64 {
        self.statuses.get(&200).map_or(0, Histogram::len)
    }

    /// Returns the number of requests without an answer.
    pub(super) fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Returns the figures of the tally.
    pub(super) fn summary(&self) -> LoadSummary {
        let summarise = |histogram: &Histogram<u64>| {
            let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
            LatencySummary {
                count: histogram.len(),
                median_ms: ms(0.5),
                p90_ms: ms(0.9),
                p99_ms: ms(0.99),
                max_ms: histogram.max() as f64 / 1e3,
            }
        };
        let statuses = self.statuses.iter();
        LoadSummary {
            statuses: statuses
                .map(|(status, histogram)| (*status, summarise(histogram)))
                .collect(),
            errors: self.errors.clone(),
        }
    }
}

/// What all requests share.
struct Generator {
    client: reqwest::Client,
    plan: LoadPlan,
    tally: Mutex<RequestTally>,
}

/// Sends the requests of a plan, and returns what became of them and how long it took to the last
/// answer.
///
/// `show` is called every [`UPDATE_INTERVAL`] with the time so far and the counts so far.
pub(super) async fn run(
    plan: LoadPlan,
    show: impl Fn(Duration, &RequestTally),
) -> Result<(RequestTally, Duration), Failure> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(plan.timeout)
        .default_headers(headers(&plan)?)
        .build()?;
    let (load, duration) = (plan.load, plan.duration);
    let generator = Arc::new(Generator {
        client,
        plan,
        tally: Mutex::default(),
    });
    let start = Instant::now();
    let loading = tokio::spawn(match load {
        Load::Closed { clients } => futures_util::future::Either::Left(run_closed_loop(
            generator.clone(),
            clients,
            start + duration,
        )),
        Load::Open { per_second } => futures_util::future::Either::Right(run_open_loop(
            generator.clone(),
            per_second,
            start,
            duration,
        )),
    });
    tokio::pin!(loading);
    let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
    let ended = loop {
        tokio::select! {
            ended = &mut loading => break ended,
            _ = ticks.tick() => show(start.elapsed(), &generator.lock()),
        }
    };
    ended??;
    let tally = std::mem::take(&mut *generator.lock());
    Ok((tally, start.elapsed()))
}

/// Returns the headers of every request.
fn headers(plan: &LoadPlan) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = &plan.key {
        let mut value = HeaderValue::from_str(key)?;
        value.set_sensitive(true);
        headers.insert("x-api-key", value);
    }
    Ok(headers)
}

/// Runs a number of clients until `end`, each of which sends its next request when it has its
/// answer.
async fn run_closed_loop(
    generator: Arc<Generator>,
    clients: u32,
    end: Instant,
) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for client in 0..clients as usize {
        let generator = generator.clone();
        tasks.spawn(async move {
            let mut number = client;
            while Instant::now() < end {
                if !generator.send(number, Instant::now()).await? {
                    // The service does not answer. Asking again at once would only keep this
                    // machine busy.
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Each client goes on by as many bodies as there are clients, so that they send
                // different images.
                number += clients as usize;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Sends requests at a steady rate, each when it is due.
async fn run_open_loop(
    generator: Arc<Generator>,
    per_second: f64,
    start: Instant,
    duration: Duration,
) -> Result<(), Failure> {
    let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let requests = (duration.as_secs_f64() * per_second).ceil() as usize;
    let mut tasks = JoinSet::new();
    for number in 0..requests {
        let due = start + Duration::from_secs_f64(number as f64 / per_second);
        tokio::time::sleep_until(due).await;
        let place = places.clone().acquire_owned().await?;
        let generator = generator.clone();
        tasks.spawn(async move {
            let _place = place;
            generator.send(number, due).await
        });
        while let Some(ended) = tasks.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

impl Generator {
    fn lock(&self) -> std::sync::MutexGuard<'_, RequestTally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the request of this number and counts its latency from `due`. Returns whether it was
    /// answered.
    async fn send(&self, number: usize, due: Instant) -> Result<bool, Failure> {
        let bodies = &self.plan.bodies;
        let body = bodies.get(number % bodies.len().max(1)).cloned();
        let request = self.client.post(&self.plan.endpoint);
        let answer = async {
            let answer = request.body(body.unwrap_or_default()).send().await?;
            let status = answer.status().as_u16();
            // The latency includes the whole body.
            answer.bytes().await.map(|_| status)
        };
        let outcome = answer.await.map_err(|error| describe(&error));
        self.lock().record(outcome, due.elapsed())?;
        Ok(outcome.is_ok())
    }
}

/// Describes why a request has no answer, in a few words that are the same for the same reason.
fn describe(error: &reqwest::Error) -> &'static str {
    if error.is_connect() {
        "could not connect"
    } else if error.is_timeout() {
        "timed out"
    } else if error.is_body() || error.is_decode() {
        "the answer broke off"
    } else {
        "the connection ended without an answer"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_counts_by_status_and_tells_quantiles() {
        let mut tally = RequestTally::default();
        for ms in 1..=100 {
            tally.record(Ok(200), Duration::from_millis(ms)).unwrap();
        }
        tally.record(Ok(503), Duration::from_micros(900)).unwrap();
        tally
            .record(Err("timed out"), Duration::from_secs(1))
            .unwrap();
        assert_eq!(
            (tally.answers(), tally.good(), tally.failures()),
            (101, 100, 1)
        );
        let summary = tally.summary();
        let row = &summary.statuses[&200];
        let near = |found: f64, expected: f64| (found - expected).abs() <= expected / 500.0;
        assert!(
            near(row.median_ms, 50.0) && near(row.p99_ms, 99.0) && near(row.max_ms, 100.0),
            "{row:?}"
        );
        assert!(near(summary.statuses[&503].median_ms, 0.9));
        assert_eq!(summary.errors["timed out"], 1);
    }
}
