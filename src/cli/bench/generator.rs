//! The load generator: requests in a closed or an open loop, and what became of them. It prints nothing.
//!
//! An open loop sends when a request is due, whatever has become of those before it, and counts its latency from then, not from when it could
//! be sent: a service that stalls is charged with everything that had to wait meanwhile ("coordinated omission", G. Tene, How NOT to Measure
//! Latency). A closed loop has no such times; it tells what so many patient clients see.

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

/// Requests under way at one time in an open loop: more would exhaust this machine's ports. A request that has to wait here is charged for
/// it too.
const MAX_IN_FLIGHT: usize = 8192;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);

/// A client's rest after a request without an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest latency that is told apart, in microseconds: the longest time-out.
const MAX_MICROS: u64 = 24 * 3600 * 1_000_000;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "load", rename_all = "snake_case")]
pub(super) enum Load {
    /// Each client asks again as soon as it has its answer.
    Closed {
        /// How many.
        clients: u32,
    },
    /// At a steady rate.
    Open {
        /// Requests a second.
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

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) endpoint: String,
    /// At least one; posted in turn.
    pub(super) bodies: Vec<Bytes>,
    pub(super) load: Load,
    pub(super) duration: Duration,
    /// Of one request.
    pub(super) timeout: Duration,
    pub(super) key: Option<String>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Latencies in microseconds by status.
    statuses: BTreeMap<u16, Histogram<u64>>,
    /// Requests without an answer, by what happened.
    errors: BTreeMap<&'static str, u64>,
}

/// A tally in figures.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) statuses: BTreeMap<u16, Row>,
    pub(super) errors: BTreeMap<&'static str, u64>,
}

/// The answers of one status.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) count: u64,
    pub(super) median_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Tally {
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

    /// Requests that were answered.
    pub(super) fn answers(&self) -> u64 {
        self.statuses.values().map(Histogram::len).sum()
    }

    /// Requests that were answered 200.
    pub(super) fn good(&self) -> u64 {
        self.statuses.get(&200).map_or(0, Histogram::len)
    }

    /// Requests without an answer.
    pub(super) fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn summary(&self) -> Summary {
        let row = |histogram: &Histogram<u64>| {
            let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
            Row {
                count: histogram.len(),
                median_ms: ms(0.5),
                p90_ms: ms(0.9),
                p99_ms: ms(0.99),
                max_ms: histogram.max() as f64 / 1e3,
            }
        };
        Summary {
            statuses: self.statuses.iter().map(|(s, h)| (*s, row(h))).collect(),
            errors: self.errors.clone(),
        }
    }
}

/// What requests share.
struct Generator {
    client: reqwest::Client,
    plan: Plan,
    tally: Mutex<Tally>,
}

/// Runs the plan, calling `show` now and then; gives what became of it and how long it took, stragglers included.
pub(super) async fn run(
    plan: Plan,
    show: impl Fn(Duration, &Tally),
) -> Result<(Tally, Duration), Failure> {
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
        Load::Closed { clients } => {
            futures_util::future::Either::Left(closed(generator.clone(), clients, start + duration))
        }
        Load::Open { per_second } => futures_util::future::Either::Right(open(
            generator.clone(),
            per_second,
            start,
            duration,
        )),
    });
    tokio::pin!(loading);
    let mut ticks = tokio::time::interval(TICK);
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

fn headers(plan: &Plan) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = &plan.key {
        let mut value = HeaderValue::from_str(key)?;
        value.set_sensitive(true);
        headers.insert("x-api-key", value);
    }
    Ok(headers)
}

async fn closed(generator: Arc<Generator>, clients: u32, end: Instant) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for client in 0..clients as usize {
        let generator = generator.clone();
        tasks.spawn(async move {
            let mut number = client;
            while Instant::now() < end {
                if !generator.ask(number, Instant::now()).await? {
                    // Nobody there: asking again at once would only keep this machine busy.
                    tokio::time::sleep(PAUSE).await;
                }
                // Clients take different pictures: each goes on by as many as there are clients.
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

async fn open(
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
            generator.ask(number, due).await
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
    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one request, and counts its latency from `due`. Says whether it was answered.
    async fn ask(&self, number: usize, due: Instant) -> Result<bool, Failure> {
        let bodies = &self.plan.bodies;
        let body = bodies.get(number % bodies.len().max(1)).cloned();
        let request = self.client.post(&self.plan.endpoint);
        let answer = async {
            let answer = request.body(body.unwrap_or_default()).send().await?;
            let status = answer.status().as_u16();
            // An answer has arrived when its last byte has.
            answer.bytes().await.map(|_| status)
        };
        let outcome = answer.await.map_err(|error| cause(&error));
        self.lock().record(outcome, due.elapsed())?;
        Ok(outcome.is_ok())
    }
}

fn cause(error: &reqwest::Error) -> &'static str {
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
        let mut tally = Tally::default();
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
