#!/usr/bin/env bash
# Builds the release binary with --features cuda,cudnn for each compute capability and shows that it
# starts without a GPU: without NVIDIA's driver, and with a driver's library that finds no device.
# Needs what tools/cuda-toolkit.sh needs; 8 GB of disk under target/.
#   tools/check-cuda.sh [CAPABILITY...]      default: 90 75, CUDA 13's newest common and its oldest
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# == 0)); then set -- 90 75; fi

tools/cuda-toolkit.sh
# shellcheck source=/dev/null
source target/cuda-toolkit/env

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# A driver as it is on a machine whose GPU is gone: cuInit answers CUDA_ERROR_NO_DEVICE, and nothing
# else is there.
mkdir "$scratch/no-gpu"
echo 'int cuInit(unsigned flags) { (void)flags; return 100; }' | gcc -shared -fPIC -x c - -o "$scratch/no-gpu/libcuda.so.1"

# says WORDS COMMAND...: the command's output must hold the words, whatever its exit code.
says() {
    local words=$1 output
    shift
    output="$("$@" 2>&1)" || true
    [[ $output == *"$words"* ]] || { printf 'expected "%s" from: %s\nfound:\n%s\n' "$words" "$*" "$output"; exit 1; }
    echo "ok: $words"
}

try() {
    local binary=$1 picture=web/example.jpg
    # If this machine has a driver, what follows would find it.
    if ldconfig -p | grep -q 'libcuda\.so\.1'; then
        echo "not checked: how $binary starts without a driver, as this machine has one"
        return
    fi
    # grep would end readelf early.
    readelf -d "$binary" >"$scratch/needed"
    if grep -q 'NEEDED.*libcuda\.so' "$scratch/needed"; then echo "$binary asks the loader for libcuda.so.1"; exit 1; fi
    local classify=("$binary" classify --weights random --top-k 1 "$picture")
    says "NVIDIA's driver is not here" "${classify[@]}" --device cuda:0
    says "found instead: the CPU" "${classify[@]}" --device cuda:0
    says "--device auto goes on with the CPU" "${classify[@]}" --device auto
    "${classify[@]}" --device auto 2>/dev/null | grep -q '%'
    echo "ok: classifies on the CPU"
    local loaded="$scratch/no-gpu:$LD_LIBRARY_PATH"
    says "sees no GPU" env LD_LIBRARY_PATH="$loaded" "${classify[@]}" --device cuda:0
    says "%" env LD_LIBRARY_PATH="$loaded" "${classify[@]}" --device auto
}

# Our own kernels for each generation: compiled for it, and assembled of the PTX that the program
# holds, which is the oldest generation's.
nvcc -ptx -arch=compute_75 -O3 -o "$scratch/oldest.ptx" crates/cuda/src/kernels.cu
for capability in 75 80 90 100; do
    nvcc -ptx "-arch=compute_$capability" -o "$scratch/kernels.ptx" crates/cuda/src/kernels.cu
    ptxas "-arch=sm_$capability" -o "$scratch/kernels.cubin" "$scratch/oldest.ptx"
    echo "ok: our kernels compile for compute_$capability and assemble for sm_$capability"
done

# cuDNN is asked which engines it has for a ResNet-50's convolutions on GPUs that are not here. The
# driver beside it is a stand-in, in which cuDNN misses functions: it says so, and does without.
mkdir "$scratch/driver"
"${CXX:-c++}" -std=c++17 -O1 -DNO_CUDNN -shared -fPIC -Wl,-soname,libcuda.so.1 \
    -o "$scratch/driver/libcuda.so.1" -x c++ crates/cuda/tests/fake/gpu.cpp
LD_LIBRARY_PATH="$scratch/driver:$LD_LIBRARY_PATH" CARGO_TARGET_DIR=target/cuda \
    cargo test --locked -p imgclass-cuda --features cuda --test it -- --nocapture

for capability in "$@"; do
    CUDA_COMPUTE_CAP=$capability CARGO_TARGET_DIR=target/cuda \
        cargo build --release --locked --features cuda,cudnn --bin imgclass
    try target/cuda/release/imgclass
    echo "checked: compute capability $capability"
done
