//! The network over cuDNN on a GPU in the host's memory, `crates/cuda/tests/fake/gpu.cpp`. Run by
//! `tools/check-fake-gpu.sh`, which makes that library and sets the feature.
//!
//! One library is one GPU, so that all of this is one test after the other under a lock.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_double, c_int, c_long};
use std::sync::{Mutex, MutexGuard, PoisonError};

use imgclass_cuda::{CudaDriver, Engines};
use imgclass_network::gpu::{GpuNet, Half, Program};
use imgclass_network::{Input, Network, NetworkError, Output, Want};

use crate::gpu::{TINY, cpu, named, normalisation, pictures, program, share, tiny};

unsafe extern "C" {
    /// Makes a call fail with a status, after so many calls of that name.
    fn fake_gpu_fail(name: *const c_char, after: c_int, status: c_int);
    /// Returns how many things of a kind are not freed.
    fn fake_gpu_held(kind: *const c_char) -> c_long;
    /// Writes the names of the calls since the last `fake_gpu_fail`, one a line, if there is room
    /// for them. Returns their length.
    fn fake_gpu_calls(to: *mut c_char, room: c_long) -> c_long;
    /// Says how long an engine of cuDNN's takes; -1 is the fixed algorithm. It is 1 otherwise.
    fn fake_gpu_cost(engine: c_long, cost: c_double);
    /// Makes an engine wrong from a batch size on.
    fn fake_gpu_wrong(engine: c_long, from_batch: c_int);
    /// Returns how many convolutions an engine has computed.
    fn fake_gpu_runs(engine: c_long) -> c_long;
}

const OUT_OF_MEMORY: c_int = 2;
const ILLEGAL_ADDRESS: c_int = 700;
const NOT_SUPPORTED: c_int = 3000;

