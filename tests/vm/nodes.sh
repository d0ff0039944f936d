# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What guest tests with nodes share, in place of some of scripts/cluster.sh. To be sourced after it,
# with $bin set.
: "${bin:?}"

# Of a guest that is emulated on a busy machine each process may stand still for seconds, and that
# is no reason here to lose a connection. For replicactl create.
# shellcheck disable=SC2034  # whoever sources this creates resources
PATIENT=(--ping-timeout-ms 30000 --request-timeout-ms 60000)

seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }

# To start timeout(1) or jq takes an emulated guest longer than what they do. replicactl itself
# waits for two minutes at most.
ctl() {
    local node=$1
    shift
    "$bin/tools/replicactl" --control "$CLUSTER_DIR/$node/control.sock" "$@"
}
status_field() { ctl "$1" status "$2" --json | "$bin/tests/vm/json_field" "[0]$3"; }

# Closes the doors of a resource. One of NBD may not know yet that its last client has gone.
close_doors() {  # close_doors NODE RESOURCE [OPTION...]
    local said status=4 end=$((SECONDS + 60))
    while [ $status = 4 ] && [ "$SECONDS" -lt $end ]; do
        status=0
        said=$(ctl "$1" unexport "${@:2}" 2>&1) || status=$?
    done
    [ $status = 0 ] || cluster_fail "unexport ended with $status: $said"
}
