//! cuDNN itself takes the graphs of a ResNet-50's convolutions and has engines for them. It needs no
//! GPU for that, only its properties. Run by `tools/check-cuda.sh`, with CUDA's libraries.

use imgclass_cuda::{Convolution, Half, engines_for};

/// A GPU's properties in cuDNN's JSON: compute capability, number of processors, and the most bytes
/// of shared memory that one block may ask for.
fn properties(capability: u32, processors: u32, shared: u32) -> String {
    format!(
        r#"{{"schemaVersion":1,"cudnnVersion":92100,"deviceVer":{capability}0,"driverVer":13000,
        "cudaDeviceId":0,"totalGlobalMem":16000000000,"maxGridSize":[2147483647,65535,65535],
        "maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":{processors},
        "warpSize":32,"maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":{shared},
        "reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,"maxCtasPerSM":32,
        "maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,
        "supportCoopLaunch":1,"smClockRateKHz":1500000,"memClockRateKHz":2000000,
        "l2CacheSize":40000000,"deviceName":"a GPU that is not here"}}"#
    )
}

/// The shapes of a ResNet-50's convolutions: height and width of x, channels of x and y, kernel,
/// stride, ReLU, residual.
const SHAPES: &[(usize, usize, usize, usize, usize, bool, bool)] = &[
    (224, 8, 64, 7, 2, true, false),
    (56, 64, 64, 1, 1, true, false),
    (56, 64, 64, 3, 1, true, false),
    (56, 64, 256, 1, 1, true, true),
    (56, 64, 256, 1, 1, false, false),
    (56, 256, 64, 1, 1, true, false),
    (56, 256, 128, 1, 1, true, false),
    (56, 128, 128, 3, 2, true, false),
    (28, 128, 512, 1, 1, true, true),
    (56, 256, 512, 1, 2, false, false),
    (28, 512, 128, 1, 1, true, false),
    (28, 128, 128, 3, 1, true, false),
    (28, 512, 256, 1, 1, true, false),
    (28, 256, 256, 3, 2, true, false),
    (14, 256, 1024, 1, 1, true, true),
    (28, 512, 1024, 1, 2, false, false),
    (14, 1024, 256, 1, 1, true, false),
    (14, 256, 256, 3, 1, true, false),
    (14, 1024, 512, 1, 1, true, false),
    (14, 512, 512, 3, 2, true, false),
    (7, 512, 2048, 1, 1, true, true),
    (14, 1024, 2048, 1, 2, false, false),
    (7, 2048, 512, 1, 1, true, false),
    (7, 512, 512, 3, 1, true, false),
];

#[test]
fn cudnn_has_engines_for_every_convolution_of_a_resnet50_on_every_generation() {
    // Turing has no bf16.
    for (capability, processors, shared, halves) in [
        (75, 40, 65536, &[Half::F16][..]),
        (80, 108, 166_912, &[Half::F16, Half::BF16]),
        (86, 84, 101_376, &[Half::F16, Half::BF16]),
        (89, 128, 101_376, &[Half::F16, Half::BF16]),
        (90, 132, 232_448, &[Half::F16, Half::BF16]),
        (100, 148, 232_448, &[Half::F16, Half::BF16]),
        (120, 170, 101_376, &[Half::F16, Half::BF16]),
    ] {
        let properties = properties(capability, processors, shared);
        let (mut shapes, mut engines) = (0, 0);
        for &half in halves {
            for batch in [1, 8, 64] {
                for &(size, in_channels, out_channels, kernel, stride, relu, residual) in SHAPES {
                    let shape = Convolution {
                        half,
                        batch,
                        size: (size, size),
                        in_channels,
                        out_channels,
                        kernel,
                        stride,
                        padding: kernel / 2,
                        relu,
                        residual,
                    };
                    let found = engines_for(&properties, &shape).expect("cuDNN takes the graph");
                    assert!(!found.is_empty(), "{capability}: no engine for {shape:?}");
                    (shapes, engines) = (shapes + 1, engines + found.len());
                }
            }
        }
        println!("compute capability {capability}: {engines} plans for {shapes} convolutions");
    }
}

#[test]
fn what_is_no_gpus_description_is_refused() {
    let shape = Convolution {
        half: Half::F16,
        batch: 1,
        size: (8, 8),
        in_channels: 8,
        out_channels: 8,
        kernel: 1,
        stride: 1,
        padding: 0,
        relu: true,
        residual: false,
    };
    let error = engines_for("{}", &shape).expect_err("nothing is described");
    assert!(error.to_string().contains("CUDNN_STATUS"), "{error}");
}
