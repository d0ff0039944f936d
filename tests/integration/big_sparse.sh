#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A 1 TiB volume on a sparse file: attaches in less than 2 s, and the daemon with one peer needs
# less than 100 MiB of memory.
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

cluster_test_begin "$bin" rootless
if ! truncate -s 1T "$(disk_of alpha)" 2>/dev/null; then
    echo "SKIPPED: the file system at $CLUSTER_DIR has no room for a sparse file of 1 TiB"
    exit 77
fi
cluster_start alpha
ctl alpha create $resource --node-id 0 --disk "$(disk_of alpha)" --peer "$(peer_argument beta)"

start=$(now_ms)
ctl alpha attach $resource
attach_ms=$(($(now_ms) - start))
rss_kib=$(awk '/^VmRSS:/ {print $2}' "/proc/${PID[alpha]}/status")
disk=$(status_field alpha $resource '.devices[0]."disk-state"')
size=$(status_field alpha $resource '.devices[0].size')
say "disk $disk, $((size / 1024)) MiB, attached in $attach_ms ms, $((rss_kib / 1024)) MiB resident"
[ "$size" -ge $((1024 * 1024 * 1024 - 64 * 1024)) ] || cluster_fail "the volume is too small"
[ "$attach_ms" -lt 2000 ] || cluster_fail "attaching took too long"
[ "$rss_kib" -lt $((100 * 1024)) ] || cluster_fail "the daemon needs too much memory"

# And again after a restart, when the bitmap has to be read from the disk.
ctl alpha detach $resource
cluster_stop alpha
cluster_start alpha
start=$(now_ms)
ctl alpha attach $resource
attach_ms=$(($(now_ms) - start))
rss_kib=$(awk '/^VmRSS:/ {print $2}' "/proc/${PID[alpha]}/status")
say "after a restart: attached in $attach_ms ms, $((rss_kib / 1024)) MiB resident"
[ "$attach_ms" -lt 2000 ] || cluster_fail "attaching after a restart took too long"
[ "$rss_kib" -lt $((100 * 1024)) ] || cluster_fail "the daemon needs too much memory"
