#!/usr/bin/env bash
# Makes the release archives for Linux: the binary, completions, manual pages, licence and README,
# for x86-64 and for 64-bit Arm, with a file of checksums beside them.
#   tools/archives.sh [x86_64] [aarch64]         default: both; writes target/archives
# zig links, against glibc 2.28 (Debian 10, RHEL 8, Ubuntu 20.04 and later), whatever this machine
# has. zig and cargo-zigbuild come from PyPI into target/zig. Needs rustup, python3 with venv, and to
# run the other machine's binary qemu-user with its C library (Debian: qemu-user libc6-arm64-cross).
# tools/check-archives.sh tries the archives.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly glibc=2.28
readonly zig=target/zig
readonly out=target/archives
readonly build=${CARGO_TARGET_DIR:-target}
version="$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"

[[ -x $zig/bin/python ]] || python3 -m venv "$zig"
"$zig/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
    ziglang==0.15.2 cargo-zigbuild==0.24.1
export PATH="$PWD/$zig/bin:$PATH"

# runner MACHINE: what starts a binary for that machine here.
runner() {
    if [[ $1 == "$(uname -m)" ]]; then
        echo env
    else
        echo "qemu-$1 -L /usr/$1-linux-gnu"
    fi
}

# archive MACHINE: builds for it and packs target/archives/imgclass-VERSION-MACHINE-linux.tar.gz.
archive() {
    local machine=$1 target=$1-unknown-linux-gnu name=imgclass-$version-$1-linux start
    rustup -q target add "$target"
    cargo zigbuild --release --locked --bin imgclass --target "$target.$glibc"
    local binary=$build/$target/release/imgclass folder=$out/$name
    rm -rf "$folder" && mkdir -p "$folder/completions" "$folder/man"
    install -m 755 "$binary" "$folder/imgclass"
    install -m 644 LICENSE README.md CHANGELOG.md "$folder"
    read -ra start <<<"$(runner "$machine")"
    "${start[@]}" "$binary" --version
    local shell
    for shell in bash zsh fish; do
        "${start[@]}" "$binary" completions "$shell" >"$folder/completions/imgclass.$shell"
    done
    "${start[@]}" "$binary" man "$folder/man"
    # The same input gives the same archive.
    tar --create --gzip --file "$out/$name.tar.gz" --directory "$out" --sort name \
        --owner 0 --group 0 --numeric-owner --mtime "@$(git log -1 --format=%ct)" "$name"
    rm -r "$folder"
}

mkdir -p "$out"
machines=("$@")
((${#machines[@]})) || machines=(x86_64 aarch64)
for machine in "${machines[@]}"; do
    archive "$machine"
done
(cd "$out" && sha256sum ./*.tar.gz | sed 's, \./, ,' | tee SHA256SUMS && ls -l ./*.tar.gz)
