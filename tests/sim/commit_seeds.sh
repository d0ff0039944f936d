#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs seeds that follow from the commit's hash: new seeds for each commit, and the same for
# everybody who tests it. So a failure shows, and can be replayed, before the commit is handed in.
#   tests/sim/commit_seeds.sh REPLICA_SIM COUNT
set -eu
source=$(dirname "$0")
commit=$(git -C "$source" rev-parse --verify HEAD 2>/dev/null) || commit=
if [ -z "$commit" ]; then
    echo "commit_seeds.sh: NO COMMIT: git does not answer here; the seeds are those of" \
        "'no-commit', the same in every run" >&2
    commit=no-commit
fi
exec "$1" --commit-seeds "$2" --commit "$commit"
