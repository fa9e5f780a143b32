//! The network over cuDNN on a GPU in the host's memory, `crates/cuda/tests/fake/gpu.cpp`. Run by
//! `tools/check-fake-gpu.sh`, which makes that library and sets the feature.
//!
//! One library is one GPU, so that all of this is one test after the other under a lock.

use std::ffi::{CString, c_char, c_int, c_long};
use std::sync::{Mutex, MutexGuard, PoisonError};

use imgclass_cuda::CudaDriver;
use imgclass_network::gpu::{GpuNet, Half, Program};
use imgclass_network::{Input, Network, NetworkError, Output, Want};

use crate::gpu::{TINY, cpu, named, normalisation, pictures, program, share, tiny};

unsafe extern "C" {
    /// Makes a call fail with a status, after so many calls of that name.
    fn fake_gpu_fail(name: *const c_char, after: c_int, status: c_int);
    /// Returns how many things of a kind are not freed.
    fn fake_gpu_held(kind: *const c_char) -> c_long;
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
    let driver = CudaDriver::new(0)?;
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

#[test]
fn a_start_that_fails_at_any_call_says_why_and_gives_everything_back() {
    let gpu = FakeGpu::new();
    for call in [
        "cuInit",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuDeviceGetName",
        "cuStreamCreate",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cudnnCreate",
        "cudnnSetStream",
        "cuMemAlloc_v2",
        "cuMemcpyHtoD_v2",
    ] {
        let status = if call.starts_with("cudnn") {
            NOT_SUPPORTED
        } else {
            OUT_OF_MEMORY
        };
        gpu.fail(call, 0, status);
        let Err(error) = load(tiny(), Half::F16) else {
            panic!("{call} failed and nobody noticed")
        };
        if status == OUT_OF_MEMORY {
            assert!(
                matches!(error, NetworkError::OutOfDeviceMemory { .. }),
                "{call}: {error}"
            );
        } else {
            assert!(
                error.to_string().contains("CUDNN_STATUS_NOT_SUPPORTED"),
                "{call}: {error}"
            );
        }
        gpu.assert_empty(call);
    }
}

#[test]
fn a_pass_that_fails_at_any_call_is_a_typed_error_and_the_next_one_is_right() {
    let gpu = FakeGpu::new();
    let images = pictures(2, TINY);
    let expected = {
        let net = load(tiny(), Half::F16).expect("loads");
        run(&net, &images, &[]).expect("a pass")
    };
    for (call, after, passes) in [
        ("cuMemAlloc_v2", 2, 1),
        ("cuMemHostAlloc", 1, 1),
        ("cuEventCreate", 1, 1),
        ("cudnnGetConvolutionForwardWorkspaceSize", 3, 1),
        ("cudnnCreateFilterDescriptor", 8, 1),
        ("cudnnSetTensor4dDescriptorEx", 20, 1),
        ("cuMemcpyHtoDAsync_v2", 0, 1),
        ("cuEventRecord", 0, 1),
        ("cuStreamWaitEvent", 0, 1),
        ("cuLaunchKernel", 0, 1),
        ("cuLaunchKernel", 2, 1),
        ("cudnnConvolutionBiasActivationForward", 1, 1),
        ("cuMemcpyDtoHAsync_v2", 0, 1),
        ("cuEventSynchronize", 0, 1),
        ("cuGraphLaunch", 0, 2),
    ] {
        let net = load(tiny(), Half::F16).expect("loads");
        if passes == 2 {
            run(&net, &images, &[]).expect("the first pass");
        }
        let status = if call.starts_with("cudnn") {
            NOT_SUPPORTED
        } else {
            OUT_OF_MEMORY
        };
        gpu.fail(call, after, status);
        let error = run(&net, &images, &[]).expect_err(call);
        if status == OUT_OF_MEMORY {
            assert!(
                matches!(error, NetworkError::OutOfDeviceMemory { .. }),
                "{call}: {error}"
            );
        } else {
            assert!(matches!(error, NetworkError::Compute(_)), "{call}: {error}");
        }
        for _ in 0..3 {
            assert_eq!(
                run(&net, &images, &[]).expect("fails once"),
                expected,
                "{call}"
            );
        }
        drop(net);
        gpu.assert_empty(call);
    }
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
