#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The mapped device in a guest: a file system on it under verified load, while the door below is
# swapped, the daemon killed at each step of that, and the role moved to the other node and back.
#   tests/vm/dm_mapped_test.sh BIN_DIR [--full]      on the host: boots the guest, runs itself there
# --full: every step is tried, and ten swaps and moves.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_mapped_test.sh BIN_DIR [--full]}
full=${2:-}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout $((${#full} > 0 ? 2400 : 700)) --disk 160M \
        --disk 160M "$here/$(basename "$0")" "$bin" "$full"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"
killer=$bin/tests/vm/libdm_killer.so

resource=r0
size=$((64 << 20))
mapped=/dev/mapper/replica-$resource
disk_of() { [ "$1" = alpha ] && echo /dev/vda || echo /dev/vdb; }
remote=tcp:127.0.0.3:10809

no_errors() {
    if dmesg | grep -E 'error, dev|EXT4-fs error|Aborting|BUG|Oops|WARNING|blocked for more'; then
        cluster_fail "the kernel has seen errors"
    fi
}
refuses() {  # refuses NODE EXIT-STATUS COMMAND...
    local status=0 node=$1 expected=$2
    shift 2
    ctl "$node" "$@" 2>"$CLUSTER_DIR/said" || status=$?
    [ "$status" = "$expected" ] ||
        cluster_fail "$* ended with $status, not with $expected: $(cat "$CLUSTER_DIR/said")"
}
doors() { status_field "$1" $resource '.devices[0].doors | join(" ")'; }
below() { dmsetup table "replica-$resource" | awk '{print $4}'; }  # its number
# This door is the only one, and lies below.
lies_on() {
    local now
    now=$(doors alpha)
    [[ $now =~ ^$1:/dev/([a-z0-9]+)\ mapped:$mapped\ over\ $1$ ]] &&
        [ "$(below)" = "$(cat "/sys/block/${BASH_REMATCH[1]}/dev")" ]
}
must_lie_on() { lies_on "$1" || cluster_fail "not on $1: $(doors alpha), and it is $(below)"; }

load_begin() {
    fio --name=load --directory=/mnt/volume --rw=randwrite --bs=4k-64k --iodepth=16 --size=12M \
        --loops=99 --time_based --runtime="$1" --ioengine=io_uring --verify=crc32c \
        --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 --fsync=64 \
        --output-format=json >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
    sleep 1
}
load_end() {
    wait "$load" || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
    verified=$(sed -n '/^{/,$p' "$CLUSTER_DIR/fio" | jq '.jobs[0].read.total_ios')
    [ "$verified" -gt 0 ] || cluster_fail "the load has verified nothing"
    no_errors
}

begin() {
    local node
    cluster_begin "$bin" rootless
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --peer "$(peer_argument "$(peer_of "$node")")"
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
}

the_device() {
    dm_create "replica-$resource" "0 8 zero"  # somebody else's of that name
    refuses alpha 3 export $resource --mapped --door ublk
    grep -q 'not ours' "$CLUSTER_DIR/said" || cluster_fail "it said: $(cat "$CLUSTER_DIR/said")"
    dm_remove "replica-$resource"
    refuses beta 8 export $resource --mapped
    refuses alpha 2 hold $resource
    refuses alpha 8 map $resource --to $remote
    [ "$(ctl alpha export $resource --mapped)" = $mapped ] || cluster_fail "it is elsewhere"
    must_lie_on ublk
    [ "$(blockdev --getsize64 $mapped)" = $size ] || cluster_fail "the size is another one"
    dmsetup info -c --noheadings -o uuid "replica-$resource" | grep -q '^REPLICA-.*-r0$' ||
        cluster_fail "the UUID is another one"
    refuses alpha 3 export $resource --mapped --door ublk
    ctl alpha unexport $resource --door mapped
    [ ! -e $mapped ] || cluster_fail "it is still there"
    [ "$(doors alpha)" = ublk:/dev/ublkb0 ] || cluster_fail "doors: $(doors alpha)"
    ctl alpha export $resource --mapped --door ublk >/dev/null
    mkfs.ext4 -q $mapped
    mkdir -p /mnt/volume
    mount $mapped /mnt/volume
    refuses alpha 4 unexport $resource
    refuses alpha 4 unexport $resource --door ublk
    refuses alpha 4 demote $resource
    refuses alpha 4 down $resource
    seen "mapped, mounted, and not taken away"
}

# Below a mounted file system under load: ublk, nbd, and back.
swaps() {
    for _ in $(seq "$1"); do
        load_begin 5
        ctl alpha export $resource --mapped --door nbd >/dev/null
        must_lie_on nbd
        [ ! -e /dev/ublkb0 ] || cluster_fail "the door before is still there"
        ctl alpha export $resource --mapped --door ublk >/dev/null
        must_lie_on ublk
        load_end
    done
    seen "swapped below a load, $1 times to and fro: no error above, $verified reads verified"
}

# The daemon dies at a step of a swap; the next one puts it right by itself.
killed_at() {  # killed_at CALL:WHEN
    local end target=nbd
    ! lies_on nbd || target=ublk
    cluster_stop alpha
    DM_KILL=$1 LD_PRELOAD=$killer setsid "$bin/tools/replicad" --name alpha \
        --state "$CLUSTER_DIR/alpha/state" --control "$(control_socket alpha)" \
        --listen "${ADDRESS[alpha]}" >>"$CLUSTER_DIR/alpha/log" 2>&1 </dev/null &
    PID[alpha]=$!
    dm_wait "the device is adopted" adopted
    load_begin 12
    ctl alpha export $resource --mapped --door $target >/dev/null 2>&1 || true
    cluster_wait_gone "${PID[alpha]}" 30 || cluster_fail "not killed at $1"
    unset "PID[alpha]"
    sleep 0.5
    cluster_start alpha
    dm_wait "it is put right after $1" settled
    load_end
    echo "     killed at $1: then over $(doors alpha | sed 's/.* over //')"
}
adopted() { ctl alpha status $resource --json | grep -q '"mapped:' && ! waits; }
waits() { [ "$(status_field alpha $resource .why)" != "" ]; }
# One door, the one that is below, and no table that waits.
settled() {
    { lies_on ublk || lies_on nbd; } && ! waits &&
        [ "$(dmsetup info -c --noheadings -o suspended,tables_loaded "replica-$resource")" = \
            Active:Live ]
}
killed() {
    local point points=(load:after suspend:after resume:after)
    [ -z "$full" ] || points=(load:before load:after suspend:before suspend:after resume:before
        resume:after)
    for point in "${points[@]}"; do
        killed_at "$point"
    done
    seen "killed at each step of a swap: put right, no error above"
}

# The users of the device here, the role there: held, demoted, promoted there, mapped; and back.
moves() {
    for _ in $(seq "$1"); do
        load_begin 20
        ctl alpha hold $resource
        status_field alpha $resource .why | grep -q 'is held' || cluster_fail "nobody says so"
        ctl alpha demote $resource
        ctl beta promote $resource
        ctl beta export $resource --nbd $remote
        ctl alpha map $resource --to $remote >/dev/null
        [ "$(doors alpha)" = "mapped:$mapped over $remote" ] || cluster_fail "$(doors alpha)"
        sleep 3
        written=$(status_field beta $resource '.devices[0]."written-bytes"')
        [ "$written" -gt 0 ] || cluster_fail "nothing has come to beta"
        cluster_stop alpha  # the connection is the kernel's
        cluster_start alpha
        dm_wait "it is known again" adopted
        ctl alpha hold $resource
        ctl beta unexport $resource
        ctl beta demote $resource
        ctl alpha promote $resource
        ctl alpha export $resource --mapped >/dev/null
        must_lie_on ublk
        load_end
    done
    seen "moved to the other node and back under load, $1 times: no error above"
}

# A daemon that dies while it is held leaves it so.
held() {
    load_begin 15
    ctl alpha hold $resource
    cluster_crash alpha
    cluster_start alpha
    dm_wait "the status says that it is held" sh -c \
        "'$bin/tools/replicactl' --control '$(control_socket alpha)' status $resource --json |
            grep -q 'is held'"
    [ "$(dmsetup info -c --noheadings -o suspended "replica-$resource")" = Suspended ] ||
        cluster_fail "it goes on by itself"
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource
    refuses alpha 4 unexport $resource
    ctl alpha export $resource --mapped >/dev/null
    load_end
    seen "killed while it is held: stays held, and goes on when it is told to"
}

the_end() {
    local node
    umount /mnt/volume
    e2fsck -fn $mapped >/dev/null || cluster_fail "the file system is damaged"
    ctl alpha wait $resource --until synced --timeout 100
    ctl alpha down $resource
    [ ! -e $mapped ] || cluster_fail "the device is still there"
    [ -z "$(ls "$CLUSTER_DIR/alpha/state/mapped")" ] || cluster_fail "its record is still there"
    ctl beta down $resource
    cmp --bytes=$size /dev/vda /dev/vdb || cluster_fail "the replicas differ"
    no_errors
    seen "file system clean, device gone, replicas equal"
}

# By force: its users get errors, and the device goes with the last of them.
forced() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until synced --timeout 100
    ctl alpha promote $resource
    ctl alpha export $resource --mapped >/dev/null
    exec 9<>$mapped
    ctl alpha unexport $resource --force
    ! dd if=$mapped bs=4k count=1 iflag=direct status=none of=/dev/null 2>/dev/null ||
        cluster_fail "it still serves"
    exec 9>&-
    dm_wait "it is gone with its last user" sh -c "! dmsetup info replica-$resource"
    ctl alpha demote $resource
    seen "taken from its users by force"
}

modprobe -a dm_mod ublk_drv nbd || { echo "SKIPPED: no device-mapper, ublk or nbd"; exit 77; }
begin
the_device
if [ -z "$full" ]; then swaps 1; else swaps 10; fi
killed
if [ -z "$full" ]; then moves 1; else moves 5; fi
held
the_end
forced
