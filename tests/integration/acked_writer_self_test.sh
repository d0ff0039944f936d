#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Shows, against an NBD server that is not ours, that acked_writer passes a server that keeps what
# it acknowledged, also one that is killed in the middle, and sees one lost block.
#   acked_writer_self_test.sh PATH_OF_ACKED_WRITER
set -euo pipefail
writer=$1
command -v qemu-nbd >/dev/null || { echo "SKIPPED: qemu-nbd is missing (qemu-utils)"; exit 77; }

dir=$(mktemp -d /var/tmp/replica-acked.XXXXXX)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
socket=$dir/socket

serve() {
    rm -f "$socket"
    qemu-nbd --persistent --shared=8 --socket="$socket" --format=raw --cache=writeback "$dir/disk" &
    server=$!
    local end=$((SECONDS + 100))
    until qemu-io -r -f raw -c quit "nbd+unix:///?socket=$socket" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "qemu-nbd did not come up in 100 s"; exit 1; }
        sleep 0.05
    done
}

truncate -s 16M "$dir/disk"
serve
"$writer" write "$socket" "" "$dir/state" 256 512 16 1
"$writer" verify "$socket" "" "$dir/state"

echo "== the server is killed in the middle"
"$writer" write "$socket" "" "$dir/state" 256 512 16 100 >"$dir/out" &
writing=$!
until grep -qs '^writing' "$dir/out"; do
    kill -0 "$writing" || { echo "the writer has ended"; exit 1; }
    sleep 0.05
done
sleep 0.3
kill -9 "$server"
wait "$server" 2>/dev/null || true
wait "$writing"
cat "$dir/out"
grep -q ' lost=1 ' "$dir/out"
serve
"$writer" verify "$socket" "" "$dir/state"

echo "== an acknowledged block is lost"
cp "$dir/state" "$dir/state.kept"
block=300  # or the next one that was written at all
while cmp -s --bytes=4096 --ignore-initial=$((block * 4096)):0 "$dir/disk" /dev/zero; do
    block=$((block + 1))
done
dd if=/dev/zero of="$dir/disk" bs=4096 seek=$block count=1 conv=notrunc status=none
if "$writer" verify "$socket" "" "$dir/state" >"$dir/out"; then
    echo "the lost block was not seen"
    exit 1
fi
cat "$dir/out"
grep -q 'wrong=1$' "$dir/out"
