# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the guest tests of block device doors have in common: two nodes, each on a disk of its own,
# the primary's volume as a block device of kind $door at $device, killed under load and adopted.
# To be sourced after scripts/cluster.sh, with $bin, $resource, $size, $door, $device and $name set.
# shellcheck source=tests/vm/nodes.sh
. "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"
: "${resource:?}" "${size:?}" "${door:?}" "${device:?}" "${name:?}"

disk_of() { [ "$1" = alpha ] && echo /dev/vda || echo /dev/vdb; }
record_of() { printf '%s/alpha/state/%s/%s' "$CLUSTER_DIR" "$door" "$resource"; }
finish() {
    local code=$?
    trap - EXIT
    if [ $code != 0 ]; then
        cluster_logs 40
        dmesg | tail -n 30
    fi
    exit $code  # the guest ends, and everything with it
}
trap finish EXIT

# Nothing in the kernel's log says that a request failed, of whatever kind the error is.
no_errors() {
    local signs='error, dev (ublkb|nbd)|EXT4-fs error|XFS .*(error|[Cc]orrupt|[Ss]hut)|Aborting'
    if dmesg | grep -E "$signs|BUG|Oops|WARNING|blocked for more"; then
        cluster_fail "the kernel has seen errors"
    fi
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || cluster_fail "not in time: $what"
        sleep 0.1
    done
}

refuses() {  # refuses NODE EXIT-STATUS COMMAND...
    local status=0 node=$1 expected=$2
    shift 2
    ctl "$node" "$@" 2>"$CLUSTER_DIR/refusal" || status=$?
    [ "$status" = "$expected" ] ||
        cluster_fail "$* ended with $status, not with $expected: $(<"$CLUSTER_DIR/refusal")"
}

bring_up() {
    local node
    cluster_begin "$bin" rootless
    for node in "${NODES[@]}"; do
        cluster_start "$node"
        ctl "$node" create "$resource" --node-id "${NODE_ID[$node]}" --disk "$(disk_of "$node")" \
            --size "$size" --peer "$(peer_argument "$(peer_of "$node")")" "${PATIENT[@]}"
        ctl "$node" up "$resource"
    done
    ctl alpha wait "$resource" --until connected --timeout 60
    ctl alpha new-current-uuid "$resource" --clear-bitmap || ctl alpha promote "$resource" --force
    ctl alpha promote "$resource"
    ctl alpha wait "$resource" --until synced --timeout 100
    seen "two nodes, synced"
}

# As it was before: both up, alpha with the device.
up_again() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" up "$resource"
    done
    ctl alpha wait "$resource" --until synced --timeout 100
    ctl alpha promote "$resource"
    ctl alpha export "$resource" --door "$door" >/dev/null
}

has_door() {  # has_door DOOR: the status of alpha shows it
    status_field alpha "$resource" '.devices[0].doors[]' | grep -qxF "$1"
}
adopted() { has_door "$door:$device"; }

