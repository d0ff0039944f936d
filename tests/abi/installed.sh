#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The examples as a user builds them: against an installed Replica, outside its tree, once through
# find_package() and once through pkg-config; then they run, for real, on files.
#   installed.sh BUILD_DIR EXAMPLES_DIR
set -euo pipefail
# shellcheck source=scripts/build.sh
. "$(dirname "$0")/../../scripts/build.sh"
build=${1:?} examples=${2:?}
work=$(mktemp -d /var/tmp/replica-abi.XXXXXX)
trap 'rm -rf "$work"' EXIT
unset CMAKE_PREFIX_PATH PKG_CONFIG_PATH LD_LIBRARY_PATH

cmake --install "$build" --prefix "$work/prefix" >/dev/null
cp -r "$examples" "$work/source"

echo "== find_package"
build_logged "$build/examples.log" cmake -G Ninja -S "$work/source" -B "$work/build" \
    -DCMAKE_PREFIX_PATH="$work/prefix"
build_logged "$build/examples.log" cmake --build "$work/build"

echo "== pkg-config"
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name replica.pc)")
libraries=$(pkg-config --variable=libdir replica)
[ -e "$libraries/libreplica.so" ] || { echo "replica.pc names no library: $libraries"; exit 1; }
read -ra flags <<<"$(pkg-config --cflags --libs replica) -Wl,-rpath,$libraries"
cc -std=c99 -o "$work/first_volume" "$work/source/first_volume.c" "${flags[@]}"
c++ -std=c++20 -o "$work/follow_events" "$work/source/follow_events.cpp" "${flags[@]}"

echo "== first_volume, built through pkg-config"
mkdir "$work/first"
"$work/first_volume" "$work/first" | tee "$work/first.out"
grep -q 'read back: every acknowledged byte' "$work/first.out"

echo "== embed_node, twice"
mkdir "$work/embed"
"$work/build/embed_node" "$work/embed"
"$work/build/embed_node" "$work/embed" | tee "$work/again.out"
grep -q 'still as they were written; 0 bytes' "$work/again.out"

echo "== follow_events with a daemon"
replicad=$work/prefix/sbin/replicad
replicactl=("$work/prefix/sbin/replicactl" --control "$work/control.sock")
"$replicad" --name alpha --state "$work/state" --control "$work/control.sock" --no-lock-memory \
    2>"$work/replicad.log" &
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
waits() {  # waits WHAT COMMAND...: until the command succeeds
    local what=$1 end=$((SECONDS + 120))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "not in 2 minutes: $what"; exit 1; }
        sleep 0.05
    done
}
waits "the daemon answers" "${replicactl[@]}" list
truncate -s 32M "$work/r0.img"
"${replicactl[@]}" create r0 --node-id 0 --disk "$work/r0.img"
timeout 120 "$work/follow_events" "unix:$work/control.sock" 1 >"$work/events.out" &
follower=$!
waits "follow_events has subscribed" test -s "$work/events.out"
"${replicactl[@]}" up r0
wait "$follower" || { cat "$work/events.out" "$work/replicad.log"; exit 1; }
grep -q 'r0' "$work/events.out"
cat "$work/events.out"
kill -TERM "$daemon"
wait "$daemon"
echo "installed, found, built and run"
