//! The network of a GPU without a GPU: its plans run on a driver that computes in the host's
//! memory, and their logits are those of the CPU's kernels.

mod host;

use std::collections::{HashMap, HashSet};

use imgclass_checkpoint::Architecture;
use imgclass_image::Preprocessing;
use imgclass_kernels::{ConvShape, Isa, ThreadPool};
use imgclass_network::gpu::{
    Arena, Buffer, Convolution, DeviceWeights, Fused, GpuNet, Half, Layer, MAX_BATCH, Op, Plan,
    PlanMemory, Program, Span, Step, Tensor4, Value, agreement, padded_batch, test_picture,
};
use imgclass_network::resnet::ResNet;
use imgclass_network::{
    ComputeType, CpuBackend, FixedSizeResNet, FoldedConv, Input, LinearWeights, Network,
    NetworkError, Normalisation, Output, Want,
};
use proptest::prelude::*;

use crate::FORMULA;
use host::{Fails, HostDriver};

const CLASSES: usize = 10;

pub(crate) fn named(name: &str) -> Architecture {
    Architecture::named(name).expect("a known name")
}

pub(crate) fn program(architecture: &Architecture, size: (usize, usize)) -> Program {
    Program::load(&FORMULA, architecture, CLASSES, size).expect("the formula always loads")
}

pub(crate) fn normalisation() -> Normalisation {
    Normalisation::of(&Preprocessing::default())
}

/// A network of three convolutions, for what does not depend on the network.
pub(crate) fn tiny() -> Program {
    let layer = |name: &str, (from, to): (usize, usize), kernel: usize, stride: usize| Layer {
        name: name.to_owned(),
        folded: FoldedConv {
            shape: ConvShape {
                in_channels: from,
                out_channels: to,
                kernel,
                stride,
                padding: kernel / 2,
            },
            // Numbers of both signs, none of which is like its neighbours.
            weight: (0..from * to * kernel * kernel)
                .map(|i| (i * 7919 % 101) as f32 / 200.0 - 0.25)
                .collect(),
            bias: (0..to).map(|i| i as f32 / 16.0).collect(),
        },
    };
    let value = |channels: usize, side: usize| Value {
        channels,
        size: (side, side),
    };
    let convolution = |layer, input, residual, output| {
        Step::Convolution(Fused {
            layer,
            input,
            residual,
            relu: true,
            output,
        })
    };
    Program {
        layers: vec![
            layer("stem", (3, 16), 7, 2),
            layer("first", (16, 8), 3, 1),
            layer("last", (8, 16), 1, 1),
        ],
        linear: LinearWeights {
            inputs: 16,
            outputs: CLASSES,
            weight: (0..16 * CLASSES).map(|i| (i % 13) as f32 - 6.0).collect(),
            bias: vec![1.0; CLASSES],
        },
        values: vec![
            value(3, 32),
            value(16, 16),
            value(16, 8),
            value(8, 8),
            value(16, 8),
        ],
        steps: vec![
            convolution(0, 0, None, 1),
            Step::MaxPool {
                input: 1,
                output: 2,
            },
            convolution(1, 2, None, 3),
            convolution(2, 3, Some(2), 4),
        ],
        feature_map: 4,
    }
}

/// The size of the tiny network's images.
pub(crate) const TINY: (usize, usize) = (32, 32);

/// The tiny network on the driver, in f16.
fn tiny_gpu(driver: &HostDriver) -> Result<GpuNet, NetworkError> {
    GpuNet::new(Box::new(driver.clone()), tiny(), Half::F16, normalisation())
}

/// The network on the driver.
fn gpu(
    driver: &HostDriver,
    architecture: &Architecture,
    size: (usize, usize),
    half: Half,
) -> Result<GpuNet, NetworkError> {
    let program = program(architecture, size);
    GpuNet::new(Box::new(driver.clone()), program, half, normalisation())
}

