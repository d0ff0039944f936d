#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs the benchmarks, prints their tables and leaves build/bench/NAME.json.
#   scripts/bench.sh [--quick] [--no-setup] [NAME...]
# Every program measures its yardstick (bench/limit) in the same run: numbers of two runs, or of two
# machines, are never compared. Only `core` counts instructions: these are the same in each run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/build.sh
. scripts/build.sh

setup=1
arguments=()
names=()
for argument in "$@"; do
    case "$argument" in
        --quick) arguments=(--quick) ;;
        --no-setup) setup=0 ;;
        -h | --help) sed -n '3,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "bench.sh: unknown option '$argument' (try --help)" >&2; exit 2 ;;
        *) names+=("$argument") ;;
    esac
done
[ ${#names[@]} -gt 0 ] || names=(limit mirror)

[ "$setup" = 0 ] || scripts/setup.sh build
build_preset release "${names[@]/#core/bench_core}"

out=build/bench
mkdir -p "$out"
printf '%s, %s cores, Linux %s, %s\n' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" \
    "$(git describe --always --dirty 2>/dev/null || echo 'no git')"
for name in "${names[@]}"; do
    printf '\n== %s\n' "$name"
    if [ "$name" = core ]; then
        bench/core_instructions.sh "${arguments[@]}" --json "$out/core.json" build/release
    else
        timeout 600 "build/release/bench/$name" "${arguments[@]}" --json "$out/$name.json"
    fi
done
