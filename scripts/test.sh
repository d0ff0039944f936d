#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is needed, builds and runs every test. At the end it says what the simulator did and
# why tests were skipped, or parts of them; the last line is ctest's verdict.
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
# shellcheck source=scripts/build.sh
. scripts/build.sh

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
        -h | --help) sed -n '3,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "test.sh: unknown option '$1' (try --help)" >&2; exit 2 ;;
    esac
    shift
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

[ "$setup" = 0 ] || scripts/setup.sh

build() {  # build PRESET [TARGET...]
    step "build $1"
    build_preset "$@"
}

# The sanitizers slow everything down, so tests of speed are left to the other builds.
run_ctest() {  # run_ctest PRESET ARGUMENTS...
    local name=$1
    shift
    step "test $name"
    ctest --preset "$name" --parallel "$jobs" --no-label-summary "$@"
}

# What ctest does not show of tests that pass: the simulator's counts, and each reason to skip.
report() {  # report PRESET
    local skipped
    skipped=$(sed -n 's/.*Test *#[0-9]*: \([^ ]*\) \.*\*\*\*Skipped.*/\1/p' "$log")
    awk -v skipped="$skipped" '
        BEGIN { split(skipped, names, "\n"); for (i in names) whole[names[i]] = 1 }
        !output && /^[0-9]+\/[0-9]+ Test: / { name = $3 }
        !output && /^Output:$/ { output = 1; last = ""; parts = ""; counts = 0; next }
        sub(/<end of output>$/, "") {
            if (NF) last = $0
            if (name in whole) print "skipped " name ": " last
            else if (parts != "") printf "%s", parts
            output = 0
        }
        !output { next }
        NF { last = $0 }
        /SKIPPED:/ { parts = parts "skipped a part of " name ": " $0 "\n" }
        /^seeds from/ && name ~ /_seeds$/ { counts = 3; print name ": " $0; next }
        counts-- > 1 { print }
    ' "build/$1/Testing/Temporary/LastTest.log"
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
report "${preset:-release}"
grep -E '^[0-9]+% tests passed' "$log" || { echo "test.sh: ctest gave no summary" >&2; exit 1; }
exit "$status"
