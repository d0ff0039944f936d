#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lets the simulator search for every mutant at random, and prints which it finds in how many seeds,
# as the table of docs/testing.md.
#   tests/sim/mutants.sh REPLICA_SIM [SECONDS [NAME...]]
#     SECONDS  for each mutant at most, 40 by default
#     NAME     only these mutants
# Ends with 1 if one of them is not found that has no script of its own.
set -euo pipefail

sim=${1:?mutants.sh: name the program, for example build/release/tests/sim/replica_sim}
seconds=${2:-40}
names=("${@:3}")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <("$sim" --list-mutants | grep -vx none)

# What only a script can tell: by itself a link is made anew a little later.
scripted=(deaf-to-knocks)

found=0
missed=()
printf '| mutant | seeds until it is caught | seconds |\n| --- | --- | --- |\n'
for name in "${names[@]}"; do
    caught=0
    search=(--mutant "$name" --random 1000000 --until-caught --seconds "$seconds")
    out=$("$sim" "${search[@]}" 2>&1) && caught=1
    counts='s/^seeds from [0-9]*: \([0-9]*\) in \([0-9.]*\) s.*/\1 \2/p'
    read -r seeds took < <(sed -n "$counts" <<<"$out") || true
    if [ "$caught" = 1 ]; then
        found=$((found + 1))
        printf '| %s | %s | %s |\n' "$name" "$seeds" "$took"
    else
        printf '| %s | not in %s | %s |\n' "$name" "${seeds:-?}" "${took:-?}"
        [[ " ${scripted[*]} " == *" $name "* ]] || missed+=("$name")
    fi
done
printf '\n%d of %d are caught by random search\n' "$found" "${#names[@]}"
[ ${#missed[@]} -eq 0 ] || { echo "not caught: ${missed[*]}"; exit 1; }
