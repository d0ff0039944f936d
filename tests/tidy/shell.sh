#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs shellcheck on every shell script of the tree.
set -eu
cd "${1:-.}"
if ! command -v shellcheck >/dev/null; then
    echo "SKIPPED: shellcheck is not installed, so the scripts were not checked" >&2
    exit 77
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
    files=$(git ls-files -co --exclude-standard -- '*.sh' .ci/run)
else
    files=$(find . -path ./build -prune -o -name '*.sh' -print)
fi
# shellcheck disable=SC2086  # names in this tree have no spaces
shellcheck -x $files
