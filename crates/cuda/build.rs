//! With the feature `cuda`, compiles `src/kernels.cu` to PTX by nvcc. The PTX is for compute
//! capability 7.5, the oldest of CUDA 13; the driver compiles it for the GPU that it finds.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/kernels.cu");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=PATH");
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let nvcc = home
        .filter(|nvcc| nvcc.is_file())
        .unwrap_or_else(|| PathBuf::from("nvcc"));
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    let status = Command::new(&nvcc)
        .args(["-ptx", "-arch=compute_75", "-O3", "-o"])
        .arg(&out)
        .arg("src/kernels.cu")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}", nvcc.display()),
        Err(error) => panic!(
            "{} does not start: {error}; set CUDA_HOME to CUDA's toolkit, or put nvcc on the PATH \
             (tools/cuda-toolkit.sh fetches one)",
            nvcc.display()
        ),
    }
}
