#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The snapshot before a resync, of a thin volume of LVM: taken before the disk is Inconsistent, gone
# when the resync has ended, and put back when its source died on the way.
#   tests/vm/dm_snapshot_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_snapshot_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 --disk 400M --disk 100M \
        "$here/$(basename "$0")" "$bin"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"

resource=r0
size=$((48 << 20))
snapshot=r0-before-resync
# One of the names that udev gives it, and that LVM does not know.
by_id=/dev/disk/by-id/dm-name-vg0-r0
disk_of() { [ "$1" = alpha ] && echo /dev/vdb || echo $by_id; }
volumes() { lvs --noheadings -o lv_name vg0 | tr -d ' ' | tr '\n' ' '; }
kept() { volumes | grep -q "$snapshot"; }
gone() { ! kept; }
refuses() {  # refuses NODE EXIT-STATUS COMMAND...
    local status=0 node=$1 expected=$2
    shift 2
    ctl "$node" "$@" 2>"$CLUSTER_DIR/said" || status=$?
    [ "$status" = "$expected" ] ||
        cluster_fail "$* ended with $status, not with $expected: $(cat "$CLUSTER_DIR/said")"
}
fill() {  # fill FILE: random bytes, through alpha
    dd if=/dev/urandom of="$1" bs=1M count=40 status=none
    nbdcopy "$1" "$(uri_of alpha $resource)"
}

begin() {
    local node
    cluster_begin "$bin" rootless
    pvcreate -q /dev/vda
    vgcreate -q vg0 /dev/vda
    lvcreate --type thin-pool --size 300M --name pool vg0
    lvcreate -q --thin --virtualsize 64M --name r0 vg0/pool
    mkdir -p "$(dirname $by_id)"
    ln -s ../../mapper/vg0-r0 $by_id
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --peer "$(peer_argument "$(peer_of "$node")")" \
            --snapshot-before-resync yes "${PATIENT[@]}"
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
    gone || cluster_fail "a disk that was blank has a snapshot"
    fill "$CLUSTER_DIR/first"
    seen "a mirror whose secondary is on a thin volume: $(volumes)"
}

# A resync that ends: the snapshot is there meanwhile, and no longer.
ends() {
    ctl beta disconnect $resource
    fill "$CLUSTER_DIR/second"
    ctl alpha options $resource --resync-rate-max 1M >/dev/null
    ctl beta connect $resource
    dm_wait "beta is a target" disk_is beta Inconsistent
    dm_wait "the snapshot is made" kept
    ctl alpha options $resource --resync-rate-max 0 >/dev/null
    ctl alpha wait $resource --until synced --timeout 100
    dm_wait "the snapshot is removed" gone
    refuses beta 8 restore-before-resync $resource
    seen "taken before the resync, gone after it"
}

# A daemon that dies on the way back leaves a disk of which nobody knows what it holds.
interrupted() {
    local note=$CLUSTER_DIR/beta/state/superblocks/$resource.v0.before-resync
    grep -q 'restoring 0' "$note" || cluster_fail "a refusal has begun it: $(cat "$note")"
    # LVM goes on with it when the daemon has died; or it dies, too.
    mv /sbin/lvm /sbin/lvm.real
    cat >/sbin/lvm <<LVM
#!/bin/bash
[ "\$1" != lvconvert ] || touch $CLUSTER_DIR/begun
while [ "\$1" = lvconvert ] && [ -e $CLUSTER_DIR/held ]; do sleep 0.1; done
exec -a "\${0##*/}" /sbin/lvm.real "\$@"
LVM
    chmod 755 /sbin/lvm
    touch "$CLUSTER_DIR/held"
    ctl beta restore-before-resync $resource >/dev/null 2>&1 &
    dm_wait "it has begun" test -e "$CLUSTER_DIR/begun"
    grep -q 'restoring 1' "$note" || cluster_fail "it does not say so: $(cat "$note")"
    cluster_crash beta
    wait $! || true
    [ $((RANDOM % 2)) = 0 ] || kill "$(pgrep -x lvm)"
    rm "$CLUSTER_DIR/held"
    lvm_ended() { ! pgrep -x 'lvm.*'; }
    dm_wait "LVM has ended" lvm_ended
    cluster_start beta
    refuses beta 8 up $resource
    grep -q 'has begun' "$CLUSTER_DIR/said" || cluster_fail "it said: $(cat "$CLUSTER_DIR/said")"
    echo "     killed on the way back: $(volumes)"
}

