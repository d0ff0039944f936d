#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program in one or two guests that boot Debian's Linux 6.12 (or later) under QEMU: for what
# the kernel of this machine may not have (ublk, nbd, device-mapper), and for what may crash it.
#   tests/vm/run.sh [OPTIONS] PROGRAM [ARGUMENT...]      the exit status is the program's
#   tests/vm/run.sh [OPTIONS] --shell                    a shell in a guest; exit powers it off
#     --disk SIZE|PATH  a disk, /dev/vda and on: an empty one, or this file, which is kept
#     --guests 2        two, 192.0.2.1 and .2, each with disks of its own; both run the program
#     --memory MIB      of each, 1024
#     --cpus N          of each, 2
#     --timeout S       when the guest is killed and the exit status is 124, 300
#     --cache DIR       where kernel and initramfs are kept; build/vm
# The guest sees this machine's files, read-only below a tmpfs: a program has the same path there.
# It has VM_GUEST (1 or 2) and VM_SHARED, a directory that the guests share; its output is ours.
# KVM where it boots a guest, else emulation. Exits with 77, and says why, where that can not be.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# Where guests are emulated on a busy machine, the kernel must not judge its timer by the time that
# passes.
parameters="console=ttyS0 panic=-1 no_timer_check quiet"
guests=1 memory=1024 cpus=2 timeout=300 shell=0
cache=${REPLICA_VM_CACHE:-$here/../../build/vm}
disks=()
while [ $# -gt 0 ]; do
    case "$1" in
        --disk) disks+=("${2:?--disk needs a size or a path}"); shift ;;
        --guests) guests=${2:?--guests needs a number}; shift ;;
        --memory) memory=${2:?--memory needs a number}; shift ;;
        --cpus) cpus=${2:?--cpus needs a number}; shift ;;
        --timeout) timeout=${2:?--timeout needs a number}; shift ;;
        --cache) cache=${2:?--cache needs a directory}; shift ;;
        --shell) shell=1 timeout=0 ;;
        -h | --help) sed -n '3,16s/^# \{0,1\}//p' "$0"; exit 0 ;;
        --) shift; break ;;
        -*) echo "run.sh: unknown option '$1' (try --help)" >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
if [ $# = 0 ] && [ "$shell" = 0 ]; then
    echo "run.sh: no program (try --help)" >&2
    exit 2
fi

skip() {
    printf 'SKIPPED: no guest kernel to test in: %s\n' "$*" >&2
    exit 77
}
[ "$(uname -m)" = x86_64 ] || skip "the guest is an x86-64 one, this machine is $(uname -m)"
for tool in qemu-system-x86_64 busybox modprobe xz; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
        skip "$tool is not installed (scripts/setup.sh test)"
done
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
kernel=$("$here/kernel.sh" "$cache") || skip "see above"
vmlinuz=$(compgen -G "$kernel/boot/vmlinuz-*" | sort -V | tail -n 1)
version=${vmlinuz##*/vmlinuz-}

# The modules that lead to the host's files, in the order in which they load.
make_initramfs() {
    local to=$1 work number=100 module
    work=$(mktemp -d "$cache/initramfs.XXXXXX")
    mkdir -p "$work/bin" "$work/modules"
    cp "$(command -v busybox)" "$work/bin/busybox"
    if ldd "$work/bin/busybox" >/dev/null 2>&1; then
        rm -r "$work"
        skip "busybox is not a static one (package busybox-static)"
    fi
    cp "$here/init.sh" "$work/init"
    chmod 755 "$work/init" "$work/bin/busybox"
    modprobe -d "$kernel" -S "$version" --show-depends -a virtio_pci virtio_blk virtio_net \
        virtio_rng 9pnet_virtio 9p overlay | awk '$1 == "insmod" && !seen[$2]++ {print $2}' |
        while read -r module; do
            number=$((number + 1))
            case "$module" in
                *.xz) xz -dc "$module" ;;
                *.zst) zstd -qdc "$module" ;;
                *) cat "$module" ;;
            esac >"$work/modules/$number-$(basename "${module%.[xz]*}")"
        done
    (cd "$work" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work.gz"
    rm -r "$work"
    mv "$work.gz" "$to"
}
initramfs=$cache/initramfs-$version.gz
(
    flock 9
    [ "$initramfs" -nt "$here/init.sh" ] || make_initramfs "$initramfs"
) 9>"$cache/lock" || exit

