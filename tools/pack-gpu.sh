#!/usr/bin/env bash
# Makes the bundle that benches/gpu/run.py needs on a machine with a GPU but without this checkout,
# without a compiler and without a network: archives under 60 MB each, and their SHA-256 sums.
#   tools/pack-gpu.sh [--shared FOLDER] [--weights FILE] [OUT]     default of OUT: target/gpu-bundle
#     --shared FOLDER   photographs with the reference's table, FOLDER/reference/images.tsv (columns
#                       file, top1, margin); the files that it names must lie inside FOLDER. Without
#                       it the benchmark draws its own pictures.
#     --weights FILE    a float32 safetensors file, which is packed in f16; default:
#                       FOLDER/weights/resnet50.safetensors. Without one the benchmark takes random
#                       weights.
# The archives are imgclass-gpu-1-programme.tar.gz (binary, scripts, unpack-and-run.sh),
# imgclass-gpu-2-checkpoint.tar.gz and imgclass-gpu-3-photographs.tar.gz. One above 58 MB is split
# into .part-00, .part-01 and so on. The binary is built for CUDA_COMPUTE_CAP (default: 90) into
# target/cuda, where cargo builds only what changed. Needs what tools/cuda-toolkit.sh needs, and
# 8 GB of disk under target/.
set -euo pipefail

usage() {
    echo "usage: tools/pack-gpu.sh [--shared FOLDER] [--weights FILE] [OUT]" >&2
    exit 2
}

shared='' weights='' out=''
while (($# > 0)); do
    case $1 in
        --shared | --weights)
            (($# > 1)) || usage
            declare "${1#--}=$(realpath -m "$2")"
            shift 2
            ;;
        -*) usage ;;
        *)
            [[ -z $out ]] || usage
            out="$(realpath -m "$1")"
            shift
            ;;
    esac
done

cd "$(dirname "$0")/.."
out="${out:-$PWD/target/gpu-bundle}"
if [[ -n $shared && ! -f $shared/reference/images.tsv ]]; then
    echo "--shared $shared: there is no reference/images.tsv in it, which names the photographs" >&2
    exit 1
fi
if [[ -z $weights && -n $shared && -f $shared/weights/resnet50.safetensors ]]; then
    weights="$shared/weights/resnet50.safetensors"
fi
if [[ -n $weights && ! -f $weights ]]; then
    echo "--weights $weights: there is no such file" >&2
    exit 1
fi
if compgen -G "$out/*" >/dev/null && ! compgen -G "$out/imgclass-gpu-1-*" >/dev/null; then
    echo "$out holds something else than a bundle: name another folder" >&2
    exit 1
fi

tools/cuda-toolkit.sh
# shellcheck source=/dev/null
source target/cuda-toolkit/env
CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" CARGO_TARGET_DIR="$PWD/target/cuda" \
    cargo build --release --locked --features cuda,cudnn --bin imgclass

staged="$(mktemp -d)"
trap 'rm -rf "$staged"' EXIT
readonly programme="$staged/programme" checkpoint="$staged/checkpoint"
readonly photographs="$staged/photographs" packed="$staged/packed"
# Bytes in a piece: below a limit of 60 MB, with room for what a transfer adds.
readonly piece=58000000
mkdir -p "$packed" "$out"

# pack NAME FOLDER: an archive of the folder's content, in pieces where it is large.
pack() {
    local archive="$packed/$1.tar.gz"
    tar --create --sort=name --owner=0 --group=0 --mtime=@0 --directory "$2" . |
        gzip -9n >"$archive"
    if (($(stat -c %s "$archive") > piece)); then
        split --bytes="$piece" --numeric-suffixes "$archive" "$archive.part-"
        rm "$archive"
    fi
}

if [[ -n $weights ]]; then
    mkdir -p "$checkpoint/weights"
    python3 tools/half_checkpoint.py "$weights" "$checkpoint/weights/resnet50.safetensors"
    pack imgclass-gpu-2-checkpoint "$checkpoint"
fi

if [[ -n $shared ]]; then
    mkdir -p "$photographs/reference"
    cp "$shared/reference/images.tsv" "$photographs/reference/"
    # The column `file`, wherever it stands.
    awk -F '\t' '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == "file") column = i; next }
        { print $column }' "$shared/reference/images.tsv" >"$staged/names"
    (
        cd "$shared"
        xargs -d '\n' -a "$staged/names" cp --parents --no-preserve=mode -t "$photographs"
    )
    pack imgclass-gpu-3-photographs "$photographs"
fi

mkdir -p "$programme/benches/gpu" "$programme/benches/peers" "$programme/web"
strip -o "$programme/imgclass" target/cuda/release/imgclass
cp benches/gpu/*.py "$programme/benches/gpu/"
# The network for ONNX Runtime and TensorRT.
cp benches/peers/formula.py benches/peers/resnet50_onnx.py "$programme/benches/peers/"
cp web/example.jpg "$programme/web/"
cp benches/gpu/unpack-and-run.sh "$programme/"
# The other archives' sums travel inside the first.
(
    cd "$packed"
    find . -maxdepth 1 -type f -printf '%P\n' | sort | xargs --no-run-if-empty sha256sum
) >"$programme/SHA256SUMS"
pack imgclass-gpu-1-programme "$programme"

rm -f "$out"/imgclass-gpu-*.tar.gz* "$out/SHA256SUMS"
mv "$packed"/* "$out/"
(cd "$out" && sha256sum imgclass-gpu-*.tar.gz* >SHA256SUMS && ls -l)