# Requests that were handed out, or wait, when nobody serves them.
# They keep the tag of the scheduler, if there is one.
waiting_requests() {
    local tags=/sys/kernel/debug/block/${device#/dev/}/hctx0/tags
    grep -q '^busy=' "${tags%tags}sched_tags" 2>/dev/null && tags=${tags%tags}sched_tags
    sed -n 's/^busy=//p' "$tags" | head -n 1
}
any_waits() { [ "$(waiting_requests)" -gt 0 ]; }
writes_begun() { awk '{print $5}' "/sys/block/${device#/dev/}/stat"; }
has_written() { [ "$(writes_begun)" -gt "$1" ]; }

# Begins a load on /mnt/volume that verifies as it goes, so that it does however it ends.
begin_load() {  # begin_load DIRECT LOOPS: sets `load`, its process
    fio --name=load --directory=/mnt/volume --rw=randwrite --bs=4k-64k --iodepth=160 \
        --direct="$1" --size=16M --loops="$2" --ioengine=io_uring --verify=crc32c \
        --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 --fsync=128 \
        --output-format=json >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
}
end_load() {  # sets `verified`, the reads that were verified
    wait "$load" || cluster_fail "the load saw an error: $(tail -n 5 "$CLUSTER_DIR/fio")"
    verified=$(sed -n '/^{/,$p' "$CLUSTER_DIR/fio" | jq '.jobs[0].read.total_ios')
    [ "$verified" -gt 0 ] || cluster_fail "the load has verified nothing"
}

# Writes direct MiBs to PATH, one after the other, until it is told to end, or one fails.
begin_writing() {  # begin_writing PATH: sets `load`, its process
    rm -f "$CLUSTER_DIR/enough"
    until [ -e "$CLUSTER_DIR/enough" ]; do
        timeout 300 dd if=/dev/zero of="$1" bs=256k count=4 oflag=direct conv=notrunc \
            status=none || exit 1
    done &
    load=$!
}
end_writing() {
    touch "$CLUSTER_DIR/enough"
    wait "$load"
}

killed() {  # killed FILE-SYSTEM ROUNDS
    local round load held begun verified most=0 least=9999 reads=0 tree
    # Beside what fio verifies: all that one does with names. It goes on through all kills.
    "$bin/tests/vm/file_tree" run /mnt/volume/tree "$CLUSTER_DIR/tree" $RANDOM >/dev/null &
    tree=$!
    for round in $(seq "$2"); do
        begun=$(writes_begun)
        begin_load $((round % 2)) 2
        wait_for 60 "the load writes" has_written $((begun + 50))
        sleep 0.$((RANDOM % 10))
        cluster_crash alpha
        wait_for 60 "requests wait" any_waits  # of the tree, if the load has ended
        sleep 0.$((RANDOM % 6))
        held=$(waiting_requests)
        [ "$held" -le "$most" ] || most=$held
        [ "$held" -ge "$least" ] || least=$held
        cluster_start alpha
        wait_for 60 "the device is adopted" adopted
        end_load
        reads=$((reads + verified))
        no_errors
        echo "     round $round: $held requests waited, $verified reads verified"
    done
    kill "$tree"
    wait "$tree" || cluster_fail "the file tree saw an error"
    tree=$("$bin/tests/vm/file_tree" verify /mnt/volume/tree "$CLUSTER_DIR/tree") ||
        cluster_fail "the file tree is not as it was left: $tree"
    rm -r /mnt/volume/tree
    seen "$1 on $device: killed and adopted $2 times, $least to $most requests waiting," \
        "$reads reads verified, file tree $tree: no error above"
}

make_file_system() {  # make_file_system ext4|xfs
    # Told that it is a test, mkfs.xfs makes file systems below 300 MB, too.
    if [ "$1" = ext4 ]; then
        mkfs.ext4 -q "$name"
    else
        TEST_DIR=/ TEST_DEV=/ QA_CHECK_FS=1 mkfs.xfs -q -f "$name"
    fi
}
check_file_system() {  # the same; it is not mounted any more
    if [ "$1" = ext4 ]; then
        e2fsck -fn "$name" >/dev/null 2>&1 || cluster_fail "e2fsck finds damage"
    else
        xfs_repair -n "$name" >/dev/null 2>&1 || cluster_fail "xfs_repair finds damage"
    fi
}

# A file system of this kind, mounted and under load, through so many kills; then looked at.
# Leaves alpha Primary, with the device unused.
file_system() {  # file_system ext4|xfs ROUNDS
    make_file_system "$1"
    mkdir -p /mnt/volume
    mount "$name" /mnt/volume
    killed "$1" "$2"
    umount /mnt/volume
    check_file_system "$1"
    ctl alpha wait "$resource" --until synced --timeout 60
}

# Both down; no device, record or name is left, and the disks hold the same.
compare_replicas() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" down "$resource"
    done
    [ ! -e "$(record_of)" ] || cluster_fail "the record is still there"
    [ ! -L "$name" ] || cluster_fail "the name is still there"
    cmp --bytes="$size" /dev/vda /dev/vdb || cluster_fail "the replicas differ"
    seen "the replicas are equal"
}

