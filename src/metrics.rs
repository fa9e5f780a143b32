//! What Prometheus sees of the service: counters, histograms and gauges, and their text.
//!
//! No label ever takes a value that a client chooses, because each value is a series that stays.

use std::time::Duration;

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder, core::Collector,
};
use thiserror::Error;

use crate::service::{self, Phase, Service};
use imgclass_decode::Cause;

/// Why the metrics cannot be set up or written.
#[derive(Debug, Error)]
#[error("the metrics failed: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// The buckets of durations, in seconds: from a fraction of a fast forward pass to the default
/// deadline, about two and a half times apart.
const SECONDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// The buckets of batch sizes. `--max-batch-size` may be up to 256.
const BATCH_SIZES: [f64; 11] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Everything that is counted, from the start of the process on.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    rejections: IntCounterVec,
    abandoned: IntCounter,
    phases: PhaseSeconds,
    batch_size: Histogram,
    jobs_dropped: [IntCounter; 2],
    worker_panics: IntCounter,
    decode_workers_replaced: IntCounterVec,
    connections: IntGauge,
    connections_total: IntCounter,
    answered: IntCounterVec,
    head_loads: IntCounterVec,
    levels: Levels,
}

/// The histogram of each phase, looked up once.
#[derive(Debug)]
struct PhaseSeconds {
    fetch: Histogram,
    decode: Histogram,
    queue: Histogram,
    inference: Histogram,
    total: Histogram,
}

/// The gauges that are read when somebody asks for the metrics.
#[derive(Debug)]
struct Levels {
    ready: IntGauge,
    in_flight: IntGauge,
    queue_depth: IntGauge,
    runtime_workers: IntGauge,
    runtime_tasks: IntGauge,
    runtime_queue: IntGauge,
}

/// Makes metrics and registers them with a registry.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, MetricsError> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricsError> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, MetricsError> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.keep(IntGauge::new(name, help)?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, MetricsError> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(options)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, MetricsError> {
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        self.keep(HistogramVec::new(options, labels)?)
    }

    /// Makes the counter of decode workers, with a series for each cause from the start.
    fn decode_workers_replaced(&self) -> Result<IntCounterVec, MetricsError> {
        let counter = self.counters(
            "imgclass_decode_workers_replaced_total",
            "Decode workers that were ended or had ended, and were replaced, by cause.",
            &["cause"],
        )?;
        for cause in Cause::ALL {
            counter.with_label_values(&[cause.name()]);
        }
        Ok(counter)
    }

    /// Makes a gauge that is always 1; the information is in its labels.
    fn info(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<(), MetricsError> {
        let mut options = Opts::new(name, help);
        for (label, value) in labels {
            options = options.const_label(*label, *value);
        }
        self.keep(Gauge::with_opts(options)?)?.set(1.0);
        Ok(())
    }
}

impl Metrics {
    /// Makes all metrics, at zero.
    ///
    /// # Errors
    /// [`MetricsError`] where a metric cannot be registered.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        // Processor time, memory, file descriptors, threads and start, under the names that every
        // client library of Prometheus uses. The collector reads /proc, which only Linux has.
        #[cfg(target_os = "linux")]
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let make = Maker(&registry);
        make.info(
            "imgclass_build_info",
            "Always 1; the labels say which build runs.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )?;
        let dropped = make.counters(
            "imgclass_jobs_dropped_total",
            "Prepared images that were dropped before they cost a forward pass.",
            &["reason"],
        )?;
        Ok(Self {
            requests: make.counters(
                "imgclass_http_requests_total",
                "HTTP requests answered.",
                &["method", "route", "status"],
            )?,
            request_seconds: make.histograms(
                "imgclass_http_request_duration_seconds",
                "From a request's head to its answer.",
                &["route"],
            )?,
            rejections: make.counters(
                "imgclass_rejections_total",
                "Requests refused for a limit or for want of a key, by reason.",
                &["reason"],
            )?,
            abandoned: make.counter(
                "imgclass_http_requests_abandoned_total",
                "Requests whose client left before the answer.",
            )?,
            phases: PhaseSeconds::new(&make)?,
            batch_size: make.histogram(
                "imgclass_batch_size",
                "Images in a forward pass.",
                &BATCH_SIZES,
            )?,
            jobs_dropped: [
                dropped.with_label_values(&["abandoned"]),
                dropped.with_label_values(&["deadline"]),
            ],
            worker_panics: make.counter(
                "imgclass_worker_panics_total",
                "Panics of the model's workers; each failed its batch.",
            )?,
            decode_workers_replaced: make.decode_workers_replaced()?,
            connections: make.gauge("imgclass_connections", "Open connections.")?,
            connections_total: make
                .counter("imgclass_connections_total", "Connections accepted.")?,
            answered: make.counters(
                "imgclass_images_answered_total",
                "Images answered, by the model or head that answered.",
                &["model"],
            )?,
            head_loads: make.counters(
                "imgclass_head_loads_total",
                "Files of heads read, by head and outcome (ok or failed).",
                &["head", "outcome"],
            )?,
            levels: Levels::new(&make)?,
            registry,
        })
    }

