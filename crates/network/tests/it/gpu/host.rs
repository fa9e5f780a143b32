//! A driver that computes in the host's memory, slowly and without a GPU.
//!
//! It takes the driver's contract at its word: fresh memory holds NaN, an upload arrives when the
//! compute queue joins it, and an operation whose output overlaps what it reads is an error. It can
//! fail at any call, and it counts what is allocated.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use half::{bf16, f16};
use imgclass_network::gpu::{
    Buffer, Convolution, DeviceError, Driver, Graph, Half, Op, Place, SlotBytes, Tuning,
};

/// When a call fails.
#[derive(Debug, Clone, Default)]
pub(super) enum Fails {
    #[default]
    Never,
    /// Once, at the call of this number, counted from 0.
    Once(usize, &'static str),
    /// At the call of this number and at all later ones.
    From(usize, &'static str),
    /// At every call whose name begins with this.
    Named(&'static str),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) fails: Fails,
    /// The names of the calls, in their order.
    pub(super) calls: Vec<&'static str>,
    /// The shapes that were tuned, in their order.
    pub(super) tuned: Vec<Convolution>,
    /// From which batch size on tuned convolutions are wrong.
    pub(super) wrong_from: Option<usize>,
    /// Batches of two and more are wrong, tuned or not.
    pub(super) wrong_anyway: bool,
    /// The shapes whose tuning was taken back.
    pub(super) distrusted: Vec<Convolution>,
    /// The mean over each channel, which is near a pass's end, waits for so many uploads.
    pub(super) awaited_sends: usize,
    buffers: Vec<Option<Vec<u8>>>,
    graphs: Vec<Option<Vec<Op>>>,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    sizes: (usize, usize),
    upload: Option<(Place, Vec<u8>)>,
    download: Vec<u8>,
}

impl State {
    /// Returns how many allocations and graphs are held.
    pub(super) fn held(&self) -> (usize, usize) {
        (
            self.buffers.iter().flatten().count(),
            self.graphs.iter().flatten().count(),
        )
    }

    fn call(&mut self, name: &'static str) -> Result<(), DeviceError> {
        let number = self.calls.len();
        self.calls.push(name);
        let reason = match self.fails {
            Fails::Once(at, reason) if at == number => reason,
            Fails::From(at, reason) if at <= number => reason,
            Fails::Named(start) if name.starts_with(start) => "CUDNN_STATUS_NOT_SUPPORTED",
            _ => return Ok(()),
        };
        Err(error(name, reason))
    }

    fn bytes(&mut self, place: Place, bytes: usize) -> &mut [u8] {
        let buffer = self.buffers[place.buffer.0]
            .as_mut()
            .expect("a buffer that is held");
        assert!(bytes <= place.bytes, "{bytes} bytes in {place:?}");
        assert_eq!(place.offset % 4, 0, "{place:?}");
        &mut buffer[place.offset..place.offset + bytes]
    }

    fn halves(&mut self, place: Place, numbers: usize, half: Half) -> Vec<f32> {
        let bytes = self.bytes(place, 2 * numbers);
        let table = numbers_of(half);
        let bits = bytes.as_chunks::<2>().0.iter();
        bits.map(|bits| table[usize::from(u16::from_le_bytes(*bits))])
            .collect()
    }

    fn put_halves(&mut self, place: Place, numbers: &[f32], half: Half) {
        let to = self.bytes(place, 2 * numbers.len());
        for (to, &number) in to.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
            *to = match half {
                Half::F16 => f16::from_f32(number).to_le_bytes(),
                Half::BF16 => bf16::from_f32(number).to_le_bytes(),
            };
        }
    }

    fn floats(&mut self, place: Place, numbers: usize) -> Vec<f32> {
        let bytes = self.bytes(place, 4 * numbers);
        let chunks = bytes.as_chunks::<4>().0.iter();
        chunks.map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn put_floats(&mut self, place: Place, numbers: &[f32]) {
        let to = self.bytes(place, 4 * numbers.len());
        for (to, number) in to.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *to = number.to_le_bytes();
        }
    }

    fn run(&mut self, op: &Op) {
        let (name, places) = op.places();
        let overlap = |a: &(Place, usize), b: &(Place, usize)| {
            a.0.buffer == b.0.buffer
                && a.0.offset < b.0.offset + b.1
                && b.0.offset < a.0.offset + a.1
        };
        for (i, a) in places.iter().enumerate() {
            for b in &places[..i] {
                assert!(!overlap(a, b), "{name}: {a:?} and {b:?}");
            }
        }
        match *op {
            Op::Pixels {
                from,
                to,
                pixels,
                half,
                normalisation,
            } => {
                let bytes = self.bytes(from, 3 * pixels).to_vec();
                let mut made = vec![0.0; 8 * pixels];
                for (pixel, to) in bytes.chunks_exact(3).zip(made.chunks_exact_mut(8)) {
                    for (plane, to) in to.iter_mut().enumerate().take(3) {
                        let channel = if normalisation.reversed {
                            2 - plane
                        } else {
                            plane
                        };
                        *to = f32::from(pixel[channel]) * normalisation.factor[plane]
                            + normalisation.addend[plane];
                    }
                }
                self.put_halves(to, &made, half);
            }
            Op::Planes {
                from,
                to,
                images,
                area,
                half,
            } => {
                let planes = self.floats(from, 3 * images * area);
                let mut made = vec![0.0; 8 * images * area];
                for image in 0..images {
                    for plane in 0..3 {
                        for pixel in 0..area {
                            made[8 * (image * area + pixel) + plane] =
                                planes[(3 * image + plane) * area + pixel];
                        }
                    }
                }
                self.put_halves(to, &made, half);
            }
            Op::Convolution {
                shape,
                x,
                weights,
                bias,
                z,
                y,
                ..
            } => {
                assert_eq!(z.is_some(), shape.residual);
                let half = shape.half;
                let x = self.halves(x, shape.x().len(), half);
                let weights = self.halves(weights, shape.filter().len(), half);
                let bias = self.halves(bias, shape.out_channels, half);
                let z = z.map(|z| self.halves(z, shape.y().len(), half));
                let mut made = convolve(&shape, &x, &weights, &bias, z.as_deref());
                let tuned = self.tuned.contains(&shape) && !self.distrusted.contains(&shape);
                let wrong = tuned && self.wrong_from.is_some_and(|size| size <= shape.batch);
                if wrong || self.wrong_anyway && shape.batch > 1 {
                    made.reverse();
                }
                self.put_halves(y, &made, half);
            }
            Op::MaxPool {
                from,
                to,
                batch,
                size: (height, width),
                channels,
            } => {
                // The type does not matter for an order of numbers from 0 on.
                let x = self.halves(from, batch * height * width * channels, Half::BF16);
                let (out_height, out_width) = (height.div_ceil(2), width.div_ceil(2));
                let mut made = Vec::new();
                for i in 0..batch * out_height * out_width * channels {
                    let (channel, i) = (i % channels, i / channels);
                    let (column, i) = (i % out_width, i / out_width);
                    let (row, image) = (i % out_height, i / out_height);
                    let rows = (2 * row).saturating_sub(1)..(2 * row + 2).min(height);
                    let columns = (2 * column).saturating_sub(1)..(2 * column + 2).min(width);
                    let window = rows.flat_map(|y| columns.clone().map(move |x| (y, x)));
                    let most = window
                        .map(|(row, column)| {
                            x[((image * height + row) * width + column) * channels + channel]
                        })
                        .fold(0.0, |most: f32, x| if x.is_nan() { x } else { most.max(x) });
                    made.push(most);
                }
                self.put_halves(to, &made, Half::BF16);
            }
            Op::AveragePool {
                from,
                to,
                batch,
                area,
                channels,
                half,
            } => {
                let x = self.halves(from, batch * area * channels, half);
                let mut made = vec![0.0; batch * channels];
                for (pixel, numbers) in x.chunks_exact(channels).enumerate() {
                    for (sum, x) in made[pixel / area * channels..].iter_mut().zip(numbers) {
                        *sum += x / area as f32;
                    }
                }
                self.put_floats(to, &made);
            }
            Op::Linear {
                from,
                weights,
                bias,
                to,
                batch,
                inputs,
                outputs,
                ..
            } => {
                let x = self.floats(from, batch * inputs);
                let weights = self.floats(weights, inputs * outputs);
                let bias = self.floats(bias, outputs);
                let mut made = Vec::new();
                for row in x.chunks_exact(inputs) {
                    let mut sums = bias.clone();
                    for (x, weights) in row.iter().zip(weights.chunks_exact(outputs)) {
                        for (sum, weight) in sums.iter_mut().zip(weights) {
                            *sum += x * weight;
                        }
                    }
                    made.extend(sums);
                }
                self.put_floats(to, &made);
            }
        }
    }
}

/// A convolution with what is fused to it, from its definition, with float32 sums.
fn convolve(
    shape: &Convolution,
    x: &[f32],
    weights: &[f32],
    bias: &[f32],
    z: Option<&[f32]>,
) -> Vec<f32> {
    let (height, width) = shape.size;
    let (out_height, out_width) = shape.out_size();
    let (channels, kernel) = (shape.in_channels, shape.kernel);
    let outputs = shape.out_channels;
    // Weights as [row, column, input channel, output channel], whose sums a compiler makes vectors
    // of.
    let reduced = kernel * kernel * channels;
    let mut by_output = vec![0.0; weights.len()];
    for (i, &weight) in weights.iter().enumerate() {
        by_output[i % reduced * outputs + i / reduced] = weight;
    }
    let mut made = vec![0.0; shape.y().len()];
    for (pixel, y) in made.chunks_exact_mut(outputs).enumerate() {
        let (column, rest) = (pixel % out_width, pixel / out_width);
        let (row, image) = (rest % out_height, rest / out_height);
        y.copy_from_slice(bias);
        for r in 0..kernel {
            for s in 0..kernel {
                let (Some(from_row), Some(from_column)) = (
                    (row * shape.stride + r).checked_sub(shape.padding),
                    (column * shape.stride + s).checked_sub(shape.padding),
                ) else {
                    continue;
                };
                if from_row >= height || from_column >= width {
                    continue;
                }
                let x = &x[((image * height + from_row) * width + from_column) * channels..];
                let weights = &by_output[(r * kernel + s) * channels * outputs..];
                // Plain indices are what tests' low optimisation makes quick code of.
                for c in 0..channels {
                    let (x, weights) = (x[c], &weights[c * outputs..][..outputs]);
                    let mut k = 0;
                    while k < outputs {
                        y[k] += x * weights[k];
                        k += 1;
                    }
                }
            }
        }
        if let Some(z) = z {
            for (y, z) in y.iter_mut().zip(&z[pixel * outputs..]) {
                *y += z;
            }
        }
        if shape.relu {
            for y in y {
                // A NaN stays one.
                if *y < 0.0 {
                    *y = 0.0;
                }
            }
        }
    }
    made
}

/// Every number of a type, by its bits. Dependencies are not optimised in tests, and a table is
/// quicker than they are.
fn numbers_of(half: Half) -> &'static [f32] {
    static F16: LazyLock<Vec<f32>> = LazyLock::new(|| {
        (0..=u16::MAX)
            .map(|bits| f16::from_bits(bits).to_f32())
            .collect()
    });
    static BF16: LazyLock<Vec<f32>> = LazyLock::new(|| {
        (0..=u16::MAX)
            .map(|bits| bf16::from_bits(bits).to_f32())
            .collect()
    });
    match half {
        Half::F16 => &F16,
        Half::BF16 => &BF16,
    }
}

/// The driver; a clone is the same device, so that a test sees what the network did with it.
#[derive(Clone, Default)]
pub(super) struct HostDriver(Arc<Mutex<State>>);

impl HostDriver {
    pub(super) fn failing(fails: Fails) -> Self {
        let driver = Self::default();
        driver.state().fails = fails;
        driver
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the driver")
    }
}

impl HostDriver {
    fn await_sends(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.state();
            let sends = state.calls.iter().filter(|call| **call == "send").count();
            if sends >= state.awaited_sends {
                return;
            }
            drop(state);
            assert!(
                Instant::now() < until,
                "{sends} uploads while a batch computes"
            );
            std::thread::yield_now();
        }
    }
}

