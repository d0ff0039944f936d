#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loss of power. Guests run a mirror under load, on disks whose cache is lost when QEMU is killed,
# at a moment that is drawn, and boot again on what is left.
#   tests/vm/power_loss_test.sh BIN_DIR KIND [--rounds N | --full] [--seed N]
# KIND  mirror   both nodes in one guest: all power is lost at once; then one round more, in which
#                the disks lie about flushes: the checks have to see that
#       primary  a node in each of two guests: that of the Primary loses its power, the other goes
#                on as Primary, and the first one returns
# --full is 20 rounds; the default is 2. Judged are: each replica by itself as the disk has it, the
# resync (bounded by activity log and bitmap), both replicas (equal), and what the device holds.
# The seed decides what the disks keep and when the power fails; the guest itself is not repeatable.
# After a failure the directory of the run is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: power_loss_test.sh BIN_DIR KIND [--rounds N | --full] [--seed N]}
kind=${2:?KIND is missing}
shift 2
rounds=2
seed=$((RANDOM * 32768 + RANDOM))
while [ $# -gt 0 ]; do
    case "$1" in
        --full) rounds=20 ;;
        --rounds) rounds=$2; shift ;;
        --seed) seed=$2; shift ;;
        *) echo "power_loss_test.sh: unknown option '$1'" >&2; exit 2 ;;
    esac
    shift
done

run=$(mktemp -d "${REPLICA_DIR:-/var/tmp}/replica-power.XXXXXX")
shared=$run/shared
mkdir "$shared"
pids=()
declare -A SERVER=() GUEST=()
finish() {
    local code=$? pid
    trap - EXIT
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
    if [ -z "${REPLICA_KEEP:-}" ] && { [ $code = 0 ] || [ $code = 77 ]; }; then
        rm -rf "$run"
    else
        echo "seed $seed; disks, records and logs are kept in $run" >&2
    fi
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    tail -n 60 "$run"/guest-*.log >&2 || true
    exit 1
}
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
RANDOM=$((seed % 32768))

serve() {  # serve GUEST DISK...: one server for the disks of a guest
    local guest=$1 paths=() disk
    shift
    for disk in "$@"; do
        truncate -s 72M "$run/$disk"
        paths+=("$run/$disk")
    done
    : >"$run/disks-$guest.log"
    "$bin/tests/vm/volatile_disks" $((seed + guest)) "${paths[@]}" >>"$run/disks-$guest.log" &
    SERVER[$guest]=$!
    pids+=($!)
    until grep -q serving "$run/disks-$guest.log"; do
        kill -0 "${SERVER[$guest]}" || fail "no disks"
        sleep 0.05
    done
}
boot() {  # boot GUEST "DISK..." ARGUMENT...: power_loss_guest.sh with these
    local guest=$1 disk options=()
    for disk in $2; do
        options+=(--disk "nbd+unix:///disk?socket=$run/$disk.sock")
    done
    shift 2
    "$here/run.sh" --cache "$bin/vm" --timeout 600 --shared "$shared" --guest "$guest" \
        "${options[@]}" env VM_SEED="$seed" "$here/power_loss_guest.sh" "$bin" "$@" \
        >"$run/guest-$guest.log" 2>&1 &
    GUEST[$guest]=$!
    pids+=($!)
}
# What a guest has said goes on to our own output when it has ended.
ended() {  # ended GUEST: the exit status of its run in `status`
    status=0
    wait "${GUEST[$1]}" || status=$?
    grep -E ' round |LOST' "$run/guest-$1.log" || true
    cat "$run/guest-$1.log" >>"$run/all-$1.log"
    [ $status != 77 ] || { cat "$run/guest-$1.log"; exit 77; }
}
wait_told() {  # wait_told GUEST FILE: until the guest has made it
    local end=$((SECONDS + 400))
    until [ -e "$shared/$2" ]; do
        kill -0 "${GUEST[$1]}" 2>/dev/null || { ended "$1"; fail "guest $1 ended early ($status)"; }
        [ $SECONDS -lt $end ] || fail "guest $1 has not told of $2"
        sleep 0.05
    done
}
toggle_power() {  # toggle_power GUEST "power on"|"power cut"
    local log=$run/disks-$1.log before end=$((SECONDS + 60))
    before=$(grep -c "^$2" "$log" || true)
    kill -USR1 "${SERVER[$1]}"
    until [ "$(grep -c "^$2" "$log")" -gt "$before" ]; do
        [ $SECONDS -lt $end ] || fail "no $2: nothing was written"
        sleep 0.02
    done
}
cut_power() {  # cut_power GUEST DISKS
    toggle_power "$1" "power cut"
    kill -KILL "$(<"$shared/guest-$1.pid")"
    ended "$1"
    tail -n $(($2 + 1)) "$run/disks-$1.log" | sed -n "\$!s#^$run/#       #p"
    toggle_power "$1" "power on"
}

