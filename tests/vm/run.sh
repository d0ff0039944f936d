#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program in one or two guests that boot Debian's Linux 6.12 (or later) under QEMU: for what
# the kernel of this machine may not have (ublk, nbd, device-mapper), and for what may crash it.
#   tests/vm/run.sh [OPTIONS] PROGRAM [ARGUMENT...]      the exit status is the program's
#   tests/vm/run.sh [OPTIONS] --shell                    a shell in a guest; exit powers it off
#     --disk SIZE|PATH|URI
#                       a disk, /dev/vda and on: an empty one, this file, which is kept, or an
#                       export (nbd+unix:///NAME?socket=PATH), whose server gets every flush;
#                       nvme:... is one of NVMe, /dev/nvmeNn1 in the order of their finding. It
#                       says that it has FUA, and does not pass it on (QEMU 7.2)
#     --guests 2        two, 192.0.2.1 and .2, each with disks of its own; both run the program
#     --guest N         only guest 1 or 2 of two that share a DIR of --shared: each comes and goes
#     --systemd COMMAND systemd is the first process, with udevd; COMMAND runs in bash before it
#     --shared DIR      kept afterwards; guest-N.pid in it is the process id of a guest's QEMU
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
# passes, nor its clock; and it needs no protection from its programs.
parameters="console=ttyS0 quiet panic=-1 oops=panic"
parameters+=" no_timer_check tsc=reliable lpj=16000000 mitigations=off"
boot_seconds=100  # in which a guest has to boot
guests=1 guest="" shared="" memory=1024 cpus=2 timeout=300 shell=0 systemd=""
cache=${REPLICA_VM_CACHE:-$here/../../build/vm}
disks=()
while [ $# -gt 0 ]; do
    case "$1" in
        --disk) disks+=("${2:?--disk needs a size or a path}"); shift ;;
        --guests) guests=${2:?--guests needs a number}; shift ;;
        --guest) guest=${2:?--guest needs a number}; shift ;;
        --systemd) systemd=${2:?--systemd needs a command}; shift ;;
        --shared) shared=${2:?--shared needs a directory}; shift ;;
        --memory) memory=${2:?--memory needs a number}; shift ;;
        --cpus) cpus=${2:?--cpus needs a number}; shift ;;
        --timeout) timeout=${2:?--timeout needs a number}; shift ;;
        --cache) cache=${2:?--cache needs a directory}; shift ;;
        --shell) shell=1 timeout=0 ;;
        -h | --help) sed -n '3,23s/^# \{0,1\}//p' "$0"; exit 0 ;;
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
if [ -n "$guest" ] && [ -z "$shared" ]; then
    echo "run.sh: --guest needs --shared" >&2
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

# The kernel as it is in memory, which QEMU can start, too (PVH): to unpack itself costs an emulated
# one seconds. Makes an empty file where that can not be had.
unpack_kernel() {
    local to=$1 start length
    header() { od -An -j $(($1)) -N "$2" -t "u$2" "$vmlinuz" | tr -d ' '; }
    start=$((($(header 0x1f1 1) + 1) * 512 + $(header 0x248 4)))
    length=$(($(header 0x24c 4) - 4))  # of what is compressed; then comes its length in memory
    tail -c +$((start + 1)) "$vmlinuz" | head -c $length >"$to.zst" || true
    if ! zstd -qdc "$to.zst" >"$to.new" || ! readelf -n "$to.new" | grep 0x00000012; then
        : >"$to.new"
    fi >/dev/null 2>&1
    rm "$to.zst"
    mv "$to.new" "$to"
}

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
# KVM that is there may still not be able to run a kernel, in a guest of a guest above all: ask for
# a whole boot, once.
find_accelerator() {
    local verdict=tcg
    if [ -w /dev/kvm ] && timeout -k 1 20 qemu-system-x86_64 -nodefaults -display none \
        -no-reboot -accel kvm -cpu host -m 256 -serial stdio -kernel "$vmlinuz" \
        -initrd "$initramfs" -append "$parameters replica.run=probe" \
        </dev/null 2>/dev/null | grep 'vm: alive' >/dev/null; then
        verdict=kvm
    fi
    echo $verdict >"$1"
}
initramfs=$cache/initramfs-$version.gz vmlinux=$cache/vmlinux-$version
accelerator=$cache/accelerator
(
    flock 9
    rm -rf "$cache"/initramfs.*  # of a run that was killed
    [ "$initramfs" -nt "$here/init.sh" ] || make_initramfs "$initramfs"
    [ "$vmlinux" -nt "$vmlinuz" ] || unpack_kernel "$vmlinux"
    [ -s "$accelerator" ] || find_accelerator "$accelerator"
) 9>"$cache/lock" || exit
[ ! -s "$vmlinux" ] || vmlinuz=$vmlinux
# Two processors in turn, not at once: else one may translate code that the other one is changing,
# and keep what it was (QEMU before 8.1), of which now and then a kernel dies or hangs. A kernel
# changes its code while it boots, and later, too. It also costs a quarter less.
acceleration=(-accel "tcg,thread=single" -cpu max)
[ "$(<"$accelerator")" = tcg ] || acceleration=(-accel kvm -cpu host)

run=$(mktemp -d "${TMPDIR:-/var/tmp}/replica-vm.XXXXXX")
pids=()
# shellcheck disable=SC2317  # a trap runs it
finish() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true  # handed on to QEMU
    done
    rm -rf "$run"
}
trap finish EXIT
trap 'exit 130' INT TERM
[ -n "$shared" ] || mkdir "${shared:=$run/shared}"
shared=$(cd "$shared" && pwd)
sockets=$run
numbers=$(seq "$guests")
if [ -n "$guest" ]; then
    sockets=$shared
    numbers=$guest
