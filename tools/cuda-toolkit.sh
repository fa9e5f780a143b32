#!/usr/bin/env bash
# CUDA's compiler and libraries from PyPI in a folder, for building with --features cuda,cudnn where
# no toolkit is installed. Needs python3 with pip, gcc and 3 GB of disk; no root, no GPU, no driver.
#   tools/cuda-toolkit.sh [FOLDER]      default: target/cuda-toolkit; does nothing where the folder is whole
#   source FOLDER/env                   CUDA_HOME, PATH and LD_LIBRARY_PATH for building and running
set -euo pipefail

folder="$(realpath -m "${1:-target/cuda-toolkit}")"
readonly folder

# One release of the toolkit; cuDNN as cudarc's bindings have it (9.21). NVIDIA's wheels of CUDA 13
# share one tree, nvidia/cu13.
readonly packages=(
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cublas==13.1.*' 'nvidia-curand==10.4.0.*'
    'nvidia-cudnn-cu13==9.21.*'
)

if [[ -e $folder/env ]]; then
    echo "there already: $folder"
    exit
fi
rm -rf "$folder"
mkdir -p "$folder"
# --no-deps: each of these would bring the newest of the others.
python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$folder/wheels" "${packages[@]}"

home="$folder/wheels/nvidia/cu13"
[[ -x $home/bin/nvcc && -d $folder/wheels/nvidia/cudnn ]] || { echo "the wheels lie otherwise than expected under $folder/wheels"; exit 1; }
ln -s lib "$home/lib64"
cp -rs "$folder/wheels/nvidia/cudnn/." "$home/"
# Linkers look for names without a version.
for library in "$home"/lib/lib*.so.*; do
    name="${library##*/}"
    plain="${name%%.so.*}.so"
    [[ -e $home/lib/$plain ]] || ln -s "$name" "$home/lib/$plain"
done
# The driver's library comes with the driver and never with the toolkit. Linking asks for one by
# name and takes nothing from it: our build.rs brings the functions.
mkdir -p "$home/lib/stubs"
echo | gcc -shared -x c - -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so"

# candle compiles its products of quantised tensors to machine code, which takes minutes. Nothing here
# calls them, so they stay PTX, which the driver would compile if something did.
cat >"$home/bin/nvcc-for-candle" <<'NVCC'
#!/usr/bin/env bash
arguments=("$@")
for argument in "$@"; do
    if [[ $argument == -c ]]; then arguments=("${@/code=sm_/code=compute_}"); fi
done
exec "${0%/*}/nvcc" "${arguments[@]}"
NVCC
chmod +x "$home/bin/nvcc-for-candle"

cat >"$folder/env" <<ENV
export CUDA_HOME="$home"
export CUDA_PATH="$home"
export NVCC="$home/bin/nvcc-for-candle"
export PATH="$home/bin:\$PATH"
export LD_LIBRARY_PATH="$home/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
ENV
"$home/bin/nvcc" --version | tail -n 2
du -sh "$folder"
