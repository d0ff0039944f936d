#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process 1 of a guest once it stands on the host's root file system, and init.sh has set it up:
# runs /run/vm/program-N, and leaves its exit status in /run/vm/status-N. Or lets systemd do that.
# See run.sh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux} LC_ALL=C.UTF-8
line=$(</proc/cmdline)
word() {  # word NAME: the value of replica.NAME on the kernel's command line
    [[ $line =~ replica\.$1=([^ ]*) ]] && printf '%s' "${BASH_REMATCH[1]}"
}
number=$(word guest)
export VM_GUEST=$number VM_SHARED=/run/vm
: >/run/vm/begun-"$number"
ulimit -c 0

# systemd instead of us; the program is a service of it, and its end that of the machine.
begin_systemd() {
    rm -rf /etc/systemd/system /.dockerenv
    mkdir -p /etc/systemd/system
    # Of the host's own services none: what it wants is in /etc, and that is empty now. Some that
    # every machine has would go through all files of the host, or are of no use.
    rm -rf /lib/systemd/system/multi-user.target.wants /lib/systemd/system/timers.target.wants
    for unit in systemd-tmpfiles-setup systemd-sysusers systemd-random-seed systemd-binfmt \
        systemd-update-utmp systemd-journal-flush systemd-firstboot systemd-machine-id-commit; do
        ln -s /dev/null "/etc/systemd/system/$unit.service"
    done
    : >/etc/fstab
    echo "guest$number" >/etc/hostname
    cat >/etc/systemd/system/vm.service <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
Environment=HOME=/root LC_ALL=C.UTF-8 VM_GUEST=$number VM_SHARED=/run/vm PATH=$PATH
ExecStart=/bin/bash /run/vm/program-$number
ExecStopPost=/bin/sh -c 'echo \$EXIT_STATUS >/run/vm/status-$number; \\
    dmesg >/run/vm/dmesg-$number; systemctl --no-block poweroff'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
UNIT
    cat >/etc/systemd/system/vm.target <<UNIT
[Unit]
Wants=vm.service multi-user.target remote-fs.target systemd-udevd.service
UNIT
    bash /run/vm/prepare || echo "guest.sh: the preparation has failed"
    exec /lib/systemd/systemd --unit=vm.target --show-status=error --log-level=err
}

if [ "$(word run)" = systemd ]; then begin_systemd; fi
if [ "$(word run)" = shell ]; then
    cd "$(cat /run/vm/directory)" || cd /
    echo "A guest on the host's files; what you write stays in its memory. exit powers it off."
    setsid -c bash -i </dev/ttyS0 >/dev/ttyS0 2>&1
    echo 0 >/run/vm/status-"$number"
else
    setsid bash "/run/vm/program-$number" </dev/null
    echo $? >/run/vm/status-"$number"
fi
dmesg >/run/vm/dmesg-"$number"
# A program may have left a file system behind that nobody serves any more: do not wait for that.
sync &
for _ in {1..50}; do
    kill -0 $! 2>/dev/null || break
    sleep 0.1
done
dmesg -n 1
busybox poweroff -nf
sleep 60
