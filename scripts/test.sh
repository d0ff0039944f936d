#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is needed, builds and runs every test; the last line is ctest's verdict.
#   scripts/test.sh [--quick] [--full] [--asan] [--clang] [--preset NAME] [--no-setup]
#                   [-- CTEST-ARGUMENTS]
#     --quick        unit tests and tidy only
#     --full         the unit tests with sanitizers too, before the release build's tests
#     --asan         only the build with address and undefined-behaviour sanitizers, all tests
#     --clang        only the build with clang, all tests
#     --preset NAME  only this preset of CMakePresets.json, all tests
#     --no-setup     install nothing
# Without an option: the release build with all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=$(nproc)
preset=
quick=0
full=0
setup=1
ctest_arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) quick=1 ;;
        --full) full=1 ;;
        --asan) preset=asan ;;
        --clang) preset=clang ;;
        --preset) preset=${2:?--preset needs a name}; shift ;;
        --no-setup) setup=0 ;;
        --) shift; ctest_arguments=("$@"); break ;;
        -h | --help) sed -n '3,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "test.sh: unknown option '$1' (try --help)" >&2; exit 2 ;;
    esac
    shift
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

[ "$setup" = 0 ] || scripts/setup.sh

build() {  # build PRESET [TARGET...]
    local name=$1
    shift
    step "build $name"
    cmake --preset "$name" >"$log" 2>&1 || { cat "$log"; exit 1; }
    if [ -t 1 ]; then  # with ninja's progress
        cmake --build --preset "$name" ${1:+--target "$@"} -- -j "$jobs"
    else
        cmake --build --preset "$name" ${1:+--target "$@"} -- -j "$jobs" | tail -n 40
    fi
}

# The sanitizers slow everything down, so tests of speed are left to the other builds.
run_ctest() {  # run_ctest PRESET ARGUMENTS...
    local name=$1
    shift
    step "test $name"
    ctest --preset "$name" --parallel "$jobs" --no-label-summary "$@"
}

status=0
if [ -n "$preset" ]; then
    build "$preset"
    run_ctest "$preset" "${ctest_arguments[@]}" 2>&1 | tee "$log" || status=$?
elif [ "$quick" = 1 ]; then
    build release
    run_ctest release -L 'unit|tidy' "${ctest_arguments[@]}" 2>&1 | tee "$log" || status=$?
else
    build release
    if [ "$full" = 1 ]; then
        build asan unit_tests
        run_ctest asan -L unit "${ctest_arguments[@]}"
    fi
    run_ctest release "${ctest_arguments[@]}" 2>&1 | tee "$log" || status=$?
fi
step "done"
grep -E '^[0-9]+% tests passed' "$log" || { echo "test.sh: ctest gave no summary" >&2; exit 1; }
exit "$status"
