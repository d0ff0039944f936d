# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the tests of a whole cluster share, on top of scripts/cluster.sh: clean-up that always runs,
# the daemons' logs when something failed, and loud skipping.

cluster_cleanup_pids=()

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

# needs TOOL...: skips the test where one is missing.
needs() {
    local tool
    for tool in "$@"; do
        if ! command -v "$tool" >/dev/null; then
            echo "SKIPPED: $tool is not installed (scripts/setup.sh does it)"
            exit 77
        fi
    done
}

cluster_test_end() {
    local code=$? pid
    trap - EXIT INT TERM
    [ "$code" = 0 ] || cluster_logs 40
    for pid in "${cluster_cleanup_pids[@]}"; do
        pkill -TERM -P "$pid" 2>/dev/null || true
        kill "$pid" 2>/dev/null || true
    done
    cluster_end
    exit "$code"
}

cluster_test_begin() {  # cluster_test_begin BIN_DIR [rootless]
    trap cluster_test_end EXIT
    trap 'exit 130' INT TERM
    cluster_begin "$@"
    say "two nodes on this machine: $CLUSTER_MODE"
}
