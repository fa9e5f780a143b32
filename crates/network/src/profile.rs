//! Where a forward pass's time goes, layer by layer. Records only inside [`record`], on the thread that asked; costs nothing elsewhere.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// One layer's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTime {
    /// The checkpoint's name of the layer.
    pub layer: String,
    /// How it was computed.
    pub algorithm: String,
    /// Floating-point operations of the direct algorithm, two for a multiply-add.
    pub flops: u64,
    /// Wall-clock time.
    pub time: Duration,
}

thread_local! {
    static LAYERS: RefCell<Option<Vec<LayerTime>>> = const { RefCell::new(None) };
}

/// Runs `work` and gives the layers that ran on this thread meanwhile, in their order.
pub(super) fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<LayerTime>) {
    LAYERS.with_borrow_mut(|layers| *layers = Some(Vec::new()));
    let result = work();
    (result, LAYERS.take().unwrap_or_default())
}

/// Runs one layer; `describe` (name, algorithm, operations) is asked only where somebody records.
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
