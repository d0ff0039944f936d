#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs scripts/demo.sh with the programs of this build: as it is, or as a user who is not root and
# has loopback addresses only.
#   demo_test.sh BUILD_DIR namespaces|rootless
set -eu
demo=$(dirname "$0")/../../scripts/demo.sh
export REPLICA_BUILD_DIR="$1"
if [ "$2" = namespaces ] && [ "$(id -u)" != 0 ]; then
    echo "SKIPPED: only root may make network namespaces"
    exit 77
fi
if [ "$2" = rootless ] && [ "$(id -u)" = 0 ]; then
    # A user that exists everywhere, and who must be able to read this build.
    if setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$1/tools/replicad"; then
        exec setpriv --reuid=65534 --regid=65534 --clear-groups "$demo" --no-setup --rootless
    fi
    echo "another user may not read $1: loopback addresses as root instead"
fi
[ "$2" = namespaces ] || set -- --rootless
[ "$1" = --rootless ] || set --
exec "$demo" --no-setup "$@"
