#!/usr/bin/env bash
# The kernels on 64-bit Arm, on a machine that is none: counts the instructions of their inner loops
# (tools/arm_loops.py), builds their tests and runs them under qemu as four processors. cortex-a72 has
# NEON and nothing else, cortex-a76 and neoverse-n1 have dot products of bytes, max has i8mm too; on
# the others that instruction would trap.
#   tools/check-arm.sh [CPU...]          default: cortex-a72 cortex-a76 neoverse-n1 max
#   tools/check-arm.sh loops             only counts the instructions
# Needs rustup, and as Debian's packages gcc-aarch64-linux-gnu and qemu-user, which it installs as
# root. SHORT_TABLES is set unless LONG_TABLES is: an emulator takes some twenty times longer.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly target=aarch64-unknown-linux-gnu
readonly libraries=/usr/aarch64-linux-gnu

if ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null
fi
rustup -q target add $target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

# Tests are built with checks that keep sums in memory, so the loops are those of a release.
cargo build --locked --release -p imgclass-kernels --target $target
python3 tools/arm_loops.py "${CARGO_TARGET_DIR:-target}/$target/release/libimgclass_kernels.rlib"
[[ ${1:-} != loops ]] || exit 0

messages="$(cargo test --locked -p imgclass-kernels --test it --target $target --no-run --message-format json)"
tests="$(sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p' <<<"$messages")"

[[ -n ${LONG_TABLES:-} ]] || export SHORT_TABLES=1 PROPTEST_CASES=16
cpus=("$@")
((${#cpus[@]})) || cpus=(cortex-a72 cortex-a76 neoverse-n1 max)
for cpu in "${cpus[@]}"; do
    printf '\n==> %s\n' "$cpu"
    qemu-aarch64 -L $libraries -cpu "$cpu" "$tests" --skip every_layer_of_the_network
done
