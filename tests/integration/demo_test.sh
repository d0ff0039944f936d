#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs scripts/demo.sh with the programs of this build: as a user who is not root and has loopback
# addresses only, or as root with --keep; the volume is then used and stopped as the script says.
#   demo_test.sh BUILD_DIR namespaces|rootless
set -eu
demo=$(dirname "$0")/../../scripts/demo.sh
export REPLICA_BUILD_DIR="$1"
if [ "$2" = namespaces ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "SKIPPED: only root may make network namespaces"
        exit 77
    fi
    said=$(mktemp)
    stop=
    trap 'rm -f "$said"; [ ! -x "$stop" ] || "$stop"' EXIT
    code=0
    "$demo" --no-setup --keep >"$said" || code=$?
    cat "$said"
    [ "$code" = 0 ] || exit "$code"
    stop=$(sed -n 's/^  stop: *\([^ ]*\) .*/\1/p' "$said")
    uri=$(sed -n "s/^  use: *nbdinfo '\(.*\)'.*/\1/p" "$said")
    look=$(sed -n 's/^  look: *\(.*\) --watch.*/\1/p' "$said")
    pids=$(sed -n 's/^  kill: *kill -9 \([0-9]*\) (alpha) or \([0-9]*\) (beta).*/\1 \2/p' "$said")
    for found in "$stop" "$uri" "$look" "$pids"; do
        [ -n "$found" ] || { echo "the demo does not say how to go on" >&2; exit 1; }
    done
    nbdinfo --size "$uri"
    qemu-io -f raw -c 'write -P 7 1M 64k' -c flush -c 'read -P 7 1M 64k' "$uri"
    $look
    $look | grep -q UpToDate
    "$stop"
    for pid in $pids; do
        ! kill -0 "$pid" 2>/dev/null || { echo "$pid is still there" >&2; exit 1; }
    done
    [ ! -e "$(dirname "$stop")" ] || { echo "$stop left something behind" >&2; exit 1; }
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    # A user that exists everywhere, and who must be able to read this build.
    if setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$1/tools/replicad"; then
        exec setpriv --reuid=65534 --regid=65534 --clear-groups "$demo" --no-setup --rootless
    fi
    echo "another user may not read $1: loopback addresses as root instead"
fi
exec "$demo" --no-setup --rootless
