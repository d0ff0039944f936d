#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# clang-format on every C and C++ file. Only version 14 is asked: later ones lay out some code
# differently, and a tree cannot please two of them.
set -eu
cd "${1:-.}"
if ! command -v clang-format-14 >/dev/null; then
    echo "SKIPPED: clang-format-14 is not installed, so the layout of the code was not checked" >&2
    exit 77
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
    files=$(git ls-files -co --exclude-standard --deduplicate -- '*.cpp' '*.hpp' '*.c' '*.h')
else
    files=$(find . -path ./build -prune -o -name '*.[ch]' -print -o -name '*.[ch]pp' -print)
fi
if ! printf '%s\n' "$files" | xargs -P 2 -n 16 clang-format-14 --dry-run --Werror; then
    echo "not as clang-format-14 lays it out; run: clang-format-14 -i FILE"
    exit 1
fi
