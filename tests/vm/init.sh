#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# The first process of a guest, in its initramfs: loads the modules that reach the host's files,
# lays a writable tmpfs over them, makes it a machine in which a program can run, and goes on there
# with guest.sh. Done here, it costs a fraction of what it would on the host's files. See run.sh.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /host /over /new
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
die() {
    echo "vm: $*"
    $b poweroff -f
}
for module in /modules/*; do
    $b insmod "$module" || die "$module does not load"
done
line=$($b cat /proc/cmdline)
word() { echo "$line" | $b sed -n "s/.*replica\.$1=\([^ ]*\).*/\1/p"; }
[ "$(word run)" != probe ] || die "alive"

$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose root /host ||
    die "the host's root file system can not be mounted"
$b mount -t tmpfs -o size=75% tmpfs /over
$b mkdir /over/upper /over/work
$b mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new ||
    die "no overlay over the host's root file system"
for directory in proc sys dev; do
    $b mount --move /$directory /new/$directory
done
$b mount -t tmpfs -o mode=755 tmpfs /new/run
$b mkdir /new/run/vm
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none run /new/run/vm ||
    die "the directory of this run can not be mounted"

$b mkdir -p /new/dev/pts /new/dev/shm /new/run/lock
$b mount -t devpts devpts /new/dev/pts
$b mount -t tmpfs tmpfs /new/dev/shm
$b mount -t cgroup2 cgroup2 /new/sys/fs/cgroup 2>/dev/null
version=$($b uname -r)
$b rm -rf "/new/lib/modules/$version"
$b mkdir -p /new/lib/modules
$b ln -s "$(word kernel)/lib/modules/$version" "/new/lib/modules/$version"
number=$(word guest)
$b hostname "guest$number"
$b ip link set lo up
if [ -e /new/sys/class/net/eth0 ]; then
    $b ip address add "192.0.2.$number/24" dev eth0
    $b ip link set eth0 up
fi
exec $b switch_root /new /bin/bash /run/vm/guest.sh