/// The one GPU.
struct FakeGpu(#[allow(dead_code, reason = "held until the test ends")] MutexGuard<'static, ()>);

impl FakeGpu {
    fn new() -> Self {
        static GPU: Mutex<()> = Mutex::new(());
        let gpu = Self(GPU.lock().unwrap_or_else(PoisonError::into_inner));
        gpu.fail("nothing", 0, 0);
        gpu
    }

    fn fail(&self, name: &str, after: c_int, status: c_int) {
        let name = CString::new(name).expect("a name");
        // SAFETY: the library copies the name.
        unsafe { fake_gpu_fail(name.as_ptr(), after, status) }
    }

    /// Returns how often each call was made since the last `fail`.
    fn calls(&self) -> BTreeMap<String, c_int> {
        let mut text = vec![0u8; 1 << 24];
        // SAFETY: the library writes no more than there is room for.
        let length = unsafe { fake_gpu_calls(text.as_mut_ptr().cast(), text.len() as c_long) };
        text.truncate(length.try_into().expect("a length"));
        let mut calls = BTreeMap::new();
        for name in String::from_utf8(text).expect("names").lines() {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
        calls
    }

    /// Sets what engines cost; -1 is the fixed algorithm.
    fn cost(&self, costs: &[(c_long, c_double)]) {
        for &(engine, cost) in costs {
            // SAFETY: the library notes two numbers.
            unsafe { fake_gpu_cost(engine, cost) }
        }
    }

    fn wrong(&self, engine: c_long, from_batch: c_int) {
        // SAFETY: the library notes two numbers.
        unsafe { fake_gpu_wrong(engine, from_batch) }
    }

    /// Returns how many convolutions each engine has computed, from the fixed algorithm on.
    fn runs(&self) -> [c_long; 8] {
        // SAFETY: the library returns a number.
        [-1, 0, 1, 2, 3, 4, 5, 6].map(|engine| unsafe { fake_gpu_runs(engine) })
    }

    /// Asserts that everything was given back.
    fn assert_empty(&self, what: &str) {
        for kind in [
            "memory",
            "host",
            "event",
            "stream",
            "graph",
            "module",
            "context",
            "handle",
            "descriptor",
        ] {
            let name = CString::new(kind).expect("a name");
            // SAFETY: the library reads the name.
            let held = unsafe { fake_gpu_held(name.as_ptr()) };
            assert_eq!(held, 0, "{what}: {kind}");
        }
    }
}

fn load(program: Program, half: Half) -> Result<GpuNet, NetworkError> {
    load_with(program, half, Engines::Timed)
}

fn load_with(program: Program, half: Half, engines: Engines) -> Result<GpuNet, NetworkError> {
    let driver = CudaDriver::new(0, engines)?;
    GpuNet::new(Box::new(driver), program, half, normalisation())
}

fn run(net: &GpuNet, images: &[Input], wants: &[Want]) -> Result<Vec<Output>, NetworkError> {
    net.run_batch(&images.iter().collect::<Vec<_>>(), wants)
}

#[test]
fn logits_features_and_maps_are_the_cpus_in_both_types_and_everything_is_given_back() {
    let gpu = FakeGpu::new();
    let all = Want {
        features: true,
        feature_map: true,
    };
    for (network, size, half, allowed) in [
        ("resnet18", (48, 33), Half::F16, 5e-3),
        ("resnet18", (33, 65), Half::BF16, 3e-2),
        ("resnet50", (40, 32), Half::F16, 5e-3),
        ("resnet50", (33, 33), Half::BF16, 3e-2),
    ] {
        let net = load(program(&named(network), size), half).expect("loads");
        assert!(
            net.description().contains("compute capability 9.0"),
            "{}",
            net.description()
        );
        let images = pictures(3, size);
        let pointers: Vec<&Input> = images.iter().collect();
        let expected = cpu(&named(network), size)
            .run_batch(&pointers, &[all; 3])
            .expect("a pass");
        // One by one, captured, replayed.
        for pass in 0..3 {
            let found = run(&net, &images, &[all; 3]).expect("a pass");
            for (found, expected) in found.iter().zip(&expected) {
                let what = format!("{network}, {half:?}, pass {pass}");
                assert!(share(&found.logits, &expected.logits) < allowed, "{what}");
                for (found, expected) in [
                    (&found.features, &expected.features),
                    (&found.feature_map, &expected.feature_map),
                ] {
                    let (Some(found), Some(expected)) = (found, expected) else {
                        panic!("{what}: both were asked for")
                    };
                    assert!(share(found, expected) < allowed, "{what}");
                }
            }
        }
        drop(net);
        gpu.assert_empty(network);
    }
}

/// Each call of a table at its first and at its last time.
fn first_and_last(calls: &BTreeMap<String, c_int>) -> Vec<(&str, c_int)> {
    let times = |(name, count): (_, &c_int)| {
        let mut times = vec![(name, 0), (name, count - 1)];
        times.dedup();
        times
    };
    let calls = calls.iter().map(|(name, count)| (name.as_str(), count));
    calls.flat_map(times).collect()
}

/// A status of the library that a call belongs to.
fn status_of(call: &str) -> c_int {
    if call.starts_with("cudnn") {
        NOT_SUPPORTED
    } else {
        OUT_OF_MEMORY
    }
}

fn assert_typed(error: &NetworkError, call: &str) {
    if status_of(call) == OUT_OF_MEMORY {
        let typed = matches!(error, NetworkError::OutOfDeviceMemory { .. });
        assert!(typed, "{call}: {error}");
    } else {
        assert!(matches!(error, NetworkError::Compute(_)), "{call}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("CUDNN_STATUS_NOT_SUPPORTED"),
            "{call}: {error}"
        );
    }
}

#[test]
fn a_start_that_fails_at_any_call_says_why_and_gives_everything_back() {
    let gpu = FakeGpu::new();
    drop(load(tiny(), Half::F16).expect("loads"));
    let calls = gpu.calls();
    for needed in [
        "cuInit",
        "cuModuleLoadData",
        "cudnnCreate",
        "cuMemcpyHtoD_v2",
    ] {
        assert!(
            calls.contains_key(needed),
            "{needed} is not among {calls:?}"
        );
    }
    for (call, time) in first_and_last(&calls) {
        // cudarc 0.19 keeps a new context where its first question about the device fails.
        if call == "cuDeviceGetAttribute" && time == 0 {
            continue;
        }
        gpu.fail(call, time, status_of(call));
        match load(tiny(), Half::F16) {
            Err(error) => assert_typed(&error, call),
            Ok(_) => assert!(
                LAST_CALLS.contains(&call)
                    && (time > 0 || calls[call] == 1 || call == "cuStreamSynchronize"),
                "{call} failed at call {time} of {} and nobody noticed",
                calls[call]
            ),
        }
        gpu.assert_empty(call);
    }
}

/// The calls that are made when a network ends, where nobody is left to tell.
const LAST_CALLS: [&str; 3] = ["cuStreamSynchronize", "cuCtxGetCurrent", "cuCtxSetCurrent"];

/// The calls that only make passes faster: where one fails, the pass goes another way.
fn only_speed(call: &str) -> bool {
    call.starts_with("cudnnBackend")
        || [
            "cuStreamBeginCapture_v2",
            "cuStreamEndCapture",
            "cuGraphInstantiateWithFlags",
            "cuEventElapsedTime_v2",
        ]
        .contains(&call)
}

#[test]
fn a_pass_that_fails_at_any_call_is_a_typed_error_and_the_next_one_is_right() {
    let gpu = FakeGpu::new();
    let images = pictures(2, TINY);
    // The first pass tunes and queues, the second captures, the third replays.
    let passes = |net: &GpuNet| -> Result<Vec<Output>, NetworkError> {
        run(net, &images, &[])?;
        run(net, &images, &[])?;
        run(net, &images, &[])
    };
    let costs = [(-1, 3.0), (1, 2.0), (2, 1.0)];
    let net = load(tiny(), Half::F16).expect("loads");
    gpu.fail("nothing", 0, 0);
    gpu.cost(&costs);
    let expected = passes(&net).expect("nothing fails");
    let calls = gpu.calls();
    drop(net);
    for needed in [
        "cudnnBackendExecute",
        "cuGraphLaunch",
        "cuMemHostAlloc",
        "cuStreamWaitEvent",
    ] {
        assert!(
            calls.contains_key(needed),
            "{needed} is not among {calls:?}"
        );
    }
    for (call, time) in first_and_last(&calls) {
        let net = load(tiny(), Half::F16).expect("loads");
        gpu.fail(call, time, status_of(call));
        gpu.cost(&costs);
        match passes(&net) {
            Err(error) => {
                assert!(!only_speed(call), "{call}: {error}");
                assert_typed(&error, call);
            }
            Ok(found) => {
                let tuning = ["cuEventCreate", "cuEventRecord", "cuEventSynchronize"];
                let tuning = tuning.contains(&call)
                    || call == "cuCtxSetCurrent"
                    || call == "cudnnConvolutionBiasActivationForward"
                    || call.starts_with("cudnnSet")
                    || call.starts_with("cudnnCreate");
                assert!(
                    only_speed(call) || tuning,
                    "{call} failed and nobody noticed"
                );
                assert_eq!(found, expected, "{call}");
            }
        }
        for _ in 0..2 {
            assert_eq!(passes(&net).expect("fails once"), expected, "{call}");
        }
        drop(net);
        gpu.assert_empty(call);
    }
}

#[test]
fn the_fastest_of_what_cudnn_proposes_computes_and_the_fixed_algorithm_where_it_is_faster() {
    let gpu = FakeGpu::new();
    let images = pictures(2, TINY);
    let fixed = load_with(tiny(), Half::BF16, Engines::Fixed).expect("loads");
    let expected = run(&fixed, &images, &[]).expect("a pass");
    let calls = gpu.calls();
    assert!(
        !calls.keys().any(|call| call.starts_with("cudnnBackend")),
        "{calls:?}"
    );
    drop(fixed);

    // Each of three convolutions runs four times in each way that is timed: engine 0 would have to
    // be compiled, 3 cannot be planned, 4 does not run, 5 wants too much memory, and nobody asks for
    // the fallback's 6. Two passes follow.
    for (costs, computes) in [
        ([(-1, 5.0), (1, 3.0), (2, 2.0)], 3),
        ([(-1, 5.0), (1, 2.0), (2, 3.0)], 2),
        ([(-1, 2.0), (1, 3.0), (2, 4.0)], 0),
        // As fast is not faster.
        ([(-1, 2.0), (1, 2.0), (2, 2.0)], 0),
    ] {
        let net = load(tiny(), Half::BF16).expect("loads");
        gpu.fail("nothing", 0, 0);
        gpu.cost(&costs);
        for _ in 0..2 {
            assert_eq!(
                run(&net, &images, &[]).expect("a pass"),
                expected,
                "{costs:?}"
            );
        }
        let mut runs = [12, 0, 12, 12, 0, 0, 0, 0];
        runs[computes] += 6;
        assert_eq!(gpu.runs(), runs, "{costs:?}");
        drop(net);
        gpu.assert_empty("tuned");
    }
}

#[test]
fn an_engine_that_is_wrong_at_one_batch_size_is_not_used_at_that_size() {
    let gpu = FakeGpu::new();
    let images = pictures(4, TINY);
    let fixed = load_with(tiny(), Half::F16, Engines::Fixed).expect("loads");
    let expected = run(&fixed, &images, &[]).expect("a pass");
    drop(fixed);
    let net = load(tiny(), Half::F16).expect("loads");
    gpu.fail("nothing", 0, 0);
    gpu.cost(&[(-1, 5.0), (1, 3.0), (2, 2.0)]);
    gpu.wrong(2, 4);
    net.warm_up(4).expect("warms up");
    assert_eq!(run(&net, &images, &[]).expect("a pass"), expected);
    let before = gpu.runs();
    run(&net, &images, &[]).expect("a pass");
    run(&net, &images[..2], &[]).expect("a pass");
    // The batch of four takes the fixed algorithm, that of two the engine.
    let after = gpu.runs();
    assert_eq!([after[0] - before[0], after[3] - before[3]], [3, 3]);
    drop(net);
    gpu.assert_empty("a wrong engine");
}

#[test]
fn a_graph_that_cannot_be_made_costs_speed_alone() {
    let gpu = FakeGpu::new();
    let images = pictures(1, TINY);
    for call in [
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
    ] {
        let net = load(tiny(), Half::F16).expect("loads");
        let expected = run(&net, &images, &[]).expect("a pass");
        gpu.fail(call, 0, NOT_SUPPORTED / 1000);
        for _ in 0..2 {
            assert_eq!(run(&net, &images, &[]).expect("a pass"), expected, "{call}");
        }
        drop(net);
        gpu.assert_empty(call);
    }
}

#[test]
fn a_device_that_is_lost_stays_lost_and_the_process_can_end() {
    let gpu = FakeGpu::new();
    let images = pictures(1, TINY);
    let net = load(tiny(), Half::F16).expect("loads");
    run(&net, &images, &[]).expect("a pass");
    gpu.fail("cuEventSynchronize", 0, ILLEGAL_ADDRESS);
    for _ in 0..3 {
        let error = run(&net, &images, &[]).expect_err("the device is lost");
        assert!(matches!(error, NetworkError::DeviceLost { .. }), "{error}");
    }
    drop(net);
}
