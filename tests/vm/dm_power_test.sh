#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Power cuts of both nodes at any point of a load. Their disks and state directories lie on one
# dm-log-writes, whose log is replayed up to some entry: that is what a power cut there leaves. Both
# nodes are started on it; every write that was flushed has to be there, and the replicas are equal
# after the resync. The log lies over a disk with FUA, so a write with FUA is in it for itself, and
# of the others only what was flushed: a write that only seemed to be stable is missing.
#   tests/vm/dm_power_test.sh BIN_DIR [--full [CUTS]]   on the host: boots the guest, runs itself
# --full: 60 cuts (or CUTS) instead of 3, of a longer load.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_power_test.sh BIN_DIR [--full [CUTS]]}
full=${2:-}
cuts=3 batches=100
[ -z "$full" ] || cuts=${3:-60} batches=500
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout $((${#full} > 0 ? 3000 : 600)) \
        --disk nvme:700M --disk 1500M --disk 700M --disk 800M \
        "$here/$(basename "$0")" "$bin" "$full" "$cuts"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"

resource=r0
disk=/dev/nvme0n1 log=/dev/vda image=/dev/vdb changes=/dev/vdc
extents=70  # more than the activity log has slots: it has to make room
size=$((extents << 22))
blocks=$((size / 4096))
disk_sectors=$((size / 512 + 4096)) state_sectors=$((24 << 11))
tool() { "$here/log_writes.py" "$@"; }
disk_of() { printf '/dev/mapper/disk-%s' "$1"; }

# The parts of both nodes on DEVICE.
divide() {
    local node at=0
    for node in "${NODES[@]}"; do
        dm_create "state-$node" "0 $state_sectors linear $1 $at"
        dm_create "disk-$node" "0 $disk_sectors linear $1 $((at + state_sectors))"
        at=$((at + state_sectors + disk_sectors))
    done
}
mount_states() {
    local node
    for node in "${NODES[@]}"; do
        mkdir -p "$CLUSTER_DIR/$node/state"
        mount "/dev/mapper/state-$node" "$CLUSTER_DIR/$node/state"
    done
}
put_away() {
    local node
    for node in "${NODES[@]}"; do
        umount "$CLUSTER_DIR/$node/state"
        dm_remove "state-$node"
        dm_remove "disk-$node"
    done
}

record() {
    local node
    cluster_begin "$bin" rootless
    dm_create logged "0 $((2 * (disk_sectors + state_sectors))) log-writes $disk $log"
    [ "$(cat "/sys/dev/block/$(dm_number logged)/queue/fua")" = 1 ] || cluster_fail "no FUA there"
    divide /dev/mapper/logged
    for node in "${NODES[@]}"; do
        mkfs.ext4 -q -E nodiscard "/dev/mapper/state-$node"
    done
    mount_states
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --al-extents 67 --peer "$(peer_argument "$(peer_of "$node")")" \
            "${PATIENT[@]}"
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
    tool load "$(door_of alpha)" $resource "$CLUSTER_DIR/known" logged $blocks $batches
    seen "$batches batches are recorded: $(status_field alpha $resource \
        '.devices[0]."al-writes"') transactions of the activity log"
    for node in "${NODES[@]}"; do
        cluster_crash "$node"
    done
    put_away
    dm_remove logged
    tool index $log "$CLUSTER_DIR/index"
}

# Starts both nodes on what a power cut after entry $1 leaves.
recover() {
    local node
    dd if=/dev/zero of=$changes bs=64k count=1 conv=fsync status=none
    dm_create cut "0 $((2 * (disk_sectors + state_sectors))) snapshot $image $changes N 16"
    divide /dev/mapper/cut
    mount_states
    for node in "${NODES[@]}"; do
        cluster_start "$node"
    done
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
    tool verify "$(door_of alpha)" $resource "$CLUSTER_DIR/known" "$CLUSTER_DIR/index" "$1" ||
        cluster_fail "a power cut at entry $1 loses what was flushed"
    if [ -z "${checked:-}" ]; then  # against what was flushed until the end
        checked=1
        ! tool verify "$(door_of alpha)" $resource "$CLUSTER_DIR/known" "$CLUSTER_DIR/index" \
            999999999 >/dev/null || cluster_fail "the check sees no loss where there is one"
    fi
    echo "     resynced: $(peer_field alpha $resource '."resync-sent-bytes"') bytes"
    close_doors alpha $resource
    for node in "${NODES[@]}"; do
        ctl "$node" down $resource
    done
    cmp --bytes=$size /dev/mapper/disk-alpha /dev/mapper/disk-beta ||
        cluster_fail "the replicas differ after a power cut at entry $1"
    for node in "${NODES[@]}"; do
        cluster_stop "$node"
    done
    put_away
    dm_remove cut
}

modprobe -a nvme dm_mod dm_log_writes dm_snapshot || { echo "SKIPPED: no device-mapper"; exit 77; }
dm_wait "the disk is found" test -b $disk
record
at=0
places=$(tool cuts "$CLUSTER_DIR/index" "$cuts" "$RANDOM")
for cut in $places; do
    tool replay $log "$CLUSTER_DIR/index" $image "$at" "$cut"
    at=$cut
    recover "$cut"
done
no_kernel_trouble
seen "$cuts power cuts: nothing is lost that was flushed, the replicas are equal"
