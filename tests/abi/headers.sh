#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Both public headers stand alone, without a warning, in every language version that they promise
# and with every compiler that is installed.
#   headers.sh INCLUDE_DIR C99_PROGRAM
set -euo pipefail
include=${1:?} program=${2:?}
flags=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -fsyntax-only "-I$include")
compiled=0

try() {
    local compiler=$1
    shift
    command -v "$compiler" >/dev/null || return 0
    "$compiler" "${flags[@]}" "$@"
    compiled=$((compiled + 1))
}
for compiler in gcc clang clang-14; do
    for standard in c99 c11 c17; do
        try "$compiler" -x c "-std=$standard" - <<<'#include <replica/replica.h>'
        try "$compiler" -x c "-std=$standard" "$program"
    done
done
for compiler in g++ clang++ clang++-14; do
    for standard in c++11 c++17 c++20; do
        try "$compiler" -x c++ "-std=$standard" - <<<'#include <replica/replica.h>'
    done
    try "$compiler" -x c++ -std=c++20 - <<<'#include <replica/replica.hpp>'
done
[ "$compiled" -gt 0 ] || { echo "SKIPPED: there is no compiler"; exit 77; }
echo "$compiled compilations"