fn error(call: &'static str, reason: &str) -> DeviceError {
    DeviceError {
        call,
        reason: reason.to_owned(),
    }
}

impl Driver for HostDriver {
    fn description(&self) -> &str {
        "the host's memory"
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let mut state = self.state();
        state.call("allocate")?;
        // NaN in both half types and in float32.
        state.buffers.push(Some(vec![0xff; bytes]));
        Ok(Buffer(state.buffers.len() - 1))
    }

    fn free(&self, buffer: Buffer) {
        let freed = self.state().buffers[buffer.0].take();
        assert!(freed.is_some(), "{buffer:?} is freed once");
    }

    fn write(&self, to: Place, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("write")?;
        state.bytes(to, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn workspace_bytes(&self, _: &Convolution) -> Result<usize, DeviceError> {
        self.state().call("workspace")?;
        Ok(1000)
    }

    fn open_slots(&self, sizes: &[SlotBytes]) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("open slots")?;
        let slot = |size: &SlotBytes| Slot {
            sizes: (size.upload, size.download),
            ..Slot::default()
        };
        state.slots = sizes.iter().map(slot).collect();
        Ok(())
    }

    fn send(&self, slot: usize, parts: &[&[u8]], to: Place) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("send")?;
        let bytes = parts.concat();
        assert!(bytes.len() <= state.slots[slot].sizes.0 && bytes.len() <= to.bytes);
        state.slots[slot].upload = Some((to, bytes));
        Ok(())
    }

