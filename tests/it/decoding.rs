//! Decoding in worker processes: what comes back, what holds the workers, and what a picture that
//! costs one costs others.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use imgclass_decode::{
    Begun, Cause, DecodeError, DecodeOptions, Decoders, Isolation, Observer, Prepared,
};
use imgclass_image::{Encoded, ImageError, Limits, Preprocessing, Preprocessor};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::binary::{self, Running};
use crate::support::pictures::{picture, png};

/// Remembers which workers were replaced.
#[derive(Default)]
struct Replaced(Mutex<Vec<Cause>>);

impl Observer for Replaced {
    fn worker_replaced(&self, cause: Cause) {
        self.0.lock().expect("no panic").push(cause);
    }
}

impl Replaced {
    /// Returns the causes, without that of pictures that a busy machine has moved between lanes.
    fn causes(&self) -> Vec<Cause> {
        let mut causes = self.0.lock().expect("no panic").clone();
        causes.retain(|cause| *cause != Cause::Slow);
        causes
    }
}

fn options() -> DecodeOptions {
    DecodeOptions {
        workers: 2.try_into().expect("not zero"),
        timeout: Duration::from_secs(20),
        limits: Limits {
            max_pixels: 90_000_000,
            max_side: 65_535,
            max_decoded_bytes: 768 << 20,
        },
        fast: false,
        isolation: Isolation::Processes {
            program: Some(env!("CARGO_BIN_EXE_imgclass").into()),
        },
    }
}

fn preprocessor() -> Preprocessor {
    Preprocessor::new(Preprocessing::default()).expect("valid settings")
}

fn start(options: &DecodeOptions) -> (Decoders, Arc<Replaced>) {
    let replaced = Arc::new(Replaced::default());
    let decoders = Decoders::start(options, preprocessor(), replaced.clone());
    (decoders.expect("workers"), replaced)
}

/// Decodes a picture in whichever lane it belongs to.
async fn decode(decoders: &Decoders, bytes: &Bytes) -> Result<Prepared, DecodeError> {
    match decoders.begin(bytes.clone(), None).await? {
        Begun::Prepared(prepared) => Ok(prepared),
        Begun::Costly(costly) => Ok(decoders.finish(costly).await?.prepared),
    }
}

/// Returns the processes that a process has started. The keeper of the workers is a thread, so
/// each thread's children are asked for.
fn children(process: u32) -> BTreeSet<i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let threads = threads.map(|threads| threads.flatten().collect::<Vec<_>>());
    let lists = threads
        .unwrap_or_default()
        .into_iter()
        .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| {
            let ids = list.split_whitespace().map(|id| id.parse().expect("an id"));
            ids.collect::<Vec<i32>>()
        })
        .collect()
}

fn signal(process: i32, signal: Signal) {
    let pid = Pid::from_raw(process).expect("an id");
    kill_process(pid, signal).expect("the process is there");
}

/// A picture that takes a good second of processor time: every scan of it goes through all pixels.
fn slow_picture() -> Bytes {
    png(6000, 6000).into()
}

#[tokio::test]
async fn a_worker_prepares_a_picture_as_the_image_crate_does() {
    let (decoders, replaced) = start(&options());
    let formats = [
        image::ImageFormat::Png,
        image::ImageFormat::Jpeg,
        image::ImageFormat::WebP,
        image::ImageFormat::Bmp,
        image::ImageFormat::Tiff,
    ];
    for format in formats {
        // The second one is for the costly lane.
        for (width, height) in [(300, 200), (4000, 3100)] {
            let bytes: Bytes = picture(width, height, format).into();
            let expected = imgclass_image::decode(&bytes, &options().limits).expect("decodes");
            let prepared = decode(&decoders, &bytes).await.expect("decodes");
            let name = format!("{format:?} {width}x{height}");
            assert_eq!(prepared.size, (width, height), "{name}");
            assert!(
                prepared.pixels == preprocessor().pixels(&expected),
                "{name}"
            );
            assert_eq!(prepared.picture, None, "{name}");
        }
    }
    assert!(
        replaced
            .causes()
            .iter()
            .all(|cause| *cause == Cause::Retired)
    );
}

/// The recorded AVIF pictures, by name.
#[cfg(feature = "avif")]
fn avif_pictures() -> Vec<(String, Vec<u8>)> {
    let tensors =
        safetensors::SafeTensors::deserialize(include_bytes!("../golden/avif.safetensors"));
    let tensors = tensors.expect("the recorded pictures");
    let mut names: Vec<_> = tensors.names().into_iter().collect();
    names.sort_unstable();
    let names = names.into_iter().filter(|name| name.ends_with(".file"));
    let bytes = |name| tensors.tensor(name).expect("its bytes").data().to_vec();
    names.map(|name| (name.to_owned(), bytes(name))).collect()
}

