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

# A primary's disk hangs below a block device: no command waits for it for long, and by force the
# device is taken from its users. What they had written is as they wrote it, or not there.
hung_writers() {  # hung_writers DEVICE: more than the device has tags, and than fits a socket
    python3 - "$1" <<'PYTHON'
import mmap, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
written = []
def write(number):
    block = mmap.mmap(-1, 1 << 17)
    block.write(bytes([number % 250 + 1]) * (1 << 17))
    try:
        os.pwritev(fd, [block], number << 17)
        written.append(number)
    except OSError:
        pass
threads = [threading.Thread(target=write, args=(n,)) for n in range(200)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(f"{len(written)} writes have ended well" if written else 0)
PYTHON
}
hung_checked() {  # hung_checked DEVICE: how many of them are there
    python3 - "$1" <<'PYTHON'
import sys
there = 0
with open(sys.argv[1], "rb") as device:
    for number in range(200):
        device.seek(number << 17)
        block = set(device.read(1 << 17))
        if block not in ({0}, {number % 250 + 1}):
            sys.exit(f"block {number} holds what nobody has written there")
        there += block != {0}
print(there)
PYTHON
}
requests_on() { awk '{exit !($9 >= 100)}' "/sys/block/${1#/dev/}/stat"; }
no_user_of() { ! compgen -G '/proc/[0-9]*/fd/*' | xargs -r readlink 2>/dev/null | grep -qx "$1"; }
command_in() {  # command_in SECONDS EXIT-STATUS COMMAND...: it ends in time, and so
    local limit=$1 expected=$2 status=0 began=$SECONDS
    shift 2
    timeout "$limit" "$bin/tools/replicactl" --control "$(control_socket alpha)" "$@" \
        2>"$CLUSTER_DIR/refusal" || status=$?
    [ "$status" = "$expected" ] ||
        cluster_fail "$* ended with $status, not with $expected: $(<"$CLUSTER_DIR/refusal")"
    echo "     $*: $((SECONDS - began)) s $(head -c 160 "$CLUSTER_DIR/refusal")"
}
hung_door() {  # hung_door ublk|nbd
    local path there
    ctl alpha unexport $resource
    path=$(ctl alpha export $resource --door "$1")
    path=${path%%,*}
    blkdiscard --zeroout "$path"
    dmsetup suspend --nolockfs leg-alpha
    if [ "$1" = ublk ]; then
        dd if=/dev/zero of="$path" bs=64k seek=400 count=4 conv=notrunc status=none 2>/dev/null &
        pid=$!
        dm_wait "only the page cache is left" no_user_of "$path"
        command_in 60 11 unexport $resource
    fi
    hung_writers "$path" &
    writers=$!
    dm_wait "the writers wait" requests_on "$path"
    command_in 60 0 unexport $resource --door "$1" --force
    wait "$writers" || cluster_fail "the writers have not failed"
    [ "$1" = nbd ] || wait "$pid" || true
    ctl alpha status $resource >/dev/null
    dmsetup resume leg-alpha
    path=$(ctl alpha export $resource --door "$1")
    path=${path%%,*}
    there=$(hung_checked "$path") || cluster_fail "$there"
    ctl alpha wait $resource --until synced --timeout 100
    replicas_are equal
    dmesg --clear  # of errors that were meant to be
    seen "$1 over a disk that hangs: taken from its users by force, $there of 200 writes are there"
}

modprobe -a dm_mod dm_flakey dm_delay || { echo "SKIPPED: no device-mapper"; exit 77; }
begin
failing_writes
bad_sectors
lying_disk
slow_leg
hanging_disk
no_kernel_trouble
if modprobe ublk_drv; then hung_door ublk; fi
if modprobe nbd nbds_max=0; then hung_door nbd; fi
