#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The door of the kernel's nbd in a guest: two nodes, each on a disk of its own, the primary's
# volume as /dev/nbd0 with a file system on it; its daemon killed under load and started again.
#   tests/vm/nbd_test.sh BIN_DIR [--full [KILLS]]   on the host: boots the guest, runs itself there
# --full: 20 kills (or KILLS) with ext4 and as many with XFS instead of 2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: nbd_test.sh BIN_DIR [--full [KILLS]]}
full=${2:-}
kills=${3:-20}
[ -n "$full" ] || kills=2
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout $((${#full} > 0 ? 3000 : 600)) --disk 400M \
        --disk 400M "$here/$(basename "$0")" "$bin" "$full" "$kills"
fi
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
resource=r0 name=/dev/replica/by-res/r0
size=$(((${#full} > 0 ? 320 : 96) << 20))
door=nbd device=/dev/nbd0
# shellcheck source=tests/vm/doors.sh
. "$here/doors.sh"

# What there is, and why nothing better, is said.
chosen() {
    local said loader
    echo 'install ublk_drv /bin/false' >/etc/modprobe.d/without_ublk.conf
    loader=$(</proc/sys/kernel/modprobe)
    echo /bin/false >/proc/sys/kernel/modprobe  # to ask for the driver would load it
    said=$(ctl alpha export $resource)
    [[ $said == unix:*"the kernel has no ublk"*"no nbd driver"* ]] ||
        cluster_fail "export says: $said"
    ctl alpha unexport $resource
    refuses alpha 7 export $resource --door nbd
    grep -q 'modprobe nbd' "$CLUSTER_DIR/refusal" || cluster_fail "it does not say what is missing"
    echo "$loader" >/proc/sys/kernel/modprobe
    modprobe nbd nbds_max=0
    said=$(ctl alpha export $resource)
    [[ $said == "$device, also $name: the kernel has no ublk"* ]] ||
        cluster_fail "export says: $said"
    refuses alpha 3 export $resource --door nbd
    rm /etc/modprobe.d/without_ublk.conf
    [ "$(readlink -f $name)" = $device ] || cluster_fail "$name is not $device"
    seen "a socket without drivers, $device without ublk, and the reasons said"
}

the_device() {
    local parameter value token
    refuses beta 8 export $resource --door nbd
    [ "$(blockdev --getsize64 $name)" = $size ] || cluster_fail "the size is another one"
    adopted || cluster_fail "the status does not show the door"
    while read -r parameter value; do
        [ "$(<"/sys/block/nbd0/queue/$parameter")" = "$value" ] ||
            cluster_fail "$parameter is $(<"/sys/block/nbd0/queue/$parameter"), not $value"
    done <<'PARAMETERS'
logical_block_size 512
write_cache write back
fua 1
io_timeout 1000
PARAMETERS
    [ "$(<"/sys/block/nbd0/queue/discard_max_bytes")" != 0 ] || cluster_fail "no discard"
    token=$(sed -n 's/^token //p' "$(record_of)")
    [ "$(</sys/block/nbd0/backend)" = "replica:$resource:$token" ] ||
        cluster_fail "the device does not have the token on record"
    fio --name=raw --filename=$name --direct=1 --rw=randwrite --bsrange=512-1M --ba=512 \
        --iodepth=16 --ioengine=io_uring --size=24M --verify=crc32c --verify_fatal=1 \
        --fsync=64 --verify_state_save=0 --minimal >/dev/null
    blkdiscard --offset 1M --length 5M $name
    blkdiscard --zeroout --offset 8M --length 16M $name
    cmp --bytes=$((5 << 20)) --ignore-initial=$((1 << 20)):0 $name /dev/zero ||
        cluster_fail "a discarded range does not read as zeroes"
    no_errors
    seen "a block device with the volume's parameters, verified raw"
}

mounted() {
    mkfs.ext4 -q $name
    mkdir -p /mnt/volume
    mount $name /mnt/volume
    refuses alpha 4 unexport $resource
    refuses alpha 4 demote $resource
    refuses alpha 4 down $resource
    stopped
    waits
    umount /mnt/volume
}

# The socket breaks while the daemon lives: the device gets another one.
broken() {
    local load begun
    begun=$(writes_begun)
    begin_writing $name
    wait_for 60 "the load writes" has_written $((begun + 4))
    python3 - "${PID[alpha]}" <<'PYTHON'
import ctypes, os, socket, sys
call = ctypes.CDLL(None, use_errno=True).syscall
process = call(434, int(sys.argv[1]), 0)  # pidfd_open
broken = 0
for name in os.listdir(f"/proc/{sys.argv[1]}/fd"):
    if not os.readlink(f"/proc/{sys.argv[1]}/fd/{name}").startswith("socket:"):
        continue
    end = socket.socket(fileno=call(438, process, int(name), 0))  # pidfd_getfd
    unnamed = end.family == socket.AF_UNIX and end.type == socket.SOCK_STREAM
    if unnamed and not end.getsockname() and not end.getpeername():
        end.shutdown(socket.SHUT_RDWR)
        broken += 1
sys.exit(broken != 1)
PYTHON
    wait_for 60 "the log tells of the lost connection" \
        grep 'had lost its connection, and is served again' "$CLUSTER_DIR/alpha/log"
    begun=$(writes_begun)
    wait_for 60 "the load writes again" has_written $((begun + 4))
    end_writing || cluster_fail "an error above when the socket broke"
    no_errors
    seen "a broken socket: another one, and no error above"
}

# Both kinds at once: the name is that of the last one, and one daemon after the other has both.
both() {
    ctl alpha export $resource --door ublk >/dev/null
    [ "$(readlink -f $name)" = /dev/ublkb0 ] || cluster_fail "the name has not moved to ublk"
    cluster_crash alpha
    dd if=/dev/urandom of=$device bs=4k count=1 oflag=direct status=none &
    local one=$!
    dd if=/dev/urandom of=/dev/ublkb0 bs=4k seek=1 count=1 oflag=direct status=none &
    local other=$!
    cluster_start alpha
    both_adopted() { has_door ublk:/dev/ublkb0 && has_door $door:$device; }
    wait_for 60 "both devices are adopted" both_adopted
    wait $one || cluster_fail "an error on $device"
    wait $other || cluster_fail "an error on /dev/ublkb0"
    cmp --bytes=8192 $device /dev/ublkb0 || cluster_fail "two doors show two volumes"
    exec 9<$device
    refuses alpha 4 unexport $resource  # and closes none of them
    both_adopted || cluster_fail "a refused unexport has closed a device"
    exec 9<&-
    ctl alpha unexport $resource --door ublk
    [ "$(readlink -f $name)" = $device ] || cluster_fail "the name has not moved back"
    no_errors
    seen "both kinds open at once, adopted by the next daemon, one closed"
}

# On the Secondary, to read from: refused unless asked for, read-only for the kernel, up to date
# with what the Primary writes, and adopted without a promotion.
reader() {
    local node kind path waiting
    for node in "${NODES[@]}"; do
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
    dd if=/dev/urandom of="$CLUSTER_DIR/data" bs=1M count=8 status=none
    truncate -s $size "$CLUSTER_DIR/data"
    nbdcopy --destination-is-zero "$CLUSTER_DIR/data" "$(uri_of alpha $resource)"
    for kind in nbd ublk; do
        refuses beta 8 export $resource --door $kind
        path=$(ctl beta export $resource --read-only --door $kind)
        path=${path%%,*}
        [ "$(blockdev --getro "$path")" = 1 ] || cluster_fail "$path is not read-only"
        cmp --bytes=$((8 << 20)) "$path" "$CLUSTER_DIR/data" || cluster_fail "it reads other data"
        if dd if=/dev/zero of="$path" bs=4k count=1 oflag=direct status=none 2>/dev/null; then
            cluster_fail "$path takes writes"
        fi
        ctl beta demote $resource  # which it is: the door stays
        cmp --bytes=65536 "$path" "$CLUSTER_DIR/data" || cluster_fail "it reads no more"
        cluster_crash beta
        timeout 100 dd if="$path" of="$CLUSTER_DIR/read" bs=64k count=1 iflag=direct status=none &
        waiting=$!
        cluster_start beta
        wait $waiting || cluster_fail "a read has failed that waited"
        cmp --bytes=65536 "$CLUSTER_DIR/read" "$CLUSTER_DIR/data" || cluster_fail "it read else"
        [ "$(status_field beta $resource .role)" = Secondary ] || cluster_fail "beta was promoted"
        ctl beta wait $resource --until synced --timeout 60
        ctl beta unexport $resource --door $kind
    done
    no_errors
    seen "read-only on the Secondary, by both kinds, adopted"
}

mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
bring_up
chosen
the_device
mounted
broken
both
file_system xfs "$kills"
file_system ext4 "$kills"
compare_replicas
fenced
reader
