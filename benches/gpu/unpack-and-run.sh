#!/usr/bin/env bash
# Unpacks the archives of tools/pack-gpu.sh that were copied here and runs the benchmark. This file
# comes out of the first archive:
#   cat imgclass-gpu-1-programme.tar.gz* | tar xz
#   ./unpack-and-run.sh [FOLDER OF THE OTHER ARCHIVES] [ARGUMENTS OF benches/gpu/run.py]
# The folder is this file's own where none is named. Each of the other archives is optional, checked
# against its SHA-256 sum, and unpacked once. Without photographs the benchmark draws pictures;
# without a checkpoint it takes random weights. PYTHON names the interpreter that has PyTorch
# (default: python3).
set -euo pipefail

root="$(cd "$(dirname "$0")" && pwd)"
archives="$root"
if (($# > 0)) && [[ -d $1 ]]; then
    archives="$(cd "$1" && pwd)"
    shift
fi

# unpack NAME: the archive of this name, whole or in pieces, if it came.
unpack() {
    local sums
    if [[ -e $root/.unpacked-$1 ]]; then return; fi
    if ! compgen -G "$archives/$1.tar.gz*" >/dev/null; then return; fi
    if ! sums="$(grep " $1\.tar\.gz" "$root/SHA256SUMS")"; then
        echo "$1 belongs to another bundle than this file" >&2
        exit 1
    fi
    if ! (cd "$archives" && sha256sum --check --quiet <<<"$sums"); then
        echo "$1 is damaged, incomplete or of another bundle: copy it again" >&2
        exit 1
    fi
    cat "$archives/$1".tar.gz* | tar --extract --gzip --directory "$root"
    touch "$root/.unpacked-$1"
}

unpack imgclass-gpu-2-checkpoint
unpack imgclass-gpu-3-photographs

words=(--imgclass "$root/imgclass")
if [[ -f $root/reference/images.tsv ]]; then words+=(--shared "$root"); fi
if [[ -f $root/weights/resnet50.safetensors ]]; then
    words+=(--weights "$root/weights/resnet50.safetensors")
fi
exec "${PYTHON:-python3}" "$root/benches/gpu/run.py" "${words[@]}" "$@"
