#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A Primary without a disk finds its last copy again. The copy acknowledges a write, and its machine
# loses power, so the write is gone. After that the Primary must read what was acknowledged, or get
# an error. It must never read what was there before.
#   last_copy_power.sh BIN_DIR [ROUNDS]
# beta's machine is a namespace. Its disk, and the file that holds the copy of its superblock, are
# served by tests/vm/volatile_disks and mounted by nbdfuse: what was not flushed is lost with the
# process. (The disk is a loop device above that, because Linux forgets the DSYNC of an asynchronous
# direct write to FUSE.) Each boot has a new boot id. The drive below the copy stands still while
# the two nodes find each other, so that beta's record takes as long as possible.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: last_copy_power.sh BIN_DIR [ROUNDS]}
rounds=${2:-3}
needs jq qemu-io nbdcopy nbdfuse losetup
resource=r0
loop=                         # beta's disk
declare -A DRIVE=() MOUNT=()  # processes, by the name of the drive: data, copy

skip() {
    echo "SKIPPED: $*"
    exit 77
}
image() { printf '%s/%s.image' "$CLUSTER_DIR" "$1"; }
place() {  # where a drive is mounted
    case $1 in
        data) printf '%s/data' "$CLUSTER_DIR" ;;
        copy) find "$CLUSTER_DIR/beta/state/superblocks" -name "$resource.*" ;;
    esac
}

# plug DRIVE: serves it, with nothing in its cache.
plug() {
    local drive=$1 end=$((SECONDS + 60)) at
    at=$(place "$drive")
    rm -f "$(image "$drive").sock"
    : >"$CLUSTER_DIR/$drive.log"
    "$bin/tests/vm/volatile_disks" 1 "$(image "$drive")" >>"$CLUSTER_DIR/$drive.log" 2>&1 &
    DRIVE[$drive]=$!
    until grep -q serving "$CLUSTER_DIR/$drive.log"; do
        if ! kill -0 "${DRIVE[$drive]}" 2>/dev/null || [ "$SECONDS" -ge "$end" ]; then
            cluster_fail "no drive: $(cat "$CLUSTER_DIR/$drive.log")"
        fi
        sleep 0.02
    done
    nbdfuse "$at" "nbd+unix:///disk?socket=$(image "$drive").sock" \
        >>"$CLUSTER_DIR/$drive.log" 2>&1 &
    MOUNT[$drive]=$!
    until mountpoint -q "$at"; do
        if ! kill -0 "${MOUNT[$drive]}" 2>/dev/null || [ "$SECONDS" -ge "$end" ]; then
            skip "nbdfuse cannot mount: $(cat "$CLUSTER_DIR/$drive.log")"
        fi
        sleep 0.02
    done
    [ "$drive" = data ] || return 0
    loop=$(losetup --find --show "$at") || skip "no loop device can be made"
    ln -sfn "$loop" "$(disk_of beta)"
}
# Ends all that runs on beta's machine at once. The daemon goes first, so that it cannot report a
# disk that fails.
power_cut() {
    local drive at pids=("${PID[beta]:-}" "${DRIVE[@]}" "${MOUNT[@]}")
    # shellcheck disable=SC2068,SC2086  # without the empty word, if beta does not run
    kill -KILL ${pids[@]} 2>/dev/null || true
    unset "PID[beta]"
    # The daemon's last I/O ends with the process that would have answered it.
    # shellcheck disable=SC2068
    wait ${pids[@]} 2>/dev/null || true
    [ -z "$loop" ] || losetup --detach "$loop" || true
    loop=
    for drive in "${!DRIVE[@]}"; do
        at=$(place "$drive")
        umount "$at" || umount --lazy "$at" || true
    done
    DRIVE=() MOUNT=()
}
test_end() {
    local code=$?
    power_cut
    set +e
    (exit "$code")
    cluster_test_end  # it uses the exit status too
}

# As cluster_start, but with a new boot id each time.
boot_beta() {
    local end=$((SECONDS + 120))
    cat /proc/sys/kernel/random/uuid >"$CLUSTER_DIR/boot_id"
    # shellcheck disable=SC2016  # they are the arguments of sh
    setsid ip netns exec "${NETNS[beta]}" sh -c '
        mount --bind "$1" /proc/sys/kernel/random/boot_id || exit
        shift
        exec "$@"' sh "$CLUSTER_DIR/boot_id" \
        "$bin/tools/replicad" --name beta --state "$CLUSTER_DIR/beta/state" \
        --control "$(control_socket beta)" --listen "${ADDRESS[beta]}" \
        >>"$CLUSTER_DIR/beta/log" 2>&1 </dev/null &
    PID[beta]=$!
    until ctl beta status >/dev/null 2>&1; do
        kill -0 "${PID[beta]}" 2>/dev/null || cluster_fail "replicad of beta ended at its start"
        [ "$SECONDS" -lt "$end" ] || cluster_fail "replicad of beta does not answer in 2 minutes"
        sleep 0.05
    done
}

