#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process 1 of a guest once it stands on the host's root file system: makes it a machine in which a
# program can run, runs /run/vm/program and leaves its exit status in /run/vm/status-N. See run.sh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux} LC_ALL=C.UTF-8
word() { sed -n "s/.*replica\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
number=$(word guest)
export VM_GUEST=$number VM_SHARED=/run/vm

mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
rm -rf "/lib/modules/$(uname -r)"
mkdir -p /lib/modules
ln -s "$(word kernel)/lib/modules/$(uname -r)" "/lib/modules/$(uname -r)"
hostname "guest$number"
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip address add "192.0.2.$number/24" dev eth0
    ip link set eth0 up
fi
ulimit -c 0

if [ "$(word run)" = shell ]; then
    cd "$(cat /run/vm/directory)" || cd /
    echo "A guest on the host's files; what you write stays in its memory. exit powers it off."
    setsid -c bash -i </dev/ttyS0 >/dev/ttyS0 2>&1
    echo 0 >/run/vm/status-"$number"
else
    setsid bash /run/vm/program </dev/null
    echo $? >/run/vm/status-"$number"
fi
dmesg >/run/vm/dmesg-"$number"
# A program may have left a file system behind that nobody serves any more: do not wait for that.
sync &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 $! 2>/dev/null || break
    sleep 0.5
done
dmesg -n 1
busybox poweroff -nf
sleep 60
