#!/usr/bin/env bash
# Type-checks the package for machines that this one is not: macOS with and without Metal, 64-bit Arm
# Linux, and Windows.
# Nothing is linked and nothing runs. C code in dependencies is compiled by zig, which is a C
# compiler for every target; it comes from PyPI into target/zig.
#   tools/check-targets.sh [metal] [macos] [arm] [windows]      default: all. Needs rustup and python3 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR=target/check-targets
readonly zig="$PWD/target/zig"

[[ -x $zig/bin/python ]] || python3 -m venv "$zig"
"$zig/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: ziglang==0.15.2

# compiler RUST_TARGET ZIG_TARGET: a cc and an ar for that target. cc's own --target is left out:
# zig names targets otherwise.
compiler() {
    cat >"$zig/bin/cc-$1" <<CC
#!/usr/bin/env bash
arguments=()
for argument in "\$@"; do
    [[ \$argument == --target=* || \$argument == -mmacosx-version-min=* ]] || arguments+=("\$argument")
done
exec "$zig/bin/python" -m ziglang cc -target $2 "\${arguments[@]}"
CC
    printf '#!/usr/bin/env bash\nexec "%s/bin/python" -m ziglang ar "$@"\n' "$zig" >"$zig/bin/ar-$1"
    chmod +x "$zig/bin/cc-$1" "$zig/bin/ar-$1"
    local name=${1//-/_}
    export "CC_$name=$zig/bin/cc-$1" "AR_$name=$zig/bin/ar-$1"
}

# check RUST_TARGET ZIG_TARGET CARGO_ARGUMENTS...
check() {
    local rust=$1 zig_target=$2
    shift 2
    rustup target add "$rust" 2>/dev/null
    compiler "$rust" "$zig_target"
    cargo check --locked --target "$rust" "$@"
    echo "checked: $rust $*"
}

for what in "${@:-metal macos arm windows}"; do
    # The default is one word for four.
    for target in $what; do
        case $target in
            metal) check aarch64-apple-darwin aarch64-macos --lib --bins --features metal ;;
            macos) check aarch64-apple-darwin aarch64-macos --lib --bins ;;
            arm) check aarch64-unknown-linux-gnu aarch64-linux-gnu --lib --bins ;;
            windows) check x86_64-pc-windows-gnu x86_64-windows-gnu --lib --bins ;;
            *) echo "unknown: $target; use metal, macos, arm or windows"; exit 2 ;;
        esac
    done
done
