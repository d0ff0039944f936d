#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds Replica and shows it at work on this machine: two nodes mirror a volume, each of them is
# killed with kill -9 under load, and nothing that was acknowledged is lost.
#   scripts/demo.sh [--keep] [--rootless] [--no-setup]
#     --keep      leaves the volume up at the end and says how to reach and stop it
#     --rootless  loopback addresses instead of network namespaces, also as root
#     --no-setup  installs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/cluster.sh
. scripts/cluster.sh
# shellcheck source=scripts/build.sh
. scripts/build.sh

resource=r0
disk_size=1G
rate=64M       # of the resync, a second, so that there is something to watch
al_extents=67  # of 4 MiB, where writes may be in flight: the least there is, for a small volume
build_dir=${REPLICA_BUILD_DIR:-build/release}
mib=$((1024 * 1024))
keep=0
mode=
setup=1
for argument in "$@"; do
    case "$argument" in
        --keep) keep=1 ;;
        --rootless) mode=rootless ;;
        --no-setup) setup=0 ;;
        -h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "demo.sh: unknown option '$argument' (try --help)" >&2; exit 2 ;;
    esac
done

bold='' green='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' green=$'\033[32m' plain=$'\033[0m'
fi
step() { printf '\n%s== %s%s (%d s)\n' "$bold" "$*" "$plain" "$SECONDS"; }
seen() { printf '  %sok%s %s\n' "$green" "$plain" "$*"; }
writer=
finish() {
    local code=$?
    trap - EXIT INT TERM
    [ -z "$writer" ] || kill "$writer" 2>/dev/null || true
    if [ "$code" != 0 ] && [ -n "$CLUSTER_DIR" ]; then
        local logs node
        cluster_logs 30
        logs=$(mktemp -d "${REPLICA_DIR:-/var/tmp}/replica-logs.XXXXXX")
        for node in "${NODES[@]}"; do
            cp "$CLUSTER_DIR/$node/log" "$logs/$node" 2>/dev/null || true
        done
        printf '\nThe demo failed. The logs of both nodes are in %s.\n' "$logs" >&2
        cluster_end
    elif [ "$keep" = 0 ]; then
        cluster_end
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

prepare() {
    step "Build"
    [ "$setup" = 0 ] || scripts/setup.sh build demo
    if [ -z "${REPLICA_BUILD_DIR:-}" ]; then
        build_preset release replicad replicactl acked_writer
    fi
    cluster_begin "$build_dir" "$mode"
    export QEMU_AUDIO_DRV=none
    if [ "$CLUSTER_MODE" = namespaces ]; then
        seen "two hosts: network namespaces ${NETNS[alpha]} and ${NETNS[beta]}, joined by veth"
    else
        seen "two hosts: ${ADDRESS[alpha]} and ${ADDRESS[beta]}"
        local why="without root"
        [ "$(id -u)" != 0 ] || why="as they are not allowed here"
        [ "$mode" != rootless ] || why="with --rootless"
        echo "     (left out $why: network namespaces; the nodes share the loopback device)"
    fi
}

make_mirror() {
    step "Two nodes, one mirrored volume, protocol C"
    cluster_start alpha
    cluster_start beta
    local node
    for node in alpha beta; do
        truncate -s "$disk_size" "$(disk_of "$node")"
        show_ctl "$node" create $resource --node-id "${NODE_ID[$node]}" \
            --disk "$(disk_of "$node")" --peer "$(peer_argument "$(peer_of "$node")")" \
            --protocol C --al-extents $al_extents --resync-rate-max $rate
        show_ctl "$node" up $resource
        cluster_patient "$node" $resource
    done
    show_ctl alpha wait $resource --until connected --timeout 100
    echo "  (both disks are blank, hence equal: the first sync can be skipped)"
    show_ctl alpha new-current-uuid $resource --clear-bitmap
    show_ctl alpha promote $resource
    show_ctl alpha export $resource --nbd "unix:$(door_of alpha)"
    show_ctl alpha status $resource | sed 's/^/    /'
    size=$(status_field alpha $resource '.devices[0]."size-bytes"')
    seen "$((size / mib)) MiB, UpToDate on both"
}

# The volume: [0, 256 MiB) the file system, [256, 448) what fio writes, [448, 576) the acked writer.
write_file_system() {
    step "A real file system goes through the export"
    local image=$CLUSTER_DIR/image tree=$CLUSTER_DIR/tree
    mkdir "$tree"
    cp -r docs engine scripts tests "$build_dir"/tools "$tree"
    truncate -s 256M "$image"
    mke2fs -q -t ext4 -d "$tree" "$image"
    qemu-img convert -n -f raw -O raw "$image" "$(uri_of alpha $resource)"
    seen "an ext4 image with $(find "$tree" -type f | wc -l) files written with qemu-img convert"
    check_file_system alpha
}

check_file_system() {
    local image=$CLUSTER_DIR/image back=$CLUSTER_DIR/back
    nbdcopy "$(uri_of "$1" $resource)" "$back"
    cmp --bytes=$((256 * mib)) "$image" "$back" || cluster_fail "the image reads back differently"
    truncate -s 256M "$back"
    e2fsck -fn "$back" >"$CLUSTER_DIR/fsck" 2>&1 || cluster_fail "$(cat "$CLUSTER_DIR/fsck")"
    rm "$back"
    seen "read back through $1 with nbdcopy: identical, e2fsck finds nothing"
}

fio_job() {  # fio_job NODE [OPTIONS...]
    local node=$1
    shift
    timeout 600 fio --name=mirror --ioengine=nbd --uri="$(uri_of "$node" $resource)" \
        --rw=randwrite --bs=16k --iodepth=16 --offset=256M --size=192M --verify=crc32c \
        --randseed=7 --verify_state_save=0 --minimal "$@" >"$CLUSTER_DIR/fio" 2>&1
}

lose_secondary() {
    step "beta is killed (kill -9) while fio writes with checksums"
    fio_job alpha --rate=,24M --do_verify=1 &
    writer=$!
    sleep 3
    cluster_crash beta
    seen "beta is dead"
    sleep 1
    ctl alpha status $resource | sed 's/^/    /'
    wait "$writer" || cluster_fail "fio: $(cat "$CLUSTER_DIR/fio")"
    writer=
    seen "fio went on: 192 MiB written, read back, no error"
    outage=$(peer_field alpha $resource '."out-of-sync-bytes"')
    seen "while beta is away, alpha keeps track: $((outage / mib)) MiB are out of sync"
}

# Shows the resync as NODE sees it until both are in sync again.
watch_sync() {
    local watch=("$build_dir/tools/replicactl" --control "$(control_socket "$1")"
        status "$resource" --watch --interval 0.5)
    if [ -t 1 ]; then
        "${watch[@]}" &
    else
        "${watch[@]}" > >(grep --line-buffered '\[#') &
    fi
    writer=$!
    ctl "$1" wait $resource --until synced --timeout 110 >/dev/null || cluster_fail "no resync"
    sleep 0.6
    kill "$writer" 2>/dev/null || true
    wait "$writer" 2>/dev/null || true
    writer=
    echo
}

return_of_secondary() {
    step "beta returns, and only what changed is resynced"
    cluster_start beta
    watch_sync alpha
    local moved active=$((al_extents * 4 * mib))
    moved=$(peer_field alpha $resource '."resync-sent-bytes"')
    seen "in sync again; moved $((moved / mib)) MiB of a volume of $((size / mib)) MiB"
    echo "     ($((outage / mib)) MiB were written meanwhile; the rest are extents where beta may"
    echo "     have had writes in flight when it died, at most $((active / mib)) MiB)"
    [ "$moved" -le $((outage + active)) ] || cluster_fail "the resync moved more than it had to"
}

lose_primary() {
    step "alpha, the primary, is killed (kill -9) in the middle of writes"
    "$build_dir/tests/integration/acked_writer" write "$(door_of alpha)" $resource \
        "$CLUSTER_DIR/acked" $((448 * 256)) $((128 * 256)) 16 30 >"$CLUSTER_DIR/writer" &
    writer=$!
    cluster_writing "$writer" "$CLUSTER_DIR/writer"
    sleep 4
    cluster_crash alpha
    wait "$writer" || cluster_fail "the writer: $(cat "$CLUSTER_DIR/writer")"
    writer=
    seen "alpha is dead; the application saw: $(tail -n 1 "$CLUSTER_DIR/writer")"
    cluster_loss_seen beta $resource
    show_ctl beta promote $resource
    show_ctl beta export $resource --nbd "unix:$(door_of beta)"
    "$build_dir/tests/integration/acked_writer" verify "$(door_of beta)" $resource \
        "$CLUSTER_DIR/acked" >"$CLUSTER_DIR/writer" ||
        cluster_fail "acknowledged writes are lost: $(cat "$CLUSTER_DIR/writer")"
    seen "every acknowledged block is on beta: $(cat "$CLUSTER_DIR/writer")"
    check_file_system beta
    fio_job beta --verify_only || cluster_fail "fio: $(cat "$CLUSTER_DIR/fio")"
    seen "fio's blocks verify on beta"
}

return_of_primary() {
    step "alpha returns, as a secondary"
    cluster_start alpha
    watch_sync beta
    local role
    role=$(status_field alpha $resource .role)
    [ "$role" = Secondary ] || cluster_fail "alpha came back as $role"
    seen "alpha is Secondary and UpToDate"
}

compare() {
    step "Both go down, and the two disks are compared byte for byte"
    cluster_compare $resource "$size"
    seen "$size bytes are identical"
}

leave_it_up() {
    local node
    for node in alpha beta; do
        ctl "$node" up $resource
    done
    ctl alpha wait $resource --until synced --timeout 100
    cluster_primary alpha $resource
    cat >"$CLUSTER_DIR/stop.sh" <<STOP
#!/bin/sh
kill -TERM ${PID[alpha]} ${PID[beta]}
for try in \$(seq 120); do
    kill -0 ${PID[alpha]} 2>/dev/null || kill -0 ${PID[beta]} 2>/dev/null || break
    sleep 0.5
done
for name in ${NETNS[*]:-}; do ip netns delete "\$name"; done
rm -rf $CLUSTER_DIR
STOP
    chmod +x "$CLUSTER_DIR/stop.sh"
    step "The volume stays up"
    cat <<HELP
  look:   $build_dir/tools/replicactl --control $(control_socket alpha) status --watch
          $build_dir/tools/replicactl --control $(control_socket beta) status
  use:    nbdinfo '$(uri_of alpha $resource)'
          as root: nbd-client -unix $(door_of alpha) -N $resource /dev/nbd0   (package nbd-client)
  logs:   $CLUSTER_DIR/alpha/log  $CLUSTER_DIR/beta/log
  kill:   kill -9 ${PID[alpha]} (alpha) or ${PID[beta]} (beta)
  stop:   $CLUSTER_DIR/stop.sh   ends both nodes and removes everything
HELP
}

prepare
make_mirror
write_file_system
lose_secondary
return_of_secondary
lose_primary
return_of_primary
compare
[ "$keep" = 0 ] || leave_it_up
printf '\n%sDone in %d s: two kill -9, nothing lost, both replicas equal.%s\n' \
    "$bold" "$SECONDS" "$plain"
