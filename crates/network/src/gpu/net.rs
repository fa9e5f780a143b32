//! Runs plans on a driver.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use half::{bf16, f16};
use imgclass_cuda::{
    Buffer, DeviceError, Driver, Graph, Half, Op, Pixels, Place, SlotBytes, Tuning,
};

use crate::error::NetworkError;
use crate::gpu::plan::{Plan, PlanMemory};
use crate::gpu::record::Program;
use crate::gpu::weights::DeviceWeights;
use crate::gpu::{allowed, furthest_share, test_picture};
use crate::input::{Input, Normalisation};
use crate::network::{Network, Output, Want};

/// The most images of one pass. More run one pass after another: at 64 a GPU is busy, and every
/// further size costs a graph and memory.
pub const MAX_BATCH: usize = 64;

/// How many passes are under way at one time. While one computes, the next one's images cross the
/// bus.
const SLOTS: usize = 2;

/// How much more a normalised image takes than its pixels: float32 instead of bytes.
const PLANAR_FACTOR: usize = size_of::<f32>();

/// Returns the batch size that so many images run at: the next power of two, up to [`MAX_BATCH`].
#[must_use]
pub fn padded_batch(images: usize) -> usize {
    images.clamp(1, MAX_BATCH).next_power_of_two()
}

/// A network on an NVIDIA GPU.
pub struct GpuNet {
    driver: Box<dyn Driver>,
    program: Program,
    half: Half,
    normalisation: Normalisation,
    weights: DeviceWeights,
    weights_buffer: Buffer,
    /// Everything whose size depends on the batch size; `None` before the first pass. A pass reads
    /// it, growing writes it.
    reserved: RwLock<Option<Reserved>>,
    /// The slots that no pass has.
    free_slots: Mutex<Vec<usize>>,
    slot_freed: Condvar,
    /// The batch size up to which `warm_up` has run.
    warm: Mutex<usize>,
}

/// Memory and plans for batches of up to `batch` images.
struct Reserved {
    batch: usize,
    memory: PlanMemory,
    workspace_bytes: usize,
    /// Where each slot's images go.
    inputs: Vec<Place>,
    /// The plans by batch size. Whoever holds the lock has the compute queue.
    plans: Mutex<HashMap<usize, Planned>>,
}

struct Planned {
    plan: Plan,
    state: GraphState,
}

/// How a plan's operations get to the device.
#[derive(Debug, Clone, Copy)]
enum GraphState {
    /// They have not run yet. The first time they are tuned and queued one by one, while libraries
    /// load code.
    New,
    /// They have run. The next time they are captured.
    Ran,
    /// They are a graph.
    Captured(Graph),
    /// They cannot be captured, and are queued one by one.
    Refused,
}

