#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The mapped device in a guest: a file system on it under verified load. `doors`: while the door
# below is swapped, the daemon killed at each step of that, and the volume grows. `nodes`: while the
# role moves to the other node and back, and the way there breaks.
#   tests/vm/dm_mapped_test.sh BIN_DIR doors|nodes [--full]
# On the host: boots the guest and runs itself there. --full: all steps, ten swaps, five moves.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_mapped_test.sh BIN_DIR doors|nodes [--full]}
part=${2:?doors or nodes}
full=${3:-}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout $((${#full} > 0 ? 2400 : 600)) --disk 160M \
        --disk 160M "$here/$(basename "$0")" "$bin" "$part" "$full"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"

resource=r0
size=$((64 << 20))
mapped=/dev/mapper/replica-$resource
disk_of() { [ "$1" = alpha ] && echo /dev/vda || echo /dev/vdb; }
remote=tcp:10.77.0.2:10809

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
doors() { status_field "$1" $resource '.devices[0].doors[]' | paste -sd ' '; }
below() { dmsetup table "replica-$resource" | awk '{print $4}'; }  # its number
# This door is the only one, and lies below.
lies_on() {
    local now
    now=$(doors alpha)
    [[ $now =~ ^$1:/dev/([a-z0-9]+)\ mapped:$mapped\ over\ $1$ ]] &&
        [ "$(below)" = "$(cat "/sys/block/${BASH_REMATCH[1]}/dev")" ]
}
must_lie_on() { lies_on "$1" || cluster_fail "not on $1: $(doors alpha), and it is $(below)"; }

start_load() { load_begin --ioengine=io_uring --directory=/mnt/volume; }
end_load() {  # it goes on until here
    load_goes_on alpha "$(written alpha)"
    load_end
    no_errors
}

# Alpha is at home in the guest, where the kernel's nbd is; beta at the other end of a cable.
lay_cable() {
    mount --make-rshared /  # beta must not keep what is unmounted here
    ip netns add beta
    ip link add cable type veth peer name eth0 netns beta
    ip address add 10.77.0.1/24 dev cable
    ip -n beta address add 10.77.0.2/24 dev eth0
    ip link set cable up
    ip -n beta link set eth0 up
    ip -n beta link set lo up
    NETNS=([beta]=beta)
    ADDRESS=([alpha]=10.77.0.1:7788 [beta]=10.77.0.2:7788)
}

begin() {
    local node
    cluster_begin "$bin" rootless
    lay_cable
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --peer "$(peer_argument "$(peer_of "$node")")" "${PATIENT[@]}"
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
}

mount_it() {
    mkfs.ext4 -q $mapped
    mkdir -p /mnt/volume
    mount $mapped /mnt/volume
}

the_device() {
    dm_create "replica-$resource" "0 8 zero"  # somebody else's of that name
    refuses alpha 3 export $resource --mapped --door ublk
    grep -q 'not ours' "$CLUSTER_DIR/said" || cluster_fail "it said: $(cat "$CLUSTER_DIR/said")"
    dm_remove "replica-$resource"
    refuses beta 8 export $resource --mapped
    refuses alpha 2 hold $resource
    refuses alpha 8 map $resource --to $remote
    ctl alpha export $resource --door nbd --read-only >/dev/null
    refuses alpha 8 export $resource --mapped --door nbd
    ctl alpha unexport $resource
    [ "$(ctl alpha export $resource --mapped)" = $mapped ] || cluster_fail "it is elsewhere"
    must_lie_on ublk
    [ "$(blockdev --getsize64 $mapped)" = $size ] || cluster_fail "the size is another one"
    dmsetup info -c --noheadings -o uuid "replica-$resource" | grep -q '^REPLICA-.*-r0$' ||
        cluster_fail "the UUID is another one"
    refuses alpha 3 export $resource --mapped --door ublk
    ctl alpha unexport $resource --door mapped
    [ ! -e $mapped ] || cluster_fail "it is still there"
    [ "$(doors alpha)" = ublk:/dev/ublkb0 ] || cluster_fail "doors: $(doors alpha)"
    # A door that was open before is not closed when it can not be used.
    ctl alpha export $resource --mapped --door ublk >/dev/null
    exec 9<>$mapped
    ctl alpha unexport $resource --door ublk --force
    dm_wait "the status says that the door is gone" says 'which is closed'
    refuses alpha 8 export $resource --mapped --door ublk
    grep -q 'end them' "$CLUSTER_DIR/said" || cluster_fail "it said: $(cat "$CLUSTER_DIR/said")"
    refuses alpha 8 export $resource --mapped --door nbd
    exec 9>&-
    ctl alpha unexport $resource
    dmesg --clear  # of errors that were meant to be
    ctl alpha export $resource --mapped --door ublk >/dev/null
    mount_it
    refuses alpha 4 unexport $resource
    refuses alpha 4 unexport $resource --door ublk
    refuses alpha 4 demote $resource
    refuses alpha 4 down $resource
    seen "mapped, mounted, and not taken away"
}

# Below a mounted file system under load: ublk, nbd, and back.
swaps() {
    for _ in $(seq "$1"); do
        start_load
        ctl alpha export $resource --mapped --door nbd >/dev/null
        must_lie_on nbd
        [ ! -e /dev/ublkb0 ] || cluster_fail "the door before is still there"
        ctl alpha export $resource --mapped --door ublk >/dev/null
        must_lie_on ublk
        end_load
    done
    seen "swapped below a load, $1 times to and fro: no error above, $verified reads verified"
}

# A daemon that dies at a step, in place of the one that runs.
start_doomed() {  # start_doomed dm|ublk VARIABLE=STEP
    cluster_stop alpha
    env "$2" "LD_PRELOAD=$bin/tests/vm/lib${1}_killer.so" setsid "$bin/tools/replicad" \
        --name alpha --state "$CLUSTER_DIR/alpha/state" --control "$(control_socket alpha)" \
        --listen "${ADDRESS[alpha]}" >>"$CLUSTER_DIR/alpha/log" 2>&1 </dev/null &
    PID[alpha]=$!
    dm_wait "the device is adopted" adopted
}

# The daemon dies at a step of a swap; the next one puts it right by itself.
killed_at() {  # killed_at CALL:WHEN [held]
    local target=nbd
    ! lies_on nbd || target=ublk
    start_doomed dm "DM_KILL=$1"
    start_load
    [ -z "${2:-}" ] || ctl alpha hold $resource
    ctl alpha export $resource --mapped --door $target >/dev/null 2>&1 || true
    cluster_wait_gone "${PID[alpha]}" 60 || cluster_fail "not killed at $1"
    unset "PID[alpha]"
    cluster_start alpha
    dm_wait "it is put right after $1" settled
    end_load
    echo "     killed${2:+ when $2} at $1: then over $(doors alpha | sed 's/.* over //')"
}
adopted() { ctl alpha status $resource --json | grep -q '"mapped:' && ! waits; }
says() { status_field alpha $resource .why | grep -q -- "$1"; }
waits() { [ "$(status_field alpha $resource .why)" != "" ]; }
# One door, the one that is below, and no table that waits.
settled() {
    { lies_on ublk || lies_on nbd; } && ! waits &&
        [ "$(dmsetup info -c --noheadings -o suspended,tables_loaded "replica-$resource")" = \
            Active:Live ]
}
killed() {
    local point points=(suspend:after resume:after)
    [ -z "$full" ] || points=(load:before load:after suspend:before suspend:after resume:before
        resume:after)
    for point in "${points[@]}"; do
        killed_at "$point"
    done
    killed_at resume:after held
    seen "killed at each step of a swap: put right, no error above"
}

remote_on() {  # the volume is used here, and served by beta
    ctl alpha hold $resource
    ctl alpha demote $resource
    ctl beta promote $resource
    ctl beta export $resource --nbd $remote
    ctl alpha map $resource --to $remote >/dev/null
}
remote_off() {
    ctl alpha hold $resource
    close_doors beta $resource
    ctl beta demote $resource
    ctl alpha promote $resource
    ctl alpha export $resource --mapped >/dev/null
}
beta_gets_more() { [ "$(written beta)" -gt "$1" ]; }
goes_on() { dm_wait "$1" beta_gets_more $(($(written beta) + 262144)); }

# The users of the device here, the role there: held, demoted, promoted there, mapped; and back.
moves() {
    for _ in $(seq "$1"); do
        start_load
        ctl alpha hold $resource
        says 'is held' || cluster_fail "nobody says so"
        ctl alpha export $resource --mapped >/dev/null
        remote_on
        [ "$(doors alpha)" = "mapped:$mapped over $remote" ] || cluster_fail "$(doors alpha)"
        goes_on "beta is written to"
        cluster_stop alpha  # the connection is the kernel's
        cluster_start alpha
        dm_wait "it is known again" adopted
        remote_off
        must_lie_on ublk
        end_load
    done
    seen "moved to the other node and back under load, $1 times: no error above"
}

# Ublk of this kernel can not grow while it is in use, so another door is put below; nbd can.
grown() {
    local said
    lies_on ublk || ctl alpha export $resource --mapped --door ublk >/dev/null
    must_lie_on ublk
    start_load
    ctl beta resize $resource --size 80M >/dev/null
    said=$(ctl alpha resize $resource --size 80M)
    [[ $said == *"# $mapped stays as large"*"--mapped --door nbd"* ]] || cluster_fail "said: $said"
    says 'stays as large' || cluster_fail "the status does not say that it is too small"
    ctl alpha export $resource --mapped --door nbd >/dev/null
    must_lie_on nbd
    [ "$(blockdev --getsize64 $mapped)" = $((80 << 20)) ] || cluster_fail "it has not grown"
    dm_wait "all is well" settled
    # Beta's is the last word, and nobody asks alpha.
    ctl alpha resize $resource --size 96M >/dev/null
    ctl beta resize $resource --size 96M >/dev/null
    size=$((96 << 20))
    has_size() { [ "$(blockdev --getsize64 $mapped)" = $size ]; }
    dm_wait "it follows by itself" has_size
    resize2fs $mapped >/dev/null 2>&1 || cluster_fail "resize2fs failed"
    [ "$(df --output=size -BM /mnt/volume | tail -n 1 | tr -dc 0-9)" -gt 80 ] ||
        cluster_fail "the file system has not grown"
    end_load
    seen "grown under a load, with a swap where the door could not"
}

# What breaks the way to the other node, is mended, and is waited for by the users of the device.
reconnects() {
    local began
    start_load
    remote_on
    refuses beta 3 export $resource --nbd $remote
    cluster_crash beta
    dm_wait "the status says that it is gone" says 'no connection below'
    cluster_start beta
    ctl beta wait $resource --until connected --timeout 60
    ctl beta wait $resource --until synced --timeout 60
    ctl beta export $resource --nbd $remote --read-only  # which is not what it had
    dm_wait "the status says so" says 'for reading only'
    close_doors beta $resource
    ctl beta promote $resource
    ctl beta export $resource --nbd $remote
    began=$SECONDS
    goes_on "beta's daemon is back"
    echo "     beta's daemon was killed: went on after $((SECONDS - began)) s"
    ip link set cable down
    dm_wait "the status says that it is cut" says 'no connection below'
    ip link set cable up
    began=$SECONDS
    goes_on "the cable is mended"
    echo "     the cable was cut: went on after $((SECONDS - began)) s"
    # A connection of an earlier daemon.
    cluster_stop alpha
    cluster_start alpha
    dm_wait "it is known again" adopted
    ctl beta unexport $resource --force
    ctl beta export $resource --nbd $remote
    began=$SECONDS
    goes_on "the connection of the daemon before is replaced"
    echo "     a connection of the daemon before broke: went on after $((SECONDS - began)) s"
    ctl alpha hold $resource
    ctl alpha map $resource --to $remote >/dev/null  # the same, again
    goes_on "it was held"
    remote_off
    end_load
    seen "another daemon, another cable, another connection: no error above"
}

# A daemon that dies while it is held, before the door below is closed, leaves it so.
is_held() { [ "$(doors alpha)" = "mapped:$mapped, held" ]; }
held() {
    start_load
    start_doomed ublk UBLK_KILL=07:before
    ctl alpha hold $resource 2>/dev/null || true
    cluster_wait_gone "${PID[alpha]}" 60 || cluster_fail "not killed when it was held"
    unset "PID[alpha]"
    cluster_start alpha
    dm_wait "the status says that it is held" says 'is held'
    dm_wait "the door below it is closed" is_held
    sleep 1
    is_held || cluster_fail "a door is there again: $(doors alpha)"
    [ "$(dmsetup info -c --noheadings -o suspended "replica-$resource")" = Suspended ] ||
        cluster_fail "it goes on by itself"
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource
    refuses alpha 4 unexport $resource
    ctl alpha export $resource --mapped >/dev/null
    end_load
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

# By force, where what was asked of it does not end.
begin_user() {
    local node before server=alpha
    [ "$1" = here ] || server=beta
    for node in "${NODES[@]}"; do ctl "$node" up $resource 2>/dev/null || true; done
    ctl alpha wait $resource --until synced --timeout 100
    ctl alpha promote $resource
    ctl alpha export $resource --mapped >/dev/null
    [ "$1" = here ] || remote_on
    before=$(written "$server")
    # The last one fails.
    while dd if=/dev/zero of=$mapped bs=1M count=48 oflag=direct 2>/dev/null; do :; done &
    user=$!
    load_goes_on "$server" "$before"
}
# Something was asked of the device that is not answered, nor a second later.
hangs() {
    local stat before
    stat=/sys/block/$(basename "$(readlink -f $mapped)")/stat
    before=$(awk '{print $1 + $5, $9}' "$stat")
    [ "${before#* }" != 0 ] && sleep 1 && [ "$(awk '{print $1 + $5, $9}' "$stat")" = "$before" ]
}
unexported() {  # unexported WHAT
    local began=$SECONDS
    timeout 60 "$bin/tools/replicactl" --control "$(control_socket alpha)" unexport $resource \
        --door mapped --force || cluster_fail "$1: it is not taken away"
    wait "$user"
    dm_wait "it is gone with its last user" sh -c "! dmsetup info replica-$resource"
    echo "     $1: taken away in $((SECONDS - began)) s"
}
forced_hanging() {
    local node
    for node in "${NODES[@]}"; do  # who is frozen will be given up
        ctl "$node" up $resource
        ctl "$node" options $resource --ping-timeout-ms 5000 >/dev/null
    done
    begin_user there
    kill -STOP "${PID[beta]}"
    dm_wait "what was asked of it hangs" hangs
    unexported "the other node is frozen"
    kill -CONT "${PID[beta]}"
    close_doors beta $resource
    ctl beta demote $resource
    begin_user here
    kill -STOP "${PID[beta]}"
    unexported "the door is here, and the peer is frozen"
    kill -CONT "${PID[beta]}"
    ctl alpha demote $resource
    begin_user there
    cluster_crash beta
    dm_wait "what was asked of it hangs" hangs
    unexported "the other node is dead"
    seen "taken away by force where it hangs"
}

modprobe -a dm_mod ublk_drv nbd veth || { echo "SKIPPED: no device-mapper, ublk or nbd"; exit 77; }
begin
case "$part" in
    doors)
        the_device
        if [ -z "$full" ]; then swaps 1; else swaps 10; fi
        killed
        grown
        the_end
        forced
        ;;
    nodes)
        ctl alpha export $resource --mapped >/dev/null
        mount_it
        if [ -z "$full" ]; then moves 1; else moves 5; fi
        held
        reconnects
        the_end
        forced_hanging
        ;;
esac
