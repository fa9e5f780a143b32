//! The engine under networks that are slow, that fail and that panic: admission, batches, deadlines,
//! and what a worker does after a panic.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use imgclass_engine::{
    Engine, EngineError, EngineOptions, EngineStartError, Observer, Refusal, WorkerHealth,
};
use imgclass_network::{Input, Network, NetworkError, Output, Want};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Answers each image with its own first number; says what it was given, then waits for leave.
struct Gated {
    begun: UnboundedSender<usize>,
    leave: Mutex<Receiver<()>>,
    workers: usize,
}

impl Network for Gated {
    fn run_batch(&self, images: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
        self.begun.send(images.len()).ok();
        self.leave.lock().expect("the gate").recv().ok();
        Ok(images
            .iter()
            .map(|image| Output {
                logits: image.planar().expect("numbers").to_vec(),
                ..Output::default()
            })
            .collect())
    }

    fn passes(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.workers).expect("a worker at least")
    }
}

#[derive(Default)]
struct Counts {
    panics: AtomicUsize,
    abandoned: AtomicUsize,
    expired: AtomicUsize,
    images: AtomicUsize,
}

impl Observer for Counts {
    fn batch_finished(&self, images: usize, _: Duration) {
        self.images.fetch_add(images, Ordering::SeqCst);
    }
    fn jobs_dropped(&self, abandoned: usize, expired: usize) {
        self.abandoned.fetch_add(abandoned, Ordering::SeqCst);
        self.expired.fetch_add(expired, Ordering::SeqCst);
    }
    fn worker_panicked(&self) {
        self.panics.fetch_add(1, Ordering::SeqCst);
    }
}

const OPTIONS: EngineOptions = EngineOptions {
    max_concurrent_requests: 2,
    queue_capacity: 16,
    max_batch_size: 4,
    max_batch_delay: Duration::ZERO,
    stuck_after: Duration::from_secs(10),
};

struct Bench {
    engine: Arc<Engine>,
    /// Leave for one batch.
    gate: Sender<()>,
    /// The sizes of batches as they begin.
    begun: UnboundedReceiver<usize>,
    counts: Arc<Counts>,
}

fn bench(options: EngineOptions) -> Bench {
    bench_of(1, options)
}

