#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A cable that is cut at either end is noticed by what the kernel says of it (docs/netlink.md), and
# the connection is back as soon as the cable is. Pings and attempts to connect are set so slow that
# they can not have been it, however long a busy machine takes.
#   link_down.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: link_down.sh BIN_DIR}
needs jq qemu-io
resource=r0
limit_ms=50000  # less than any other way to notice takes; what is usual is far below a second

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# waits NODE STATE WHAT: until the connection is (or with !STATE is not) in that state.
waits() {
    local node=$1 state=$2 what=$3 is
    while :; do
        is=$(status_field "$node" $resource '.connections[0]."connection-state"')
        if [[ $state == !* ]]; then
            [ "$is" = "${state#!}" ] || break
        else
            [ "$is" != "$state" ] || break
        fi
        [ $(($(now_ms) - started)) -lt 110000 ] || cluster_fail "not at all: $node, $what"
    done
    local took=$(($(now_ms) - started))
    say "$node: $what after $took ms"
    [ $took -le $limit_ms ] || cluster_fail "that is more than $limit_ms ms"
}

cluster_test_begin "$bin"
if [ "$CLUSTER_MODE" != namespaces ]; then
    echo "SKIPPED: no network namespaces here, so no cable can be cut"
    exit 77
fi
cluster_start alpha
cluster_start beta
cluster_create $resource 64M
for node in alpha beta; do
    ctl $node options $resource --ping-interval-ms 120000 --ping-timeout-ms 30000 \
        --request-timeout-ms 60000 --connect-interval-ms 120000
done
cluster_primary alpha $resource

for end in beta alpha; do
    started=$(now_ms)
    ip -n "${NETNS[$end]}" link set eth0 down
    waits alpha !Connected "$end's end is down: peer lost"
    waits beta !Connected "$end's end is down: peer lost"
    started=$(now_ms)
    qemu-io -f raw -c "write -P 1 0 4k" "$(uri_of alpha $resource)" >/dev/null
    say "a write without the peer took $(($(now_ms) - started)) ms, with the start of its program"
    [ $(($(now_ms) - started)) -le $limit_ms ] || cluster_fail "that is more than $limit_ms ms"
    # Longer than a first attempt to connect may hang in the dark.
    sleep 1
    started=$(now_ms)
    ip -n "${NETNS[$end]}" link set eth0 up
    waits alpha Connected "$end's end is up: connected"
    ctl alpha wait $resource --until synced --timeout 110
done

# The way to the peer is gone with the own address, too.
started=$(now_ms)
ip -n "${NETNS[alpha]}" address del 10.77.0.1/24 dev eth0
waits alpha !Connected "its address is gone: peer lost"
started=$(now_ms)
ip -n "${NETNS[alpha]}" address add 10.77.0.1/24 dev eth0
waits alpha Connected "its address is back: connected"
ctl alpha wait $resource --until synced --timeout 110

# A daemon that starts in the dark connects when there is light.
cluster_stop beta
ip -n "${NETNS[alpha]}" link set eth0 down
cluster_stop alpha
cluster_start alpha
cluster_start beta
for node in alpha beta; do
    ctl $node up $resource 2>/dev/null || true  # perhaps it is up already
done
sleep 2
started=$(now_ms)
ip -n "${NETNS[alpha]}" link set eth0 up
waits alpha Connected "the cable was out at the start, and is in: connected"

# What happens elsewhere disturbs nothing.
ip -n "${NETNS[alpha]}" link add other type veth peer name other1
ip -n "${NETNS[alpha]}" link set other up
ip -n "${NETNS[alpha]}" link delete other
sleep 0.3
[ "$(status_field alpha $resource '.connections[0]."connection-state"')" = Connected ] ||
    cluster_fail "the connection was lost with an interface that it did not use"
grep -q 'the network under the connection is gone: eth0 is down' "$CLUSTER_DIR/alpha/log" ||
    cluster_fail "the log does not say why"
cluster_compare $resource "$(status_field alpha $resource '.devices[0]."size-bytes"')"
say "the replicas are equal"
