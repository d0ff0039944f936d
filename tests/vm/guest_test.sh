#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What run.sh promises, and what the tests below tests/vm need of the guest's kernel.
#   tests/vm/guest_test.sh CACHE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
self=$here/$(basename "$0")

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

if [ -z "${VM_GUEST:-}" ]; then  # on the host
    expect() {  # expect STATUS OPTIONS-AND-PROGRAM...
        local expected=$1 status=0
        shift
        "$here/run.sh" --cache "$cache" "$@" || status=$?
        [ "$status" = "$expected" ] || fail "exit status $status, not $expected: $*"
    }
    cache=$1
    expect 7 --timeout 200 --disk 32M --disk 16M "$self" single
    expect 124 --timeout 12 sleep 1000
    expect 125 --timeout 200 bash -c 'echo c >/proc/sysrq-trigger; sleep 1000'
    expect 0 --timeout 300 --guests 2 --disk 8M "$self" pair
    echo "guests run programs, alone and in pairs"
    exit
fi

case "$1" in
    single)
        [ "$(blockdev --getsize64 /dev/vda)" = $((32 << 20)) ] || fail "no /dev/vda of 32 MiB"
        [ "$(blockdev --getsize64 /dev/vdb)" = $((16 << 20)) ] || fail "no /dev/vdb of 16 MiB"
        for module in ublk_drv nbd drbd dm-mod dm-thin-pool dm-crypt dm-snapshot dm-flakey \
            dm-delay dm-log-writes loop tls sch_netem xfs ext4; do
            modprobe "$module" || fail "the module $module does not load"
        done
        for device in ublk-control nbd0 mapper/control loop-control; do
            [ -c "/dev/$device" ] || [ -b "/dev/$device" ] || fail "there is no /dev/$device"
        done
        mkfs.ext4 -q /dev/vda
        mkdir -p /mnt/here
        mount /dev/vda /mnt/here
        cp "$self" /mnt/here/
        cmp "$self" "/mnt/here/$(basename "$self")"
        umount /mnt/here
        # The host's files can be written here, and do not change there.
        touch "$here/guest-was-here"
        exit 7
        ;;
    pair)
        [ "$(blockdev --getsize64 /dev/vda)" = $((8 << 20)) ] || fail "no disk"
        touch "$VM_SHARED/up-$VM_GUEST"
        for _ in $(seq 2000); do
            [ -e "$VM_SHARED/up-$((3 - VM_GUEST))" ] && break
            sleep 0.1
        done
        python3 - "192.0.2.$((3 - VM_GUEST))" "$VM_GUEST" <<'PYTHON' || fail "no network"
import socket, sys, time
peer, guest = sys.argv[1], sys.argv[2]
if guest == "1":
    with socket.create_server(("", 7000)) as server:
        server.settimeout(200)
        server.accept()[0].sendall(b"hello")
else:
    for _ in range(200):
        try:
            with socket.create_connection((peer, 7000), 20) as s:
                sys.exit(0 if s.recv(5) == b"hello" else 1)
        except OSError:
            time.sleep(0.2)
    sys.exit(1)
PYTHON
        ;;
esac
