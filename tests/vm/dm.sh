# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the guest tests with device-mapper share. To be sourced, after scripts/cluster.sh. $resource
# is the resource in hand.
# shellcheck source=tests/vm/nodes.sh
. "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"
export DM_DISABLE_UDEV=1  # there is none in the guest: dmsetup makes the nodes itself
dm_finish() {
    local code=$?
    trap - EXIT
    if [ $code != 0 ]; then
        cluster_logs 40
        dmesg | tail -n 30
        dmsetup table
        dmsetup info -c
    fi
    exit $code  # the guest ends, and everything with it
}
trap dm_finish EXIT

dm_create() { dmsetup create "$1" --table "$2"; }
dm_remove() { dmsetup remove --retry "$1"; }
dm_reload() {  # under its users
    dmsetup reload "$1" --table "$2"
    dmsetup suspend --nolockfs "$1"
    dmsetup resume "$1"
}
dm_number() { dmsetup info -c --noheadings --separator : -o major,minor "$1"; }
dm_wait() {  # dm_wait WHAT COMMAND...
    local end=$((SECONDS + 60)) what=$1
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in time: $what"
        sleep 0.1
    done
}
# shellcheck disable=SC2154  # whoever sources this says which resource
disk_state() { status_field "$1" "$resource" '.devices[0]."disk-state"'; }
disk_is() { [ "$(disk_state "$1")" = "$2" ]; }
# A load that verifies what it writes as it goes, until it is told to end. The file system or door
# is said by arguments of fio.
load_begin() {  # load_begin ARGUMENT...: sets `load`, its process, which has begun to write
    local before
    before=$(written alpha)
    fio --name=load --rw=randwrite --bs=4k-64k --iodepth=16 --size=12M --time_based \
        --runtime=1000 --verify=crc32c --verify_backlog=16 --verify_fatal=1 \
        --verify_state_save=0 --fsync=64 --output-format=json "$@" >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
    load_goes_on alpha "$before"
}
written() { status_field "$1" "$resource" '.devices[0]."written-bytes"'; }
# Until NODE was told to write 2 MiB more than BEFORE: enough that some of it is verified.
load_goes_on() {  # load_goes_on NODE BEFORE
    local more=$(($2 + (2 << 20)))
    # shellcheck disable=SC2317  # dm_wait calls it
    writes_more() { [ "$(written "$1")" -gt "$more" ]; }
    dm_wait "the load writes: $(tail -n 5 "$CLUSTER_DIR/fio")" writes_more "$1"
}
load_end() {  # sets `verified`, the number of reads
    local status=0
    kill -TERM "$load" || true
    wait "$load" || status=$?
    # 128: it was told to end. An error counts as one more.
    [ $status = 128 ] || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
    verified=$(sed -n '/^{/,$p' "$CLUSTER_DIR/fio" | jq '.jobs[0].read.total_ios')
    [ "$verified" -gt 0 ] || cluster_fail "the load has verified nothing"
}
no_kernel_trouble() {
    if dmesg | grep -E 'BUG|Oops|WARNING|blocked for more'; then
        cluster_fail "the kernel is in trouble"
    fi
}