/// The network on the CPU's kernels.
pub(crate) fn cpu(architecture: &Architecture, size: (usize, usize)) -> impl Network {
    let threads = ThreadPool::new(std::num::NonZeroUsize::MIN).expect("no threads");
    let backend = CpuBackend::new(Isa::detect(), threads.into(), normalisation());
    let net = ResNet::load(&FORMULA, architecture, CLASSES, backend).expect("loads");
    FixedSizeResNet::new(net, size)
}

/// Pictures that differ from each other.
pub(crate) fn pictures(n: usize, size: (usize, usize)) -> Vec<Input> {
    let Input::Pixels(bytes) = test_picture(size) else {
        panic!("a picture is pixels")
    };
    (0..n)
        .map(|i| {
            Input::Pixels(
                bytes
                    .iter()
                    .map(|b| b.wrapping_mul(2 * i as u8 + 1))
                    .collect(),
            )
        })
        .collect()
}

fn run(net: &dyn Network, images: &[Input], wants: &[Want]) -> Vec<Output> {
    let images: Vec<&Input> = images.iter().collect();
    net.run_batch(&images, wants).expect("a pass")
}

/// The furthest difference as a share of the largest expected number.
pub(crate) fn share(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs() / largest);
    differences.fold(0.0, |most, x| {
        if x.is_nan() {
            f32::INFINITY
        } else {
            most.max(x)
        }
    })
}

#[test]
fn the_plan_of_every_network_gives_the_cpus_logits_features_and_maps_in_both_types() {
    let all = Want {
        features: true,
        feature_map: true,
    };
    for (name, size, half, allowed) in [
        ("resnet18", (48, 33), Half::F16, 5e-3),
        ("resnet50", (33, 40), Half::BF16, 3e-2),
    ] {
        let architecture = named(name);
        let net = gpu(&HostDriver::default(), &architecture, size, half).expect("loads");
        let images = pictures(3, size);
        // The second image wants nothing beside its logits.
        let wants = [all, Want::default(), all];
        let expected = run(&cpu(&architecture, size), &images, &[all; 3]);
        // The first pass queues operations, the second captures them, the third replays them.
        for pass in 0..3 {
            let found = run(&net, &images, &wants);
            for (image, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{name}, {half:?}, image {image}, pass {pass}");
                let logits = share(&found.logits, &expected.logits);
                assert!(logits < allowed, "{what}: {logits}");
                for (wanted, found, expected) in [
                    (wants[image].features, &found.features, &expected.features),
                    (
                        wants[image].feature_map,
                        &found.feature_map,
                        &expected.feature_map,
                    ),
                ] {
                    assert_eq!(found.is_some(), wanted, "{what}");
                    if let (Some(found), Some(expected)) = (found, expected) {
                        let numbers = share(found, expected);
                        assert!(numbers < allowed, "{what}: {numbers}");
                    }
                }
            }
        }
    }
}

/// The image as prepared numbers.
fn planar(input: &Input) -> Input {
    let pixels = input.pixels().expect("pixels");
    let normalisation = normalisation();
    let plane = |plane: usize| {
        let (factor, addend) = (normalisation.factor[plane], normalisation.addend[plane]);
        let bytes = pixels.iter().skip(plane).step_by(3);
        bytes.map(move |&byte| f32::from(byte) * factor + addend)
    };
    (0..3).flat_map(plane).collect::<Vec<f32>>().into()
}

#[test]
fn planar_images_and_pixels_may_come_together() {
    let (architecture, size) = (named("resnet18"), (32, 32));
    let mut images = pictures(3, size);
    let expected = run(&cpu(&architecture, size), &images, &[]);
    images[1] = planar(&images[1]);
    let net = gpu(&HostDriver::default(), &architecture, size, Half::F16).expect("loads");
    for (found, expected) in run(&net, &images, &[]).iter().zip(&expected) {
        assert!(share(&found.logits, &expected.logits) < 5e-3);
    }
}

