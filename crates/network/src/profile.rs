//! Where a forward pass's time goes, layer by layer.
//!
//! Layers report their times to the thread that runs the pass. They are kept only inside
//! [`record`]; elsewhere a layer costs one reading of the clock.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// The time of one layer's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTime {
    /// The checkpoint's name of the layer.
    pub layer: String,
    /// The name of the algorithm that computed it.
    pub algorithm: String,
    /// The floating-point operations of the direct algorithm, two for a multiply-add.
    pub flops: u64,
    /// The wall-clock time.
    pub time: Duration,
}

thread_local! {
    static LAYERS: RefCell<Option<Vec<LayerTime>>> = const { RefCell::new(None) };
}

/// Runs `work`, and returns its result with the layers that ran on this thread meanwhile, in their
/// order.
pub(super) fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<LayerTime>) {
    let outer = LAYERS.replace(Some(Vec::new()));
    let result = work();
    (result, LAYERS.replace(outer).unwrap_or_default())
}

/// Returns whether this thread runs inside [`record`].
pub(super) fn is_recording() -> bool {
    LAYERS.with_borrow(Option::is_some)
}

/// Adds layers that ran on other threads, `threads` at one time. Each counts for the part of the
/// time that it would take if all threads worked on it.
pub(super) fn add_side_by_side(layers: Vec<LayerTime>, threads: u32) {
    LAYERS.with_borrow_mut(|all| {
        if let Some(all) = all {
            all.extend(layers.into_iter().map(|layer| LayerTime {
                time: layer.time / threads.max(1),
                ..layer
            }));
        }
    });
}

/// Runs one layer. `describe` returns its name, its algorithm and its operations; it is called only
/// inside [`record`].
pub(super) fn layer<T>(
    describe: impl FnOnce() -> (String, String, u64),
    run: impl FnOnce() -> T,
) -> T {
    let start = Instant::now();
    let result = run();
    LAYERS.with_borrow_mut(|layers| {
        if let Some(layers) = layers {
            let time = start.elapsed();
            let (layer, algorithm, flops) = describe();
            layers.push(LayerTime {
                layer,
                algorithm,
                flops,
                time,
            });
        }
    });
    result
}
