#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A mirror under load whose secondary is killed and restarted, whose cable is cut and mended, and
# whose primary is killed with the survivor promoted; at the end both replicas are equal.
#   mirror_faults.sh BIN_DIR [--full] [--rounds N] [--only secondary|link|primary] [--rootless]
# --full is 20 rounds of each; the default is 3. Without namespaces the cable is left out, loudly.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
# shellcheck source=tests/integration/cluster_test.sh
. "$here/cluster_test.sh"

bin=${1:?usage: mirror_faults.sh BIN_DIR [--full] [--rounds N] [--only KIND] [--rootless]}
shift
rounds=3
only=
mode=
while [ $# -gt 0 ]; do
    case "$1" in
        --full) rounds=20 ;;
        --rounds) rounds=$2; shift ;;
        --only) only=$2; shift ;;
        --rootless) mode=rootless ;;
        *) echo "mirror_faults.sh: unknown option '$1'" >&2; exit 2 ;;
    esac
    shift
done
needs jq fio qemu-img
resource=r0
load=

# fio writes and verifies for as long as the file `more` is there; every pass has new contents.
fio_load() {
    local pass=0
    while [ -e "$CLUSTER_DIR/more" ]; do
        pass=$((pass + 1))
        timeout 600 fio --name=load --ioengine=nbd --uri="$(uri_of alpha $resource)" \
            --rw=randwrite --bs=4k-64k --iodepth=16 --size=48M --rate=,16M --verify=crc32c \
            --randseed=$((pass + RANDOM)) --verify_state_save=0 --minimal \
            >"$CLUSTER_DIR/fio" 2>&1 || { touch "$CLUSTER_DIR/fio_failed"; return 1; }
        echo "$pass" >"$CLUSTER_DIR/passes"
    done
}

load_lives() {
    [ ! -e "$CLUSTER_DIR/fio_failed" ] || cluster_fail "fio: $(cat "$CLUSTER_DIR/fio")"
}

begin_load() {
    cluster_primary alpha $resource
    touch "$CLUSTER_DIR/more"
    fio_load &
    load=$!
    cluster_cleanup_pids+=("$load")
}

end_load() {
    rm "$CLUSTER_DIR/more"
    wait "$load" || load_lives
    load_lives
    say "fio ran $(cat "$CLUSTER_DIR/passes") passes without an error"
    ctl alpha wait $resource --until synced --timeout 110
    ctl alpha unexport $resource
    ctl alpha demote $resource
}

kill_secondary() {
    local round
    begin_load
    for round in $(seq "$rounds"); do
        sleep "1.$((RANDOM % 10))"
        cluster_crash beta
        sleep "0.$((RANDOM % 10))"
        cluster_start beta
        # Every second time it is killed again in the middle of the resync.
        [ $((round % 2)) = 0 ] || ctl alpha wait $resource --until synced --timeout 110
        load_lives
        say "secondary killed and restarted, round $round"
    done
    end_load
}

cut_link() {
    local round
    begin_load
    for round in $(seq "$rounds"); do
        sleep "1.$((RANDOM % 10))"
        cluster_link down
        sleep "$((1 + RANDOM % 4)).$((RANDOM % 10))"
        cluster_link up
        [ $((round % 2)) = 0 ] || ctl alpha wait $resource --until synced --timeout 110
        load_lives
        say "cable cut and mended, round $round"
    done
    end_load
}

kill_primary() {
    local round primary=alpha survivor=beta writer node
    # A survivor that was lost for a moment before its peer died has old data, and may not go on.
    for node in "${NODES[@]}"; do
        cluster_patient "$node" $resource
    done
    cluster_primary "$primary" $resource
    for round in $(seq "$rounds"); do
        ctl "$primary" wait $resource --until synced --timeout 110
        rm -f "$CLUSTER_DIR/writer"  # what it says there is awaited
        "$bin/tests/integration/acked_writer" write "$(door_of "$primary")" $resource \
            "$CLUSTER_DIR/acked" 16384 8192 16 100 >"$CLUSTER_DIR/writer" &
        writer=$!
        cluster_cleanup_pids+=("$writer")
        cluster_writing "$writer" "$CLUSTER_DIR/writer"
        sleep "1.$((RANDOM % 10))"
        cluster_crash "$primary"
        wait "$writer" || cluster_fail "the writer: $(cat "$CLUSTER_DIR/writer")"
        cluster_loss_seen "$survivor" $resource
        cluster_primary "$survivor" $resource
        "$bin/tests/integration/acked_writer" verify "$(door_of "$survivor")" $resource \
            "$CLUSTER_DIR/acked" >"$CLUSTER_DIR/verified" ||
            cluster_fail "acknowledged writes are lost: $(cat "$CLUSTER_DIR/verified")"
        say "$primary killed, round $round:" \
            "$(tail -qn 1 "$CLUSTER_DIR/writer" "$CLUSTER_DIR/verified" | tr '\n' ' ')"
        cluster_start "$primary"
        ctl "$survivor" wait $resource --until synced --timeout 110
        [ "$(status_field "$primary" $resource .role)" = Secondary ] ||
            cluster_fail "$primary came back as something else than Secondary"
        # The survivor is the next to die.
        primary="$survivor"
        survivor=$(peer_of "$primary")
    done
    ctl "$primary" unexport $resource
    ctl "$primary" demote $resource
}

cluster_test_begin "$bin" "$mode"
cluster_start alpha
cluster_start beta
cluster_create $resource 128M --ping-interval-ms 500 --ping-timeout-ms 500
size=$(status_field alpha $resource '.devices[0]."size-bytes"')

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }
if wanted secondary; then kill_secondary; fi
if wanted link; then
    if [ "$CLUSTER_MODE" = namespaces ]; then
        cut_link
    else
        say "SKIPPED: no network namespaces here, so the cable was not cut"
    fi
fi
if wanted primary; then kill_primary; fi
cluster_compare $resource "$size"
say "the replicas are equal after $SECONDS s"