    fn join(&self, slot: usize) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("join")?;
        let (to, bytes) = state.slots[slot].upload.take().expect("something was sent");
        state.bytes(to, bytes.len()).copy_from_slice(&bytes);
        Ok(())
    }

    fn run(&self, op: &Op) -> Result<(), DeviceError> {
        if matches!(op, Op::AveragePool { .. }) {
            self.await_sends();
        }
        let mut state = self.state();
        state.call(match op {
            Op::Pixels { .. } | Op::Planes { .. } => "run input",
            _ => "run",
        })?;
        state.run(op);
        Ok(())
    }

    fn tune(&self, op: &Op) -> Option<Tuning> {
        let Op::Convolution { shape, .. } = op else {
            return None;
        };
        let mut state = self.state();
        if state.tuned.contains(shape) {
            return None;
        }
        state.tuned.push(*shape);
        Some(Tuning {
            tried: 1,
            engine: Some(1),
            milliseconds: 0.5,
            fixed_milliseconds: Some(1.0),
        })
    }

    fn distrust(&self, op: &Op) -> bool {
        let Op::Convolution { shape, .. } = op else {
            return false;
        };
        let mut state = self.state();
        let before = state.tuned.contains(shape) && !state.distrusted.contains(shape);
        state.distrusted.push(*shape);
        before
    }

    fn capture(&self, ops: &[Op]) -> Result<Graph, DeviceError> {
        let mut state = self.state();
        state.call("capture")?;
        state.graphs.push(Some(ops.to_vec()));
        Ok(Graph(state.graphs.len() - 1))
    }

    fn replay(&self, graph: Graph) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("replay")?;
        let ops = state.graphs[graph.0].clone().expect("a graph that is held");
        ops.iter().for_each(|op| state.run(op));
        Ok(())
    }

    fn forget(&self, graph: Graph) {
        let forgotten = self.state().graphs[graph.0].take();
        assert!(forgotten.is_some(), "{graph:?} is forgotten once");
    }

    fn fetch(&self, slot: usize, from: &[Place]) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.call("fetch")?;
        let mut bytes = Vec::new();
        for place in from {
            bytes.extend_from_slice(state.bytes(*place, place.bytes));
        }
        assert!(bytes.len() <= state.slots[slot].sizes.1);
        state.slots[slot].download = bytes;
        Ok(())
    }

    fn finish(&self, slot: usize) -> Result<Vec<u8>, DeviceError> {
        let mut state = self.state();
        state.call("finish")?;
        Ok(std::mem::take(&mut state.slots[slot].download))
    }

    fn settle(&self) {
        self.state().calls.push("settle");
    }
}