#[test]
fn batches_are_padded_to_powers_of_two_and_divided_at_the_largest() {
    for (images, batch) in [
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (33, 64),
        (64, 64),
        (900, 64),
    ] {
        assert_eq!(padded_batch(images), batch, "{images}");
    }
    let net = tiny_gpu(&HostDriver::default()).expect("loads");
    let images = pictures(MAX_BATCH + 2, TINY);
    let found = run(&net, &images, &[]);
    assert_eq!(found.len(), images.len());
    // Alone, an image has the same logits: none of them depends on its neighbours.
    for image in [0, 1, MAX_BATCH - 1, MAX_BATCH, MAX_BATCH + 1] {
        let alone = run(&net, &images[image..=image], &[]);
        assert_eq!(found[image].logits, alone[0].logits, "{image}");
    }
}

#[test]
fn an_image_of_another_size_is_refused_and_no_image_gives_nothing() {
    let net = tiny_gpu(&HostDriver::default()).expect("loads");
    let wrong = Input::Pixels(vec![0; 5]);
    assert!(matches!(
        net.run_batch(&[&wrong], &[]),
        Err(NetworkError::Input {
            expected: 3072,
            found: 5
        })
    ));
    assert!(run(&net, &[], &[]).is_empty());
}

#[test]
fn operations_are_queued_once_and_captured_at_the_second_pass_of_a_batch_size() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    // Three convolutions, the two pools and the linear layer.
    let counts = |driver: &HostDriver| {
        let mut state = driver.state();
        let calls = std::mem::take(&mut state.calls);
        ["run", "capture", "replay"].map(|name| calls.iter().filter(|call| **call == name).count())
    };
    for (images, expected) in [
        (1, [6, 0, 0]),
        (1, [0, 1, 1]),
        (1, [0, 0, 1]),
        // A larger batch takes more memory: everything is planned anew.
        (3, [6, 0, 0]),
        (4, [0, 1, 1]),
        (3, [0, 0, 1]),
        (1, [6, 0, 0]),
        (1, [0, 1, 1]),
    ] {
        counts(&driver);
        run(&net, &pictures(images, TINY), &[]);
        assert_eq!(counts(&driver), expected, "{images}");
    }
    // The graphs of batches of four and of one; weights, arena, workspace, results, two inputs.
    assert_eq!(driver.state().held(), (6, 2));
}

#[test]
fn warming_up_captures_every_batch_size_and_a_second_worker_finds_it_done() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    assert_eq!(net.passes().get(), 2);
    net.warm_up(3).expect("warms up");
    assert_eq!(driver.state().held(), (6, 3), "batches of 1, 2 and 4");
    let calls = driver.state().calls.len();
    net.warm_up(4).expect("warms up");
    assert_eq!(driver.state().calls.len(), calls);
}

#[test]
fn convolutions_are_tuned_when_a_batch_size_is_first_met() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    let tuned = || -> Vec<(usize, usize)> {
        let tuned = std::mem::take(&mut driver.state().tuned);
        tuned
            .iter()
            .map(|shape| (shape.batch, shape.kernel))
            .collect()
    };
    run(&net, &pictures(3, TINY), &[]);
    assert_eq!(tuned(), [(4, 7), (4, 3), (4, 1)]);
    for images in [4, 3] {
        run(&net, &pictures(images, TINY), &[]);
        assert_eq!(tuned(), []);
    }
    run(&net, &pictures(1, TINY), &[]);
    assert_eq!(tuned(), [(1, 7), (1, 3), (1, 1)]);
}

#[test]
fn a_batch_size_whose_logits_are_not_those_of_a_batch_of_one_loses_its_tuning_or_the_network() {
    let images = pictures(4, TINY);
    let expected = run(
        &tiny_gpu(&HostDriver::default()).expect("loads"),
        &images,
        &[],
    );
    for (wrong_from, sizes) in [(2, vec![8, 4, 2]), (8, vec![8]), (9, vec![])] {
        let driver = HostDriver::default();
        driver.state().wrong_from = Some(wrong_from);
        let net = tiny_gpu(&driver).expect("loads");
        net.warm_up(8).expect("warms up without the tuning");
        let state = driver.state();
        let mut distrusted: Vec<usize> = state.distrusted.iter().map(|shape| shape.batch).collect();
        distrusted.dedup();
        assert_eq!(distrusted, sizes, "{wrong_from}");
        // The graphs of batches of 8, 4, 2 and 1.
        assert_eq!(state.held(), (6, 4), "{wrong_from}");
        drop(state);
        assert_eq!(run(&net, &images, &[]), expected, "{wrong_from}");
    }

    // What stays wrong without the tuning is not served.
    let driver = HostDriver::default();
    driver.state().wrong_anyway = true;
    let net = tiny_gpu(&driver).expect("loads");
    let error = net.warm_up(2).expect_err("a batch of two is wrong");
    assert!(error.to_string().contains("a batch of 2 differ"), "{error}");
}

