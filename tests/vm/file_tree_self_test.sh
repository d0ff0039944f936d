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

# Steps until now, as RECORD has them (its third number).
steps() { od -An -j 16 -N 8 -t u8 "$dir/record" 2>/dev/null | tr -d ' '; }
run_until() {  # run_until STEPS SEED: sets `running`
    rm -rf "$dir/tree" "$dir/record"
    "$tree" run "$dir/tree" "$dir/record" "$2" &
    running=$!
    until [ "$(steps || true)" -ge "$1" ] 2>/dev/null; do
        kill -0 $running || fail "file_tree has ended"
        sleep 0.05
    done
}

run_until 2000 1
kill $running
wait $running
"$tree" verify "$dir/tree" "$dir/record" | grep -q exact
damages
copied
truncate -s +512 "$(find "$dir/copy" -type f | head -n 1)"
sees "another size"

run_until 2000 2
kill -9 $running
wait $running 2>/dev/null || true
"$tree" verify "$dir/tree" "$dir/record"
damages

# Here one name is of a file that was removed, and of another one that was made since, both after
# the last step that made names durable.
rm -rf "$dir/tree"
"$tree" run "$dir/tree" "$dir/record" 22207 0 106
"$tree" verify "$dir/tree" "$dir/record"
