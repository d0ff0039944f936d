#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernel's NBD client in a guest, driven by netlink/nbd_device: a node's volume as /dev/nbdN
# with a file system on it, whose daemon is killed under load and started again.
#   tests/vm/nbd_test.sh BIN_DIR [ROUNDS]      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: nbd_test.sh BIN_DIR [ROUNDS]}
rounds=${2:-3}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 800 "$here/$(basename "$0")" "$bin" "$rounds"
fi

resource=r0
size=$((128 << 20))
backend=replica:$resource/0
seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }
finish() {
    local code=$?
    trap - EXIT
    if [ $code != 0 ]; then
        cluster_logs 40
        dmesg | tail -n 30
    fi
    exit $code  # the guest ends, and everything with it
}
trap finish EXIT

attach() { timeout 60 "$bin/tests/vm/nbd_attach" "$@"; }
fails() {  # fails STATUS COMMAND...: with this exit status
    local status=0 expected=$1
    shift
    attach "$@" 2>"$CLUSTER_DIR/error" || status=$?
    [ "$status" = "$expected" ] || cluster_fail "$* ended with $status, not with $expected: $(
        cat "$CLUSTER_DIR/error")"
}
no_errors() {
    if dmesg | grep -E 'I/O error|EXT4-fs error|Aborting journal|blk_update_request|BUG|Oops'; then
        cluster_fail "the kernel has seen errors"
    fi
}

# The door is at the same place after a restart; the device gets a new connection to it.
serve() {
    cluster_start alpha
    ctl alpha up $resource
    cluster_primary alpha $resource
}

cluster_begin "$bin" rootless
loader=$(</proc/sys/kernel/modprobe)
echo /bin/false >/proc/sys/kernel/modprobe  # to ask for the driver would load it
fails 17 status
grep -q 'modprobe nbd' "$CLUSTER_DIR/error" || cluster_fail "it does not say what is missing"
echo "$loader" >/proc/sys/kernel/modprobe
modprobe nbd nbds_max=0
truncate -s 160M "$CLUSTER_DIR/alpha/disk"
cluster_start alpha
ctl alpha create $resource --node-id 0 --disk "$CLUSTER_DIR/alpha/disk" --size $size
ctl alpha up $resource
ctl alpha promote $resource --force
cluster_primary alpha $resource

index=$(attach connect "$(door_of alpha)" $resource $backend)
device=/dev/nbd$index
[ "$(blockdev --getsize64 "$device")" = $size ] || cluster_fail "the size is another one"
[ "$(attach status)" = "$index connected $backend" ] || cluster_fail "the status: $(attach status)"
queue=/sys/block/nbd$index/queue
[ "$(<"$queue/write_cache")" = "write back" ] || cluster_fail "the cache's flag did not arrive"
[ "$(<"$queue/fua")" = 1 ] || cluster_fail "FUA did not arrive"
[ "$(<"$queue/discard_max_bytes")" != 0 ] || cluster_fail "discard did not arrive"
fails 14 connect "$(door_of alpha)" $resource $backend "$index"
fails 11 reconfigure "$(door_of alpha)" $resource somebody-else "$index"
fails 11 disconnect 77
seen "$device is connected, and what is wrong is refused with the reason"

echo 1000 >"$queue/io_timeout"  # how soon what was sent to a dead server is sent again
fio --name=raw --filename="$device" --direct=1 --rw=randwrite --bsrange=512-256k --ba=512 \
    --iodepth=16 --ioengine=io_uring --size=24M --verify=crc32c --verify_fatal=1 --fsync=64 \
    --verify_state_save=0 --minimal >/dev/null
mkfs.ext4 -q "$device"
mkdir -p /mnt/volume
mount "$device" /mnt/volume
fio --name=fs --directory=/mnt/volume --rw=randrw --bs=4k-64k --iodepth=8 --size=12M \
    --ioengine=io_uring --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=32 \
    --minimal >/dev/null
rm /mnt/volume/fs*
fstrim /mnt/volume
no_errors
seen "verified raw and through a mounted file system"

attach watch 600 >"$CLUSTER_DIR/dead" &
watcher=$!
until grep -q watching "$CLUSTER_DIR/dead"; do sleep 0.1; done
for round in $(seq "$rounds"); do
    fio --name=load --directory=/mnt/volume --rw=randwrite --bs=4k-64k --iodepth=16 \
        --direct=$((round % 2)) --size=12M --loops=20 --ioengine=io_uring --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --fsync=64 --time_based --runtime=6 --minimal \
        >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
    sleep $((1 + RANDOM % 2)).$((RANDOM % 10))
    cluster_crash alpha
    serve
    attach reconfigure "$(door_of alpha)" $resource $backend "$index"
    wait "$load" || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
    no_errors
    [ "$(grep -cx "$index" "$CLUSTER_DIR/dead")" -ge "$round" ] ||
        cluster_fail "the kernel did not tell of the dead connection"
    seen "killed and reconfigured, round $round: no error above"
done
kill $watcher

umount /mnt/volume
e2fsck -fn "$device" >/dev/null 2>&1 || cluster_fail "the file system is damaged"
attach disconnect "$index"
for _ in $(seq 50); do
    [ "$(attach status)" != "$index free " ] || break
    sleep 0.1
done
[ "$(attach status)" = "$index free " ] || cluster_fail "still: $(attach status)"
ctl alpha unexport $resource
ctl alpha down $resource
e2fsck -fn "$CLUSTER_DIR/alpha/disk" >/dev/null 2>&1 || cluster_fail "the disk has something else"
seen "file system clean, device free"