#[test]
fn the_images_of_the_next_batch_are_sent_while_a_batch_computes() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    let images = pictures(2, TINY);
    let expected = [&images[..1], &images[1..]].map(|image| run(&net, image, &[]));
    let sent = driver
        .state()
        .calls
        .iter()
        .filter(|call| **call == "send")
        .count();
    // In a new network the first pass queues its operations one by one. It comes to its end when
    // both passes have sent their images.
    let net = tiny_gpu(&driver).expect("loads");
    driver.state().awaited_sends = sent + 2;
    std::thread::scope(|scope| {
        for (image, expected) in images.iter().zip(&expected) {
            let net = &net;
            scope.spawn(move || {
                let found = run(net, std::slice::from_ref(image), &[]);
                assert_eq!(found, *expected);
            });
        }
    });
}

#[test]
fn without_graphs_every_operation_is_queued_and_the_logits_are_the_same() {
    let images = pictures(2, TINY);
    let driver = HostDriver::failing(Fails::Named("capture"));
    let net = tiny_gpu(&driver).expect("loads");
    let first = run(&net, &images, &[]);
    assert_eq!(run(&net, &images, &[]), first);
    assert_eq!(run(&net, &images, &[]), first);
    let tried = driver
        .state()
        .calls
        .iter()
        .filter(|call| **call == "capture")
        .count();
    assert_eq!(tried, 1, "a capture that failed is not tried again");
}

#[test]
fn two_passes_at_one_time_do_not_mix_their_images() {
    let net = tiny_gpu(&HostDriver::default()).expect("loads");
    let images = pictures(4, TINY);
    let expected: Vec<Output> = images
        .iter()
        .flat_map(|image| run(&net, std::slice::from_ref(image), &[]))
        .collect();
    std::thread::scope(|scope| {
        for (image, expected) in images.iter().zip(&expected) {
            let net = &net;
            scope.spawn(move || {
                for _ in 0..5 {
                    let found = run(net, std::slice::from_ref(image), &[]);
                    assert_eq!(found[0].logits, expected.logits);
                }
            });
        }
    });
}

/// The calls of loading and of three passes, the last of which grows.
fn passes(net: &GpuNet) -> Result<Vec<Output>, NetworkError> {
    let images = pictures(2, TINY);
    let images: Vec<&Input> = images.iter().collect();
    net.run_batch(&images[..1], &[])?;
    net.run_batch(&images[..1], &[])?;
    net.run_batch(&images, &[])
}

#[test]
fn after_each_call_that_can_fail_the_error_is_typed_and_the_network_goes_on() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    let expected = passes(&net).expect("nothing fails");
    let calls = driver.state().calls.clone();
    // Every kind of call at its first and its last place.
    let mut chosen = HashSet::new();
    for name in calls.iter().collect::<HashSet<_>>() {
        chosen.extend(calls.iter().position(|call| call == name));
        chosen.extend(calls.iter().rposition(|call| call == name));
    }
    for call in chosen {
        let name = calls[call];
        if name == "settle" {
            continue;
        }
        let driver = HostDriver::failing(Fails::Once(call, "CUDA_ERROR_OUT_OF_MEMORY"));
        let out_of_memory = |error: &NetworkError| match error {
            NetworkError::OutOfDeviceMemory { reason } => reason.contains(name),
            _ => false,
        };
        match tiny_gpu(&driver) {
            Err(error) => {
                assert!(["allocate", "write"].contains(&name), "{name}");
                assert!(out_of_memory(&error), "{name}: {error}");
            }
            Ok(net) => {
                match passes(&net) {
                    Err(error) => assert!(out_of_memory(&error), "{name}: {error}"),
                    // What cannot be captured is queued.
                    Ok(_) => assert_eq!(name, "capture"),
                }
                assert_eq!(passes(&net).expect("fails once"), expected, "{name}");
                assert_eq!(driver.state().held().0, 6, "{name}");
            }
        }
    }
}

