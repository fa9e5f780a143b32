//! The process's own figures under the names that every Prometheus client library uses, read from `/proc` as they are asked for. Where
//! there is no `/proc` they stay at zero; it never fails and holds nothing open.

use std::fs;

use prometheus::{Counter, IntGauge};

use super::{Maker, MetricsError};

/// Clock ticks a second in `/proc/*/stat`: USER_HZ, which is 100 on every architecture that Rust's Linux targets name (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time, memory, file descriptors, threads, start.
#[derive(Debug)]
pub(super) struct Process {
    cpu_seconds: Counter,
    resident: IntGauge,
    virtual_memory: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
}

impl Process {
    pub(super) fn new(make: &Maker) -> Result<Self, MetricsError> {
        let start = make.gauge(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970.",
        )?;
        start.set(start_time().unwrap_or_default());
        Ok(Self {
            cpu_seconds: make.keep(Counter::new(
                "process_cpu_seconds_total",
                "Processor time of all threads, user and system.",
            )?)?,
            resident: make.gauge("process_resident_memory_bytes", "Resident memory.")?,
            virtual_memory: make.gauge("process_virtual_memory_bytes", "Virtual memory.")?,
            open_fds: make.gauge("process_open_fds", "Open file descriptors.")?,
            max_fds: make.gauge(
                "process_max_fds",
                "The most file descriptors that may be open.",
            )?,
            threads: make.gauge("process_threads", "Threads of the operating system.")?,
        })
    }

    pub(super) fn read(&self) {
        if let Some(ticks) = cpu_ticks() {
            let seconds = ticks as f64 / TICKS_PER_SECOND;
            // Two readers at one time may both see the older value: never step back.
            self.cpu_seconds
                .inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let number = |field| number_after(&status, field);
            self.resident
                .set(number("VmRSS:").unwrap_or_default() * 1024);
            self.virtual_memory
                .set(number("VmSize:").unwrap_or_default() * 1024);
            self.threads.set(number("Threads:").unwrap_or_default());
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open_fds
                .set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
        if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
            self.max_fds
                .set(number_after(&limits, "Max open files").unwrap_or(i64::MAX));
        }
    }
}

/// The number after `field` at the start of a line.
fn number_after(text: &str, field: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The fields of `/proc/self/stat` from the third on; the second, the name, may hold blanks and brackets.
fn stat() -> Option<Vec<String>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Field `n` of proc(5)'s numbering.
fn stat_field(n: usize) -> Option<u64> {
    stat()?.get(n.checked_sub(3)?)?.parse().ok()
}

fn cpu_ticks() -> Option<u64> {
    Some(stat_field(14)? + stat_field(15)?)
}

fn start_time() -> Option<i64> {
    let booted = number_after(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    let since_boot = stat_field(22)? as f64 / TICKS_PER_SECOND;
    Some(booted + since_boot as i64)
}
