#!/bin/sh
# Writes an empty source file for each library, benchmark and program of the workspace whose source
# is missing. The Dockerfiles run it where only the manifests have been copied: cargo can then
# compile all dependencies in a layer that a change of our sources leaves valid. Existing files stay
# as they are.
#   tools/empty-sources.sh      in the workspace's root
set -eu

# empty FILE TEXT: writes the file with its folders, unless it exists.
empty() {
    [ -e "$1" ] || { mkdir -p "$(dirname "$1")" && printf '%s\n' "$2" >"$1"; }
}

empty src/main.rs '//! Empty.
fn main() {}'
for manifest in Cargo.toml crates/*/Cargo.toml; do
    folder="$(dirname "$manifest")"
    empty "$folder/src/lib.rs" '//! Empty.'
    # Cargo refuses a manifest that names a benchmark without a source.
    sed -n '/^\[\[bench\]\]/,/^$/s/^name = "\(.*\)"/\1/p' "$manifest" | while read -r bench; do
        empty "$folder/benches/$bench.rs" '//! Empty.
fn main() {}'
    done
done
