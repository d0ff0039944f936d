# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Random writes that change the extents of the activity log all the time, and the checks that go
# with them: no I/O error, no lost link, no new generation, equal replicas. It needs
# scripts/cluster.sh and cluster_test.sh; a script that sources this sets $here, $bin and $resource.
#
#   load_begin SIZE SECONDS [OPTION of fio...]   4 KiB blocks at depth 64 through alpha's door
#   load_goes_on              fails if the load has ended with an error
#   load_end                  waits for its end, which may be long after SECONDS
#   watch_begin, watch_judge  between the two no node may lose a peer or open a generation
#   load_equal                the data areas are equal; both nodes are down afterwards
: "${here:?}" "${bin:?}" "${resource:?}"
load=
declare -A watched_lines=()
watched_generation=

# By default each write goes to the first block of an extent. More distinct blocks would be as many
# pieces of a sparse file, which takes some file systems minutes to remove.
load_align=4M
load_begin() {
    local size=$1 seconds=$2
    shift 2
    timeout $((seconds + 300)) fio --name=load --ioengine=nbd \
        --uri="$(uri_of alpha "$resource")" --rw=randwrite --bs=4k --blockalign=$load_align \
        --iodepth=64 --size="$size" --time_based --runtime="$seconds" --norandommap \
        --randseed=$((RANDOM + 1)) "$@" >"$CLUSTER_DIR/fio" 2>&1 &
    load=$!
    cluster_cleanup_pids+=("$load")
}

load_goes_on() {
    kill -0 "$load" 2>/dev/null || load_end
}

load_end() {
    local code=0
    wait "$load" || code=$?
    # A lost link in the log is closer to the cause than the errors that follow from it.
    [ $code = 0 ] || watch_judge_logs
    [ $code = 0 ] || cluster_fail "fio ended with $code: $(grep -m 1 error "$CLUSTER_DIR/fio")"
    say "fio: $(sed -n 's/^ *write: //p' "$CLUSTER_DIR/fio")"
}

watch_begin() {
    local node
    for node in "${NODES[@]}"; do
        watched_lines[$node]=$(wc -l <"$CLUSTER_DIR/$node/log")
    done
    watched_generation=$(status_field alpha "$resource" '.devices[0]."current-uuid"')
}

watch_judge_logs() {
    local node bad='in time|a ping|the connection broke|closed the connection|disconnected|refuses'
    bad+='|protocol|a new data generation|an I/O failed|is gone|was not asked|: connected'
    for node in "${NODES[@]}"; do
        ! tail -n +$((watched_lines[$node] + 1)) "$CLUSTER_DIR/$node/log" | grep -E "$bad" \
            >"$CLUSTER_DIR/bad" || cluster_fail "$node: $(head -n 1 "$CLUSTER_DIR/bad")"
    done
}

watch_judge() {
    local generation
    watch_judge_logs
    generation=$(status_field alpha "$resource" '.devices[0]."current-uuid"')
    [ "$generation" = "$watched_generation" ] ||
        cluster_fail "the generation was $watched_generation and is $generation"
    [ "$(status_field alpha "$resource" '.connections[0]."connection-state"')" = Connected ] ||
        cluster_fail "alpha has lost its peer"
}

# al_extents ON_ALPHA ON_BETA: while nobody is Primary.
al_extents() {
    local node
    for node in "${NODES[@]}"; do
        ctl "$node" detach "$resource"
        ctl "$node" options "$resource" --al-extents "$1" >/dev/null
        ctl "$node" attach "$resource"
        shift
    done
    ctl alpha wait "$resource" --until synced --timeout 110
}

load_equal() {
    local size node
    size=$(status_field alpha "$resource" '.devices[0]."size-bytes"')
    ctl alpha unexport "$resource"
    for node in "${NODES[@]}"; do
        ctl "$node" down "$resource"
    done
    python3 -B "$here/sparse_compare.py" "$(disk_of alpha)" "$(disk_of beta)" "$size" \
        >"$CLUSTER_DIR/compared" 2>&1 ||
        cluster_fail "the replicas differ: $(cat "$CLUSTER_DIR/compared")"
    say "the replicas: $(cat "$CLUSTER_DIR/compared")"
}
