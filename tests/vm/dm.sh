# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the guest tests with device-mapper share. To be sourced, after scripts/cluster.sh. $resource
# is the resource in hand.
export DM_DISABLE_UDEV=1  # there is none in the guest: dmsetup makes the nodes itself
seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }
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
no_kernel_trouble() {
    if dmesg | grep -E 'BUG|Oops|WARNING|blocked for more'; then
        cluster_fail "the kernel is in trouble"
    fi
}