# KVM that is there may still not be able to run a kernel, in a guest of a guest above all: ask for
# a whole boot, once.
accelerator() {
    local verdict=$cache/accelerator
    if [ ! -f "$verdict" ]; then
        echo tcg >"$verdict.new"
        if [ -w /dev/kvm ] && timeout -k 1 20 qemu-system-x86_64 -nodefaults -display none \
            -no-reboot -accel kvm -cpu host -m 256 -serial stdio -kernel "$vmlinuz" \
            -initrd "$initramfs" -append "$parameters replica.run=probe" \
            </dev/null 2>/dev/null | grep -q 'vm: alive'; then
            echo kvm >"$verdict.new"
        fi
        mv "$verdict.new" "$verdict"
    fi
    cat "$verdict"
}
acceleration=(-accel "tcg,thread=multi" -cpu max)
[ "$(accelerator)" = tcg ] || acceleration=(-accel kvm -cpu host)

run=$(mktemp -d "${TMPDIR:-/var/tmp}/replica-vm.XXXXXX")
pids=()
# shellcheck disable=SC2317  # a trap runs it
finish() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true  # timeout hands it on to QEMU
    done
    rm -rf "$run"
}
trap finish EXIT
trap 'exit 130' INT TERM
mkdir "$run/shared"
cp "$here/guest.sh" "$run/shared/"
pwd >"$run/shared/directory"
{
    printf 'cd %q || exit 126\n' "$PWD"
    [ $# = 0 ] || printf '%q ' exec "$@"
} >"$run/shared/program"

# A disk that loses nothing while QEMU lives needs no flush of the host's: cache=unsafe.
qemu_arguments() {  # qemu_arguments NUMBER: fills `arguments`
    local number=$1 index=0 disk mode=program other=$((3 - $1))
    [ "$shell" = 0 ] || mode=shell
    arguments=("${acceleration[@]}" -machine q35 -m "$memory" -smp "$cpus" -nodefaults -display none
        -no-reboot -serial stdio -device virtio-rng-pci -kernel "$vmlinuz" -initrd "$initramfs"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$run/shared,mount_tag=run,security_model=none,multidevs=remap"
        -append "$parameters loglevel=3 replica.run=$mode replica.guest=$number
            replica.kernel=$kernel")
    for disk in "${disks[@]}"; do
        if [[ $disk =~ ^[0-9]+[KMG]?$ ]]; then
            truncate -s "$disk" "$run/disk-$number-$index"
            disk=$run/disk-$number-$index
        fi
        arguments+=(-drive "file=$disk,format=raw,if=none,id=d$index,cache=unsafe,discard=unmap"
            -device "virtio-blk-pci,drive=d$index,serial=disk$index")
        index=$((index + 1))
    done
    [ "$guests" = 1 ] || arguments+=(-device "virtio-net-pci,netdev=n,mac=52:54:00:00:00:0$number"
        -netdev "dgram,id=n,local.type=unix,local.path=$run/net$number,remote.type=unix,$(
            )remote.path=$run/net$other")
}

if [ "$shell" = 1 ]; then
    qemu_arguments 1
    arguments=("${arguments[@]/#stdio/mon:stdio}")
    qemu-system-x86_64 "${arguments[@]}"
    exit
fi
prefix=
for number in $(seq "$guests"); do
    qemu_arguments "$number"
    [ "$guests" = 1 ] || prefix="[$number] "
    timeout -k 5 "$timeout" nice qemu-system-x86_64 "${arguments[@]}" </dev/null \
        > >(sed -u "s/\r*\$//; /reboot: Power down\$/d; s/^/$prefix/") &
    pids+=($!)
done
status=0
for number in $(seq "$guests"); do
    ended=0
    wait "${pids[number - 1]}" || ended=$?
    if [ "$ended" = 124 ] || [ "$ended" = 137 ]; then
        echo "run.sh: guest $number did not end in $timeout s" >&2
        status=124
    elif [ ! -f "$run/shared/status-$number" ]; then
        echo "run.sh: guest $number died (QEMU's exit status is $ended)" >&2
        status=125
    elif [ "$status" = 0 ]; then
        status=$(<"$run/shared/status-$number")
    fi
done
pids=()
exit "$status"
