#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a third node says of a peer must not end a resync of that peer. There are three nodes and no
# Primary. gamma does not notice that beta has died, and believes that beta's data is good. beta
# comes back with a new disk, and alpha fills it. Then gamma tells alpha what it believes. As soon
# as alpha or beta calls beta's disk good, it must hold what alpha's disk holds.
#   third_node_word.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: third_node_word.sh BIN_DIR}
needs jq qemu-io ip
resource=r0
mib=$((1024 * 1024))
data_bytes=$((48 * mib))  # the rest of the volume is zero, as is a new disk

# A third namespace beside those of cluster.sh.
add_gamma() {
    NODES+=(gamma)
    NODE_ID[gamma]=2
    ADDRESS[gamma]=10.77.0.3:7788
    NETNS[gamma]=replica-$$-gamma
    mkdir "$CLUSTER_DIR/gamma"
    ip netns add "${NETNS[gamma]}"
    ip -n "${NETNS[gamma]}" link set lo up
    join alpha gamma
    join beta gamma
}
# join NODE NODE: adds a cable between two nodes.
join() {
    local a=${NETNS[$1]} b=${NETNS[$2]} here=${ADDRESS[$1]%:*} there=${ADDRESS[$2]%:*}
    ip link add "$2" netns "$a" type veth peer name "$1" netns "$b"
    ip -n "$b" address replace "$there/32" dev "$1"
    ip -n "$a" link set "$2" up
    ip -n "$b" link set "$1" up
    ip -n "$a" route add "$there/32" dev "$2" src "$here"
    ip -n "$b" route add "$here/32" dev "$1" src "$there"
}
# Everything that beta and gamma send each other gets lost, and neither kernel notices: it goes to a
# hardware address that no machine has.
silence() {
    ip -n "${NETNS[beta]}" neighbour replace "${ADDRESS[gamma]%:*}" dev gamma \
        lladdr 02:00:00:00:00:01 nud permanent
    ip -n "${NETNS[gamma]}" neighbour replace "${ADDRESS[beta]%:*}" dev beta \
        lladdr 02:00:00:00:00:01 nud permanent
}
end_silence() {
    ip -n "${NETNS[beta]}" neighbour delete "${ADDRESS[gamma]%:*}" dev gamma
    ip -n "${NETNS[gamma]}" neighbour delete "${ADDRESS[beta]%:*}" dev beta
}

create() {  # create NODE: on a new disk
    local peer peers=()
    for peer in "${NODES[@]}"; do
        [ "$peer" = "$1" ] || peers+=(--peer "$(peer_argument "$peer")")
    done
    truncate -s 72M "$(disk_of "$1")"
    # No ping may reveal that a peer is dead.
    ctl "$1" create $resource --node-id "${NODE_ID[$1]}" --disk "$(disk_of "$1")" "${peers[@]}" \
        --size 64M --max-peers 2 --ping-interval-ms 120000 --ping-timeout-ms 30000
    ctl "$1" up $resource
}
synced() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" wait $resource --until synced --timeout 110
    done
}
# of NODE PEER FIELD: what NODE says of a peer's disk or of the resync.
of() {
    status_field "$1" $resource \
        ".connections[] | select(.name == \"$2\") | .peer_devices[0].\"$3\""
}
same_data() {
    cmp --bytes=$data_bytes "$(disk_of alpha)" "$(disk_of "$1")"
}
# Says which nodes call beta's disk good; empty: none.
praise() {
    [ "$(of alpha beta peer-disk-state)" != UpToDate ] || echo "alpha says that beta is UpToDate"
    [ "$(status_field beta $resource '.devices[0]."disk-state"')" != UpToDate ] ||
        echo "beta says that it is UpToDate"
}
judge() {
    local said
    said=$(praise)
    [ -z "$said" ] || same_data beta || cluster_fail "${said//$'\n'/, and }, and it is not"
}
# until_true WHAT COMMAND...: waits, and judges all the time.
until_true() {
    local what=$1 end=$((SECONDS + 110))
    shift
    until "$@"; do
        judge
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in 110 s: $what"
        sleep 0.05
    done
    judge
    say "$what"
}
filling() { [ "$(of alpha beta replication-state)" = SyncSource ]; }
gamma_is_back() {
    [ "$(of alpha gamma replication-state)" = Established ] &&
        [ "$(of alpha gamma peer-disk-state)" = UpToDate ]
}
goes_on() { [ "$(of alpha beta resync-sent-bytes)" -gt $((sent + mib)) ]; }
is_full() { [ -n "$(praise)" ]; }

cluster_test_begin "$bin"
if [ "$CLUSTER_MODE" != namespaces ]; then
    echo "SKIPPED: no network namespaces here, so no node can be made to miss another's death"
    exit 77
fi
add_gamma
for node in "${NODES[@]}"; do
    cluster_start "$node"
    create "$node"
done
for node in "${NODES[@]}"; do
    ctl "$node" wait $resource --until connected --timeout 110
done
ctl alpha new-current-uuid $resource --clear-bitmap
synced
cluster_primary alpha $resource
qemu-io -f raw -c "write -P 0xab 0 $data_bytes" -c flush "$(uri_of alpha $resource)" >/dev/null
ctl alpha unexport $resource
ctl alpha demote $resource
synced
for node in beta gamma; do
    same_data "$node" || cluster_fail "$node has not what was written"
done

silence
cluster_crash beta
rm -r "$CLUSTER_DIR/beta/state" "$(disk_of beta)"
ctl alpha options $resource --resync-rate-max 2M >/dev/null
cluster_start beta
create beta
until_true "alpha fills beta's new disk" filling
[ "$(of gamma beta peer-disk-state)" = UpToDate ] ||
    cluster_fail "gamma has noticed that beta was dead, so this proves nothing"
! same_data beta >/dev/null || cluster_fail "beta is full already, so this proves nothing"

ctl alpha disconnect $resource gamma
ctl alpha connect $resource gamma
until_true "alpha and gamma are connected again" gamma_is_back
sent=$(of alpha beta resync-sent-bytes)
until_true "the resync goes on" goes_on
ctl alpha options $resource --resync-rate-max 0 >/dev/null
until_true "beta is full" is_full

end_silence
ctl gamma disconnect $resource beta
ctl gamma connect $resource beta
synced
for node in "${NODES[@]}"; do
    ctl "$node" down $resource
done
for node in beta gamma; do
    cmp --bytes=$((64 * mib)) "$(disk_of alpha)" "$(disk_of "$node")" ||
        cluster_fail "alpha and $node differ"
done
say "the replicas are equal"
