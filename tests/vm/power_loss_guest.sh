#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One life of a machine in power_loss_test.sh, which starts it in a guest and cuts its power:
#   power_loss_guest.sh BIN_DIR both ROUND                    alpha and beta are on this machine
#   power_loss_guest.sh BIN_DIR one ROUND primary|standby     guest 1 is alpha, guest 2 beta
# ROUND counts the losses of power until now. Disks: the first holds the nodes' state directories,
# then come, for each node, the disk of `fs` (ext4 on a block device) and that of `raw`. They are
# of virtio, where each write that has to be stable is followed by a flush. (QEMU's NVMe claims to
# have FUA, and ignores it; what FUA alone makes stable is in dm_power_test.sh.)
# $VM_SHARED outlives the power: the record of what was flushed, and what guests and host tell each
# other. Exit status 3: something is lost that was flushed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=$1 layout=$2 round=$3 role=${4:-}
# shellcheck disable=SC2034  # of cluster.sh
CLUSTER_BIN=$bin CLUSTER_DIR=/mnt/state
extent=$((4 << 20))
mib=$((1 << 20))
# shellcheck disable=SC2034
declare -A DISK=() SIZE=([fs]=$((48 * mib)) [raw]=$((64 * mib)))
if [ "$layout" = both ]; then
    here_nodes=(alpha beta)
    ADDRESS=([alpha]=127.0.0.2:7788 [beta]=127.0.0.3:7788)
    DISK=([alpha-fs]=/dev/vdb [alpha-raw]=/dev/vdc [beta-fs]=/dev/vdd [beta-raw]=/dev/vde)
else
    here_nodes=("${NODES[VM_GUEST - 1]}")
    ADDRESS=([alpha]=192.0.2.1:7788 [beta]=192.0.2.2:7788)
    DISK=(["${here_nodes[0]}-fs"]=/dev/vdb ["${here_nodes[0]}-raw"]=/dev/vdc)
fi
first=${here_nodes[0]}
loads=()

# shellcheck source=tests/vm/nodes.sh
. "$here/nodes.sh"
seen() { printf '%4d s  round %s: %s\n' "$SECONDS" "$round" "$*"; }
lost() {
    printf '\nLOST: %s\n' "$*" >&2
    exit 3
}
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
no_errors() {
    if dmesg | grep -E 'error, dev ublkb|EXT4-fs error|Aborting|BUG|Oops|blocked for more'; then
        cluster_fail "the kernel has seen errors"
    fi
}
wait_file() {  # wait_file SECONDS PATH
    local end=$((SECONDS + $1))
    until [ -e "$2" ]; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in time: $2"
        sleep 0.1
    done
}

# What the disks of this machine hold, before anything else has touched them: each replica, by
# itself, has all that was flushed, and a file system that mounts. RECORDS: their directory.
judge_replicas() {  # judge_replicas RECORDS
    local node copy=/dev/shm/copy
    for node in "${here_nodes[@]}"; do
        "$bin/tests/vm/flushed_writer" verify "${DISK[$node-raw]}" "$1/raw" >"/tmp/$node" ||
            lost "$node's replica of raw, round $round: $(cat "/tmp/$node")"
        dd if="${DISK[$node-fs]}" of=$copy bs=1M count=$((SIZE[fs] / mib)) conv=sparse \
            iflag=direct status=none
        mount -o loop $copy /mnt/copy || lost "$node's replica of fs does not mount"
        judge_trees /mnt/copy "$1" "$node's replica"
        umount /mnt/copy
        e2fsck -fn $copy >/tmp/e2fsck 2>&1 || lost "$node's replica of fs: $(cat /tmp/e2fsck)"
        rm $copy
        seen "$node's replicas are whole: $(cat "/tmp/$node")"
    done
}
judge_trees() {  # judge_trees MOUNTPOINT RECORDS WHAT
    local tree
    for tree in tree-1 tree-2; do
        [ -e "$2/$tree" ] || continue
        "$bin/tests/vm/file_tree" verify "$1/$tree" "$2/$tree" >/tmp/$tree ||
            lost "$3, $tree in round $round: $(cat /tmp/$tree)"
    done
}

# All that a resync may move: what the logs of the primary or of a killed secondary say was active,
# and what the bitmaps say.
allowed_bytes() {  # allowed_bytes RESOURCE
    local node copy
    for node in "${here_nodes[@]}"; do
        copy=$CLUSTER_DIR/$node/state/superblocks/$1.v0
        "$bin/tools/replicameta" dump --disk "${DISK[$node-$1]}" --copy "$copy" --json |
            tee "$VM_SHARED/$round-$node-$1.json"
    done | jq -s --argjson extent $extent \
        '([.[]."activity-log"."hot-extents"[]] | unique | length) * $extent +
            ([.[].bitmap[]."bits-set"] | add) * 4096'
}

