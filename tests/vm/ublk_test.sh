#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The ublk door in a guest: two nodes, each on a disk of its own, the primary's volume as a block
# device with a file system on it; its daemon killed under load and at each step of a device's life,
# and started again.
#   tests/vm/ublk_test.sh BIN_DIR [--full [KILLS]]   on the host: boots the guest, runs itself there
# --full: 20 kills (or KILLS) with ext4 and as many with XFS instead of 2, and every step.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: ublk_test.sh BIN_DIR [--full [KILLS]]}
full=${2:-}
kills=${3:-20}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout $((${#full} > 0 ? 3000 : 600)) --disk 400M \
        --disk 400M --disk 64M "$here/$(basename "$0")" "$bin" "$full" "$kills"
fi
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
killer=$bin/tests/vm/libublk_killer.so
resource=r0
size=$(((${#full} > 0 ? 320 : 64) << 20))
name=/dev/replica/by-res/$resource
door=ublk device=/dev/ublkb0
# shellcheck source=tests/vm/doors.sh
. "$here/doors.sh"

the_device() {
    local said parameter value
    refuses beta 8 export $resource --door ublk
    said=$(ctl alpha export $resource)
    [ "$said" = "/dev/ublkb0, also $name" ] || cluster_fail "export says: $said"
    # No partition table was looked for: that would be done with a lock held.
    [ "$(awk '{print $1}' /sys/block/ublkb0/stat)" = 0 ] || cluster_fail "start reads the device"
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
io_timeout 200
PARAMETERS
    generation=$(status_field alpha $resource '.devices[0]."current-uuid"')
    grep -qi "^generation ${generation%?}" "$(record_of)" ||
        cluster_fail "the generation is not on record"
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
    blkdiscard --zeroout --offset 0 --length $((32 << 20)) $name
    cmp --bytes=$((32 << 20)) $name /dev/zero ||
        cluster_fail "a zeroed range does not read as zeroes"
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

# Somebody else has the disk when the daemon starts again: it is tried until it can be attached.
busy_disk() {
    cluster_crash alpha
    rm -f "$CLUSTER_DIR/taken"
    python3 - "$CLUSTER_DIR/taken" <<'PYTHON' &
import os, sys, time
while True:
    try:
        fd = os.open("/dev/vda", os.O_RDWR | os.O_EXCL)
        break
    except OSError:
        time.sleep(0.02)
open(sys.argv[1], "w").close()
while os.path.exists(sys.argv[1]):
    time.sleep(0.1)
PYTHON
    local other=$!
    wait_for 60 "the disk is taken" test -e "$CLUSTER_DIR/taken"
    cluster_start alpha
    [ "$(status_field alpha $resource '.devices[0]."disk-state"')" = Diskless ] ||
        cluster_fail "a disk that somebody else has is attached"
    refuses alpha 4 unexport $resource  # it is mounted, though the resource is down
    rm "$CLUSTER_DIR/taken"
    wait $other
    wait_for 60 "the device is adopted" adopted
    no_errors
    seen "a disk that was in use: tried again, and adopted"
}

# replicad with the killer of tests/vm/ublk_killer.c.
start_to_die() {
    local end=$((SECONDS + 60))
    LD_PRELOAD=$killer UBLK_KILL=$1 setsid "$bin/tools/replicad" --name alpha \
        --state "$CLUSTER_DIR/alpha/state" --control "$(control_socket alpha)" \
        --listen "${ADDRESS[alpha]}" >>"$CLUSTER_DIR/alpha/log" 2>&1 </dev/null &
    PID[alpha]=$!
    [ "${2:-}" = by-itself ] || until ctl alpha status >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "replicad does not answer"
        sleep 0.05
    done
}
has_died() {
    cluster_wait_gone "${PID[alpha]}" 60 || cluster_fail "not killed at $1"
    unset "PID[alpha]"
}

# At each step of taking a device over, under a mount. One step is too much for Linux 6.12.
killed_adopting() {
    local point load begun
    local points=(10:after 11:during)
    [ -z "$full" ] || points=(10:before 10:during 10:after 11:before 11:during 11:after)
    mkfs.ext4 -q $name
    mount $name /mnt/volume
    for point in "${points[@]}"; do
        begun=$(writes_begun)
        begin_writing /mnt/volume/point
        wait_for 60 "the load writes" has_written $((begun + 4))
        cluster_crash alpha
        start_to_die "$point" by-itself
        has_died "$point"
        cluster_start alpha
        wait_for 60 "the device is adopted after $point" adopted
        end_writing || cluster_fail "an error above at $point"
        no_errors
        echo "     killed at $point"
    done
    umount /mnt/volume
    e2fsck -fn $name >/dev/null || cluster_fail "the file system is damaged"
    ctl alpha wait $resource --until synced --timeout 60
    cluster_crash alpha
    start_to_die map:after by-itself
    has_died map:after
    cluster_start alpha
    # Linux 6.12 hands such a device on, or not: it depends on how far its end had come.
    given_up() { [ ! -e /dev/ublkc0 ]; }
    settled() { given_up || adopted; }
    wait_for 60 "the device is given up or adopted" settled
    if given_up; then
        grep -q 'is given up' "$CLUSTER_DIR/alpha/log" || cluster_fail "the log does not say why"
    else
        no_errors
        ctl alpha unexport $resource
    fi
    wait_for 60 "the record is gone" test ! -e "$(record_of)"
    ctl alpha demote $resource
    seen "killed at each step of an adoption"
}

# At each step of making and stopping one, without users: nothing is left behind.
killed_making() {
    local point
    ctl alpha wait $resource --until synced --timeout 60
    local points=(04:after 06:during 06:after 07:during)
    [ -z "$full" ] || points=(04:before 04:during 04:after 08:after 06:before 06:during 06:after
        07:before 07:during 07:after 14:before 14:after)
    for point in "${points[@]}"; do
        cluster_stop alpha
        start_to_die "$point"
        ctl alpha wait $resource --until synced --timeout 60 >/dev/null
        ctl alpha promote $resource
        ctl alpha export $resource --door ublk >/dev/null 2>&1 || true
        case $point in 07* | 14*) ctl alpha unexport $resource 2>/dev/null || true ;; esac
        has_died "$point"
        cluster_start alpha
        if [ -e /dev/ublkb0 ] || [ -e "$(record_of)" ]; then
            wait_for 60 "after $point it is adopted, or gone" sh -c "[ ! -e $(record_of) ] || \
                '$bin/tools/replicactl' --control '$(control_socket alpha)' status $resource \
                --json | grep -q ublk:/dev/ublkb0"
        fi
        ctl alpha unexport $resource >/dev/null
        [ -z "$(compgen -G "/dev/ublk[bc]0")" ] || cluster_fail "a device is left after $point"
        [ ! -e "$(record_of)" ] || cluster_fail "a record is left after $point"
        ctl alpha demote $resource
        echo "     killed at $point"
    done
    seen "killed at each step of making and stopping a device"
}

# Somebody else's device is touched by nobody: one of a node with another state directory.
foreign() {
    mkdir "$CLUSTER_DIR/gamma"
    "$bin/tools/replicad" --name gamma --state "$CLUSTER_DIR/gamma/state" \
        --control "$CLUSTER_DIR/gamma/control.sock" >"$CLUSTER_DIR/gamma/log" 2>&1 </dev/null &
    gamma() { "$bin/tools/replicactl" --control "$CLUSTER_DIR/gamma/control.sock" "$@"; }
    wait_for 60 "gamma answers" gamma status
    gamma create r9 --node-id 0 --disk /dev/vdc
    gamma up r9
    gamma promote r9 --force
    [ "$(gamma export r9 --door ublk)" = "/dev/ublkb1, also /dev/replica/by-res/r9" ]
    foreign=$(readlink -f /dev/replica/by-res/r9)
    seen "a device of somebody else at $foreign"
}
foreign_is_well() {
    dd if=/dev/urandom of="$foreign" bs=1M count=8 oflag=direct status=none
    grep -q 'ublkb.*\(adopted\|given up\)' "$CLUSTER_DIR/gamma/log" &&
        cluster_fail "gamma lost its device"
    gamma down r9
}

the_end() {
    umount /mnt/volume
    e2fsck -fn $name >/dev/null || cluster_fail "the file system is damaged"
    ctl alpha wait $resource --until synced --timeout 60
    ctl alpha unexport $resource
    [ -z "$(compgen -G "/dev/ublk[bc]0")" ] || cluster_fail "the device is still there"
    [ ! -L $name ] || cluster_fail "its name is still there"
    [ ! -e "$(record_of)" ] || cluster_fail "its record is still there"
    ctl alpha export $resource --door ublk >/dev/null
    ctl alpha down $resource
    [ ! -e /dev/ublkc0 ] || cluster_fail "down leaves the device"
    ctl beta down $resource
    cmp --bytes=$size /dev/vda /dev/vdb || cluster_fail "the replicas differ"
    seen "file system clean, devices gone, replicas equal"
}

mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
bring_up
the_device
foreign
raw
mounted
if [ -z "$full" ]; then killed ext4 2; else killed ext4 "$kills"; fi
stopped
busy_disk
waits
the_end
if [ -n "$full" ]; then
    up_again
    file_system xfs "$kills"
    compare_replicas
fi
fenced
up_again
killed_adopting
killed_making
foreign_is_well
