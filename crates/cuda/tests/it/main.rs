//! The kernels' source gives what its definitions say, compiled for the CPU, and operations name
//! the bytes that they use.

use std::path::Path;
use std::process::Command;

#[cfg(feature = "cuda")]
mod proposed;

use imgclass_cuda::{
    Buffer, Convolution, GraphTensor, Half, Node, Number, Op, OperationGraph, Place, Role, Tensor4,
};

#[test]
fn the_kernels_compiled_for_the_cpu_give_what_their_definitions_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("kernels");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels.cpp");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let compiled = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra"])
        .args(["-Werror", "-o"])
        .arg(&program)
        .arg(&source)
        .output()
        .expect("a C++ compiler as `c++`, or another in CXX");
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{errors}");
    let ran = Command::new(&program).output().expect("runs");
    let differences = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{differences}");
}

#[test]
fn a_convolutions_shapes_are_those_of_channels_last() {
    let shape = Convolution {
        half: Half::F16,
        batch: 4,
        size: (57, 30),
        in_channels: 16,
        out_channels: 32,
        kernel: 3,
        stride: 2,
        padding: 1,
        relu: true,
        residual: false,
    };
    assert_eq!(shape.out_size(), (29, 15));
    assert_eq!(
        shape.x(),
        Tensor4 {
            dims: [4, 16, 57, 30],
            strides: [57 * 30 * 16, 1, 30 * 16, 16],
        }
    );
    assert_eq!(shape.filter().strides, [3 * 3 * 16, 1, 3 * 16, 16]);
    assert_eq!(shape.y().len(), 4 * 32 * 29 * 15);
    let place = Place {
        buffer: Buffer(3),
        offset: 256,
        bytes: 1 << 30,
    };
    let op = Op::Convolution {
        shape,
        x: place,
        weights: place,
        bias: place,
        z: None,
        y: place,
        workspace: place,
    };
    let bytes: Vec<usize> = op.places().1.into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, [218_880, 9216, 64, 111_360]);
    assert_eq!(place.first(10).bytes, 10);
    assert_eq!(place.first(usize::MAX), place);
}

#[test]
fn a_convolutions_graph_adds_z_before_the_bias_and_keeps_all_but_the_output_out_of_memory() {
    let shape = Convolution {
        half: Half::BF16,
        batch: 2,
        size: (14, 14),
        in_channels: 256,
        out_channels: 1024,
        kernel: 3,
        stride: 2,
        padding: 1,
        relu: true,
        residual: true,
    };
    let convolution = |y| Node::Convolution {
        x: 0,
        weights: 1,
        y,
        padding: 1,
        stride: 2,
    };
    // What is fused, and the operations behind the convolution.
    for (relu, residual, result, expected) in [
        (
            true,
            true,
            5,
            vec![
                Node::Add { x: 5, b: 4, y: 6 },
                Node::Add { x: 6, b: 2, y: 7 },
                Node::Relu { x: 7, y: 3 },
            ],
        ),
        (
            true,
            false,
            4,
            vec![Node::Add { x: 4, b: 2, y: 5 }, Node::Relu { x: 5, y: 3 }],
        ),
        (
            false,
            true,
            5,
            vec![
                Node::Add { x: 5, b: 4, y: 6 },
                Node::Add { x: 6, b: 2, y: 3 },
            ],
        ),
        (false, false, 4, vec![Node::Add { x: 4, b: 2, y: 3 }]),
    ] {
        let shape = Convolution {
            relu,
            residual,
            ..shape
        };
        let graph = OperationGraph::of(&shape);
        let nodes: Vec<Node> = std::iter::once(convolution(result))
            .chain(expected)
            .collect();
        assert_eq!(graph.nodes, nodes, "ReLU {relu}, residual {residual}");
        let half = |role, shape| GraphTensor {
            role,
            shape,
            number: Number::Half(Half::BF16),
        };
        let mut tensors = vec![
            half(Role::X, Tensor4::channels_last(2, 256, 14, 14)),
            half(Role::Weights, Tensor4::channels_last(1024, 256, 3, 3)),
            half(Role::Bias, Tensor4::channels_last(1, 1024, 1, 1)),
            half(Role::Y, shape.y()),
        ];
        if residual {
            tensors.push(half(Role::Z, shape.y()));
        }
        let between = GraphTensor {
            role: Role::Between,
            shape: Tensor4::channels_last(2, 1024, 7, 7),
            number: Number::F32,
        };
        tensors.extend(std::iter::repeat_n(between, nodes.len() - 1));
        assert_eq!(graph.tensors, tensors, "ReLU {relu}, residual {residual}");
    }
    assert_eq!([0, 4].map(OperationGraph::id), [1, 5]);
}