#[cfg(feature = "avif")]
#[tokio::test]
async fn a_worker_prepares_avif_and_survives_what_is_damaged() {
    let (decoders, replaced) = start(&options());
    for (name, file) in avif_pictures() {
        let expected = imgclass_image::decode(&file, &options().limits).expect("decodes");
        let prepared = decode(&decoders, &file.clone().into())
            .await
            .expect("decodes");
        assert!(
            prepared.pixels == preprocessor().pixels(&expected),
            "{name}"
        );
        let length = file.len();
        for part in 1..8 {
            let mut damaged = file.clone();
            damaged[length * part / 8..][..length / 16].fill(0x5A);
            match decode(&decoders, &damaged.into()).await {
                Ok(_) | Err(DecodeError::Image(_) | DecodeError::Crashed) => {}
                Err(error) => panic!("{name} damaged in part {part}: {error}"),
            }
        }
    }
    let causes = replaced.causes();
    assert!(!causes.contains(&Cause::OutOfMemory), "{causes:?}");
}

#[tokio::test]
async fn a_picture_that_is_asked_for_comes_back_shrunk() {
    let (decoders, _) = start(&options());
    let bytes: Bytes = png(1500, 600).into();
    let Ok(Begun::Prepared(prepared)) = decoders.begin(bytes, Some(1024)).await else {
        panic!("a small picture")
    };
    let picture = prepared.picture.expect("the picture");
    assert_eq!((picture.width(), picture.height()), (1024, 410));
    assert_eq!(prepared.size, (1500, 600));
}

#[tokio::test]
async fn a_large_jpeg_is_decoded_at_a_reduced_size_where_that_is_asked_for() {
    let usual = options();
    let mut fast = options();
    fast.fast = true;
    // Less than the full size needs, so that the reduced size counts.
    fast.limits.max_decoded_bytes = 16 << 20;
    let (decoders, replaced) = start(&fast);
    let mut threads = fast.clone();
    threads.isolation = Isolation::None;
    let (on_threads, _) = start(&threads);
    let jpeg: Bytes = picture(4000, 3100, image::ImageFormat::Jpeg).into();
    let png: Bytes = picture(4000, 3100, image::ImageFormat::Png).into();
    let refused = decode(&on_threads, &png).await;
    assert!(refused.is_err(), "a PNG is decoded whole");
    let least = |full| preprocessor().twice_resized(full);
    let encoded = Encoded::open_at_least(&jpeg, &usual.limits, least).expect("a picture");
    let reduced = encoded.decode().expect("decodes");
    assert_eq!((reduced.width(), reduced.height()), (1000, 775));
    let expected = preprocessor().pixels_of_reduced(&reduced, (4000, 3100));
    for decoders in [&decoders, &on_threads] {
        // Small enough for the lane that every picture goes through first.
        let Ok(Begun::Prepared(prepared)) = decoders.begin(jpeg.clone(), Some(1024)).await else {
            panic!("a small picture")
        };
        assert_eq!(prepared.size, (4000, 3100));
        assert!(prepared.pixels == expected);
        assert_eq!(prepared.picture.as_ref(), Some(&reduced));
    }
    assert_eq!(replaced.causes(), []);
}

#[tokio::test]
async fn a_refusal_comes_back_as_it_is_and_costs_no_worker() {
    let (decoders, replaced) = start(&options());
    let mut small = options();
    small.limits.max_pixels = 100;
    let (strict, _) = start(&small);
    let cut_off = png(60, 40)[..200].to_vec();
    for (decoders, bytes, expected) in [
        (&decoders, b"%PDF-1.7".to_vec(), "unsupported"),
        (&decoders, Vec::new(), "unsupported"),
        (&decoders, cut_off, "malformed"),
        (&strict, png(60, 40), "too large"),
    ] {
        let error = decode(decoders, &bytes.into()).await.expect_err(expected);
        let DecodeError::Image(error) = error else {
            panic!("{expected}: {error}")
        };
        let kind = match error {
            ImageError::Unsupported { .. } => "unsupported",
            ImageError::TooLarge { .. } => "too large",
            ImageError::TooMuchMemory { .. } => "too much memory",
            ImageError::Malformed { .. } => "malformed",
        };
        assert_eq!(kind, expected);
    }
    assert_eq!(replaced.causes(), []);
}

