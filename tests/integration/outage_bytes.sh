#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What an outage costs, by the engine's own counters: after the secondary was away, no more is
# resynced than was written meanwhile plus the active activity-log extents; after the primary was
# killed, no more than those extents. And no less than what really differs: the replicas are equal.
#   outage_bytes.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: outage_bytes.sh BIN_DIR}
needs jq fio
resource=r0
mib=$((1024 * 1024))
extent=$((4 * mib))

write_some() {  # write_some NODE SEED: 40 MiB in 10,240 random writes
    timeout 120 fio --name=outage --ioengine=nbd --uri="$(uri_of "$1" $resource)" --rw=randwrite \
        --bs=4k --iodepth=16 --size=512M --io_size=40M --randseed="$2" --minimal >/dev/null
}

cluster_test_begin "$bin"
cluster_start alpha
cluster_start beta
cluster_create $resource 1G
cluster_primary alpha $resource
size=$(status_field alpha $resource '.devices[0]."size-bytes"')
write_some alpha 1

written=$(status_field alpha $resource '.devices[0]."written-bytes"')
sent=$(peer_field alpha $resource '."resync-sent-bytes"')
cluster_crash beta
write_some alpha 2
written=$(($(status_field alpha $resource '.devices[0]."written-bytes"') - written))
active=$(status_field alpha $resource '.devices[0]."al-used"')
cluster_start beta
ctl alpha wait $resource --until synced --timeout 60
moved=$(($(peer_field alpha $resource '."resync-sent-bytes"') - sent))
say "secondary away: $written bytes written, $active extents active, $moved bytes resynced"
[ "$written" = $((40 * mib)) ] || cluster_fail "the counter of written bytes is wrong"
[ "$moved" -ge "$written" ] || cluster_fail "less was resynced than was written"
[ "$moved" -le $((written + active * extent)) ] || cluster_fail "more was resynced than needed"

# Primary: what its activity log held is resynced, and nothing else.
active=$(status_field alpha $resource '.devices[0]."al-used"')
cluster_crash alpha
cluster_primary beta $resource
cluster_start alpha
ctl beta wait $resource --until synced --timeout 60
moved=$(peer_field beta $resource '."resync-sent-bytes"')
say "primary killed: $active extents active, $moved bytes resynced"
[ "$moved" -le $((active * extent)) ] || cluster_fail "more was resynced than the active extents"
ctl beta unexport $resource
cluster_compare $resource "$size"
say "the replicas are equal"
