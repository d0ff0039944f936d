#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Mirrors on what device-mapper makes: linear, thin and encrypted volumes, each with a load, kills
# of both daemons and resyncs, and equal at the end; a thin pool that runs full below one node.
#   tests/vm/dm_backing_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"

bin=${1:?usage: dm_backing_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 --disk 160M --disk 160M \
        "$here/$(basename "$0")" "$bin"
fi
# shellcheck source=tests/vm/dm.sh
. "$here/dm.sh"

size=$((24 << 20))
sectors=$((size / 512 + 4096))  # and metadata
disk_of() { printf '/dev/mapper/%s-%s' "$kind" "$1"; }

make_linear() { dm_create "linear-$1" "0 $sectors linear $2 2048"; }
make_crypt() {
    dm_create "crypt-$1" "0 $sectors crypt aes-xts-plain64 $(printf '%064d' 7) 0 $2 0"
}
make_thin() {  # a pool with room for all, or less
    local room=${3:-$sectors}
    dd if=/dev/zero of="$2" bs=4k count=1 conv=fsync status=none
    dm_create "pool-meta-$1" "0 8192 linear $2 0"
    dm_create "pool-data-$1" "0 $room linear $2 8192"
    dm_create "pool-$1" "0 $room thin-pool $(dm_number "pool-meta-$1") \
        $(dm_number "pool-data-$1") 128 0 1 error_if_no_space"
    dmsetup message "pool-$1" 0 "create_thin 0"
    dm_create "thin-$1" "0 $sectors thin $(dm_number "pool-$1") 0"
}
make() { "make_$kind" alpha /dev/vda && "make_$kind" beta /dev/vdb "$@"; }
unmake() {
    local node name
    for node in "${NODES[@]}"; do
        for name in "$kind" pool pool-data pool-meta; do
            ! dmsetup info "$name-$node" >/dev/null 2>&1 || dm_remove "$name-$node"
        done
    done
}

mirror() {
    local node
    resource=on-$kind
    for node in "${NODES[@]}"; do
        ctl "$node" create "$resource" --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size $size --force --peer "$(peer_argument "$(peer_of "$node")")" "${PATIENT[@]}"
        ctl "$node" up "$resource"
    done
    ctl alpha wait "$resource" --until connected --timeout 60
    ctl alpha promote "$resource" --force
    [ "${1:-}" = unsynced ] || ctl alpha wait "$resource" --until synced --timeout 100
    ctl alpha export "$resource" --nbd "unix:$(door_of alpha)"
}
start_load() { load_begin --ioengine=nbd --uri="$(uri_of alpha "$resource")"; }

try() {
    kind=$1
    make
    mirror
    start_load
    cluster_crash beta
    load_goes_on alpha "$(written alpha)"
    cluster_start beta
    load_goes_on alpha "$(written alpha)"
    load_end
    ctl alpha wait "$resource" --until synced --timeout 100
    start_load
    cluster_crash alpha
    wait "$load" && cluster_fail "the load did not notice the death of its server"
    cluster_start alpha
    ctl alpha wait "$resource" --until synced --timeout 100
    for node in "${NODES[@]}"; do
        ctl "$node" down "$resource"
    done
    cmp --bytes=$size "$(disk_of alpha)" "$(disk_of beta)" || cluster_fail "the replicas differ"
    unmake
    no_kernel_trouble
    seen "$kind: kills under load, resynced, equal"
}

# Below beta there is less than the volume may need. It is given up there, and nobody else notices.
full_pool() {
    kind=thin
    make $((18 << 11))
    mirror unsynced
    fio --name=fill --ioengine=nbd --uri="$(uri_of alpha "$resource")" --rw=write --bs=64k \
        --iodepth=16 --size=$size --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
        --minimal >/dev/null || cluster_fail "a full pool of the peer is seen above"
    dm_wait "beta's disk is given up" disk_is beta Diskless
    [ "$(disk_state alpha)" = UpToDate ] || cluster_fail "alpha is $(disk_state alpha)"
    status_field beta "$resource" .why | grep -q 'no space left' ||
        cluster_fail "the status of beta does not say why: $(ctl beta status "$resource")"
    for node in "${NODES[@]}"; do
        ctl "$node" down "$resource"
    done
    seen "a thin pool that is full below the secondary: its disk is given up, no error above"
}

modprobe -a dm_mod dm_thin_pool dm_crypt || { echo "SKIPPED: no device-mapper"; exit 77; }
cluster_begin "$bin" rootless
for node in "${NODES[@]}"; do
    cluster_start "$node"
done
for kind in linear thin crypt; do
    try $kind
    for node in "${NODES[@]}"; do
        ctl "$node" remove "on-$kind"
    done
done
full_pool
