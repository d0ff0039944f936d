#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The ublk door in a guest: two nodes, each on a disk of its own, the primary's volume as a block
# device with a file system on it; its daemon killed under load and started again.
#   tests/vm/ublk_test.sh BIN_DIR [ROUNDS]      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: ublk_test.sh BIN_DIR [ROUNDS]}
rounds=${2:-3}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 800 --disk 200M --disk 200M "$here/$(
        basename "$0")" "$bin" "$rounds"
fi

resource=r0
size=$((128 << 20))
name=/dev/replica/by-res/$resource
record=
seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }
disk_of() { [ "$1" = alpha ] && echo /dev/vda || echo /dev/vdb; }
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

# Nothing in the kernel's log says that a request failed.
no_errors() {
    if dmesg | grep -E 'I/O error|EXT4-fs error|Aborting journal|blk_update_request|BUG|Oops'; then
        cluster_fail "the kernel has seen errors"
    fi
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in time: $what"
        sleep 0.1
    done
}

bring_up() {
    local node
    cluster_begin "$bin" rootless
    record=$CLUSTER_DIR/alpha/state/ublk/$resource
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --peer "$(peer_argument "$(peer_of "$node")")"
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha new-current-uuid $resource --clear-bitmap || ctl alpha promote $resource --force
    ctl alpha promote $resource
    ctl alpha wait $resource --until synced --timeout 100
    seen "two nodes, synced"
}

refuses() {  # refuses NODE EXIT-STATUS COMMAND...
    local status=0 node=$1 expected=$2
    shift 2
    ctl "$node" "$@" 2>/dev/null || status=$?
    [ "$status" = "$expected" ] || cluster_fail "$* ended with $status, not with $expected"
}

the_device() {
    local said parameter value
    refuses beta 8 export $resource --door ublk
    said=$(ctl alpha export $resource)
    [ "$said" = "/dev/ublkb0, also $name" ] || cluster_fail "export says: $said"
    [ "$(readlink -f $name)" = /dev/ublkb0 ] || cluster_fail "$name is not /dev/ublkb0"
    [ "$(blockdev --getsize64 $name)" = $size ] || cluster_fail "the size is another one"
    [ "$(status_field alpha $resource '.devices[0].doors[0]')" = ublk:/dev/ublkb0 ] ||
        cluster_fail "the status does not show the door"
    while read -r parameter value; do
        [ "$(<"/sys/block/ublkb0/queue/$parameter")" = "$value" ] ||
            cluster_fail "$parameter is $(<"/sys/block/ublkb0/queue/$parameter"), not $value"
    done <<'PARAMETERS'
logical_block_size 512
physical_block_size 4096
minimum_io_size 4096
max_sectors_kb 256
chunk_sectors 8192
discard_granularity 4096
discard_max_bytes 67108864
write_zeroes_max_bytes 67108864
write_cache write back
fua 1
io_timeout 2000
PARAMETERS
    grep -q '^device 0$' "$record" || cluster_fail "the device is not on record"
    refuses alpha 3 export $resource --door ublk
    seen "a block device with the volume's parameters"
}

raw() {
    # Long requests and odd ones, through the page cache and past it.
    fio --name=raw --filename=$name --direct=1 --rw=randwrite --bsrange=512-1M --ba=512 \
        --iodepth=16 --ioengine=io_uring --size=24M --verify=crc32c --verify_fatal=1 \
        --fsync=64 --verify_state_save=0 --minimal >/dev/null
    dd if=/dev/urandom of=$name bs=1M count=8 conv=fsync status=none
    blkdiscard --offset 1M --length 5M $name
    cmp --bytes=$((5 << 20)) --ignore-initial=$((1 << 20)):0 $name /dev/zero ||
        cluster_fail "a discarded range does not read as zeroes"
    blkdiscard --zeroout --offset 0 --length $size $name
    cmp --bytes=$size $name /dev/zero || cluster_fail "a zeroed range does not read as zeroes"
    no_errors
    seen "raw writes, discards and zeroes"
}

