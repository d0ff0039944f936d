# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Two Replica nodes, alpha and beta, on this machine: for scripts/demo.sh and tests/integration. To
# be sourced. As root each node lives in a network namespace of its own and a veth pair joins them;
# otherwise they listen on a loopback address, and links can not be cut.
#
#   cluster_begin BIN_DIR [rootless]   makes CLUSTER_DIR and the network; cluster_end removes both
#   cluster_start NODE                 starts its replicad and waits until it answers
#   cluster_crash NODE                 kill -9, and waits until the kernel has let go of its disk
#   cluster_stop NODE                  SIGTERM, and waits
#   ctl NODE COMMAND...                replicactl for that node
#   cluster_link down|up               cuts and mends the cable (namespaces only)

# NODE_ID, ADDRESS, PID and NETNS are maps by node name.
declare -A NODE_ID=([alpha]=0 [beta]=1) ADDRESS=() PID=() NETNS=()
NODES=(alpha beta)
CLUSTER_DIR=
CLUSTER_BIN=
CLUSTER_MODE=

cluster_fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

cluster_begin() {
    CLUSTER_BIN=$1
    # Not /tmp: where it is a tmpfs, direct IO may be refused.
    CLUSTER_DIR=$(mktemp -d "${REPLICA_DIR:-/var/tmp}/replica.XXXXXX")
    mkdir "$CLUSTER_DIR/alpha" "$CLUSTER_DIR/beta"
    if [ "${2:-}" != rootless ] && [ "$(id -u)" = 0 ] && cluster_namespaces; then
        CLUSTER_MODE=namespaces
    else
        CLUSTER_MODE=loopback
        # Loopback addresses of this process alone: no other's connection can have the ports.
        local own=127.$((64 + $$ / 65536)).$(($$ / 256 % 256)).$(($$ % 256))
        ADDRESS=([alpha]=$own:7788 [beta]=$own:7789)
    fi
}

# Two namespaces and the veth pair between them. Fails quietly where the kernel or a container
# forbids it; loopback is then used instead.
cluster_namespaces() {
    command -v ip >/dev/null || return 1
    local node
    for node in "${NODES[@]}"; do
        NETNS[$node]="replica-$$-$node"
        # To enter one needs more than to make it: it mounts, which a chroot may not allow.
        if ! ip netns add "${NETNS[$node]}" 2>/dev/null ||
            ! ip netns exec "${NETNS[$node]}" true 2>/dev/null; then
            cluster_remove_namespaces
            return 1
        fi
    done
    local a=${NETNS[alpha]} b=${NETNS[beta]}
    if ! ip link add eth0 netns "$a" type veth peer name eth0 netns "$b" 2>/dev/null; then
        cluster_remove_namespaces
        return 1
    fi
    ip -n "$a" address add 10.77.0.1/24 dev eth0
    ip -n "$b" address add 10.77.0.2/24 dev eth0
    for node in "${NODES[@]}"; do
        ip -n "${NETNS[$node]}" link set lo up
        ip -n "${NETNS[$node]}" link set eth0 up
    done
    ADDRESS=([alpha]=10.77.0.1:7788 [beta]=10.77.0.2:7788)
}

cluster_remove_namespaces() {
    local node
    for node in "${!NETNS[@]}"; do
        ip netns delete "${NETNS[$node]}" 2>/dev/null || true
    done
    NETNS=()
}

# Ends every process that was started here, and takes the network and the directory away.
cluster_end() {
    local node
    for node in "${!PID[@]}"; do
        kill -TERM "${PID[$node]}" 2>/dev/null || true
    done
    for node in "${!PID[@]}"; do
        cluster_wait_gone "${PID[$node]}" 60 || kill -KILL "${PID[$node]}" 2>/dev/null || true
    done
    PID=()
    cluster_remove_namespaces
    [ -z "$CLUSTER_DIR" ] || rm -rf "$CLUSTER_DIR"
    CLUSTER_DIR=
}

cluster_wait_gone() {  # cluster_wait_gone PID SECONDS
    local end=$((SECONDS + $2))
    while kill -0 "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
    wait "$1" 2>/dev/null || true
}

control_socket() { printf '%s/%s/control.sock' "$CLUSTER_DIR" "$1"; }
disk_of() { printf '%s/%s/disk' "$CLUSTER_DIR" "$1"; }
door_of() { printf '%s/%s/nbd.sock' "$CLUSTER_DIR" "$1"; }
uri_of() { printf 'nbd+unix:///%s?socket=%s' "$2" "$(door_of "$1")"; }
peer_of() { [ "$1" = alpha ] && echo beta || echo alpha; }
peer_argument() { printf '%s,%s,%s' "$1" "${NODE_ID[$1]}" "${ADDRESS[$1]}"; }

ctl() {
    local node=$1
    shift
    timeout 120 "$CLUSTER_BIN/tools/replicactl" --control "$(control_socket "$node")" "$@"
}

# ctl with its command shown, as a person would type it.
show_ctl() {
    local node=$1
    shift
    printf '  %s$ replicactl %s\n' "$node" "$*"
    ctl "$node" "$@"
}

