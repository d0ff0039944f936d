#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the commands of docs/operations.md, as they stand there, on two nodes: that each of them does
# what the text says, and that what it shows of `status` is what one sees.
#   operations_test.sh BIN_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: operations_test.sh BIN_DIR}
doc=$here/../../docs/operations.md
needs jq qemu-io
resource=r0

section() {  # section TITLE: its lines
    awk -v title="$1" '/^##+ / { inside = ($0 ~ "^##+ " title "$") } inside' "$doc"
}
# What stands in the text for this machine's disks, addresses and doors, and back.
ours() {  # ours NODE
    sed "s#/dev/vg/r0#$(disk_of "$1")#; s#/dev/vg/new#$CLUSTER_DIR/$1/new#
        s#192.0.2.1:7788#${ADDRESS[alpha]}#; s#192.0.2.2:7788#${ADDRESS[beta]}#
        s#/run/replica/r0.sock#$(door_of "$1")#"
}
theirs() { sed "s#$(door_of "$1")#/run/replica/r0.sock#; s/[[:space:]]*$//"; }

# run TITLE FIRST COUNT: so many commands of a section, from its FIRST one. The output of the last
# one is in `output`.
run() {
    local node command line seen=0
    while IFS= read -r line; do
        seen=$((seen + 1))
        if [ "$seen" -lt "$2" ] || [ "$seen" -ge $(($2 + $3)) ]; then continue; fi
        node=${line%%\$*}
        node=${node// /}
        command=$(sed 's/^ *[a-z]*\$ *replicactl *//; s/ *#.*//' <<<"$line" | ours "$node")
        say "$node\$ replicactl $command"
        # shellcheck disable=SC2086  # words, as a shell would read them
        output=$(ctl "$node" $command 2>&1 </dev/null) || return
    done < <(section "$1" | grep -E '^ *(alpha|beta)\$ +replicactl ')
    [ "$seen" -ge $(($2 + $3 - 1)) ] || cluster_fail "$1 has only $seen commands"
}
# shows TITLE NODE: `status` is the block of the section that begins with the resource.
shows() {
    local seen wanted end=$((SECONDS + 120))
    wanted=$(section "$1" | sed -n '/^    r0 role:/,/^$/s/^    //p')
    until seen=$(ctl "$2" status $resource | theirs "$2") && [ "${seen%$'\n'}" = "$wanted" ]; do
        [ "$SECONDS" -lt "$end" ] ||
            cluster_fail "$1: the text shows"$'\n'"$wanted"$'\n'"status shows"$'\n'"$seen"
        sleep 0.1
    done
}
synced() { ctl alpha wait $resource --until synced --timeout 110; }
# Of a daemon that stands still for a second this machine is more likely the reason than the peer.
patient() {
    local node
    for node in "${NODES[@]}"; do
        cluster_patient "$node" $resource
    done
}
write_byte() {  # write_byte NODE PATTERN
    qemu-io -f raw -c "write -P $2 1M 1M" -c flush "$(uri_of "$1" $resource)" >/dev/null
}
holds_byte() {  # holds_byte NODE PATTERN
    qemu-io -f raw -c "read -P $2 1M 1M" "$(uri_of "$1" $resource)" >/dev/null ||
        cluster_fail "$1 does not have what was written"
}

mirrored_volume() {
    local title="A mirrored volume" node
    run "$title" 1 5
    patient
    shows "$title" alpha
    run "$title" 7 2
    synced
    for node in "${NODES[@]}"; do  # again, and without the first sync
        [ "$node" = beta ] || ctl alpha unexport $resource
        ctl "$node" down $resource
        ctl "$node" remove $resource
        rm "$(disk_of "$node")"
        truncate -s 64M "$(disk_of "$node")"
    done
    run "$title" 1 5
    patient
    run "$title" 9 2
    run "$title" 8 1
    synced
    write_byte alpha 1
}
moving_the_role() {
    run "Moving the role" 1 4
    holds_byte beta 1
    ctl beta unexport $resource
    ctl beta demote $resource
    cluster_primary alpha $resource
}
node_or_link_failed() {
    local title="A node or a link failed"
    ctl alpha options $resource --ping-timeout-ms 1000 >/dev/null
    kill -STOP "${PID[beta]}"
    shows "$title" alpha
    kill -CONT "${PID[beta]}"
    synced
    patient
    synced
    cluster_crash alpha
    cluster_loss_seen beta $resource
    run "$title" 1 2
    holds_byte beta 1
    cluster_start alpha
    synced
    ctl beta unexport $resource
    ctl beta demote $resource
    cluster_primary alpha $resource
}
after_a_restart() {
    local said
    cluster_crash alpha
    cluster_crash beta
    cluster_start alpha
    if run "After a restart" 1 1; then cluster_fail "a node that knows nothing was promoted"; fi
    said=$(section "After a restart" | sed -n '/^    replicactl: /,/^$/s/^    //p' | tr '\n' ' ')
    # shellcheck disable=SC2154  # run() sets it
    [ "$output " = "$said" ] || cluster_fail "the text says: $said; the node: $output"
    cluster_start beta
    synced
    cluster_primary alpha $resource
    holds_byte alpha 1
}
disk_failed() {
    local title="A disk failed"
    ctl alpha detach $resource
    shows "$title" alpha
    write_byte alpha 2
    run "$title" 1 1
    synced
    ctl alpha unexport $resource
    ctl alpha demote $resource
    truncate -s 64M "$CLUSTER_DIR/alpha/new"
    run "$title" 2 4
    patient
    synced
    cluster_primary alpha $resource
    holds_byte alpha 2
}
split_brain() {
    local title="Split brain"
    ctl beta disconnect $resource alpha
    cluster_loss_seen alpha $resource
    ctl beta promote $resource --force
    ctl beta export $resource --nbd "unix:$(door_of beta)"
    write_byte beta 3
    write_byte alpha 4
    ctl beta connect $resource alpha
    shows "$title" alpha
    run "$title" 2 5
    holds_byte alpha 4
}
# Disks with clean v09 metadata, as DRBD leaves them.
moving_over() {
    local title="Moving over from DRBD" node
    ctl alpha unexport $resource
    for node in "${NODES[@]}"; do
        ctl "$node" down $resource
        ctl "$node" remove $resource
    done
    mv "$CLUSTER_DIR/alpha/new" "$(disk_of alpha)"
    run "$title" 1 6
    patient
    [ "$(peer_field alpha $resource '."resync-sent-bytes"')" = 0 ] || cluster_fail "a resync"
    ctl alpha export $resource --nbd "unix:$(door_of alpha)"
    holds_byte alpha 4
}
monitoring() {
    local check known
    check=$(section "Reading \`status\`" | sed -n "/status --json | jq -e/,/)'/p" | tr -d '\n' |
        sed "s/^ *replicactl status --json | jq -e '//; s/'\$//")
    ctl alpha status --json | jq -e "$check" >/dev/null || cluster_fail "not all is well: $check"
    known=$(section "Reading \`status\`" |
        sed -n "s/^ *replicactl version --json | jq -e '\(.*\)'/\1/p")
    ctl alpha version --json | jq -e "$known" >/dev/null || cluster_fail "not all is known: $known"
    ctl beta disconnect $resource alpha
    ! ctl beta status --json | jq -e "$check" >/dev/null || cluster_fail "all is well, it says"
}

cluster_test_begin "$bin" rootless
for node in "${NODES[@]}"; do
    cluster_start "$node"
    truncate -s 64M "$(disk_of "$node")"
done
mirrored_volume
moving_the_role
node_or_link_failed
after_a_restart
disk_failed
split_brain
moving_over
monitoring
say "the commands of the text do what it says"
