#!/bin/sh
# Makes what run.py and tests/golden/record.py need: a Python environment in target/peers-venv, from PyPI.
# With --rust it also builds the peers written in Rust, in target/peers-rust. Running it again brings both up to date.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv="$root/target/peers-venv"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$root/benches/peers/requirements.txt"
echo "ready: $venv/bin/python"
if [ "${1:-}" = --rust ]; then
    # For this CPU, since candle picks some of its instructions when it is compiled.
    RUSTFLAGS="-C target-cpu=native" cargo build --release --locked \
        --manifest-path "$root/benches/peers/rust_worker/Cargo.toml" --target-dir "$root/target/peers-rust"
fi
