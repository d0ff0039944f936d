#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# libreplica.so exports the functions that replica.h declares, each with its version, and not one
# symbol more; its soname carries the major version.
#   symbols.sh LIBRARY HEADER SOVERSION
set -euo pipefail
library=${1:?} header=${2:?} soversion=${3:?}

declared=$(grep -oE '\breplica_[a-z_0-9]+\(' <(sed -n '/^REPLICA_API/,/;/p' "$header") |
    tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | sed 's/@@.*//' | sort -u)
if ! diff -u --label declared <(echo "$declared") --label exported <(echo "$exported"); then
    echo "the library exports something else than $header declares"
    exit 1
fi
if nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | grep -v '@@REPLICA_'; then
    echo "these symbols carry no version"
    exit 1
fi
readelf -d "$library" | grep -qF "soname: [libreplica.so.$soversion]" || {
    echo "the soname is not libreplica.so.$soversion"
    exit 1
}
echo "$(wc -l <<<"$declared") functions, nothing else"