cluster_start() {
    local node=$1 inside=()
    [ -z "${NETNS[$node]:-}" ] || inside=(ip netns exec "${NETNS[$node]}")
    setsid "${inside[@]}" "$CLUSTER_BIN/tools/replicad" --name "$node" \
        --state "$CLUSTER_DIR/$node/state" --control "$(control_socket "$node")" \
        --listen "${ADDRESS[$node]}" >>"$CLUSTER_DIR/$node/log" 2>&1 </dev/null &
    PID[$node]=$!
    local end=$((SECONDS + 120))
    until ctl "$node" status >/dev/null 2>&1; do
        kill -0 "${PID[$node]}" 2>/dev/null || cluster_fail "replicad of $node ended at its start"
        [ "$SECONDS" -lt "$end" ] || cluster_fail "replicad of $node does not answer in 2 minutes"
        sleep 0.05
    done
}

cluster_crash() {
    kill -KILL "${PID[$1]}"
    wait "${PID[$1]}" 2>/dev/null || true
    unset "PID[$1]"
    # What was in its io_uring ends after the process, on a busy machine much later.
    local disk end=$((SECONDS + 120))
    disk=$(disk_of "$1")
    [ -f "$disk" ] || return 0
    until flock --nonblock "$disk" true; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "the disk of $1 is in use after its death"
        sleep 0.02
    done
}

cluster_stop() {
    kill -TERM "${PID[$1]}"
    cluster_wait_gone "${PID[$1]}" 120 || cluster_fail "replicad of $1 does not end after SIGTERM"
    unset "PID[$1]"
}

cluster_link() {
    [ "$CLUSTER_MODE" = namespaces ] || cluster_fail "links can be cut between namespaces only"
    ip -n "${NETNS[beta]}" link set eth0 "$1"
}

# Lets NODE wait a minute for its peers. On a machine that is busy with other things a daemon may
# stand still for seconds, which by default is a lost peer; kill -9 is seen at once all the same.
cluster_patient() {  # cluster_patient NODE RESOURCE
    ctl "$1" options "$2" --ping-timeout-ms 30000 --request-timeout-ms 60000 >/dev/null
}

# cluster_create RESOURCE DISK_SIZE [OPTIONS of replicactl create...]: sparse disks, on both nodes,
# up, connected, and both UpToDate without a sync, which is allowed because both are blank.
cluster_create() {
    local resource=$1 size=$2 node
    shift 2
    for node in "${NODES[@]}"; do
        truncate -s "$size" "$(disk_of "$node")"
        ctl "$node" create "$resource" --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --peer "$(peer_argument "$(peer_of "$node")")" "$@"
        ctl "$node" up "$resource"
    done
    ctl alpha wait "$resource" --until connected --timeout 100
    ctl alpha new-current-uuid "$resource" --clear-bitmap
    ctl alpha wait "$resource" --until synced --timeout 100
}

# Waits until NODE has noticed that its peer is gone. A dead process's sockets are closed by the
# kernel when its last io_uring request has ended, a few milliseconds after the process is reaped.
cluster_loss_seen() {  # cluster_loss_seen NODE RESOURCE
    local end=$((SECONDS + 120))
    while [ "$(status_field "$1" "$2" '.connections[0]."connection-state"')" = Connected ]; do
        [ "$SECONDS" -lt "$end" ] ||
            cluster_fail "$1 does not notice in 2 minutes that its peer is gone"
        sleep 0.05
    done
}

# Waits until tests/integration/acked_writer, process PID, says in FILE that it writes.
cluster_writing() {  # cluster_writing PID FILE
    local end=$((SECONDS + 120))
    until grep -qs '^writing' "$2"; do
        kill -0 "$1" 2>/dev/null || cluster_fail "the writer has ended: $(cat "$2")"
        [ "$SECONDS" -lt "$end" ] || cluster_fail "nothing was written in 2 minutes"
        sleep 0.05
    done
}

# Promotes and opens the NBD door.
cluster_primary() {  # cluster_primary NODE RESOURCE
    ctl "$1" promote "$2"
    ctl "$1" export "$2" --nbd "unix:$(door_of "$1")"
}

# status_field NODE RESOURCE FILTER: a value out of the status, e.g. .devices[0]."size-bytes"
status_field() { ctl "$1" status "$2" --json | jq -r ".[0]$3"; }
peer_field() { status_field "$1" "$2" ".connections[0].peer_devices[0]$3"; }

# Brings both down cleanly and compares the replicas byte for byte.
cluster_compare() {  # cluster_compare RESOURCE SIZE_BYTES
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" down "$1"
    done
    cmp --bytes="$2" "$(disk_of alpha)" "$(disk_of beta)" || cluster_fail "the replicas differ"
}

cluster_logs() {
    local node
    for node in "${NODES[@]}"; do
        [ -f "$CLUSTER_DIR/$node/log" ] || continue  # it was never started
        printf -- '--- the last lines of %s, %s\n' "$node" "$CLUSTER_DIR/$node/log" >&2
        tail -n "${1:-20}" "$CLUSTER_DIR/$node/log" >&2 || true
    done
}
