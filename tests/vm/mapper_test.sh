#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The wrapper of device-mapper in a guest: without the module, without udev, and with it where it
# is installed.
#   tests/vm/mapper_test.sh BIN_DIR      on the host: boots the guest and runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: mapper_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 400 --disk 32M --disk 32M \
        "$here/$(basename "$0")" "$bin"
fi
run() { timeout 120 "$bin/tests/vm/mapper_test" "$@"; }

loader=$(</proc/sys/kernel/modprobe)
mv /sbin/modprobe /sbin/modprobe.away
echo /bin/false >/proc/sys/kernel/modprobe
run '[absent]'
mv /sbin/modprobe.away /sbin/modprobe
echo "$loader" >/proc/sys/kernel/modprobe

echo "--- nodes by the library"
run '[guest]'

udev=/lib/systemd/systemd-udevd
if [ ! -x $udev ]; then
    echo "SKIPPED: the part with udev, which is not installed"
    exit
fi
mkdir -p /run/udev
$udev --daemon
udevadm trigger --action=add --subsystem-match=block
udevadm settle
echo "--- nodes by udev"
run '[guest]'