/// A slot that belongs to one pass.
struct SlotGuard<'a> {
    net: &'a GpuNet,
    slot: usize,
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        lock(&self.net.free_slots).push(self.slot);
        self.net.slot_freed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GpuNet {
    /// Uploads a program's weights, converted to `half`.
    ///
    /// # Errors
    /// The device fails.
    pub fn new(
        driver: Box<dyn Driver>,
        mut program: Program,
        half: Half,
        normalisation: Normalisation,
    ) -> Result<Self, NetworkError> {
        let (weights, bytes) = DeviceWeights::of(&program, half);
        program.forget_weights();
        let weights_buffer = driver.allocate(bytes.len())?;
        let all = Place {
            buffer: weights_buffer,
            offset: 0,
            bytes: bytes.len(),
        };
        driver.write(all, &bytes)?;
        Ok(Self {
            driver,
            program,
            half,
            normalisation,
            weights,
            weights_buffer,
            reserved: RwLock::default(),
            free_slots: Mutex::new((0..SLOTS).collect()),
            slot_freed: Condvar::new(),
            warm: Mutex::new(0),
        })
    }

    /// Returns the GPU and the libraries as people know them.
    #[must_use]
    pub fn description(&self) -> &str {
        self.driver.description()
    }

    /// Returns the pixels of one image.
    fn area(&self) -> usize {
        let (height, width) = self.program.input_size();
        height * width
    }

    /// Calls `run` with memory and plans for at least `batch` images.
    fn with_reserved<T>(
        &self,
        batch: usize,
        run: impl FnOnce(&Reserved) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        loop {
            let reserved = self.reserved.read().unwrap_or_else(PoisonError::into_inner);
            match &*reserved {
                Some(reserved) if reserved.batch >= batch => return run(reserved),
                _ => {}
            }
            drop(reserved);
            // No pass is under way behind this lock.
            let mut reserved = self
                .reserved
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if reserved.as_ref().is_none_or(|held| held.batch < batch) {
                // The old memory goes first: both together may be more than the device has.
                if let Some(old) = reserved.take() {
                    self.release(old);
                }
                *reserved = Some(self.allocate(batch)?);
            }
        }
    }

    /// Returns graphs and memory to the driver.
    fn release(&self, old: Reserved) {
        self.driver.settle();
        let plans = old.plans.into_inner();
        for planned in plans.unwrap_or_else(PoisonError::into_inner).into_values() {
            if let GraphState::Captured(graph) = planned.state {
                self.driver.forget(graph);
            }
        }
        let PlanMemory {
            arena,
            workspace,
            results,
            ..
        } = old.memory;
        let inputs = old.inputs.iter().map(|place| place.buffer);
        for buffer in inputs.chain([arena, workspace, results]) {
            self.driver.free(buffer);
        }
    }

    /// Allocates memory for batches of up to `batch` images. After an error nothing is allocated.
    fn allocate(&self, batch: usize) -> Result<Reserved, DeviceError> {
        let mut allocated = Vec::new();
        let reserved = self.allocate_into(batch, &mut allocated);
        if reserved.is_err() {
            for buffer in allocated {
                self.driver.free(buffer);
            }
        }
        reserved
    }

    fn allocate_into(
        &self,
        batch: usize,
        allocated: &mut Vec<Buffer>,
    ) -> Result<Reserved, DeviceError> {
        let driver = &self.driver;
        let mut allocate = |bytes: usize| -> Result<Buffer, DeviceError> {
            let buffer = driver.allocate(bytes)?;
            allocated.push(buffer);
            Ok(buffer)
        };
        // The sizes of a plan do not depend on its memory.
        let nowhere = PlanMemory {
            weights: self.weights_buffer,
            arena: self.weights_buffer,
            workspace: self.weights_buffer,
            results: self.weights_buffer,
        };
        let sizes = || std::iter::successors(Some(1), |size| Some(2 * size));
        let (mut arena_bytes, mut results_bytes, mut workspace_bytes) = (0, 0, 0);
        for size in sizes().take_while(|size| *size <= batch) {
            let plan = self.plan(size, nowhere, 0);
            arena_bytes = arena_bytes.max(plan.arena_bytes);
            results_bytes = results_bytes.max(plan.results_bytes);
            workspace_bytes = workspace_bytes.max(plan.partial_bytes);
            for shape in Plan::convolutions(&self.program, size, self.half) {
                workspace_bytes = workspace_bytes.max(driver.workspace_bytes(&shape)?);
            }
        }
        let memory = PlanMemory {
            weights: self.weights_buffer,
            arena: allocate(arena_bytes)?,
            workspace: allocate(workspace_bytes)?,
            results: allocate(results_bytes)?,
        };
        // One normalised image fits in any case.
        let upload = 3 * self.area() * batch.max(PLANAR_FACTOR);
        let inputs: Vec<Place> = (0..SLOTS)
            .map(|_| {
                Ok(Place {
                    buffer: allocate(upload)?,
                    offset: 0,
                    bytes: upload,
                })
            })
            .collect::<Result<_, DeviceError>>()?;
        let download = results_bytes + batch * self.map_bytes();
        driver.open_slots(&[SlotBytes { upload, download }; SLOTS])?;
        Ok(Reserved {
            batch,
            memory,
            workspace_bytes,
            inputs,
            plans: Mutex::default(),
        })
    }

    fn plan(&self, batch: usize, memory: PlanMemory, workspace_bytes: usize) -> Plan {
        Plan::of(
            &self.program,
            &self.weights,
            batch,
            self.half,
            memory,
            workspace_bytes,
        )
    }

    /// Waits for a slot that no pass has.
    fn take_slot(&self) -> SlotGuard<'_> {
        let mut free = lock(&self.free_slots);
        loop {
            if let Some(slot) = free.pop() {
                return SlotGuard { net: self, slot };
            }
            free = self
                .slot_freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs at most [`MAX_BATCH`] images; of planar ones, a quarter as many.
    fn run_pass(&self, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError> {
        // The upload buffers are as large as the pixels of the reserved batch size.
        let batch = padded_batch(images.len() * upload_factor(images));
        self.with_reserved(batch, |reserved| {
            let slot = self.take_slot();
            let ran = self.run_in_slot(reserved, slot.slot, images, wants);
            if ran.is_err() {
                // Until nothing is queued, the slot's memory may still be read or written.
                self.driver.settle();
            }
            ran
        })
    }

    fn run_in_slot(
        &self,
        reserved: &Reserved,
        slot: usize,
        images: &[&Input],
        wants: &[Want],
    ) -> Result<Vec<Output>, NetworkError> {
        let to = reserved.inputs[slot];
        self.send(slot, images, to)?;
        let wanted = Wanted::of(images.len(), wants);
        {
            let mut plans = lock(&reserved.plans);
            let batch = padded_batch(images.len());
            let planned = plans.entry(batch).or_insert_with(|| Planned {
                plan: self.plan(batch, reserved.memory, reserved.workspace_bytes),
                state: GraphState::New,
            });
            self.driver.join(slot)?;
            self.driver
                .run(&self.input_op(images, to, planned.plan.input))?;
            self.queue(planned)?;
            let places = self.places(&planned.plan, images.len(), &wanted);
            self.driver.fetch(slot, &places)?;
        }
        let bytes = self.driver.finish(slot)?;
        Ok(self.outputs(&bytes, images.len(), &wanted))
    }

    /// Queues the upload of images: pixels as they are, or, if one of them is planar, all of them
    /// as normalised planes.
    fn send(&self, slot: usize, images: &[&Input], to: Place) -> Result<(), DeviceError> {
        let pixels: Vec<&[u8]> = images.iter().filter_map(|image| image.pixels()).collect();
        if pixels.len() == images.len() {
            return self.driver.send(slot, &pixels, to);
        }
        let planes: Vec<u8> = images
            .iter()
            .map(|image| match image {
                Input::Planar(numbers) => Cow::Borrowed(numbers.as_slice()),
                Input::Pixels(pixels) => Cow::Owned(self.normalisation.planar(pixels)),
            })
            .flat_map(|numbers| {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                bytes
            })
            .collect();
        self.driver.send(slot, &[&planes], to)
    }

    /// Returns the operation that brings uploaded images to the network's input.
    fn input_op(&self, images: &[&Input], from: Place, to: Place) -> Op {
        let (half, area) = (self.half, self.area());
        if upload_factor(images) == 1 {
            Op::Pixels {
                from,
                to,
                pixels: images.len() * area,
                half,
                normalisation: Pixels {
                    factor: self.normalisation.factor,
                    addend: self.normalisation.addend,
                    reversed: self.normalisation.reversed,
                },
            }
        } else {
            Op::Planes {
                from,
                to,
                images: images.len(),
                area,
                half,
            }
        }
    }

    /// Queues the operations of a plan: one by one the first time, afterwards as a graph.
    fn queue(&self, planned: &mut Planned) -> Result<(), DeviceError> {
        if let GraphState::Ran = planned.state {
            planned.state = match self.driver.capture(&planned.plan.ops) {
                Ok(graph) => GraphState::Captured(graph),
                Err(error) => {
                    let batch = planned.plan.batch;
                    tracing::warn!(%error, batch, "no CUDA graph: operations are queued one by one");
                    GraphState::Refused
                }
            };
        }
        if let GraphState::Captured(graph) = planned.state {
            return self.driver.replay(graph);
        }
        let first = matches!(planned.state, GraphState::New);
        let mut tunings = Vec::new();
        for op in &planned.plan.ops {
            if first {
                tunings.extend(self.driver.tune(op));
            }
            self.driver.run(op)?;
        }
        if first {
            log_tunings(planned.plan.batch, &tunings);
            planned.state = GraphState::Ran;
        }
        Ok(())
    }

    /// Takes the choices for a batch size back, and its graph. Returns whether there were any.
    fn distrust(&self, batch: usize) -> bool {
        let reserved = self.reserved.read().unwrap_or_else(PoisonError::into_inner);
        let Some(reserved) = &*reserved else {
            return false;
        };
        let mut plans = lock(&reserved.plans);
        let Some(planned) = plans.get_mut(&batch) else {
            return false;
        };
        // No pass of this size is under way: `plans` is locked, and what was queued is waited for.
        self.driver.settle();
        if let GraphState::Captured(graph) = planned.state {
            self.driver.forget(graph);
        }
        planned.state = GraphState::New;
        let mut any = false;
        for op in &planned.plan.ops {
            any |= self.driver.distrust(op);
        }
        any
    }

    /// Runs pictures in turns as a batch of `size`, twice: the second time captures the graph.
    /// Returns the logits of the last pass.
    fn warm_up_size(&self, pictures: &[Input], size: usize) -> Result<Vec<Output>, NetworkError> {
        let images: Vec<&Input> = pictures.iter().cycle().take(size).collect();
        self.run_batch(&images, &[])?;
        let outputs = self.run_batch(&images, &[])?;
        let mut logits = outputs.iter().flat_map(|output| &output.logits);
        if logits.all(|x| x.is_finite()) {
            Ok(outputs)
        } else {
            Err(NetworkError::NotFinite)
        }
    }

    /// Compares the logits of each batch size with those of a batch of one, which were compared with
    /// the CPU's at load. Where they differ by more than the type allows, the choices of that size
    /// are taken back.
    fn compare_sizes(
        &self,
        pictures: &[Input],
        warmed: Vec<(usize, Vec<Output>)>,
    ) -> Result<(), NetworkError> {
        let mut expected = Vec::new();
        for picture in pictures {
            expected.extend(self.run_batch(&[picture], &[])?);
        }
        let allowed = allowed(self.half.into());
        let furthest = |outputs: &[Output]| {
            let pairs = outputs.iter().zip(expected.iter().cycle());
            pairs
                .map(|(output, expected)| furthest_share(&output.logits, &expected.logits))
                .fold(0f32, f32::max)
        };
        for (size, outputs) in warmed {
            let share = furthest(&outputs);
            if share <= allowed {
                continue;
            }
            tracing::warn!(
                batch = size,
                "logits differ from a batch of one by {:.2} % of the largest one: the fixed \
                 algorithm computes this batch size",
                100.0 * share
            );
            let again = if self.distrust(size) {
                furthest(&self.warm_up_size(pictures, size)?)
            } else {
                share
            };
            if again > allowed {
                return Err(NetworkError::Compute(candle_core::Error::msg(format!(
                    "logits of a batch of {size} differ from those of a batch of one by {:.2} % of \
                     the largest one, {:.0} % are allowed",
                    100.0 * again,
                    100.0 * allowed
                ))));
            }
        }
        Ok(())
    }

    /// Returns the bytes of one image's feature map.
    fn map_bytes(&self) -> usize {
        self.program.values[self.program.feature_map].len() * Half::BYTES
    }

    /// Returns what is downloaded of a pass: logits, then features and maps where wanted.
    fn places(&self, plan: &Plan, images: usize, wanted: &Wanted) -> Vec<Place> {
        let rows = |place: Place| place.first(images * place.bytes / plan.batch);
        let mut places = vec![rows(plan.logits)];
        if wanted.any_features() {
            places.push(rows(plan.features));
        }
        let bytes = self.map_bytes();
        places.extend(wanted.maps().map(|image| Place {
            offset: plan.feature_map.offset + image * bytes,
            bytes,
            ..plan.feature_map
        }));
        places
    }

    /// Splits what was downloaded, in the order of [`GpuNet::places`].
    fn outputs(&self, bytes: &[u8], images: usize, wanted: &Wanted) -> Vec<Output> {
        let (features, classes) = (self.program.linear.inputs, self.program.linear.outputs);
        let (logits, rest) = bytes.split_at(images * classes * size_of::<f32>());
        let features_bytes = if wanted.any_features() {
            images * features * size_of::<f32>()
        } else {
            0
        };
        let (rows, maps) = rest.split_at(features_bytes);
        let mut outputs: Vec<Output> = logits
            .chunks_exact(classes * size_of::<f32>())
            .map(|row| Output {
                logits: floats(row),
                ..Output::default()
            })
            .collect();
        let rows = rows.chunks_exact(features * size_of::<f32>());
        for (image, row) in rows.enumerate() {
            outputs[image].features = wanted.0[image].features.then(|| floats(row));
        }
        for (image, map) in wanted.maps().zip(maps.chunks_exact(self.map_bytes())) {
            outputs[image].feature_map = Some(planes(map, features, self.half));
        }
        outputs
    }
}

/// Says what tuning a batch size has come to.
fn log_tunings(batch: usize, tunings: &[Tuning]) {
    if tunings.is_empty() {
        return;
    }
    for tuning in tunings {
        tracing::debug!(batch, ?tuning, "a convolution was tuned");
    }
    let planned = tunings.iter().filter(|one| one.engine.is_some()).count();
    let sum = |of: fn(&Tuning) -> f32| tunings.iter().map(of).sum::<f32>();
    let chosen = sum(|one| one.milliseconds);
    let fixed = sum(|one| one.fixed_milliseconds.unwrap_or(f32::NAN));
    tracing::info!(
        batch,
        "{planned} of {} shapes of convolutions run by cuDNN's plans: {chosen:.3} ms instead of \
         {fixed:.3} ms by the fixed algorithm",
        tunings.len()
    );
}

/// What each image of a pass asks for.
struct Wanted(Vec<Want>);

impl Wanted {
    fn of(images: usize, wants: &[Want]) -> Self {
        let want = |image| wants.get(image).copied().unwrap_or_default();
        Self((0..images).map(want).collect())
    }

    fn any_features(&self) -> bool {
        self.0.iter().any(|want| want.features)
    }

    /// Returns the images whose feature map is wanted.
    fn maps(&self) -> impl Iterator<Item = usize> {
        let images = self.0.iter().enumerate();
        images.filter_map(|(image, want)| want.feature_map.then_some(image))
    }
}

/// Returns by how much an upload of these images is larger than their pixels.
fn upload_factor(images: &[&Input]) -> usize {
    if images.iter().all(|image| image.pixels().is_some()) {
        1
    } else {
        PLANAR_FACTOR
    }
}

/// Returns float32 numbers from their bytes.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// Returns a feature map, NHWC in half precision, as planes in float32.
fn planes(bytes: &[u8], channels: usize, half: Half) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<2>();
    let number = |bytes: &[u8; 2]| {
        let bits = u16::from_le_bytes(*bytes);
        match half {
            Half::F16 => f16::from_bits(bits).to_f32(),
            Half::BF16 => bf16::from_bits(bits).to_f32(),
        }
    };
    (0..channels)
        .flat_map(|channel| numbers.iter().skip(channel).step_by(channels).map(number))
        .collect()
}

impl Network for GpuNet {
    fn run_batch(&self, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError> {
        let expected = 3 * self.area();
        if let Some(image) = images.iter().find(|image| image.len() != expected) {
            return Err(NetworkError::Input {
                expected,
                found: image.len(),
            });
        }
        let together = MAX_BATCH / upload_factor(images);
        let mut outputs = Vec::with_capacity(images.len());
        for (pass, images) in images.chunks(together).enumerate() {
            let wants = wants.get(pass * together..).unwrap_or_default();
            outputs.extend(self.run_pass(images, wants)?);
        }
        Ok(outputs)
    }

    fn passes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(SLOTS - 1)
    }

    fn prefers_pixels(&self) -> bool {
        true
    }

    /// Runs pictures at every batch size, twice: the first time chooses how convolutions are
    /// computed, the second time captures the graph. The second worker's call finds this done.
    fn warm_up(&self, max_batch_size: usize) -> Result<(), NetworkError> {
        let largest = padded_batch(max_batch_size);
        let mut warm = lock(&self.warm);
        if *warm >= largest {
            return Ok(());
        }
        // Two pictures, so that images that get into each other's place show.
        let picture = test_picture(self.program.input_size());
        let turned = Input::Pixels(
            picture
                .pixels()
                .unwrap_or_default()
                .iter()
                .rev()
                .copied()
                .collect(),
        );
        let pictures = [picture, turned];
        // From the largest, so that memory is allocated once.
        let sizes = std::iter::successors(Some(largest), |size| Some(size / 2));
        let mut warmed = Vec::new();
        for size in sizes.take_while(|size| *size > 0) {
            warmed.push((size, self.warm_up_size(&pictures, size)?));
        }
        self.compare_sizes(&pictures, warmed)?;
        *warm = largest;
        Ok(())
    }
}
