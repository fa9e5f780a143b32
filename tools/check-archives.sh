#!/usr/bin/env bash
# Tries the release archives of tools/archives.sh, each in a root of Debian that holds the C library
# and CA certificates, and nothing else: the version, a picture on the command line, one over HTTP. It also reads the
# manual pages, uses the completion, and says which C library the program needs.
#   tools/check-archives.sh [x86_64] [aarch64]       default: both
# The other machine's program runs under qemu, which starts no second program: pictures are decoded
# in the service's own process there. Needs root, for chroot, and as Debian's packages mmdebstrap,
# man-db, binutils, ca-certificates, curl and for the other machine qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly archives=target/archives
# The newest symbols that tools/archives.sh asks for.
readonly glibc=2.28
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
readonly work

# debian MACHINE: Debian's name for it.
debian() {
    case $1 in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        *) echo "unknown: $1; use x86_64 or aarch64" >&2; return 2 ;;
    esac
}

# "${inside[@]}" ROOT COMMAND...: runs it in the root, with a /proc and a /dev that go with it.
# shellcheck disable=SC2016
readonly inside=(unshare --mount -- bash -c '
    mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" &&
    exec env -i PATH=/opt/imgclass HOME=/tmp /usr/sbin/chroot "$0" "$@"')

# check MACHINE
check() {
    local machine=$1 root=$work/$1 archive folder emulator=() decoding=()
    archive="$(echo "$archives"/imgclass-*-"$machine"-linux.tar.gz)"
    folder="$root/opt/imgclass"
    printf '\n==> %s\n' "$archive"
    mmdebstrap --quiet --variant=extract --architectures="$(debian "$machine")" --include=libc6,libgcc-s1 bookworm "$root"
    mkdir -p "$folder" "$root"/{proc,dev,tmp,etc/ssl/certs}
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"
    tar --extract --file "$archive" --directory "$folder" --strip-components 1
    cp web/example.jpg "$root/tmp/example.jpg"
    if [[ $machine != "$(uname -m)" ]]; then
        cp "$(command -v "qemu-$machine-static")" "$root/tmp/qemu"
        emulator=(/tmp/qemu)
        decoding=(--no-decode-sandbox)
    fi
    readonly program=("${emulator[@]}" /opt/imgclass/imgclass)

    local newest
    newest="$(readelf -W --dyn-syms "$folder/imgclass" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)"
    echo "the newest symbol of the C library: $newest"
    [[ "$(printf '%s\n' "$newest" "GLIBC_$glibc" | sort -V | tail -1)" == "GLIBC_$glibc" ]] || return 1

    "${inside[@]}" "$root" "${program[@]}" --version
    "${inside[@]}" "$root" "${program[@]}" classify /tmp/example.jpg --weights random:resnet18 --top-k 1 "${decoding[@]}"
    serve "$root"
    pages "$folder"
}

# serve ROOT: one picture over HTTP, and an end by SIGTERM.
serve() {
    local root=$1 service port
    : >"$work/log"
    "${inside[@]}" "$root" "${program[@]}" serve --weights random:resnet18 --hostname 127.0.0.1 --port 0 "${decoding[@]}" >"$work/log" 2>&1 &
    service=$!
    for _ in {1..600}; do
        port="$(sed -n 's/.*ready address=127.0.0.1:\([0-9]*\).*/\1/p' "$work/log")"
        [[ -z $port ]] || break
        kill -0 $service || break
        sleep 0.2
    done
    [[ -n $port ]] || { cat "$work/log"; return 1; }
    grep -o 'images are decoded.*\|instruction_set="[^"]*"' "$work/log" || true
    printf '{"user_id": "1", "top_k": 1, "image_url": "data:image/jpeg;base64,%s"}' "$(base64 -w 0 web/example.jpg)" |
        curl --silent --show-error --fail --max-time 120 --data @- "http://127.0.0.1:$port/classify_image/"
    echo
    kill -TERM $service
    wait $service
}

# pages FOLDER: manual pages without a warning, completion of a command.
pages() {
    local folder=$1 page warnings text
    for page in "$folder"/man/*.1; do
        text="$(MANWIDTH=80 man --warnings=w --local-file "$page" 2>"$work/warnings")"
        warnings="$(cat "$work/warnings")"
        [[ $text == *NAME*SYNOPSIS* && -z $warnings ]] || { echo "$page: $warnings"; return 1; }
    done
    echo "manual pages: $(find "$folder/man" -name '*.1' | wc -l), without a warning"
    # shellcheck disable=SC2016
    bash -euc 'source "$0"; COMP_WORDS=(imgclass ser) COMP_CWORD=1; _imgclass imgclass ser imgclass
        [[ ${COMPREPLY[*]} == serve ]] && echo "completion in bash: ser becomes ${COMPREPLY[*]}"' "$folder/completions/imgclass.bash"
    local shell
    for shell in zsh fish; do
        if command -v $shell >/dev/null; then
            $shell -n "$folder/completions/imgclass.$shell" && echo "completion: $shell reads it"
        else
            echo "completion: there is no $shell here to read imgclass.$shell"
        fi
    done
}

(cd "$archives" && sha256sum --check SHA256SUMS)
machines=("$@")
((${#machines[@]})) || machines=(x86_64 aarch64)
for machine in "${machines[@]}"; do
    # A shell of its own, so that `program` is one machine's.
    (check "$machine")
done
