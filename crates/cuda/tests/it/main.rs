//! The kernels' source gives what its definitions say, compiled for the CPU, and operations name
//! the bytes that they use.

use std::path::Path;
use std::process::Command;

use imgclass_cuda::{Buffer, Convolution, Half, Op, Place, Tensor4};

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
