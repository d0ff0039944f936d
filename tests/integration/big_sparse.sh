#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A 1 TiB volume on a sparse file: attaching takes less than 2 s of processor time, so that nothing
# else on this machine can make it fail, and the daemon with one peer less than 100 MiB of memory.
#   big_sparse.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: big_sparse.sh BIN_DIR}
needs jq
resource=big

now_ms() { date +%s%3N; }
spent_ms() {  # by all threads of the daemon
    awk -v tick="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / tick) }' \
        "/proc/${PID[alpha]}/stat"
}
# attach: takes its time, and looks at the memory afterwards.
attach() {
    local began spent
    began=$(now_ms)
    spent=$(spent_ms)
    ctl alpha attach $resource
    spent=$(($(spent_ms) - spent))
    rss_kib=$(awk '/^VmRSS:/ {print $2}' "/proc/${PID[alpha]}/status")
    say "$1: attached in $(($(now_ms) - began)) ms, $spent ms of processor time," \
        "$((rss_kib / 1024)) MiB resident"
    [ "$spent" -lt 2000 ] || cluster_fail "$1: attaching took too long"
    [ "$rss_kib" -lt $((100 * 1024)) ] || cluster_fail "$1: the daemon needs too much memory"
}

cluster_test_begin "$bin" rootless
if ! truncate -s 1T "$(disk_of alpha)" 2>/dev/null; then
    echo "SKIPPED: the file system at $CLUSTER_DIR has no room for a sparse file of 1 TiB"
    exit 77
fi
cluster_start alpha
ctl alpha create $resource --node-id 0 --disk "$(disk_of alpha)" --peer "$(peer_argument beta)"

attach "a new disk"
size=$(status_field alpha $resource '.devices[0].size')
say "disk $(status_field alpha $resource '.devices[0]."disk-state"'), $((size / 1024)) MiB"
[ "$size" -ge $((1024 * 1024 * 1024 - 64 * 1024)) ] || cluster_fail "the volume is too small"

# And again after a restart, when the bitmap has to be read from the disk.
ctl alpha detach $resource
cluster_stop alpha
cluster_start alpha
attach "after a restart"
