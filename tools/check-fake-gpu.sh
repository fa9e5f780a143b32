#!/usr/bin/env bash
# Tests the network over cuDNN with a GPU in the host's memory: crates/cuda/tests/fake/gpu.cpp stands
# for CUDA's driver and cuDNN. Needs a C++ compiler; no toolkit, no GPU, no driver.
#   tools/check-fake-gpu.sh [ARGUMENTS OF cargo test's program]
set -euo pipefail
cd "$(dirname "$0")/.."

home="$PWD/target/fake-gpu"
mkdir -p "$home/bin" "$home/lib64"
# What the build scripts of cudarc and of imgclass-cuda ask of nvcc. The fake GPU knows its kernels.
cat >"$home/bin/nvcc.new" <<'NVCC'
#!/usr/bin/env bash
if [[ $1 == --version ]]; then
    printf 'a stand-in for nvcc\n\n\nCuda compilation tools, release 13.0, V13.0.0\n'
    exit
fi
while [[ $1 != -o ]]; do shift; done
echo '// no PTX: the fake GPU knows its kernels' >"$2"
NVCC
chmod +x "$home/bin/nvcc.new"
# A file that is as before keeps its time, so that nothing is built anew.
cmp -s "$home/bin/nvcc.new" "$home/bin/nvcc" || cp "$home/bin/nvcc.new" "$home/bin/nvcc"
# Without contraction to multiply-and-add the results are those of every compiler.
"${CXX:-c++}" -std=c++17 -O2 -ffp-contract=off -Wall -Wextra -shared -fPIC \
    -Wl,-soname,libcuda.so.1 -o "$home/lib64/libcuda.so.1" -x c++ crates/cuda/tests/fake/gpu.cpp
ln -sf libcuda.so.1 "$home/lib64/libcuda.so"
ln -sf libcuda.so.1 "$home/lib64/libcudnn.so"

export CUDA_HOME="$home" CUDA_PATH="$home" PATH="$home/bin:$PATH"
export LD_LIBRARY_PATH="$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cargo test --locked -p imgclass-network --features fake-gpu --test it fake_gpu -- "$@"