# create NODE
create() {
    ctl "$1" create $resource --node-id "${NODE_ID[$1]}" --disk "$(disk_of "$1")" \
        --peer "$(peer_argument "$(peer_of "$1")")" --ping-timeout-ms 30000 \
        --request-timeout-ms 60000
    ctl "$1" up $resource
}
# A pair of new nodes; alpha is Primary and gives its disk up.
begin() {
    rm -rf "$CLUSTER_DIR"/*/state "$CLUSTER_DIR"/*/disk "$CLUSTER_DIR"/*.image
    truncate -s 16M "$(disk_of alpha)" "$(image data)"
    touch "$(place data)"
    plug data
    cluster_start alpha
    boot_beta
    create alpha
    create beta
    # From here on the copy lies on a drive of its own.
    cluster_stop beta
    cp "$(place copy)" "$(image copy)"
    plug copy
    boot_beta
    ctl alpha wait $resource --until connected --timeout 110
    # A blank drive does not look blank through nbdfuse, so alpha fills it.
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 110
    ctl alpha export $resource --nbd "unix:$(door_of alpha)"
    ctl alpha detach $resource
}
end() {
    power_cut
    cluster_crash alpha
}

connection() { status_field alpha $resource '.connections[0]."connection-state"'; }
# What beta's label says of a Primary, on the stable part of the disk.
in_use() {
    "$bin/tools/replicameta" dump --disk "$(image data)" --json |
        jq -e '.flags | index("primary-ind")' >/dev/null
}
attaching() { [ "$(status_field beta $resource '.devices[0]."disk-state"')" != UpToDate ]; }
await_not() {  # await_not WHAT COMMAND...
    local what=$1 end=$((SECONDS + 110))
    shift
    while "$@"; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in 110 s: $what"
        sleep 0.05
    done
}

# put PATTERN: writes without a flush. (qemu-io always sends one at its end.)
put() {
    head -c 4096 /dev/zero | tr '\0' "\\00$1" >"$CLUSTER_DIR/block"
    timeout 110 nbdcopy "$CLUSTER_DIR/block" "$(uri_of alpha $resource)"
}
reads_pattern() {
    timeout 110 qemu-io -f raw -r -c "read -P $1 0 4k" "$(uri_of alpha $resource)" 2>&1
}
# A read that succeeds must return the new value. While the peer is not there yet, an error is fine.
judge() {
    local said code=0
    said=$(reads_pattern 2) || code=$?
    if [ $code = 0 ]; then
        seen="the new value"
    elif [ $code = 124 ]; then
        cluster_fail "alpha does not answer a read in 110 s"
    elif [[ $said != *"Input/output error"* ]]; then
        ! reads_pattern 1 >/dev/null || said="what was there before the acknowledged write"
        cluster_fail "alpha, which is a live Primary, reads $said"
    fi
}

round() {
    local patience waited seen="an error" end reads
    begin
    put 1 >/dev/null
    qemu-io -f raw -c flush "$(uri_of alpha $resource)"
    cluster_link down
    cluster_loss_seen alpha $resource
    # It stops in order, so that its label says that nobody uses it.
    cluster_stop beta
    boot_beta
    await_not "beta has its disk" attaching
    ! in_use || cluster_fail "beta's label says that it is in use, so that this proves nothing"

    kill -STOP "${DRIVE[copy]}"
    # If a node waits for the record, the record comes in the end.
    (sleep 4 && kill -CONT "${DRIVE[copy]}") >/dev/null 2>&1 &
    patience=$!
    cluster_link up
    end=$((SECONDS + 110))
    until put 2 >"$CLUSTER_DIR/put" 2>&1; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "no write: $(cat "$CLUSTER_DIR/put")"
    done
    power_cut
    if kill "$patience" 2>/dev/null; then waited="did not wait"; else waited=waited; fi
    say "the write $waited for beta's record"

    plug data
    plug copy
    boot_beta
    end=$((SECONDS + 110))
    while [[ $(connection) != @(Connected|StandAlone) ]]; do
        judge
        [ "$SECONDS" -lt "$end" ] || cluster_fail "beta does not come back"
    done
    for reads in $(seq 20); do
        judge
    done
    say "round $1: beta is $(connection) after its loss of power; $reads reads: $seen"
    end
}

cluster_test_begin "$bin"
trap test_end EXIT
[ "$CLUSTER_MODE" = namespaces ] || skip "no network namespaces here, so no node has its own boot"
# shellcheck disable=SC2016  # for sh
ip netns exec "${NETNS[beta]}" sh -c 'mount --bind "$0" /proc/sys/kernel/random/boot_id' "$0" ||
    skip "nothing can be mounted over the boot id"
for number in $(seq "$rounds"); do
    round "$number"
done