resync_starts() {  # how often until now
    local log=$CLUSTER_DIR/$first/log
    [ ! -e "$log" ] || grep -c " $1: peer .*: resync started" "$log" || true
}

bring_up() {
    local node resource
    declare -gA ALLOWED=() STARTS=()
    for resource in fs raw; do
        ALLOWED[$resource]=$(allowed_bytes $resource)
        STARTS[$resource]=$(resync_starts $resource)
    done
    for node in "${here_nodes[@]}"; do
        cluster_start "$node"
    done
}

# Everything is on both nodes again, and not more was moved than had to be: on a busy machine a link
# may be lost, and with it up to 16 chunks of 256 KiB that were on their way.
converge() {
    local resource moved again
    for resource in fs raw; do
        ctl "$first" wait $resource --until synced --timeout 100
        again=$(($(resync_starts $resource) - STARTS[$resource] - 1))
        [ $again -lt 1 ] || ALLOWED[$resource]=$((ALLOWED[$resource] + again * 4 * mib))
        moved=$(($(peer_field "$first" $resource '."resync-sent-bytes"') + $(
            )$(peer_field "$first" $resource '."resync-received-bytes"')))
        seen "$resource is synced: $((moved / 1024)) KiB were moved," \
            "$((ALLOWED[$resource] / 1024)) allowed of $((SIZE[$resource] / 1024))"
        if [ "$layout" = one ]; then  # the other one knows what it has written meanwhile
            echo $((moved - ALLOWED[$resource])) >"$VM_SHARED/more-$round-$resource"
        elif [ $moved -gt "${ALLOWED[$resource]}" ]; then
            cluster_fail "more was resynced than the activity log and the bitmap say"
        fi
    done
}
written() { status_field "$first" "$1" '.devices[0]."written-bytes"'; }
judge_other() {  # judge_other FS-BYTES RAW-BYTES: what was written before the other one had gone
    local fs raw
    fs=$(($(written fs) - $1)) raw=$(($(written raw) - $2))
    seen "the other node is synced; $((fs / 1024)) and $((raw / 1024)) KiB were written meanwhile"
    [ "$(<"$VM_SHARED/more-$round-fs")" -le "$fs" ] || cluster_fail "too much of fs was resynced"
    [ "$(<"$VM_SHARED/more-$round-raw")" -le "$raw" ] || cluster_fail "too much of raw was resynced"
}
compare() {
    local resource
    echo 1 >/proc/sys/vm/drop_caches
    for resource in fs raw; do
        cmp --bytes="${SIZE[$resource]}" "${DISK[alpha-$resource]}" "${DISK[beta-$resource]}" ||
            cluster_fail "the replicas of $resource differ"
    done
    seen "the replicas are equal"
}

name_of() { printf '/dev/replica/by-res/%s' "$1"; }
open_door() {  # open_door NODE RESOURCE
    ctl "$1" promote "$2"
    ctl "$1" export "$2" --door ublk >/dev/null
}
# The same through the doors, on whichever node.
judge_doors() {
    "$bin/tests/vm/flushed_writer" verify "$(name_of raw)" "$VM_SHARED/raw" \
        --record-what-is-there >/tmp/raw || lost "raw, round $round: $(cat /tmp/raw)"
    mount "$(name_of fs)" /mnt/fs || lost "the file system does not mount"
    judge_trees /mnt/fs "$VM_SHARED" "the device"
    umount /mnt/fs
    e2fsck -fn "$(name_of fs)" >/tmp/e2fsck 2>&1 || lost "the file system: $(cat /tmp/e2fsck)"
    no_errors
    seen "everything is there through the doors:" \
        "$(cat /tmp/raw /tmp/tree-1 /tmp/tree-2 2>/dev/null | tr '\n' ' ')"
}

# Writes until the power fails, and tells the host when it has begun.
begin_load() {
    local before tree
    mount "$(name_of fs)" /mnt/fs
    before=$(cksum <"$VM_SHARED/raw")
    "$bin/tests/vm/flushed_writer" write "$(name_of raw)" "$VM_SHARED/raw" $((round + 1)) 2 &
    loads+=($!)
    for tree in tree-1 tree-2; do
        rm -rf "${VM_SHARED:?}/$tree" "/mnt/fs/$tree"
        "$bin/tests/vm/file_tree" run "/mnt/fs/$tree" "$VM_SHARED/$tree" $RANDOM &
        loads+=($!)
    done
    until [ "$(cksum <"$VM_SHARED/raw")" != "$before" ]; do
        kill -0 "${loads[@]}" || until_the_power_fails
        sleep 0.1
    done
    seen "the load runs"
    touch "$VM_SHARED/loaded-$round"
}
until_the_power_fails() {
    local ended=0
    wait -n "${loads[@]}" || ended=$?
    no_errors
    cluster_fail "the load has ended ($ended), not the power"
}

