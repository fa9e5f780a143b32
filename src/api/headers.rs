//! The headers of answers that say where the time went and which model answered.

use crate::service::Phases;
use imgclass_network::{ComputeType, ModelInfo};

/// Writes the phases as the value of `Server-Timing` (<https://www.w3.org/TR/server-timing/>), in
/// milliseconds.
pub(super) fn server_timing(phases: &Phases) -> String {
    let Phases {
        fetch,
        decode,
        queue,
        inference,
        total,
    } = phases;
    [
        ("fetch", fetch),
        ("decode", decode),
        ("queue", queue),
        ("inference", inference),
        ("total", total),
    ]
    .map(|(name, time)| format!("{name};dur={:.2}", time.as_secs_f64() * 1e3))
    .join(", ")
}

/// Writes the model's id as the value of `X-Model`, followed by what changes its answers: no training,
/// or another number type than float32. A file may have any name, so everything but visible ASCII
/// becomes `_`.
pub(super) fn model_header(info: &ModelInfo) -> String {
    let id: String = info
        .checkpoint
        .id
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .collect();
    let dtype = info.compute_dtype;
    match (info.checkpoint.trained, dtype) {
        (true, ComputeType::F32) => id,
        (true, _) => format!("{id} ({dtype})"),
        (false, ComputeType::F32) => format!("{id} (untrained)"),
        (false, _) => format!("{id} (untrained, {dtype})"),
    }
}

/// Returns the longest of each phase over the images of a request, which ran side by side.
pub(super) fn longest<'a>(phases: impl IntoIterator<Item = &'a Phases>) -> Phases {
    phases
        .into_iter()
        .fold(Phases::default(), |longest, phases| Phases {
            fetch: longest.fetch.max(phases.fetch),
            decode: longest.decode.max(phases.decode),
            queue: longest.queue.max(phases.queue),
            inference: longest.inference.max(phases.inference),
            total: longest.total.max(phases.total),
        })
}