some_received() { [ "$(peer_field beta $resource '."resync-received-bytes"')" -gt 1000000 ]; }
# The source dies in the middle. What beta had before is whole, if old.
restored() {
    ctl beta disconnect $resource
    fill "$CLUSTER_DIR/third"
    ctl alpha options $resource --resync-rate-max 1M >/dev/null
    ctl beta connect $resource
    dm_wait "the snapshot is made" kept
    dm_wait "some of it is there" some_received
    cluster_crash alpha
    dm_wait "beta is alone" sh -c "! '$bin/tools/replicactl' --control '$(control_socket beta)' \
        status $resource --json | grep -q SyncTarget"
    refuses beta 8 restore-before-resync $resource
    ctl beta down $resource
    ! cmp -s --bytes=$((40 << 20)) /dev/vg0/r0 "$CLUSTER_DIR/second" ||
        cluster_fail "the resync has changed nothing yet"
    exec 9</dev/vg0/r0
    refuses beta 4 restore-before-resync $resource
    exec 9<&-
    interrupted
    ctl beta restore-before-resync $resource | tee "$CLUSTER_DIR/said"
    gone || cluster_fail "the snapshot is still there: $(volumes)"
    blockdev --flushbufs /dev/vg0/r0
    cmp --bytes=$((40 << 20)) /dev/vg0/r0 "$CLUSTER_DIR/second" ||
        cluster_fail "the disk is not what it was"
    refuses beta 2 restore-before-resync $resource
    ctl beta disconnect $resource 2>/dev/null || true
    ctl beta up $resource
    [ "$(disk_state beta)" = Inconsistent ] || cluster_fail "beta is $(disk_state beta)"
    refuses beta 8 promote $resource
    ctl beta promote $resource --force
    ctl beta export $resource --nbd "unix:$(door_of beta)"
    nbdcopy "$(uri_of beta $resource)" "$CLUSTER_DIR/copy"
    cmp --bytes=$((40 << 20)) "$CLUSTER_DIR/copy" "$CLUSTER_DIR/second" ||
        cluster_fail "beta serves something else"
    seen "the source died: put back, and served"
}

# It comes back with newer data: neither side is overwritten before somebody decides.
apart() {
    cluster_start alpha
    refused() {
        status_field alpha $resource '.connections[0].why' | grep 'different volumes'
    }
    dm_wait "they stay apart" refused
    refused
    close_doors beta $resource
    ctl beta down $resource
    ctl alpha down $resource
    cmp --bytes=$((40 << 20)) /dev/vdb "$CLUSTER_DIR/third" || cluster_fail "alpha has lost data"
    cmp --bytes=$((40 << 20)) /dev/vg0/r0 "$CLUSTER_DIR/second" || cluster_fail "beta has lost data"
    seen "the other one returns: they stay apart"
}

# A disk of which none can be taken: said, and the resync goes on.
without() {
    ctl beta remove $resource
    ctl beta create $resource --node-id 1 --disk /dev/vg0/r0 --size $size --force \
        --peer "$(peer_argument alpha)"
    ctl alpha up $resource
    ctl alpha options $resource --resync-rate-max 0 >/dev/null
    ctl beta up $resource
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource 2>/dev/null || ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
    ctl alpha demote $resource
    ctl alpha invalidate $resource
    ctl alpha wait $resource --until synced --timeout 100
    grep -q 'no snapshot before this resync: /dev/vdb is no thin volume' "$CLUSTER_DIR/alpha/log" ||
        cluster_fail "the log does not say that there is no snapshot"
    seen "a disk without snapshots: said, and resynced all the same"
}

if ! modprobe -a dm_mod dm_thin_pool || ! command -v lvm >/dev/null; then
    echo "SKIPPED: no thin volumes, or LVM is not installed"
    exit 77
fi
begin
ends
restored
apart
without
no_kernel_trouble
