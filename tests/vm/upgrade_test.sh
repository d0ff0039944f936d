#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Planned upgrades in a guest: the primary's replicad is replaced under a mounted file system with
# verified load, on each kind of block device and below a mapped one; the pause is measured.
#   tests/vm/upgrade_test.sh BIN_DIR [ROUNDS]        on the host: boots the guest, runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: upgrade_test.sh BIN_DIR [ROUNDS]}
rounds=${2:-2}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 --disk 200M --disk 200M \
        "$here/$(basename "$0")" "$bin" "$rounds"
fi
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
resource=r0 name=/dev/replica/by-res/r0 size=$((96 << 20))
door=ublk device=/dev/ublkb0
# shellcheck source=tests/vm/doors.sh
. "$here/doors.sh"
next=/var/tmp/next-replicad
# Who has the higher id does not dial, and has to make itself heard when it is back.
NODE_ID=([alpha]=1 [beta]=0)

refusals() {
    local before
    before=$(<"/proc/${PID[alpha]}/stat")
    refuses alpha 2 upgrade --binary /nowhere/replicad
    refuses alpha 1 upgrade --binary /bin/true
    printf '#!/bin/sh\nexit 1\n' >$next
    chmod 755 $next
    refuses alpha 1 upgrade --binary $next
    ctl alpha export $resource --nbd "unix:$(door_of alpha)"
    nbdinfo "$(uri_of alpha $resource)" >/dev/null
    python3 - "$(door_of alpha)" "$CLUSTER_DIR/connected" <<'PYTHON' &
import os, socket, sys, time
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.recv(18)
open(sys.argv[2], "w").close()
while os.path.exists(sys.argv[2]):
    time.sleep(0.1)
PYTHON
    local client=$!
    wait_for 60 "a client is connected" test -e "$CLUSTER_DIR/connected"
    refuses alpha 4 upgrade
    rm "$CLUSTER_DIR/connected"
    wait $client
    close_doors alpha $resource --nbd "unix:$(door_of alpha)"
    [ "${before%% *}" = "$(awk '{print $1}' "/proc/${PID[alpha]}/stat")" ]
    seen "what does not run, or would cut off a client, is refused"
}

# Above the same door as before, and nothing waits for anything.
still_mapped() {
    local now
    has_door "mapped:$name over $door" || cluster_fail "it is not mapped any more"
    now=$(dmsetup info -c --noheadings -o suspended,tables_loaded "${name##*/}")
    [ "$now" = Active:Live ] || cluster_fail "the mapped device is $now"
    now=$(status_field alpha $resource .why)
    [ "$now" = "" ] || cluster_fail "the status says: $now"
}

open_files() { find "/proc/${PID[alpha]}/fd" -type l | wc -l; }

upgraded() {  # upgraded FILE-SYSTEM ROUNDS [--mapped]
    local round said pause worst=0 reads=0 begun open_before
    local rounds=$2 mapped=()
    [ -z "${3:-}" ] || mapped=(--mapped)
    ctl alpha export $resource --door $door "${mapped[@]}" >/dev/null
    make_file_system "$1"
    mkdir -p /mnt/volume
    mount $name /mnt/volume
    open_before=$(open_files)
    for round in $(seq "$rounds"); do
        rm -f $next
        cp "$bin/tools/replicad" $next
        begun=$(writes_begun)
        begin_load $((round % 2)) 4
        wait_for 60 "the load writes" has_written $((begun + 50))
        said=$(ctl alpha upgrade --binary $next)
        pause=$(sed -n 's/.* paused for \([0-9]*\) ms/\1/p' <<<"$said")
        [ -n "$pause" ] || cluster_fail "upgrade says: $said"
        [ "$pause" -le "$worst" ] || worst=$pause
        [ "$(readlink "/proc/${PID[alpha]}/exe")" = $next ] ||
            cluster_fail "another program runs: $(readlink "/proc/${PID[alpha]}/exe")"
        [ "$(peer_field alpha $resource '."resync-sent-bytes"')" = 0 ] ||
            cluster_fail "the upgrade has cost a resync"
        end_load
        reads=$((reads + verified))
        no_errors
        [ ${#mapped[@]} = 0 ] || still_mapped
        echo "     round $round: $(tail -n 1 <<<"$said")"
    done
    none_is_left() { [ "$(open_files)" -le "$open_before" ]; }  # nor of the last command
    wait_for 60 "no more descriptors than the $open_before before" none_is_left
    umount /mnt/volume
    check_file_system "$1"
    ctl alpha unexport $resource
    if [ "$worst" -ge 1000 ]; then
        late+=("$worst ms on $device")
        grep -E 'upgrade|handed|takes over|attached|detached|connected|adopted|promoted|ready' \
            "$CLUSTER_DIR/alpha/log" | tail -n 9
    fi
    seen "$1 on $device${3:+, mapped}: upgraded $rounds times under load, worst pause $worst ms," \
        "$reads reads verified"
}

late=()
export DM_DISABLE_UDEV=1  # there is none in the guest
bring_up
refusals
upgraded ext4 "$rounds"
if modprobe dm_mod; then
    name=/dev/mapper/replica-$resource
    upgraded ext4 1 --mapped
    name=/dev/replica/by-res/$resource
else
    echo "SKIPPED: the upgrade below a mapped device: no device-mapper"
fi
door=nbd device=/dev/nbd0
upgraded xfs "$rounds"
ctl alpha wait $resource --until synced --timeout 60
compare_replicas
# The measure is a second; but an emulated guest on a busy machine may take any time.
[ ${#late[@]} = 0 ] || echo "NOTE: a pause of a second or more: ${late[*]}"
