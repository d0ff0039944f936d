#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints how many instructions a replicated write of 4 KiB costs the Primary's core and the
# Secondary's, counted by callgrind over bench/core.cpp.
#   bench/core_instructions.sh [--quick] [--check] [--json FILE] [--profiles DIR] BIN_DIR
# --quick     fewer writes
# --check     fails if a figure is above 1.5 times the one in bench/core_instructions.txt
# --profiles  keeps what callgrind wrote, for callgrind_annotate --inclusive=yes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

writes=8192
warm_up=8192
check=0
json=
profiles=
build=
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) writes=1024 warm_up=2048 ;;
        --check) check=1 ;;
        --json) json=$2 && shift ;;
        --profiles) profiles=$2 && shift ;;
        -h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "core_instructions.sh: unknown option '$1' (try --help)" >&2; exit 2 ;;
        *) build=$1 ;;
    esac
    shift
done
[ -n "$build" ] || { echo "core_instructions.sh: which build directory? (try --help)" >&2; exit 2; }

for tool in valgrind callgrind_annotate strip; do
    command -v "$tool" >/dev/null ||
        { echo "SKIPPED: no $tool (valgrind, binutils): no instructions were counted"; exit 77; }
done
setting() {  # setting NAME: of the build directory
    sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt" 2>/dev/null || true
}
if [ -n "$(setting REPLICA_SANITIZE)" ]; then
    echo "SKIPPED: valgrind cannot run a build with sanitizers, so no instructions were counted"
    exit 77
fi

if [ ! -x "$build/bench/bench_core" ]; then
    echo "SKIPPED: $build has no bench/bench_core, so no instructions were counted"
    exit 77
fi

dir=$(mktemp -d "${TMPDIR:-/var/tmp}/replica-core.XXXXXX")
trap 'rm -rf "$dir"' EXIT
if [ -n "$profiles" ]; then mkdir -p "$profiles"; fi
# Symbols are enough, and valgrind 3.19 cannot read clang 14's debug information.
strip --strip-debug -o "$dir/bench_core" "$build/bench/bench_core"

count() {  # count NAME DEPTH EXTENTS: a line of figures, each a write's
    local out=$dir/callgrind.$1.$2
    if ! timeout 600 valgrind --tool=callgrind --callgrind-out-file="$out" \
        --toggle-collect='*counted_primary*' --toggle-collect='*counted_secondary*' \
        "$dir/bench_core" --writes "$writes" --warm-up "$warm_up" --depth "$2" \
        --extents "$3" >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        return 1
    fi
    [ -z "$profiles" ] || cp "$out" "$profiles/"
    callgrind_annotate --inclusive=yes --auto=no --threshold=100 "$out" >"$dir/annotated"
    awk -v name="$1" -v depth="$2" -v writes="$writes" '
        { cost = $1; gsub(",", "", cost) }
        /PROGRAM TOTALS/ { total = cost }
        /::counted_primary\(/ && cost > primary { primary = cost + 0 }
        /::counted_secondary\(/ && cost > secondary { secondary = cost + 0 }
        END {
            if (primary == 0 || secondary == 0 || primary + secondary != total) {
                print "core_instructions.sh: callgrind saw " primary " + " secondary \
                    " instructions of " total > "/dev/stderr"
                exit 1
            }
            printf "%s %d %.0f %.0f\n", name, depth, primary / writes, secondary / writes
        }' "$dir/annotated"
}

printf '%-5s %6s %9s %10s %9s\n' log depth primary secondary both
for log in 'warm 64' 'cold 5120'; do
    read -r name extents <<<"$log"
    for depth in 1 16 64; do
        count "$name" "$depth" "$extents" >>"$dir/figures"
        tail -n 1 "$dir/figures" |
            awk '{ printf "%-5s %6d %9d %10d %9d\n", $1, $2, $3, $4, $3 + $4 }'
    done
done

if [ -n "$json" ]; then
    awk 'BEGIN { separator = "[" }
        {
            printf "%s{\"name\": \"core\", \"log\": \"%s\", \"depth\": %d, ", separator, $1, $2
            printf "\"primary_instructions\": %d, \"secondary_instructions\": %d}", $3, $4
            separator = ",\n "
        }
        END { print "]" }' "$dir/figures" >"$json"
fi

[ "$check" = 1 ] || exit 0
type=$(setting CMAKE_BUILD_TYPE)
if [ "$(uname -m)" != x86_64 ] || [ "$(setting REPLICA_EXPENSIVE_ASSERT)" = ON ] ||
    [[ $type != RelWithDebInfo && $type != Release ]]; then
    echo "Not compared: the figures on record are those of an optimised build for x86-64."
    exit 0
fi
awk 'NR == FNR { if ($1 !~ /^#/) { record[$1 $2, 3] = $3; record[$1 $2, 4] = $4 } next }
    {
        for (column = 3; column <= 4; ++column) {
            known = record[$1 $2, column]
            if (known > 0 && $column <= 1.5 * known) continue
            printf "%s log, depth %d, %s: %d instructions a write, and %d on record\n", $1, $2, \
                column == 3 ? "primary" : "secondary", $column, known
            bad = 1
        }
    }
    END { exit bad }' "$here/core_instructions.txt" "$dir/figures"