# From now on flushes are lies, and enough of them are recorded that some loss is sure to show.
tell_lies() {
    local end=$((SECONDS + 200))
    kill -USR2 "${SERVER[1]}"
    cp "$shared/raw" "$run/raw-before"
    until [ "$({ cmp -l "$run/raw-before" "$shared/raw" || true; } | wc -l)" -ge 200 ]; do
        [ $SECONDS -lt $end ] || fail "nothing is flushed any more"
        sleep 0.1
    done
}

mirror() {
    local round all="state alpha-fs alpha-raw beta-fs beta-raw"
    # shellcheck disable=SC2086  # words
    serve 1 $all
    for round in $(seq 0 "$rounds"); do
        boot 1 "$all" both "$round"
        wait_told 1 "loaded-$round"
        [ "$round" -lt "$rounds" ] || tell_lies
        sleep $((1 + RANDOM % 4)).$((RANDOM % 10))
        cut_power 1 5
        [ "$round" = "$rounds" ] || say "round $((round + 1)): the power was cut"
    done
    say "nothing that was flushed is lost in $rounds losses of power"
    boot 1 "$all" both "$round"
    ended 1
    [ "$status" = 3 ] || fail "nobody has noticed that the disks lie ($status)"
    say "disks that lie are noticed"
}

primary() {
    local round first=1 second=2 swap
    serve 1 alpha-state alpha-fs alpha-raw
    serve 2 beta-state beta-fs beta-raw
    local -A disks=([1]="alpha-state alpha-fs alpha-raw"
        [2]="beta-state beta-fs beta-raw")
    boot 1 "${disks[1]}" one 0 primary
    boot 2 "${disks[2]}" one 0 standby
    for round in $(seq "$rounds"); do
        wait_told $second standby-$((round - 1))
        wait_told $first loaded-$((round - 1))
        sleep $((RANDOM % 4)).$((RANDOM % 10))
        cut_power $first 3
        mkdir "$shared/at-cut-$round"
        find "$shared" -maxdepth 1 -type f \( -name raw -o -name 'tree-*' \) \
            -exec cp {} "$shared/at-cut-$round/" \;
        touch "$shared/cut-$((round - 1))"
        say "round $round: the power of guest $first was cut"
        wait_told $second "loaded-$round"
        boot $first "${disks[$first]}" one "$round" standby
        wait_told $first "standby-$round"
        wait_told $second "judged-$round"
        swap=$first first=$second second=$swap
    done
    touch "$shared/last"
    for guest in $first $second; do
        ended "$guest"
        [ "$status" = 0 ] || fail "guest $guest ended with $status"
        kill "${SERVER[$guest]}"
        wait "${SERVER[$guest]}"
    done
    cmp --bytes=$((48 << 20)) "$run/alpha-fs" "$run/beta-fs" || fail "the replicas differ"
    cmp --bytes=$((64 << 20)) "$run/alpha-raw" "$run/beta-raw" || fail "the replicas differ"
    say "nothing that was flushed is lost in $rounds losses of the primary's power"
}

say "seed $seed"
status=0
case $kind in
    mirror | primary) $kind ;;
    *) fail "unknown kind $kind" ;;
esac
