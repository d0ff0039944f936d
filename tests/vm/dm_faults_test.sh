#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Disks that fail, lie, lag and hang, by device-mapper below a mirror: what the application sees,
# and what the status says.
#   tests/vm/dm_faults_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_faults_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 --disk 160M --disk 160M \
        "$here/$(basename "$0")" "$bin"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"

resource=r0
size=$((32 << 20))
sectors=$((size / 512 + 4096))
declare -A RAW=([alpha]=/dev/vda [beta]=/dev/vdb)
disk_of() { printf '/dev/mapper/leg-%s' "$1"; }
sound() { printf '0 %d linear %s 0' $sectors "${RAW[$1]}"; }
mend() { dm_reload "leg-$1" "$(sound "$1")"; }

# load NAME SECONDS: through the primary's door, verified as it goes.
load() {
    fio --name="$1" --ioengine=nbd --uri="$(uri_of alpha $resource)" --rw=randrw --bs=4k-64k \
        --iodepth=16 --size=24M --loops=99 --time_based --runtime="$2" --verify=crc32c \
        --verify_fatal=1 --verify_backlog=64 --verify_state_save=0 --fsync=64 \
        --output-format=json >"$CLUSTER_DIR/fio-$1" 2>&1
}
load_ends() {
    wait "$pid" || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio-$1")"
    verified=$(sed -n '/^{/,$p' "$CLUSTER_DIR/fio-$1" | jq '.jobs[0].read.total_ios')
    [ "$verified" -gt 0 ] || cluster_fail "the load has verified nothing"
}
why() { status_field "$1" $resource '.why'; }
again() {  # attach and resync NODE
    ctl "$1" attach $resource
    ctl alpha wait $resource --until synced --timeout 100
}
replicas_are() {  # replicas_are equal|different
    local node
    ctl alpha unexport $resource
    for node in "${NODES[@]}"; do
        ctl "$node" down $resource
    done
    blockdev --flushbufs "${RAW[alpha]}" "${RAW[beta]}"  # what was read before, past the mapping
    if cmp -s --bytes=$size "${RAW[alpha]}" "${RAW[beta]}"; then now=equal; else now=different; fi
    [ $now = "$1" ] || cluster_fail "the replicas are $now"
    for node in "${NODES[@]}"; do
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
}

begin() {
    local node
    cluster_begin "$bin" rootless
    for node in "${NODES[@]}"; do
        dm_create "leg-$node" "$(sound "$node")"
        cluster_start "$node"
        ctl "$node" create $resource --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --peer "$(peer_argument "$(peer_of "$node")")" --request-timeout-ms 3000
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
}

# Every write of the primary's disk fails: it is given up, the peer serves.
failing_writes() {
    load writes 6 &
    pid=$!
    sleep 2
    dm_reload leg-alpha "0 $sectors flakey ${RAW[alpha]} 0 0 60 1 error_writes"
    dm_wait "alpha's disk is given up" disk_is alpha Diskless
    load_ends writes
    [ "$(status_field alpha $resource .role)" = Primary ] || cluster_fail "alpha is not Primary"
    [ -n "$(why alpha)" ] || cluster_fail "the status does not say why"
    echo "     status: $(why alpha)"
    mend alpha
    again alpha
    replicas_are equal
    seen "failing writes: detached, no error above, resynced"
}