fi
# Two runs may share the directory (--guest): each file is there as a whole or not at all.
cp "$here/guest.sh" "$shared/guest.sh.$$"
mv -f "$shared/guest.sh.$$" "$shared/guest.sh"
pwd >"$shared/directory.$$"
mv -f "$shared/directory.$$" "$shared/directory"
mode=program
if [ "$shell" = 1 ]; then
    mode=shell
elif [ -n "$systemd" ]; then
    mode=systemd
    if [ ! -x /lib/systemd/systemd ] || [ ! -x /lib/systemd/systemd-udevd ]; then
        skip "systemd or udevd is not installed (scripts/setup.sh test)"
    fi
    printf '%s\n' "$systemd" >"$shared/prepare"
fi
for number in $numbers; do
    rm -f "$shared/status-$number" "$shared/begun-$number"
    {
        printf 'cd %q || exit 126\n' "$PWD"
        [ $# = 0 ] || printf '%q ' exec "$@"
    } >"$shared/program-$number"
done

# A disk that loses nothing while QEMU lives needs no flush of the host's: cache=unsafe.
qemu_arguments() {  # qemu_arguments NUMBER: fills `arguments`
    local number=$1 index=0 disk driver caching other=$((3 - $1))
    arguments=("${acceleration[@]}" -machine q35 -m "$memory" -smp "$cpus" -nodefaults -display none
        -no-reboot -serial stdio -device virtio-rng-pci -kernel "$vmlinuz" -initrd "$initramfs"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$shared,mount_tag=run,security_model=none,multidevs=remap"
        -pidfile "$shared/guest-$number.pid"
        -append "$parameters loglevel=3 replica.run=$mode replica.guest=$number
            replica.kernel=$kernel")
    for disk in "${disks[@]}"; do
        driver=virtio-blk-pci
        case "$disk" in nvme:*) driver=nvme disk=${disk#nvme:} ;; esac
        if [[ $disk =~ ^[0-9]+[KMG]?$ ]]; then
            truncate -s "$disk" "$run/disk-$number-$index"
            disk=$run/disk-$number-$index
        fi
        caching=unsafe
        case "$disk" in nbd*) caching=none ;; esac
        arguments+=(-drive "file=$disk,format=raw,if=none,id=d$index,cache=$caching,discard=unmap"
            -device "$driver,drive=d$index,serial=disk$index")
        index=$((index + 1))
    done
    [ "$guests$guest" = 1 ] || arguments+=(
        -device "virtio-net-pci,netdev=n,mac=52:54:00:00:00:0$number"
        -netdev "dgram,id=n,local.type=unix,local.path=$sockets/net$number,remote.type=unix,$(
            )remote.path=$sockets/net$other")
}

if [ "$shell" = 1 ]; then
    qemu_arguments 1
    arguments=("${arguments[@]/#stdio/mon:stdio}")
    qemu-system-x86_64 "${arguments[@]}"
    exit
fi
# Until it ends. An emulated kernel may die or hang while it boots, by no fault of ours: one that
# has not begun with the program by then is booted again.
run_guest() {  # run_guest NUMBER PREFIX
    local attempt qemu printer ended end begun=$shared/begun-$1 pid_file=$shared/guest-$1.pid
    qemu_arguments "$1"
    mkfifo "$run/console-$1"
    for attempt in 1 2 3; do
        rm -f "$pid_file"
        sed -u "s/\r*\$//; /reboot: Power down\$/d; s/^/$2/" <"$run/console-$1" &
        printer=$!
        timeout -k 5 "$timeout" qemu-system-x86_64 "${arguments[@]}" </dev/null \
            >"$run/console-$1" &
        qemu=$!
        # shellcheck disable=SC2064  # this one
        trap "kill $qemu 2>/dev/null || true; wait $qemu; exit 143" TERM
        end=$((SECONDS + boot_seconds))
        until [ -e "$begun" ] || ! kill -0 $qemu 2>/dev/null || [ "$SECONDS" -ge $end ]; do
            sleep 0.1
        done
        [ -e "$begun" ] || [ ! -e "$pid_file" ] || kill -KILL "$(<"$pid_file")" 2>/dev/null || true
        ended=0
        wait "$qemu" || ended=$?
        wait "$printer" || true
        # 124: it got less time than it takes to boot.
        if [ -e "$begun" ] || [ "$ended" = 124 ] || [ "$attempt" = 3 ]; then break; fi
        echo "run.sh: guest $1 died or hung while it booted ($ended); once more" >&2
    done
    exit "$ended"
}
prefix=
for number in $numbers; do
    [ "$guests$guest" = 1 ] || prefix="[$number] "
    (run_guest "$number" "$prefix") &
    pids+=($!)
done
status=0 index=0
for number in $numbers; do
    ended=0
    wait "${pids[index++]}" || ended=$?
    # 137: QEMU was killed, by `timeout` or by somebody else.
    if [ "$ended" = 124 ] || { [ "$ended" = 137 ] && [ "$SECONDS" -ge "$timeout" ]; }; then
        echo "run.sh: guest $number did not end in $timeout s" >&2
        status=124
    elif [ ! -f "$shared/status-$number" ]; then
        echo "run.sh: guest $number died (QEMU's exit status is $ended)" >&2
        status=125
    elif [ "$status" = 0 ]; then
        status=$(<"$shared/status-$number")
    fi
done
pids=()
exit "$status"