# A daemon that is told to stop leaves the device to the next one, whoever uses it; and so does a
# second command that comes while it waits. Begins mounted, and ends so.
stopped() {
    cluster_stop alpha
    cluster_start alpha
    wait_for 60 "the device is adopted" adopted
    timeout 100 dd if=/dev/zero of=/mnt/volume/after bs=4k count=1 conv=fsync status=none
    umount /mnt/volume
    exec 9<>"$name"  # no claim
    printf x >&9
    refuses alpha 4 unexport "$resource"
    refuses alpha 4 demote "$resource"
    refuses alpha 4 down "$resource"
    cluster_stop alpha
    cluster_start alpha
    wait_for 60 "the device is adopted" adopted
    printf x >&9
    exec 9>&-
    sync
    mount "$name" /mnt/volume
    no_errors
    seen "stopped under a mount and under an open descriptor, and adopted"
}

# While it waits for a peer: no other door, no demote, and a signal changes nothing. Begins mounted,
# and ends so.
waits() {
    local load begun
    begun=$(writes_begun)
    begin_writing /mnt/volume/waits
    wait_for 60 "the load writes" has_written $((begun + 4))
    cluster_crash alpha
    cluster_crash beta  # without it nobody knows that alpha's data is the newest
    cluster_start alpha
    wait_for 60 "the status says that the device waits" sh -c \
        "'$bin/tools/replicactl' --control '$(control_socket alpha)' status $resource --json |
            grep -q 'earlier daemon waits'"
    refuses alpha 4 demote "$resource"
    refuses alpha 4 unexport "$resource"
    refuses alpha 8 export "$resource" --nbd "unix:$(door_of alpha)"
    cluster_stop alpha
    cluster_start alpha
    kill -0 "$load" || cluster_fail "what waits has ended"
    cluster_start beta
    wait_for 60 "the device is adopted" adopted
    end_writing || cluster_fail "what waited saw an error"
    ctl alpha wait "$resource" --until synced --timeout 60
    no_errors
    seen "waited for a peer, and went on"
}

# While the primary's daemon is dead another node writes: what waits must not overwrite that. Begins
# and ends with both down.
fenced() {
    local node load begun
    up_again
    begun=$(writes_begun)
    while :; do  # until it fails
        fio --name=old --filename="$name" --direct=1 --rw=write --bs=64k --iodepth=16 \
            --ioengine=io_uring --size="$size" --buffer_pattern=0x61 >/dev/null 2>&1 || break
    done &
    load=$!
    wait_for 60 "the load writes" has_written $((begun + 200))
    cluster_crash alpha
    cluster_loss_seen beta "$resource"
    cluster_primary beta "$resource"
    dd if=/dev/zero bs=1M count=$((size >> 20)) status=none | tr '\0' b >"$CLUSTER_DIR/b"
    nbdcopy "$CLUSTER_DIR/b" "$(uri_of beta "$resource")"
    close_doors beta "$resource"
    ctl beta demote "$resource"
    cluster_start alpha
    wait_for 60 "the device is given up" test ! -e "$(record_of)"
    wait $load || cluster_fail "the load did not end by itself"
    grep -q 'another node has written since' "$CLUSTER_DIR/alpha/log" ||
        cluster_fail "the log does not say why"
    ctl alpha wait "$resource" --until synced --timeout 60
    for node in "${NODES[@]}"; do
        ctl "$node" down "$resource"
        cmp --bytes="$size" "$(disk_of "$node")" "$CLUSTER_DIR/b" ||
            cluster_fail "$node has old data again"
    done
    dmesg --clear  # of errors that were meant to be
    seen "given up where another node had written"
}