# A range that can not be read, as bad sectors: the peer has it.
bad_sectors() {
    local bad=$((16 << 11)) many=2048
    dd if=/dev/urandom of="$CLUSTER_DIR/random" bs=1M count=24 status=none
    nbdcopy "$CLUSTER_DIR/random" "$(uri_of alpha $resource)"
    dm_reload leg-alpha "0 $bad linear ${RAW[alpha]} 0
$bad $many error
$((bad + many)) $((sectors - bad - many)) linear ${RAW[alpha]} $((bad + many))"
    nbdcopy "$(uri_of alpha $resource)" "$CLUSTER_DIR/copy"
    cmp --bytes=$((24 << 20)) "$CLUSTER_DIR/random" "$CLUSTER_DIR/copy" ||
        cluster_fail "what was read is not what was written"
    [ "$(disk_state alpha)" = Diskless ] || cluster_fail "the disk is $(disk_state alpha)"
    echo "     status: $(why alpha)"
    mend alpha
    again alpha
    ctl alpha options $resource --on-io-error pass_on
    dm_reload leg-alpha "0 $bad linear ${RAW[alpha]} 0
$bad $many error
$((bad + many)) $((sectors - bad - many)) linear ${RAW[alpha]} $((bad + many))"
    nbdcopy "$(uri_of alpha $resource)" "$CLUSTER_DIR/copy"
    cmp --bytes=$((24 << 20)) "$CLUSTER_DIR/random" "$CLUSTER_DIR/copy" ||
        cluster_fail "what was read is not what was written"
    [ "$(disk_state alpha)" = UpToDate ] || cluster_fail "pass_on gives the disk up all the same"
    mend alpha
    ctl alpha options $resource --on-io-error detach
    replicas_are equal
    seen "bad sectors: read from the peer; with pass_on the disk stays"
}

# It says that it has written, and has not. Only comparing finds that.
lying_disk() {
    dm_reload leg-beta "0 $sectors flakey ${RAW[beta]} 0 0 600 1 drop_writes"
    load lies 3 &
    pid=$!
    load_ends lies
    [ "$(disk_state beta)" = UpToDate ] || cluster_fail "somebody noticed: tell the documents"
    ctl beta disconnect $resource alpha  # or its metadata would be missed
    mend beta
    ctl beta connect $resource alpha
    ctl alpha wait $resource --until synced --timeout 60
    replicas_are different
    ctl beta invalidate $resource
    ctl alpha wait $resource --until synced --timeout 100
    replicas_are equal
    seen "dropped writes: found by comparing, mended by invalidate"
}

# Slow, but within the timeout: everything waits, nobody is evicted.
slow_leg() {
    local generation
    generation=$(status_field alpha $resource '.devices[0]."current-uuid"')
    dm_reload leg-beta "0 $sectors delay ${RAW[beta]} 0 0 ${RAW[beta]} 0 400"
    load slow 8 &
    pid=$!
    load_ends slow
    [ "$(status_field alpha $resource '.devices[0]."current-uuid"')" = "$generation" ] ||
        cluster_fail "somebody was evicted"
    [ "$(disk_state beta)" = UpToDate ] || cluster_fail "beta is $(disk_state beta)"
    mend beta
    replicas_are equal
    seen "400 ms a write on one leg: slow, and nothing else"
}

# It neither answers nor fails. The secondary's is left behind after the timeout; its status names
# it, as that of a primary does.
hanging_disk() {
    dmsetup suspend --nolockfs leg-beta
    load hangs 12 &
    pid=$!
    dm_wait "beta is named" sh -c "'$bin/tools/replicactl' --control '$(control_socket beta)' \
        status $resource --json | jq -r '.[0].why' | grep 'has not answered for'"
    echo "     status: $(why beta)"
    load_ends hangs
    dmsetup resume leg-beta
    ctl alpha wait $resource --until synced --timeout 100
    dmsetup suspend --nolockfs leg-alpha
    load waits 14 &
    pid=$!
    dm_wait "alpha is named" sh -c "'$bin/tools/replicactl' --control '$(control_socket alpha)' \
        status $resource --json | jq -r '.[0].why' | grep 'has not answered for'"
    echo "     status: $(why alpha)"
    dmsetup resume leg-alpha
    load_ends waits
    ctl alpha wait $resource --until synced --timeout 100
    [ -z "$(why alpha)" ] || cluster_fail "the status still says: $(why alpha)"
    replicas_are equal
    seen "a disk that hangs: named, and a secondary's is left behind"
}

modprobe -a dm_mod dm_flakey dm_delay || { echo "SKIPPED: no device-mapper"; exit 77; }
begin
failing_writes
bad_sectors
lying_disk
slow_leg
hanging_disk
no_kernel_trouble