mounted() {
    mkfs.ext4 -q $name
    mkdir -p /mnt/volume
    mount $name /mnt/volume
    refuses alpha 4 unexport $resource
    refuses alpha 4 demote $resource
    refuses alpha 4 down $resource
    dd if=/dev/urandom of=/mnt/volume/file bs=1M count=16 status=none
    sync
    rm /mnt/volume/file
    fstrim /mnt/volume
    fio --name=fs --directory=/mnt/volume --rw=randrw --bs=4k-64k --iodepth=8 --size=12M \
        --ioengine=io_uring --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=32 \
        --minimal >/dev/null
    no_errors
    seen "a mounted file system"
}

killed() {
    local round load
    for round in $(seq "$rounds"); do
        fio --name=load --directory=/mnt/volume --rw=randwrite --bs=4k-64k --iodepth=16 \
            --direct=$((round % 2)) --size=12M --loops=20 --ioengine=io_uring --verify=crc32c \
            --verify_fatal=1 --verify_state_save=0 --fsync=64 --time_based --runtime=8 \
            --minimal >"$CLUSTER_DIR/fio" 2>&1 &
        load=$!
        sleep $((2 + RANDOM % 3)).$((RANDOM % 10))
        cluster_crash alpha
        sleep 0.$((RANDOM % 10))
        cluster_start alpha
        wait_for 60 "the device is adopted" \
            sh -c "[ \"\$('$bin/tools/replicactl' --control '$(control_socket alpha)' status \
                $resource --json | jq -r '.[0].devices[0].doors[0]')\" = ublk:/dev/ublkb0 ]"
        wait "$load" || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
        no_errors
        seen "killed and adopted, round $round: no error above"
    done
    # A daemon that is told to stop while the device is in use leaves it to the next one, too.
    cluster_stop alpha
    cluster_start alpha
    wait_for 60 "the file system goes on" timeout 60 dd if=/dev/zero of=/mnt/volume/after bs=4k \
        count=1 conv=fsync
    seen "stopped under a mount, and adopted"
}

the_end() {
    umount /mnt/volume
    e2fsck -fn $name >/dev/null || cluster_fail "the file system is damaged"
    ctl alpha wait $resource --until synced --timeout 60
    ctl alpha unexport $resource
    [ -z "$(compgen -G "/dev/ublk[bc]*")" ] || cluster_fail "the device is still there"
    [ ! -L $name ] || cluster_fail "its name is still there"
    [ ! -e "$record" ] || cluster_fail "its record is still there"
    ctl alpha export $resource --door ublk >/dev/null
    ctl alpha down $resource
    [ ! -e /dev/ublkc0 ] || cluster_fail "down leaves the device"
    ctl beta down $resource
    cmp --bytes=$size /dev/vda /dev/vdb || cluster_fail "the replicas differ"
    seen "file system clean, devices gone, replicas equal"
}

# While the primary's daemon is dead another node writes: what waits must not overwrite that.
fenced() {
    local node load
    for node in "${NODES[@]}"; do
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until synced --timeout 60
    ctl alpha promote $resource
    ctl alpha export $resource --door ublk >/dev/null
    while :; do  # until it fails
        fio --name=old --filename=$name --direct=1 --rw=write --bs=64k --iodepth=16 \
            --ioengine=io_uring --size=$size --buffer_pattern=0x61 >/dev/null 2>&1 || break
    done &
    load=$!
    sleep 3
    cluster_crash alpha
    cluster_loss_seen beta $resource
    cluster_primary beta $resource
    dd if=/dev/zero bs=1M count=$((size >> 20)) status=none | tr '\0' b >"$CLUSTER_DIR/b"
    nbdcopy "$CLUSTER_DIR/b" "$(uri_of beta $resource)"
    ctl beta unexport $resource
    ctl beta demote $resource
    cluster_start alpha
    wait_for 60 "the device is given up" sh -c '[ ! -e /dev/ublkb0 ]'
    wait $load || cluster_fail "the load did not end by itself"
    grep -q 'another node has written since' "$CLUSTER_DIR/alpha/log" ||
        cluster_fail "the log does not say why"
    ctl alpha wait $resource --until synced --timeout 60
    for node in "${NODES[@]}"; do
        ctl "$node" down $resource
        cmp --bytes=$size "$(disk_of "$node")" "$CLUSTER_DIR/b" ||
            cluster_fail "$node has old data again"
    done
    seen "given up where another node had written"
}

bring_up
the_device
raw
mounted
killed
the_end
fenced
