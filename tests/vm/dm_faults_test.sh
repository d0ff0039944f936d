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

start_load() { load_begin --ioengine=nbd --uri="$(uri_of alpha $resource)"; }
why() { status_field "$1" $resource '.why'; }
again() {  # attach and resync NODE
    ctl "$1" attach $resource
    ctl alpha wait $resource --until synced --timeout 100
}
replicas_are() {  # replicas_are equal|different
    local node
    close_doors alpha $resource
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
            --size $size --peer "$(peer_argument "$(peer_of "$node")")" \
            --ping-timeout-ms 30000
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until connected --timeout 60
    ctl alpha promote $resource --force
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
}

# Every write of the primary's disk fails: it is given up, the peer serves.
failing_writes() {
    start_load
    dm_reload leg-alpha "0 $sectors flakey ${RAW[alpha]} 0 0 60 1 error_writes"
    dm_wait "alpha's disk is given up" disk_is alpha Diskless
    load_goes_on alpha "$(written alpha)"
    load_end
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
    dm_wait "alpha's disk is given up" disk_is alpha Diskless
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
    start_load
    load_end
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
    start_load
    load_end
    [ "$(status_field alpha $resource '.devices[0]."current-uuid"')" = "$generation" ] ||
        cluster_fail "somebody was evicted"
    [ "$(disk_state beta)" = UpToDate ] || cluster_fail "beta is $(disk_state beta)"
    mend beta
    replicas_are equal
    seen "400 ms a write on one leg: slow, and nothing else"
}

# It neither answers nor fails. The secondary's is left behind after the timeout; its status names
# it, as that of a primary does.
is_named() { why "$1" | grep 'has not answered for'; }
hanging_disk() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" options $resource --request-timeout-ms 3000 >/dev/null
    done
    start_load
    dmsetup suspend --nolockfs leg-beta
    dm_wait "beta is named" is_named beta
    echo "     status: $(why beta)"
    load_goes_on alpha "$(written alpha)"
    load_end
    dmsetup resume leg-beta
    ctl alpha wait $resource --until synced --timeout 100
    start_load
    dmsetup suspend --nolockfs leg-alpha
    dm_wait "alpha is named" is_named alpha
    echo "     status: $(why alpha)"
    dmsetup resume leg-alpha
    load_goes_on alpha "$(written alpha)"
    load_end
    ctl alpha wait $resource --until synced --timeout 100
    says_nothing() { [ -z "$(why alpha)" ]; }
    dm_wait "the status says nothing any more" says_nothing
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
