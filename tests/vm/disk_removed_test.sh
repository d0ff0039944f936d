#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A primary's disk that is pulled out, in a guest: noticed by the kernel's word while nobody reads
# or writes, and under load without an error above; put back, attached and resynced.
#   tests/vm/disk_removed_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: disk_removed_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 "$here/$(basename "$0")" "$bin"
fi

# shellcheck source=tests/vm/nodes.sh
. "$here/nodes.sh"
resource=r0
size=$((64 << 20))
disk=
hosts='/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*'
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

# The one disk of the scsi_debug module.
find_disk() {
    local found end=$((SECONDS + 60))
    until found=$(compgen -G "$hosts/target*/*:*/block/*"); do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "scsi_debug has no disk"
        sleep 0.1
    done
    disk=/dev/$(basename "$found")
    [ -b "$disk" ] || cluster_fail "there is no $disk"
}
pull_out() { echo 1 >"/sys/block/${disk#/dev/}/device/delete"; }
put_back() {
    local host
    compgen -G "$hosts/scsi_host/host*" | while read -r host; do
        echo '- - -' >"$host/scan"
    done
    find_disk
}
wait_disk() {  # wait_disk STATE
    local end=$((SECONDS + 60))
    until [ "$(status_field alpha $resource '.devices[0]."disk-state"')" = "$1" ]; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "the disk is not $1: $(ctl alpha status)"
        sleep 0.05
    done
}

if ! modprobe sd_mod || ! modprobe scsi_debug dev_size_mb=80; then
    echo "SKIPPED: the guest's kernel has no scsi_debug"
    exit 77
fi
find_disk
cluster_begin "$bin" rootless
truncate -s 80M "$CLUSTER_DIR/beta/disk"
for node in alpha beta; do
    cluster_start $node
    path=$CLUSTER_DIR/beta/disk
    [ $node = beta ] || path=$disk
    ctl $node create $resource --node-id "${NODE_ID[$node]}" --disk "$path" --size $size \
        --peer "$(peer_argument "$(peer_of $node)")" "${PATIENT[@]}"
    ctl $node up $resource
done
ctl alpha wait $resource --until connected --timeout 60
ctl alpha promote $resource --force
ctl alpha wait $resource --until synced --timeout 100
cluster_primary alpha $resource
fio --name=before --ioengine=nbd --uri="$(uri_of alpha $resource)" --rw=write --bs=64k --size=8M \
    --verify=crc32c --verify_state_save=0 --minimal >/dev/null
seen "a mirror whose primary is on $disk"

# From here on nobody touches the disk: what was written is flushed.
touched() { awk '{print $1, $5, $9, $16}' "/sys/block/${disk#/dev/}/stat"; }
until before=$(touched) && sleep 1 && [ "$(touched)" = "$before" ]; do :; done
pull_out
wait_disk Diskless
grep -q "$disk was removed from this machine" "$CLUSTER_DIR/alpha/log" ||
    cluster_fail "the log does not say which device went"
[ "$(status_field alpha $resource .role)" = Primary ] || cluster_fail "it is not Primary any more"
fio --name=before --ioengine=nbd --uri="$(uri_of alpha $resource)" --rw=read --bs=64k --size=8M \
    --verify=crc32c --verify_state_save=0 --minimal >/dev/null
seen "pulled out while idle: noticed, and the data is read from the peer"

reattach() {
    put_back
    close_doors alpha $resource
    ctl alpha demote $resource
    ctl alpha attach $resource
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
}
reattach
seen "put back, attached, synced"

writes() { awk '{print $5}' "/sys/block/${disk#/dev/}/stat"; }
for round in 1 2 3; do
    before=$(writes)
    fio --name=load --ioengine=nbd --uri="$(uri_of alpha $resource)" --rw=randwrite --bs=4k-64k \
        --iodepth=16 --size=32M --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
        --time_based --runtime=1000 --minimal >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
    until [ "$(writes)" -gt $((before + 50)) ]; do
        kill -0 $load || cluster_fail "the load has ended: $(tail -n 5 "$CLUSTER_DIR/fio")"
        sleep 0.1
    done
    sleep 0.$((RANDOM % 10))
    pull_out
    wait_disk Diskless
    sleep 1  # it goes on with the peer's
    kill -TERM $load
    ended=0
    wait $load || ended=$?  # 128: it was told to end; an error counts as one more
    [ $ended = 128 ] || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
    reattach
    seen "pulled out under load, round $round: no error above"
done
close_doors alpha $resource
for node in alpha beta; do
    ctl $node down $resource
done
cmp --bytes=$size "$disk" "$CLUSTER_DIR/beta/disk" || cluster_fail "the replicas differ"
seen "the replicas are equal"