#[test]
fn a_lost_device_is_lost_for_every_later_pass() {
    let driver = HostDriver::default();
    let net = tiny_gpu(&driver).expect("loads");
    passes(&net).expect("a pass");
    let now = driver.state().calls.len();
    driver.state().fails = Fails::From(now + 3, "CUDA_ERROR_ILLEGAL_ADDRESS");
    for _ in 0..3 {
        assert!(matches!(passes(&net), Err(NetworkError::DeviceLost { .. })));
    }
    driver.state().fails = Fails::Named("run");
    let other = run_error(&net);
    assert!(matches!(&other, NetworkError::Compute(_)), "{other}");
    assert!(
        other.to_string().contains("CUDNN_STATUS_NOT_SUPPORTED"),
        "{other}"
    );
}

fn run_error(net: &GpuNet) -> NetworkError {
    let images = pictures(1, TINY);
    net.run_batch(&[&images[0]], &[])
        .expect_err("every operation fails")
}

#[test]
fn logits_that_differ_from_the_cpus_are_not_accepted() {
    let (architecture, size) = (named("resnet18"), (32, 32));
    let picture = test_picture(size);
    let expected = run(
        &cpu(&architecture, size),
        std::slice::from_ref(&picture),
        &[],
    );
    let expected = &expected[0].logits;
    let net = gpu(&HostDriver::default(), &architecture, size, Half::F16).expect("loads");
    let share = agreement(&net, expected, &picture, ComputeType::F16).expect("agrees");
    assert!(share < 1e-2, "{share}");

    // Red and blue exchanged, as a wrong layout would.
    let mut reversed = normalisation();
    reversed.reversed = true;
    let driver = Box::new(HostDriver::default());
    let wrong = GpuNet::new(driver, program(&architecture, size), Half::F16, reversed);
    let why = agreement(&wrong.expect("loads"), expected, &picture, ComputeType::F16);
    assert!(why.expect_err("differs").contains("% of the largest one"));

    let mut infinite = expected.clone();
    infinite[3] = f32::NAN;
    assert!(agreement(&net, &infinite, &picture, ComputeType::F16).is_err());
    assert!(agreement(&net, &expected[1..], &picture, ComputeType::F16).is_err());
    let lost = HostDriver::default();
    let net = gpu(&lost, &architecture, size, Half::F16).expect("loads");
    lost.state().fails = Fails::From(0, "CUDA_ERROR_LAUNCH_FAILED");
    let why = agreement(&net, expected, &picture, ComputeType::F16).expect_err("fails");
    assert!(why.contains("CUDA_ERROR_LAUNCH_FAILED"), "{why}");
}

/// A ResNet-50 of the usual size, planned.
fn plan(batch: usize) -> (Program, Plan) {
    let program = program(&named("resnet50"), (224, 224));
    let (weights, _) = DeviceWeights::of(&program, Half::F16);
    let memory = PlanMemory {
        weights: Buffer(0),
        arena: Buffer(1),
        workspace: Buffer(2),
        results: Buffer(3),
    };
    let plan = Plan::of(&program, &weights, batch, Half::F16, memory, 1 << 20);
    (program, plan)
}

