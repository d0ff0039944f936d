#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What an outage costs, by the engine's own counters: when the secondary was away, what was written
# meanwhile is resynced and nothing else; where a node was killed, the active extents of its
# activity log come on top. And no less than what really differs: the replicas are equal. A client
# sees what is to come in the export's own bitmap, x-replica:dirty.
#   outage_bytes.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: outage_bytes.sh BIN_DIR}
needs jq fio qemu-io nbdinfo
resource=r0
mib=$((1024 * 1024))
extent=$((4 * mib))

write_some() {  # write_some NODE SEED OFFSET: 40 MiB in 10,240 writes, each to a block of its own
    timeout 600 fio --name=outage --ioengine=nbd --uri="$(uri_of "$1" $resource)" --rw=randwrite \
        --bs=4k --iodepth=16 --offset="$3" --size=40M --randseed="$2" --minimal >/dev/null
}

active_extents() { status_field "$1" $resource '.devices[0]."al-used"'; }

# A peer that is lost may lose what was not flushed, which is resynced too; so flush before. After
# `begin`, `moved` is what NODE has sent in resyncs and `written` what was written through it.
begin() {
    node=$1
    qemu-io -f raw -c flush "$(uri_of "$node" $resource)"
    sent_before=$(peer_field "$node" $resource '."resync-sent-bytes"')
    written_before=$(status_field "$node" $resource '.devices[0]."written-bytes"')
}
end() {
    ctl "$node" wait $resource --until synced --timeout 110
    moved=$(($(peer_field "$node" $resource '."resync-sent-bytes"') - sent_before))
    written=$(($(status_field "$node" $resource '.devices[0]."written-bytes"') - written_before))
    say "$1: $((written / mib)) MiB written, $((moved / mib)) MiB resynced, $2 extents active"
    [ "$moved" -ge "$written" ] || cluster_fail "less was resynced than was written"
    [ "$moved" -le $((written + $2 * extent)) ] || cluster_fail "more was resynced than needed"
}

# dirty NODE: the bytes that a client of NODE's export is told some peer lacks; the map has no gaps.
dirty() {
    nbdinfo --map=x-replica:dirty --json "$(uri_of "$1" $resource)" | jq -e --argjson size "$size" '
        if (map(.length) | add) == $size and .[0].offset == 0 then . else error("a gap") end
        | map(select(.type == 1).length) | add // 0'
}
expect_dirty() {  # expect_dirty NODE BYTES
    local seen
    seen=$(dirty "$1")
    [ "$seen" = "$2" ] || cluster_fail "x-replica:dirty says $seen bytes, not $2"
}

cluster_test_begin "$bin"
cluster_start alpha
cluster_start beta
cluster_create $resource 1G --ping-timeout-ms 30000 --request-timeout-ms 60000
cluster_primary alpha $resource
size=$(status_field alpha $resource '.devices[0]."size-bytes"')
[ "$(nbdinfo --size "$(uri_of alpha $resource)")" = "$size" ] || cluster_fail "nbdinfo: other size"
nbdinfo --json "$(uri_of alpha $resource)" |
    jq -e '.exports[0].contexts | contains(["base:allocation", "x-replica:dirty"])' >/dev/null
write_some alpha 1 0
expect_dirty alpha 0

begin alpha
cluster_stop beta
write_some alpha 2 100M
expect_dirty alpha $((40 * mib))
expect_dirty alpha "$(peer_field alpha $resource '."out-of-sync-bytes"')"
cluster_start beta
end "secondary stopped" 0
expect_dirty alpha 0
[ "$written" = $((40 * mib)) ] || cluster_fail "the counter of written bytes is wrong"

if [ "$CLUSTER_MODE" = namespaces ]; then
    begin alpha
    cluster_link down
    cluster_loss_seen alpha $resource
    write_some alpha 3 200M
    cluster_link up
    end "cable cut" 0
else
    say "SKIPPED: no network namespaces here, so the cable was not cut"
fi

# A secondary that is killed does not know which of its active extents had writes in flight.
active=$(active_extents alpha)
begin alpha
cluster_crash beta
write_some alpha 4 300M
cluster_start beta
end "secondary killed" "$active"

# Nor does a primary; nothing else of it is resynced.
active=$(active_extents alpha)
cluster_crash alpha
cluster_loss_seen beta $resource
cluster_primary beta $resource
begin beta
cluster_start alpha
end "primary killed" "$active"

ctl beta unexport $resource
cluster_compare $resource "$size"
say "the replicas are equal"