#[tokio::test]
async fn workers_can_open_no_files_and_start_no_processes() {
    let running = Running::start(std::env::temp_dir().as_path(), &[], &[]);
    running.classify("");
    let workers = children(running.id());
    assert_eq!(workers.len(), cores().max(2));
    for worker in workers {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default().to_owned()
        };
        assert_eq!(field("Seccomp:"), "2", "a filter");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Threads:"), "1");
        let limits = fs::read_to_string(format!("/proc/{worker}/limits")).expect("it runs");
        let soft = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.unwrap_or_default().to_owned()
        };
        for nothing in [
            "Max core file size",
            "Max open files",
            "Max processes",
            "Max file size",
        ] {
            assert_eq!(soft(nothing), "0", "{nothing}");
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[tokio::test]
async fn a_picture_that_takes_too_long_is_ended_and_others_go_on() {
    let mut hasty = options();
    hasty.timeout = Duration::from_millis(350);
    let (decoders, replaced) = start(&hasty);
    let (slow, small): (Bytes, Bytes) = (slow_picture(), png(60, 40).into());
    let began = Instant::now();
    let error = decode(&decoders, &slow).await.expect_err("too slow");
    assert!(matches!(error, DecodeError::Overran(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
    decode(&decoders, &small).await.expect("another worker");
    assert_eq!(replaced.causes(), [Cause::Overran]);
}

#[tokio::test]
async fn a_small_picture_does_not_wait_behind_large_ones() {
    let (decoders, _) = start(&options());
    let (slow, small): (Bytes, Bytes) = (slow_picture(), png(60, 40).into());
    let large = futures_util::future::join_all((0..3).map(|_| decode(&decoders, &slow)));
    let beside = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let began = Instant::now();
            decode(&decoders, &small).await.expect("decodes");
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (large, longest) = futures_util::future::join(large, beside).await;
    assert!(large.iter().all(Result::is_ok));
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_work() {
    let (decoders, replaced) = start(&options());
    let slow = slow_picture();
    let Ok(Begun::Costly(costly)) = decoders.begin(slow, None).await else {
        panic!("a costly picture")
    };
    let left = tokio::time::timeout(Duration::from_millis(50), decoders.finish(costly)).await;
    assert!(left.is_err(), "it takes longer");
    assert_eq!(replaced.causes(), [Cause::Abandoned]);
    // Both workers are there again, and both lanes are free.
    let bytes: Bytes = png(4000, 3100).into();
    decode(&decoders, &bytes).await.expect("decodes");
}

#[test]
fn a_worker_that_is_killed_is_replaced_and_no_request_fails() {
    let running = Running::start(std::env::temp_dir().as_path(), &[], &[]);
    let kill_all = |by: Signal| {
        let workers = children(running.id());
        for worker in &workers {
            signal(*worker, by);
        }
        for _ in 0..2 * workers.len() {
            let answer = running.classify("");
            assert!(answer.starts_with("HTTP/1.1 200"), "{by:?}: {answer}");
        }
        workers
    };
    let before = kill_all(Signal::KILL);
    let after = children(running.id());
    assert_eq!(after.len(), before.len());
    assert!(after.is_disjoint(&before));
    // A supervisor may send this to all processes of a service. They may still be ending when their
    // next picture comes.
    for _ in 0..5 {
        kill_all(Signal::TERM);
    }
    let metrics = running.get("/metrics", "");
    assert!(metrics.contains("imgclass_decode_workers_replaced_total{cause=\"killed\"}"));
}

#[test]
fn workers_end_with_the_service_however_it_ends() {
    for end in [Signal::TERM, Signal::KILL] {
        let running = Running::start(std::env::temp_dir().as_path(), &[], &[]);
        let workers = children(running.id());
        assert!(!workers.is_empty());
        signal(i32::try_from(running.id()).expect("an id"), end);
        let deadline = Instant::now() + Duration::from_secs(10);
        let alive = |worker: &i32| {
            let status = fs::read_to_string(format!("/proc/{worker}/status"));
            status.is_ok_and(|status| !status.contains("State:\tZ"))
        };
        while workers.iter().any(alive) {
            assert!(Instant::now() < deadline, "{end:?}: a worker is left");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_worker_that_is_started_by_hand_says_what_it_is_for() {
    let output = binary::run(std::env::temp_dir().as_path(), &["__decode-worker"]);
    assert_eq!(output.status.code(), Some(1));
    let said = binary::text(&output.stderr);
    assert!(said.contains("is for the service itself"), "{said}");
}

#[tokio::test]
async fn without_isolation_threads_decode_the_same() {
    let mut threads = options();
    threads.isolation = Isolation::None;
    let (decoders, _) = start(&threads);
    assert_eq!(decoders.confinement(), None);
    for bytes in [png(60, 40), png(4000, 3100)] {
        let bytes = bytes.into();
        let (workers, _) = start(&options());
        let expected = decode(&workers, &bytes).await.expect("decodes");
        assert!(decode(&decoders, &bytes).await.expect("decodes") == expected);
    }
    // The AV1 decoder would abort the service where data is damaged.
    #[cfg(feature = "avif")]
    for (name, file) in avif_pictures() {
        let refused = decode(&decoders, &file.into())
            .await
            .expect_err("a refusal");
        let reason = "an AVIF image without decode workers";
        assert!(refused.to_string().starts_with(reason), "{name}: {refused}");
    }
}