#[test]
fn the_convolutions_of_a_resnet50_are_described_as_cudnn_takes_them() {
    let (program, plan) = plan(8);
    let convolutions: Vec<_> = Plan::convolutions(&program, 8, Half::F16).collect();
    assert_eq!(convolutions.len(), 53);
    let shapes = |n: usize| {
        let conv = &convolutions[n];
        (
            conv.x(),
            conv.filter().dims,
            conv.y().dims,
            conv.stride,
            conv.padding,
        )
    };
    // The stem: three channels are padded to eight.
    assert_eq!(
        shapes(0),
        (
            Tensor4 {
                dims: [8, 8, 224, 224],
                strides: [224 * 224 * 8, 1, 224 * 8, 8],
            },
            [64, 8, 7, 7],
            [8, 64, 112, 112],
            2,
            3,
        )
    );
    // The first 3x3 of the second stage has the stride of version 1.5.
    let strided = convolutions
        .iter()
        .position(|conv| conv.kernel == 3 && conv.stride == 2);
    let strided = strided.expect("a 3x3 of stride 2");
    assert_eq!(
        shapes(strided),
        (
            Tensor4::channels_last(8, 128, 56, 56),
            [128, 128, 3, 3],
            [8, 128, 28, 28],
            2,
            1
        )
    );
    // The last 1x1 adds the block's input.
    let last = convolutions.last().expect("53 of them");
    assert!(last.residual && last.relu);
    assert_eq!(last.filter().strides, [512, 1, 512, 512]);
    assert_eq!(last.bias().dims, [1, 2048, 1, 1]);
    // 16 residuals; the four shortcuts alone have no ReLU.
    assert_eq!(convolutions.iter().filter(|conv| conv.residual).count(), 16);
    assert_eq!(convolutions.iter().filter(|conv| !conv.relu).count(), 4);
    assert!(
        convolutions
            .iter()
            .all(|conv| conv.in_channels % 8 == 0 && conv.out_channels % 8 == 0)
    );
    // One operation for each, a max-pool, an average pool and the linear layer.
    assert_eq!(plan.ops.len(), 53 + 3);
    assert!(matches!(
        plan.ops[1],
        Op::MaxPool {
            size: (112, 112),
            channels: 64,
            ..
        }
    ));
    assert_eq!(program.steps.len(), 54);
    assert!(matches!(program.steps[1], Step::MaxPool { .. }));
}

