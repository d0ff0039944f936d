#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Shows that file_tree passes what a file system kept, and sees one that lost something.
#   file_tree_self_test.sh PATH_OF_FILE_TREE
set -euo pipefail
tree=$1
dir=$(mktemp -d /var/tmp/replica-tree.XXXXXX)
trap 'rm -rf "$dir"' EXIT
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
sees() {  # sees WHAT: the damage in a copy of the tree
    if "$tree" verify "$dir/copy" "$dir/record" >"$dir/out"; then fail "$1 was not seen"; fi
    echo "$1: $(tail -n 1 "$dir/out")"
    rm -rf "$dir/copy"
}
copied() { cp -a "$dir/tree" "$dir/copy"; }
damages() {
    local big
    big=$(find "$dir/tree" -type f -size +100k | head -n 1)
    big=$dir/copy${big#"$dir/tree"}
    copied
    dd if=/dev/urandom of="$big" bs=512 seek=3 count=1 conv=notrunc status=none
    sees "a damaged sector"
    copied
    cp -a "$(find "$dir/copy" -type f -size +1k | tail -n 1)" "$dir/copy/f99"
    sees "a name too many"
    copied
    find "$dir/copy" -type f -delete
    sees "lost names"
}

"$tree" run "$dir/tree" "$dir/record" 1 2
"$tree" verify "$dir/tree" "$dir/record" | grep -q exact
damages
copied
truncate -s +512 "$(find "$dir/copy" -type f | head -n 1)"
sees "another size"

rm -rf "$dir/tree"
"$tree" run "$dir/tree" "$dir/record" 2 &
running=$!
sleep 1.5
kill -9 $running
wait $running 2>/dev/null || true
"$tree" verify "$dir/tree" "$dir/record"
damages