# New disks: both nodes, both resources, a file system, and the record of the raw writes.
step_make() {
    local node resource
    if [ "$layout" = one ]; then
        touch "$VM_SHARED/up-$VM_GUEST"
        wait_file 300 "$VM_SHARED/up-$((3 - VM_GUEST))"
    fi
    for node in "${here_nodes[@]}"; do
        mkdir -p "$CLUSTER_DIR/$node"
        cluster_start "$node"
        for resource in fs raw; do
            ctl "$node" create $resource --node-id "${NODE_ID[$node]}" \
                --disk "${DISK[$node-$resource]}" --size "${SIZE[$resource]}" \
                --peer "$(peer_argument "$(peer_of "$node")")" --ping-interval-ms 1000 \
                "${PATIENT[@]}"
            ctl "$node" up $resource
        done
    done
    for resource in fs raw; do
        ctl "$first" wait $resource --until connected --timeout 100
        [ "$first" = beta ] || ctl alpha promote $resource --force
        ctl "$first" wait $resource --until synced --timeout 100
    done
    if [ "$first" = alpha ]; then
        ctl alpha export fs --door ublk >/dev/null
        mkfs.ext4 -q "$(name_of fs)"
        ctl alpha unexport fs
        ctl alpha demote fs
        ctl alpha demote raw
        truncate -s $((24 * mib * 4 / 4096)) "$VM_SHARED/raw"
        touch "$VM_SHARED/made"
    fi
    wait_file 300 "$VM_SHARED/made"
    # What the first sync and mkfs touched leaves the activity logs.
    for node in "${here_nodes[@]}"; do
        for resource in fs raw; do
            ctl "$node" down $resource
            ctl "$node" up $resource
        done
    done
    for resource in fs raw; do
        ctl "$first" wait $resource --until synced --timeout 100
    done
    seen "made, and synced"
}

# Both nodes after a loss of power, or new; then both resources are loaded.
step_both() {
    if [ "$round" = 0 ]; then
        step_make
    else
        bring_up
        converge
        compare
    fi
    local primaries=("${NODES[RANDOM % 2]}" "${NODES[RANDOM % 2]}")
    open_door "${primaries[0]}" fs
    open_door "${primaries[1]}" raw
    [ "$round" = 0 ] || judge_doors
    begin_load
    until_the_power_fails
}

# One of two machines: Primary until its power fails, or the one that goes on then.
step_one() {
    local resource before=()
    if [ "$round" = 0 ]; then
        step_make
    else
        bring_up
        converge
    fi
    if [ "$role" = standby ]; then
        touch "$VM_SHARED/standby-$round"
        until [ -e "$VM_SHARED/cut-$round" ] || [ -e "$VM_SHARED/primary-is-down" ]; do
            sleep 0.1
        done
        if [ -e "$VM_SHARED/primary-is-down" ]; then
            bring_down
            return
        fi
        for resource in fs raw; do
            ctl "$first" options $resource --ping-timeout-ms 100 >/dev/null  # it is gone
            cluster_loss_seen "$first" $resource
            ctl "$first" options $resource "${PATIENT[@]}" >/dev/null
        done
        seen "the loss of the peer is noticed"
        round=$((round + 1))
        before=("$(written fs)" "$(written raw)")
    fi
    open_door "$first" fs
    open_door "$first" raw
    [ "$round" = 0 ] || judge_doors
    begin_load
    until [ -e "$VM_SHARED/last" ]; do
        kill -0 "${loads[@]}" || until_the_power_fails
        if [ "$role" = standby ] && [ -e "$VM_SHARED/standby-$round" ]; then
            judge_other "${before[@]}"
            role=primary
            touch "$VM_SHARED/judged-$round"
        fi
        sleep 0.1
    done
    end_load
    bring_down
    touch "$VM_SHARED/primary-is-down"
}
end_load() {
    kill "${loads[@]}"
    wait "${loads[@]}" || true
    judge_trees /mnt/fs "$VM_SHARED" "the device, in use"
    umount /mnt/fs
    e2fsck -fn "$(name_of fs)" >/tmp/e2fsck 2>&1 || lost "the file system: $(cat /tmp/e2fsck)"
    no_errors
}
bring_down() {
    local resource
    for resource in fs raw; do
        [ "$(status_field "$first" $resource .role)" = Secondary ] ||
            ctl "$first" unexport $resource
        ctl "$first" down $resource
    done
    umount $CLUSTER_DIR 2>/dev/null || true
    seen "down"
}

mkdir -p $CLUSTER_DIR /mnt/fs /mnt/copy
modprobe -a loop ublk_drv
RANDOM=$(((VM_SEED + round) % 32768))
records=$VM_SHARED
[ ! -d "$VM_SHARED/at-cut-$round" ] || records=$VM_SHARED/at-cut-$round
[ "$round" = 0 ] || judge_replicas "$records"
[ "$round" != 0 ] || mkfs.ext4 -q /dev/vda
mount /dev/vda $CLUSTER_DIR
"step_$layout"