    /// Adds the metric that says which model runs. To be called once.
    ///
    /// # Errors
    /// [`MetricsError`] where it is called again.
    pub fn model_loaded(&self, service: &Service) -> Result<(), MetricsError> {
        let info = service.model();
        let dtype = info.compute_dtype.to_string();
        let labels = [
            ("model", info.checkpoint.id.as_str()),
            (
                "revision",
                info.checkpoint.revision.as_deref().unwrap_or_default(),
            ),
            ("device", info.device.as_str()),
            ("dtype", dtype.as_str()),
            ("instruction_set", info.isa.as_deref().unwrap_or_default()),
        ];
        let make = Maker(&self.registry);
        if let Some(fidelity) = info.fidelity {
            let help = "Error of the int8 logits as a share of the float32 logits' deviation.";
            let error = make.keep(Gauge::new("imgclass_model_logit_error_ratio", help)?)?;
            error.set(fidelity.logit_error);
        }
        let help = "Always 1; the labels say which model runs.";
        make.info("imgclass_model_info", help, &labels)
    }

    /// Counts a request that was answered. `route` is the template that it matched, never its path.
    pub fn request_answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let status = status.to_string();
        self.requests
            .with_label_values(&[method, route, status.as_str()])
            .inc();
        self.request_seconds
            .with_label_values(&[route])
            .observe(took.as_secs_f64());
    }

    /// Counts images that a model answered. `model` is a name of the operator's, never a client's.
    pub fn images_answered(&self, model: &str, images: usize) {
        self.answered
            .with_label_values(&[model])
            .inc_by(images as u64);
    }

    /// Counts the reading of a head's file. `head` is the operator's name for it.
    pub fn head_loaded(&self, head: &str, usable: bool) {
        let outcome = if usable { "ok" } else { "failed" };
        self.head_loads.with_label_values(&[head, outcome]).inc();
    }

    /// Counts a request that was refused. `reason` is the code of the failure.
    pub fn request_rejected(&self, reason: &'static str) {
        self.rejections.with_label_values(&[reason]).inc();
    }

    /// Counts a request whose client left before its answer.
    pub fn request_abandoned(&self) {
        self.abandoned.inc();
    }

    /// Counts a connection that was accepted.
    pub fn connection_opened(&self) {
        self.connections.inc();
        self.connections_total.inc();
    }

    /// Takes a connection that has ended from those that are open.
    pub fn connection_closed(&self) {
        self.connections.dec();
    }

    /// Writes all metrics in Prometheus's text format. `service` is `None` until it is loaded.
    ///
    /// # Errors
    /// [`MetricsError`] where the text cannot be written.
    pub fn text(&self, service: Option<&Service>) -> Result<String, MetricsError> {
        self.levels.read(service);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// How much was done, with the number of images and the seconds of each phase.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Images that have passed through the model.
    pub images: u64,
    /// Forward passes.
    pub batches: u64,
    /// Decoding.
    pub decode: (u64, f64),
    /// Waiting for a worker.
    pub queue: (u64, f64),
    /// Forward passes, counted for each of their images.
    pub inference: (u64, f64),
    /// From admission to the answer.
    pub total: (u64, f64),
}

