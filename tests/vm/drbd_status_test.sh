#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `replicactl drbd-status` says in a guest with Linux' own DRBD (8.4) of two resources that are
# each other's peer by loopback, next to what DRBD's own tool says.
#   tests/vm/drbd_status_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${1:?usage: drbd_status_test.sh BIN_DIR}
setup=/lib/drbd/drbdsetup-84
if [ ! -x $setup ] || ! command -v drbdmeta jq >/dev/null; then
    echo "SKIPPED: drbd-utils with drbdsetup-84, or jq, is not installed (scripts/setup.sh test)"
    exit 77
fi
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 300 --disk 64M --disk 64M \
        "$here/$(basename "$0")" "$bin"
fi

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    "$bin/tools/replicactl" drbd-status >&2 || true
    dmesg | tail -n 20
    exit 1
}
seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }
said() { "$bin/tools/replicactl" drbd-status "$@"; }
field() { said --json | jq -r ".[] | select(.name == \"$1\") | $2"; }
peer='.connections[0].peer_devices[0]'
expect() {  # expect RESOURCE FILTER VALUE: in a minute
    local end=$((SECONDS + 60))
    while [ "$SECONDS" -lt $end ]; do
        if [ "$(field "$1" "$2")" = "$3" ]; then return; fi
        sleep 0.1
    done
    fail "$1: $2 is '$(field "$1" "$2")', not '$3'"
}

status=0
said 2>/tmp/error || status=$?
if [ $status != 2 ] || ! grep -q 'has no DRBD' /tmp/error; then
    fail "without the module: $(</tmp/error)"
fi
[ ! -e /sys/module/drbd ] || fail "asking has loaded the module"
modprobe drbd usermode_helper=/bin/true || {
    echo "SKIPPED: the guest's kernel has no drbd module"
    exit 77
}
said | grep 'has no resource' >/dev/null || fail "it should say that there is no resource"
[ "$(said --json)" = '[]' ] || fail "it should print an empty list"
seen "without the module, and without a resource"

minor=0
for name in left right; do
    disk=/dev/vda
    [ $name = left ] || disk=/dev/vdb
    drbdmeta --force $minor v08 $disk internal create-md >/dev/null 2>&1
    $setup new-resource $name
    $setup new-minor $name $minor 0
    $setup attach $minor $disk $disk internal
    minor=$((minor + 1))
done
expect left .role Secondary
expect left '.devices[0]."disk-state"' Inconsistent
[ "$(field left '.connections | length')" = 0 ] || fail "a connection that is not there"
$setup connect left 127.0.0.1:7001 127.0.0.1:7002 --protocol=C --ping-timeout=20
expect left '.connections[0]."connection-state"' Connecting
$setup connect right 127.0.0.1:7002 127.0.0.1:7001 --protocol=C --ping-timeout=20
expect left '.connections[0]."connection-state"' Connected
expect right '.connections[0].name' 127.0.0.1:7001
expect left "$peer.\"replication-state\"" Established
expect left "$peer.\"peer-disk-state\"" Inconsistent
seen "attached and connected"

$setup disk-options 0 --resync-rate=500K --c-plan-ahead=0
$setup primary 0 --force
expect left .role Primary
expect right '.connections[0]."peer-role"' Primary
expect left "$peer.\"replication-state\"" SyncSource
expect right "$peer.\"replication-state\"" SyncTarget
[ "$(field right "$peer.\"out-of-sync-bytes\"")" -gt 0 ] || fail "nothing is out of sync"
$setup disk-options 0 --resync-rate=200M --c-plan-ahead=0
expect right '.devices[0]."disk-state"' UpToDate
expect left "$peer.\"replication-state\"" Established
dd if=/dev/zero of=/dev/drbd0 bs=64k count=16 oflag=direct status=none
[ "$(field left '.devices[0].written')" -ge 1024 ] || fail "what was written does not show"
[ "$(field left '.devices[0]."size-bytes"')" = "$(blockdev --getsize64 /dev/drbd0)" ] ||
    fail "the size is another one"
said
for minor in 0 1; do
    name=left
    [ $minor = 0 ] || name=right
    ours=$(field $name '.role + "/" + .connections[0]."peer-role"')
    [ "$ours" = "$($setup role $minor)" ] || fail "$ours, but DRBD says $($setup role $minor)"
    ours=$(field $name ".devices[0].\"disk-state\" + \"/\" + $peer.\"peer-disk-state\"")
    [ "$ours" = "$($setup dstate $minor)" ] || fail "$ours, but DRBD says $($setup dstate $minor)"
done
seen "the same words as DRBD's own tool"

$setup disconnect 127.0.0.1:7002 127.0.0.1:7001
expect left "$peer.\"peer-disk-state\"" DUnknown
expect left "$peer.\"replication-state\"" Off
$setup detach 1
expect right '.devices[0]."disk-state"' Diskless
seen_by_nobody=$(setpriv --reuid=65534 --regid=65534 --clear-groups "$bin/tools/replicactl" \
    drbd-status | grep -c role:)
[ "$seen_by_nobody" -ge 2 ] || fail "who is not root sees nothing"
seen "disconnected, detached, and seen by everybody"
