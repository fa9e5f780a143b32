#!/usr/bin/env bash
# Carries out the Dockerfile's steps without a container engine, for this machine or for 64-bit Arm,
# and runs the service in what they make.
#   tools/check-image.sh [linux/amd64|linux/arm64]       default: this machine's
# COPY and RUN of the build stage are read from the file and done in an empty folder. For another
# machine cargo gets the target and Debian's cross compiler for it, and nothing else differs. The
# last stage is a root of Debian 12 that holds what its base image holds, the files that it copies,
# its variables and its user. There the service gets a picture over HTTP, the health check is asked,
# and SIGTERM must end it with 0. The other machine's program runs under qemu, which starts no second
# program: pictures are decoded in the service's own process there. The stage with weights is left
# out: without MODEL it makes empty folders.
# The program is left in target/image/PLATFORM/src/target. Needs root, rustup, and as Debian's packages
# mmdebstrap, ca-certificates and curl, for the other machine gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/.."

own=linux/amd64
[[ $(uname -m) != aarch64 ]] || own=linux/arm64
readonly own platform=${1:-$own}
case $platform in
    linux/amd64) readonly target=x86_64-unknown-linux-gnu emulator=qemu-x86_64-static ;;
    linux/arm64) readonly target=aarch64-unknown-linux-gnu emulator=qemu-aarch64-static ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
readonly stage=$PWD/target/image/$platform
service=
trap '[[ -z $service ]] || kill -KILL "$service"' EXIT

# instructions FIRST: the instructions from the line that matches until the next FROM, one a line.
instructions() {
    sed -n "/$1/,/^FROM/p" Dockerfile | sed -e '1d' -e '/^FROM/d' -e '/^#/d' -e '/^$/d' | sed -e ':next' -e '/\\$/N' -e 's/\\\n */ /' -e 't next'
}

# build: the build stage. Cargo's build folder stays from an earlier run, the sources do not.
build() {
    local instruction what words
    unset CARGO_TARGET_DIR
    mkdir -p "$stage/src"
    find "$stage/src" -mindepth 1 -maxdepth 1 ! -name target -exec rm -r {} +
    if [[ $platform != "$own" ]]; then
        rustup -q target add $target
        export CARGO_BUILD_TARGET=$target CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    fi
    while read -r instruction what; do
        # `cargo clean` alone of all commands does not ask the environment for the target.
        [[ $platform == "$own" ]] || what="${what//cargo clean/cargo clean --target $target}"
        printf '%s %s\n' "$instruction" "$what"
        case $instruction in
            WORKDIR) ;;
            COPY)
                read -r -a words <<<"$what"
                copy "${words[@]}"
                ;;
            RUN) (cd "$stage/src" && sh -euc "$what") </dev/null || return 1 ;;
            *) echo "the build stage has an instruction that this script does not know: $instruction"; return 1 ;;
        esac
    done < <(instructions '^FROM rust:')
}

# copy SOURCE... TARGET: as the Dockerfile's COPY. Of a folder the content is copied. Only what git
# keeps is taken, as a fresh clone has it.
copy() {
    local source destination=$stage/src/${*: -1}
    mkdir -p "$destination"
    for source in "${@:1:$#-1}"; do
        if [[ -d $source ]]; then
            git ls-files -z "$source" | xargs -0 cp --parents --preserve=timestamps --target-directory "$stage/src"
        else
            cp --preserve=mode,timestamps "$source" "$destination"
        fi
    done
}

# variables: what ENV sets.
variables() {
    instructions '^FROM gcr' | sed -n 's/^ENV //p' | tr -s ' ' '\n'
}

# run: the last stage, and the service in it.
run() {
    local root=$stage/root program=$stage/src/target/release/imgclass user in_root variables command=() answer
    [[ $platform == "$own" ]] || program=$stage/src/target/$target/release/imgclass
    rm -rf "$root"
    # What gcr.io/distroless/cc-debian12 has of what a program uses.
    mmdebstrap --quiet --variant=extract --architectures="${platform#linux/}" --include=libc6,libgcc-s1,libstdc++6,tzdata bookworm "$root"
    mkdir -p "$root"/{proc,dev,tmp,app/weights,cache,etc/ssl/certs,usr/local/bin}
    chmod 1777 "$root/tmp"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"
    install -m 755 "$program" "$root/usr/local/bin/imgclass"
    user="$(instructions '^FROM gcr' | sed -n 's/^USER //p')"
    chown "$user" "$root/cache"
    mapfile -t variables < <(variables)
    # Another program may listen on port 80 here.
    variables+=(PORT=18080 IMGCLASS_HOSTNAME=127.0.0.1 IMGCLASS_WEIGHTS=random:resnet18)
    if [[ $platform != "$own" ]]; then
        cp "$(command -v $emulator)" "$root/usr/local/bin/qemu"
        command=(/usr/local/bin/qemu)
        variables+=(IMGCLASS_NO_DECODE_SANDBOX=true)
    fi
    command+=(/usr/local/bin/imgclass)
    # shellcheck disable=SC2016
    in_root=(unshare --mount -- bash -c 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec env -i "$@"' "$root"
        "${variables[@]}" /usr/sbin/chroot "--userspec=$user" "$root" "${command[@]}")

    "${in_root[@]}" --version
    "${in_root[@]}" serve >"$stage/log" 2>&1 &
    service=$!
    for _ in {1..300}; do
        ! "${in_root[@]}" health >/dev/null 2>&1 || break
        kill -0 $service || { cat "$stage/log"; return 1; }
        sleep 1
    done
    "${in_root[@]}" health
    grep -o 'images are decoded.*\|instruction_set="[^"]*"' "$stage/log" || true
    answer="$(printf '{"user_id": "1", "top_k": 1, "image_url": "data:image/jpeg;base64,%s"}' "$(base64 -w 0 web/example.jpg)" |
        curl --silent --show-error --fail --max-time 300 --data @- http://127.0.0.1:18080/classify_image/)"
    printf '%s\n' "$answer"
    kill -TERM $service
    wait $service
    service=
    echo "the service ended with 0"
}

build
run
echo "checked: the Dockerfile for $platform"