#[test]
fn each_convolution_of_a_resnet50_is_in_its_plan_with_what_is_fused_to_it() {
    for (batch, half) in [(1, Half::F16), (64, Half::BF16)] {
        let base = Convolution {
            half,
            batch,
            size: (224, 224),
            in_channels: 8,
            out_channels: 64,
            kernel: 7,
            stride: 2,
            padding: 3,
            relu: true,
            residual: false,
        };
        // What torchvision's ResNet-50 (version 1.5) consists of, written down again.
        let mut expected: HashMap<Convolution, usize> = HashMap::from([(base, 1)]);
        let mut add =
            |size: usize, (from, to): (usize, usize), (kernel, stride), relu, residual| {
                let shape = Convolution {
                    size: (size, size),
                    in_channels: from,
                    out_channels: to,
                    kernel,
                    stride,
                    padding: kernel / 2,
                    relu,
                    residual,
                    ..base
                };
                *expected.entry(shape).or_default() += 1;
            };
        let (mut size, mut channels) = (56, 64);
        for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
            let planes = 64 << stage;
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                add(size, (channels, planes), (1, 1), true, false);
                add(size, (planes, planes), (3, stride), true, false);
                if block == 0 {
                    add(size, (channels, 4 * planes), (1, stride), false, false);
                }
                size /= stride;
                channels = 4 * planes;
                add(size, (planes, channels), (1, 1), true, true);
            }
        }
        assert_eq!(expected.values().sum::<usize>(), 53);
        let program = program(&named("resnet50"), (224, 224));
        let mut found: HashMap<Convolution, usize> = HashMap::new();
        for shape in Plan::convolutions(&program, batch, half) {
            *found.entry(shape).or_default() += 1;
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn every_place_of_a_plan_is_aligned_and_memory_at_a_batch_of_64_is_below_half_a_gigabyte() {
    for batch in [1, 2, 64] {
        let (_, plan) = plan(batch);
        for op in &plan.ops {
            let (name, places) = op.places();
            for (place, bytes) in places {
                assert!(bytes <= place.bytes, "{name}: {place:?}");
                // Features and logits are float32 rows, all else is what tensor cores load.
                let alignment = if place.buffer == Buffer(3) {
                    4
                } else {
                    Arena::ALIGNMENT
                };
                assert_eq!(place.offset % alignment, 0, "{name}: {place:?}");
                if place.buffer == Buffer(1) {
                    assert!(
                        place.offset + bytes <= plan.arena_bytes,
                        "{name}: {place:?}"
                    );
                }
            }
        }
        // The stem's output, the largest activation, has 1.6 MB an image.
        let largest = batch * 112 * 112 * 64 * 2;
        assert!(plan.arena_bytes >= largest);
        assert!(
            plan.arena_bytes <= 4 * largest,
            "{} bytes",
            plan.arena_bytes
        );
        assert!(plan.arena_bytes + plan.partial_bytes < 500_000_000);
    }
}

#[test]
fn weights_are_ordered_by_output_channel_row_column_and_input_channel() {
    let program = program(&named("resnet18"), (32, 32));
    let (places, bytes) = DeviceWeights::of(&program, Half::F16);
    assert_eq!(places.len, bytes.len());
    let number = |offset: usize| half::f16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
    for (layer, (weights, bias)) in program.layers.iter().zip(&places.layers) {
        let shape = layer.folded.shape;
        let padded = shape.in_channels.next_multiple_of(8);
        for (k, c, r, s) in [
            (0, 0, 0, 0),
            (1, 2, 0, 0),
            (5, 1, shape.kernel - 1, 0),
            (63, 2, 0, 0),
        ] {
            let area = shape.kernel * shape.kernel;
            let from = (k * shape.in_channels + c) * area + r * shape.kernel + s;
            let to = ((k * shape.kernel + r) * shape.kernel + s) * padded + c;
            let expected = half::f16::from_f32(layer.folded.weight[from]);
            assert_eq!(
                number(weights + 2 * to),
                expected,
                "{}: {k} {c} {r} {s}",
                layer.name
            );
        }
        assert_eq!(
            number(bias + 2 * 7),
            half::f16::from_f32(layer.folded.bias[7])
        );
    }
    // Channels that were added have zeros.
    let (stem, _) = places.layers[0];
    assert!((3..8).all(|channel| number(stem + 2 * channel).to_bits() == 0));
    let float = |offset: usize| {
        f32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
    };
    let (weights, bias) = places.linear;
    let linear = &program.linear;
    assert_eq!(
        float(weights + 4 * (3 * CLASSES + 2)),
        linear.weight[2 * linear.inputs + 3]
    );
    assert_eq!(float(bias + 4 * 2), linear.bias[2]);
}

proptest! {
    #[test]
    fn activations_that_are_in_use_at_one_time_do_not_overlap(
        spans in prop::collection::vec((0usize..30, 0usize..12, 0usize..5000), 1..40)
    ) {
        let spans: Vec<Span> = spans
            .into_iter()
            .map(|(first, length, bytes)| Span { first, last: first + length, bytes })
            .collect();
        let arena = Arena::layout(&spans);
        for (i, a) in spans.iter().enumerate() {
            prop_assert_eq!(arena.offsets[i] % Arena::ALIGNMENT, 0);
            prop_assert!(arena.offsets[i] + a.bytes <= arena.bytes);
            for (j, b) in spans.iter().enumerate().skip(i + 1) {
                let apart = arena.offsets[i] + a.bytes <= arena.offsets[j]
                    || arena.offsets[j] + b.bytes <= arena.offsets[i];
                prop_assert!(apart || !a.meets(b) , "{:?} and {:?}", a, b);
            }
        }
        // Never more than all of them one after the other.
        let all: usize = spans.iter().map(|s| s.bytes.next_multiple_of(Arena::ALIGNMENT)).sum();
        prop_assert!(arena.bytes <= all);
    }
}
