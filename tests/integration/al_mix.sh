#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Random writes at depth 64 with an activity log of 6433 extents on the Primary and of 67 on the
# other node. A third of the time they run alone, a third beside a resync, and a third without the
# Primary's disk, which then comes back under the writes. There must be no error and no lost link,
# and the replicas must be equal.
#   al_mix.sh BIN_DIR [--full]
# --full takes ten minutes on 20 GiB; the default takes a quarter of a minute.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${1:?usage: al_mix.sh BIN_DIR [--full]}
resource=r0
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"
# shellcheck source=tests/integration/al_load.sh
. "$here/al_load.sh"
needs jq fio python3

disk=4G volume=4000M third_s=4 rate=150M patience_s=110
case ${2:-} in
    "") ;;
    --full) disk=21G volume=20G third_s=200 rate=90M patience_s=1100 load_align=256k ;;
    *) echo "al_mix.sh: unknown option '$2'" >&2; exit 2 ;;
esac

# synced: waits, in parts that are shorter than the limit of ctl.
synced() {
    local end=$((SECONDS + patience_s))
    until ctl alpha wait $resource --until synced --timeout 50 2>/dev/null; do
        watch_judge_logs
        [ "$SECONDS" -lt "$end" ] || cluster_fail "no end of the resync in $patience_s s"
    done
}
# begun WHAT [SECONDS]: starts the load and returns when the first writes are done.
begun() {
    local written end=$((SECONDS + 60))
    say "$1"
    written=$(status_field alpha $resource '.devices[0]."written-bytes"')
    load_begin $volume "${2:-$third_s}"
    until [ "$(status_field alpha $resource '.devices[0]."written-bytes"')" -gt "$written" ]; do
        load_goes_on
        [ "$SECONDS" -lt "$end" ] || cluster_fail "nothing was written in a minute"
        sleep 0.1
    done
}
ended() {
    load_end
    watch_judge
}

cluster_test_begin "$bin"
cluster_start alpha
cluster_start beta
cluster_create $resource $disk --ping-timeout-ms 30000
al_extents 6433 67
cluster_primary alpha $resource

watch_begin
begun "as it is"
ended

begun "beside a resync"
ctl alpha options $resource --resync-rate-max $rate >/dev/null
ctl alpha invalidate-remote $resource
watch_begin
ended
[ "$(peer_field alpha $resource '."peer-disk-state"')" != UpToDate ] ||
    cluster_fail "the resync has ended before the writes"
ctl alpha options $resource --resync-rate-max 0 >/dev/null
synced
watch_judge

begun "without the Primary's disk"
ctl alpha detach $resource
watch_begin
ended
begun "and while it comes back" $((third_s / 2))
ctl alpha attach $resource
ended
synced
watch_judge
load_equal