impl Metrics {
    /// Returns how much was done since the start of the process.
    pub fn totals(&self) -> Totals {
        let of = |phase: &Histogram| (phase.get_sample_count(), phase.get_sample_sum());
        Totals {
            images: self.batch_size.get_sample_sum() as u64,
            batches: self.batch_size.get_sample_count(),
            decode: of(&self.phases.decode),
            queue: of(&self.phases.queue),
            inference: of(&self.phases.inference),
            total: of(&self.phases.total),
        }
    }
}

impl PhaseSeconds {
    fn new(make: &Maker) -> Result<Self, MetricsError> {
        let phases = make.histograms(
            "imgclass_phase_duration_seconds",
            "Where the time of an image went; the phases of Server-Timing.",
            &["phase"],
        )?;
        let of = |phase| phases.with_label_values(&[phase]);
        Ok(Self {
            fetch: of("fetch"),
            decode: of("decode"),
            queue: of("queue"),
            inference: of("inference"),
            total: of("total"),
        })
    }
}

impl Levels {
    fn new(make: &Maker) -> Result<Self, MetricsError> {
        Ok(Self {
            ready: make.gauge(
                "imgclass_ready",
                "1 while requests will be served, as /health/ready says.",
            )?,
            in_flight: make.gauge("imgclass_requests_in_flight", "Requests that hold a place.")?,
            queue_depth: make.gauge(
                "imgclass_queue_depth",
                "Prepared images that wait for the model.",
            )?,
            runtime_workers: make.gauge(
                "imgclass_runtime_workers",
                "Threads of the asynchronous runtime.",
            )?,
            runtime_tasks: make.gauge(
                "imgclass_runtime_tasks",
                "Tasks of the asynchronous runtime that have not ended.",
            )?,
            runtime_queue: make.gauge(
                "imgclass_runtime_queue_depth",
                "Tasks that wait in the asynchronous runtime's common queue.",
            )?,
        })
    }

    fn read(&self, service: Option<&Service>) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let ready = service.is_some_and(|service| service.ready().is_ok());
        self.ready.set(i64::from(ready));
        self.in_flight
            .set(service.map_or(0, |service| number(service.in_flight())));
        self.queue_depth
            .set(service.map_or(0, |service| number(service.queue_depth())));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let runtime = runtime.metrics();
            self.runtime_workers.set(number(runtime.num_workers()));
            self.runtime_tasks.set(number(runtime.num_alive_tasks()));
            self.runtime_queue.set(number(runtime.global_queue_depth()));
        }
    }
}

impl imgclass_engine::Observer for Metrics {
    fn batch_finished(&self, images: usize, _took: Duration) {
        self.batch_size.observe(images as f64);
    }

    fn jobs_dropped(&self, abandoned: usize, expired: usize) {
        let [left, late] = &self.jobs_dropped;
        left.inc_by(abandoned as u64);
        late.inc_by(expired as u64);
    }

    fn worker_panicked(&self) {
        self.worker_panics.inc();
    }
}

impl imgclass_decode::Observer for Metrics {
    fn worker_replaced(&self, cause: Cause) {
        self.decode_workers_replaced
            .with_label_values(&[cause.name()])
            .inc();
    }
}

impl service::Observer for Metrics {
    fn phase_finished(&self, phase: Phase, took: Duration) {
        let histogram = match phase {
            Phase::Fetch => &self.phases.fetch,
            Phase::Decode => &self.phases.decode,
            Phase::Queue => &self.phases.queue,
            Phase::Inference => &self.phases.inference,
            Phase::Total => &self.phases.total,
        };
        histogram.observe(took.as_secs_f64());
    }
}