fn bench_of(workers: usize, options: EngineOptions) -> Bench {
    let (gate, leave) = channel();
    let (begin, begun) = unbounded_channel();
    let counts = Arc::new(Counts::default());
    let model = Gated {
        begun: begin,
        leave: Mutex::new(leave),
        workers,
    };
    let engine = Engine::start(Arc::new(model), options, counts.clone()).expect("a worker");
    Bench {
        engine: Arc::new(engine),
        gate,
        begun,
        counts,
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

impl Bench {
    fn submit(
        &self,
        number: f32,
        deadline: Instant,
    ) -> tokio::task::JoinHandle<Result<f32, EngineError>> {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let slot = engine.slot().await?;
            let done = engine
                .run(slot, vec![number].into(), Want::default(), deadline)
                .await?;
            Ok(done.output.logits[0])
        })
    }

    async fn until_waiting(&self, jobs: usize) {
        while self.engine.queue_depth() != jobs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn admission_refuses_at_once_beyond_its_places_and_admits_again_when_one_is_free() {
    let bench = bench(OPTIONS);
    let first = bench.engine.admission().enter().expect("a place");
    let _second = bench.engine.admission().enter().expect("a place");
    assert_eq!(
        bench.engine.admission().enter().expect_err("full"),
        Refusal::Full(2)
    );
    assert_eq!(bench.engine.admission().in_flight(), 2);
    drop(first);
    assert!(bench.engine.admission().enter().is_ok());
}

#[tokio::test]
async fn what_waits_while_a_batch_runs_rides_in_the_next_one_up_to_the_limit() {
    let mut bench = bench(OPTIONS);
    let first = bench.submit(0.0, later());
    assert_eq!(bench.begun.recv().await, Some(1), "a lone job runs at once");
    let rest: Vec<_> = (1..=6).map(|i| bench.submit(i as f32, later())).collect();
    bench.until_waiting(6).await;
    (0..3).for_each(|_| bench.gate.send(()).expect("the model waits"));
    assert_eq!(first.await.expect("joined").expect("an answer"), 0.0);
    for (i, job) in rest.into_iter().enumerate() {
        assert_eq!(
            job.await.expect("joined").expect("an answer"),
            (i + 1) as f32,
            "each gets its own answer"
        );
    }
    assert_eq!(
        [bench.begun.recv().await, bench.begun.recv().await],
        [Some(4), Some(2)]
    );
    assert_eq!(bench.counts.images.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn jobs_of_callers_that_left_and_jobs_past_their_deadline_cost_no_forward() {
    let mut bench = bench(OPTIONS);
    let running = bench.submit(0.0, later());
    assert_eq!(bench.begun.recv().await, Some(1));
    let left = bench.submit(1.0, later());
    let late = bench.submit(2.0, Instant::now());
    let good = bench.submit(3.0, later());
    bench.until_waiting(3).await;
    left.abort();
    let _ = left.await;
    (0..2).for_each(|_| bench.gate.send(()).expect("the model waits"));
    assert_eq!(running.await.expect("joined").expect("an answer"), 0.0);
    assert!(matches!(
        late.await.expect("joined"),
        Err(EngineError::DeadlinePassed)
    ));
    assert_eq!(good.await.expect("joined").expect("an answer"), 3.0);
    assert_eq!(bench.begun.recv().await, Some(1), "only the good one ran");
    assert_eq!(bench.counts.abandoned.load(Ordering::SeqCst), 1);
    assert_eq!(bench.counts.expired.load(Ordering::SeqCst), 1);
}

/// Panics on a negative number, fails on a huge one.
struct Moody;

impl Network for Moody {
    fn run_batch(&self, images: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
        match images[0].planar().expect("numbers")[0] {
            x if x < 0.0 => panic!("a batch that the model cannot stand"),
            x if x > 1e6 => Err(NetworkError::NotFinite),
            x => Ok(vec![Output {
                logits: vec![x],
                ..Output::default()
            }]),
        }
    }
}

#[tokio::test]
async fn a_panic_costs_its_batch_and_nobody_else() {
    let counts = Arc::new(Counts::default());
    let engine = Engine::start(Arc::new(Moody), OPTIONS, counts.clone()).expect("a worker");
    for round in 0..3 {
        let slot = engine.slot().await.expect("a slot");
        let bad = engine
            .run(slot, vec![-1.0].into(), Want::default(), later())
            .await;
        assert!(
            matches!(bad, Err(EngineError::WorkerPanicked)),
            "round {round}: {bad:?}"
        );
        let slot = engine.slot().await.expect("a slot");
        let failed = engine
            .run(slot, vec![1e9].into(), Want::default(), later())
            .await;
        assert!(
            matches!(failed, Err(EngineError::Model(_))),
            "round {round}: {failed:?}"
        );
        let slot = engine.slot().await.expect("a slot");
        let good = engine
            .run(slot, vec![1.0].into(), Want::default(), later())
            .await
            .expect("the next job runs");
        assert_eq!(good.output.logits, [1.0]);
        assert_eq!(engine.health(), WorkerHealth::Well);
    }
    // The count follows the reply: the panic reaches the caller before the worker starts again.
    while counts.panics.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn stopping_finishes_what_waits_and_takes_nothing_more() {
    let mut bench = bench(OPTIONS);
    let first = bench.submit(0.0, later());
    assert_eq!(bench.begun.recv().await, Some(1));
    let mut jobs = vec![first];
    jobs.extend((1..3).map(|i| bench.submit(i as f32, later())));
    bench.until_waiting(2).await;
    (0..2).for_each(|_| bench.gate.send(()).expect("the model waits"));
    let engine = bench.engine.clone();
    let ended = tokio::task::spawn_blocking(move || engine.stop(Duration::from_secs(10)))
        .await
        .expect("joined");
    assert!(ended);
    for (i, job) in jobs.into_iter().enumerate() {
        assert_eq!(
            job.await
                .expect("joined")
                .expect("accepted work is answered"),
            i as f32
        );
    }
    assert_eq!(bench.engine.health(), WorkerHealth::Gone);
    assert_eq!(
        bench.engine.admission().enter().expect_err("closed"),
        Refusal::Draining
    );
    let slot = bench.engine.slot().await.expect("a slot");
    let refused = bench
        .engine
        .run(slot, vec![0.0].into(), Want::default(), later())
        .await;
    assert!(matches!(refused, Err(EngineError::Stopped)));
}

#[tokio::test]
async fn a_batch_waits_for_company_only_where_a_delay_is_asked_for() {
    let mut bench = bench(EngineOptions {
        max_batch_delay: Duration::from_secs(60),
        ..OPTIONS
    });
    let jobs: Vec<_> = (0..4).map(|i| bench.submit(i as f32, later())).collect();
    assert_eq!(
        bench.begun.recv().await,
        Some(4),
        "full, it does not wait for the delay to pass"
    );
    bench.gate.send(()).expect("the model waits");
    for job in jobs {
        job.await.expect("joined").expect("an answer");
    }
}

#[tokio::test]
async fn as_many_batches_run_at_one_time_as_the_model_asks_for_and_each_takes_its_share() {
    let mut bench = bench_of(3, OPTIONS);
    let first = bench.submit(0.0, later());
    assert_eq!(bench.begun.recv().await, Some(1), "a lone job runs at once");
    let second = bench.submit(1.0, later());
    assert_eq!(bench.begun.recv().await, Some(1), "beside the first");
    let third = bench.submit(2.0, later());
    assert_eq!(bench.begun.recv().await, Some(1), "beside the others");
    let waiting: Vec<_> = (3..=7).map(|i| bench.submit(i as f32, later())).collect();
    bench.until_waiting(5).await;
    (0..8).for_each(|_| bench.gate.send(()).expect("the model waits"));
    for (i, job) in [first, second, third]
        .into_iter()
        .chain(waiting)
        .enumerate()
    {
        assert_eq!(job.await.expect("joined").expect("an answer"), i as f32);
    }
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 5 {
        sizes.push(bench.begun.recv().await.expect("a batch"));
    }
    // How many workers were idle when the first of them came back is chance; that none takes more
    // than a batch is not.
    assert!(sizes.iter().all(|size| *size <= 4), "{sizes:?}");
    assert_eq!(bench.counts.images.load(Ordering::SeqCst), 8);
    assert!(bench.engine.stop(Duration::from_secs(60)));
}

#[tokio::test]
async fn a_batch_far_over_its_time_is_stuck_whatever_the_other_workers_do() {
    let options = EngineOptions {
        stuck_after: Duration::from_millis(20),
        ..OPTIONS
    };
    let mut bench = bench_of(2, options);
    assert_eq!(bench.engine.health(), WorkerHealth::Well);
    let stuck = bench.submit(0.0, later());
    assert_eq!(bench.begun.recv().await, Some(1));
    let until = |wanted: fn(WorkerHealth) -> bool| {
        let engine = bench.engine.clone();
        async move {
            while !wanted(engine.health()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    until(|health| matches!(health, WorkerHealth::Stuck(_))).await;
    bench.gate.send(()).expect("the model waits");
    stuck.await.expect("joined").expect("an answer");
    until(|health| health == WorkerHealth::Well).await;
}

/// A device with memory for so many images at a time, until it is lost. It answers each image with
/// its first number.
struct SmallDevice {
    images: AtomicUsize,
    lost: AtomicBool,
    batches: Mutex<Vec<usize>>,
}

impl Network for SmallDevice {
    fn run_batch(&self, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError> {
        assert_eq!(images.len(), wants.len());
        self.batches.lock().expect("the list").push(images.len());
        let reason = "CUDA_ERROR_OF_THE_TEST".to_owned();
        if self.lost.load(Ordering::SeqCst) {
            return Err(NetworkError::DeviceLost { reason });
        }
        if images.len() > self.images.load(Ordering::SeqCst) {
            return Err(NetworkError::OutOfDeviceMemory { reason });
        }
        let output = |image: &&Input| Output {
            logits: image.planar().expect("numbers").to_vec(),
            ..Output::default()
        };
        Ok(images.iter().map(output).collect())
    }
}

#[tokio::test]
async fn a_batch_that_the_device_has_no_memory_for_runs_in_halves_and_a_single_one_fails() {
    let device = Arc::new(SmallDevice {
        images: AtomicUsize::new(2),
        lost: AtomicBool::new(false),
        batches: Mutex::default(),
    });
    // All five are taken at once.
    let options = EngineOptions {
        max_batch_size: 5,
        max_batch_delay: Duration::from_secs(60),
        ..OPTIONS
    };
    let engine = Arc::new(
        Engine::start(device.clone(), options, Arc::new(Counts::default())).expect("a worker"),
    );
    let ask = |numbers: Vec<f32>| {
        let engine = engine.clone();
        let jobs = numbers.into_iter().map(move |number| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let slot = engine.slot().await?;
                let input = Input::Planar(vec![number]);
                let done = engine.run(slot, input, Want::default(), later()).await?;
                Ok::<_, EngineError>((number, done))
            })
        });
        jobs.collect::<Vec<_>>()
    };
    for job in ask((0..5).map(|i| i as f32).collect()) {
        let (number, done) = job.await.expect("joined").expect("an answer");
        assert_eq!((done.output.logits, done.batch_size), (vec![number], 5));
    }
    assert_eq!(*device.batches.lock().expect("the list"), [5, 3, 2, 1, 2]);
    assert_eq!(engine.health(), WorkerHealth::Well);

    device.images.store(0, Ordering::SeqCst);
    for job in ask(vec![1.0; 5]) {
        match job.await.expect("joined").expect_err("no memory") {
            EngineError::Model(e) => assert!(matches!(*e, NetworkError::OutOfDeviceMemory { .. })),
            other => panic!("{other}"),
        }
    }
    assert_eq!(engine.health(), WorkerHealth::OutOfDeviceMemory);

    device.images.store(8, Ordering::SeqCst);
    for job in ask(vec![1.0; 5]) {
        job.await.expect("joined").expect("memory again");
    }
    assert_eq!(
        engine.health(),
        WorkerHealth::Well,
        "a batch that runs shows that there is memory"
    );

    device.lost.store(true, Ordering::SeqCst);
    for job in ask(vec![1.0; 5]) {
        match job.await.expect("joined").expect_err("lost") {
            EngineError::Model(e) => assert!(matches!(*e, NetworkError::DeviceLost { .. })),
            other => panic!("{other}"),
        }
    }
    assert_eq!(engine.health(), WorkerHealth::DeviceLost);
}

/// Notes the threads of its warm-up and of its batches. It fails or panics at a warm-up for batches
/// of 1 or 2.
struct Cold(Mutex<Vec<(usize, std::thread::ThreadId)>>);

impl Cold {
    fn note(&self, images: usize) {
        let entry = (images, std::thread::current().id());
        self.0.lock().expect("the list").push(entry);
    }
}

impl Network for Cold {
    fn run_batch(&self, images: &[&Input], _: &[Want]) -> Result<Vec<Output>, NetworkError> {
        self.note(images.len());
        Ok(vec![Output::default(); images.len()])
    }

    fn warm_up(&self, max_batch_size: usize) -> Result<(), NetworkError> {
        self.note(max_batch_size);
        match max_batch_size {
            1 => Err(NetworkError::NotFinite),
            2 => panic!("a model that cannot run at all"),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn the_model_is_warmed_up_on_the_thread_that_runs_it_and_failing_there_starts_nothing() {
    let start = |max_batch_size| {
        let model = Arc::new(Cold(Mutex::default()));
        let options = EngineOptions {
            max_batch_size,
            ..OPTIONS
        };
        let engine = Engine::start(model.clone(), options, Arc::new(Counts::default()));
        (model, engine)
    };
    let (model, engine) = start(4);
    let engine = engine.expect("a worker");
    let slot = engine.slot().await.expect("a slot");
    let input = Input::Planar(vec![0.0]);
    let done = engine.run(slot, input, Want::default(), later()).await;
    done.expect("an answer");
    let noted = model.0.lock().expect("the list").clone();
    assert_eq!(noted.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [4, 1]);
    assert_eq!(noted[0].1, noted[1].1, "one thread");
    assert_ne!(noted[0].1, std::thread::current().id());
    let failed = start(1).1.err().expect("no engine");
    assert!(
        matches!(failed, EngineStartError::WarmUp(NetworkError::NotFinite)),
        "{failed}"
    );
    let panicked = start(2).1.err().expect("no engine");
    assert!(matches!(panicked, EngineStartError::Panicked), "{panicked}");
}
