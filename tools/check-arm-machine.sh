#!/usr/bin/env bash
# Boots Debian's kernel for 64-bit Arm on a whole emulated machine, and has the service classify
# there. Unlike qemu's emulation of single programs, this shows that the processes that decode
# pictures start, and that what seccomp and Landlock leave them is enough on that kernel.
#   tools/check-arm-machine.sh ARM_BINARY [KERNEL_PACKAGE [SUITE]]
#       default: linux-image-arm64 bookworm; linux-image-arm64-16k trixie has pages of 16 KiB, as a
#       Raspberry Pi 5
# Needs root, and as Debian's packages qemu-system-arm, mmdebstrap and cpio. Takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $# -ge 1 && $# -le 3 ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
readonly binary=$1 kernel=${2:-linux-image-arm64} suite=${3:-bookworm}
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
readonly work root=$work/root

mmdebstrap --quiet --variant=extract --architectures=arm64 --include="libc6,libgcc-s1,busybox-static,$kernel" "$suite" "$root"
cp "$(ls "$root"/boot/vmlinuz-*)" "$work/vmlinuz"
# The kernel's modules stay away: what is needed is built in.
rm -rf "${root:?}/boot" "${root:?}"/{,usr/}lib/modules "${root:?}"/usr/share
# Later suites leave these links to a package that is not here.
for folder in bin lib; do
    [[ -e $root/$folder ]] || ln -s "usr/$folder" "$root/$folder"
done
mkdir -p "$root"/{proc,dev,tmp,opt,etc/ssl/certs}
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"
install -m 755 "$binary" "$root/opt/imgclass"
# Two formats with decoders of ours and the Rust world's, and AVIF, which is decoded in a process or not at all.
cp web/example.jpg docs/heatmap.png fuzz/seeds/picture_avif/420_full.avif "$root/tmp"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin:/usr/bin:/opt HOME=/tmp
mount -t proc proc /proc
mount -t devtmpfs dev /dev
ip link set lo up
uname -srm
echo "page size: $(grep -m 1 KernelPageSize /proc/self/smaps | tr -s ' ' | cut -d ' ' -f 2) KiB"
imgclass serve --weights random:resnet18 --hostname 127.0.0.1 --port 8000 --request-timeout 600s --shutdown-timeout 120s >/tmp/log 2>&1 &
service=$!
tries=0
until wget -q -O /dev/null http://127.0.0.1:8000/health/ready 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] && kill -0 $service || break
    sleep 5
done
for picture in example.jpg heatmap.png 420_full.avif; do
    printf '{"user_id":"1","top_k":1,"image_url":"data:image/%s;base64,%s"}' "${picture##*.}" "$(base64 -w 0 /tmp/$picture)" >/tmp/body
    printf '%s: ' "$picture"
    wget -q -O - --post-file /tmp/body http://127.0.0.1:8000/classify_image/ || printf 'no answer'
    echo
done
kill -TERM $service
wait $service
echo "the service ended with $?"
cat /tmp/log
sync
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . -print0 | cpio --quiet --null --create --format newc | gzip -1) >"$work/initrd"
timeout 1200 qemu-system-aarch64 -machine virt -cpu max,pauth-impdef=on -smp 2 -m 3G -nographic -no-reboot -nic none \
    -kernel "$work/vmlinuz" -initrd "$work/initrd" -append "console=ttyAMA0 quiet panic=-1" | stdbuf -o0 tr -d '\r' | tee "$work/said"

grep -q 'limits=address space, seccomp, Landlock' "$work/said" || { echo "the limits of a decoding process do not hold"; exit 1; }
grep -q 'instruction_set="neon"' "$work/said" || { echo "NEON is not the default"; exit 1; }
(($(grep -c '"className"' "$work/said") == 3)) || { echo "not every picture was classified"; exit 1; }
grep -q 'the service ended with 0' "$work/said"
