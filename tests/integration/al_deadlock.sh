#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Nodes with full activity logs must not wait for each other in a circle: writes that change the
# extents all the time cost no peer, no generation and no error.
#   al_deadlock.sh BIN_DIR KIND
# KIND  diskless   a Primary without its disk, whose own log slows nothing down, on 20 GiB
#       unequal    1237 extents on the Primary, 67 on the other
#       resync     67 on both, and a resync beside the writes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${1:?usage: al_deadlock.sh BIN_DIR KIND}
kind=${2:?KIND is missing}
resource=r0
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"
# shellcheck source=tests/integration/al_load.sh
. "$here/al_load.sh"
needs jq fio python3

begin() {  # begin DISK_SIZE
    cluster_test_begin "$bin"
    cluster_start alpha
    cluster_start beta
    # A machine that stands still is no lost link. All other options have their defaults.
    cluster_create $resource "$1" --ping-timeout-ms 30000
}
load() {  # load SIZE SECONDS [OPTION of fio...]
    watch_begin
    load_begin "$@"
    load_end
    watch_judge
}

diskless() {
    begin 20G
    cluster_primary alpha $resource
    ctl alpha detach $resource
    load 19G 8
    ctl alpha attach $resource
}
unequal() {
    begin 1G
    al_extents 1237 67
    cluster_primary alpha $resource
    load 1000M 8
}
# The target's log needs room for the resync too. A request that waits there for room may have come
# before the flush that makes the room. This is most likely if the writes just fill the log and no
# node has to ask for a flush. So the first load comes in pieces of 67 extents.
resync() {
    begin 8G
    al_extents 67 67
    cluster_primary alpha $resource
    ctl alpha options $resource --resync-rate-max 200M >/dev/null
    ctl alpha invalidate-remote $resource
    load 7900M 6 --thinktime=400ms --thinktime_blocks=67
    load 7900M 5
    [ "$(peer_field alpha $resource '."peer-disk-state"')" != UpToDate ] ||
        cluster_fail "the resync has ended before the writes"
    ctl alpha options $resource --resync-rate-max 0 >/dev/null
}

case $kind in
    diskless | unequal | resync) $kind ;;
    *) echo "al_deadlock.sh: unknown kind '$kind'" >&2; exit 2 ;;
esac
ctl alpha wait $resource --until synced --timeout 110
watch_judge_logs
load_equal
