#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The installed services and the rule for udev in a guest whose first process is systemd: a file
# system in /etc/fstab on a replicated device is mounted at boot, stays mounted while the daemon is
# restarted and killed under load, and is unmounted before the daemon stops at a reboot. LVM keeps
# to the replicated device with the lines of docs/operations.md.
#   tests/vm/systemd_test.sh BIN_DIR      on the host: installs, boots twice and looks at the disks
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${1:?usage: systemd_test.sh BIN_DIR}
step=${2:-host}
name=/dev/replica/by-res/r0
unit='dev-replica-by\x2dres-r0.device'
size=$((64 << 20))

fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}
seen() { printf '%4d s  ok %s\n' "$SECONDS" "$*"; }
wait_for() {  # wait_for SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "not in time: $what"
        sleep 0.2
    done
}

# ---- on the host --------------------------------------------------------------------------------

host() {
    run=$(mktemp -d /var/tmp/replica-systemd.XXXXXX)
    trap 'rm -rf "$run"' EXIT
    # The unit file needs a path without anything that a build directory may have in it.
    cmake --install "$bin" --prefix "$run/prefix" >/dev/null
    truncate -s 72M "$run/alpha" "$run/beta"
    truncate -s 32M "$run/persist"
    mkfs.ext4 -q "$run/persist"
    boot() {  # boot STEP
        local status=0
        "$here/run.sh" --cache "$bin/vm" --timeout 400 --disk "$run/persist" --disk "$run/alpha" \
            --disk "$run/beta" --systemd "$(printf '%q ' "$here/systemd_test.sh" "$bin" prepare \
                "$run/prefix" "$1")" "$here/systemd_test.sh" "$bin" "$1" "$run/prefix" || status=$?
        [ $status = 0 ] || exit $status
    }
    boot make
    boot use
    # Mounts end before the daemon, and the daemon in order.
    for disk in alpha beta; do
        "$bin/tools/replicameta" dump --disk "$run/$disk" --json |
            jq -e '.flags | contains(["al-clean"]) and (contains(["primary-ind"]) | not)' \
                >/dev/null || fail "$disk was not brought down in order"
    done
    dumpe2fs -h "$run/alpha" >"$run/dump" 2>/dev/null
    grep -q '^Filesystem state: *clean' "$run/dump" ||
        fail "the file system was not unmounted in order"
    ! grep -q needs_recovery "$run/dump" ||
        fail "the file system has a journal to be replayed"
    [ "$(blkid -p -s TYPE -o value "$run/alpha")" = drbd ] ||
        fail "blkid sees the file system on the disk below the volume"
    cmp --bytes=$size "$run/alpha" "$run/beta" || fail "the replicas differ"
    seen "unmounted, and both nodes down in order, at a reboot; the replicas are equal"
}

# ---- in the guest, before systemd ---------------------------------------------------------------

prepare() {  # prepare PREFIX STEP
    cp "$1"/lib/systemd/system/replica* /etc/systemd/system/
    cp "$1"/lib/udev/rules.d/65-replica.rules /etc/udev/rules.d/
    mkdir -p /persist /var/lib/replica /srv
    mount /dev/vda /persist
    mkdir -p /persist/replica /persist/beta
    umount /persist
    cat >/etc/fstab <<FSTAB
/dev/vda /persist ext4 defaults 0 0
/persist/replica /var/lib/replica none bind 0 0
FSTAB
    [ "$2" = make ] || cat >>/etc/fstab <<FSTAB
$name /srv ext4 _netdev,x-systemd.requires=replica@r0.service,x-systemd.device-timeout=300 0 0
FSTAB
    echo 'REPLICAD_OPTIONS="--listen 127.0.0.2:7788"' >/etc/default/replicad
    cat >/etc/systemd/system/beta.service <<UNIT
[Unit]
RequiresMountsFor=/persist
[Service]
Type=notify
RuntimeDirectory=beta
ExecStart=$1/sbin/replicad --name beta --state /persist/beta --control /run/beta/control.sock \
    --listen 127.0.0.3:7788
UNIT
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -s /etc/systemd/system/{beta,replicad}.service /etc/systemd/system/multi-user.target.wants/
}

# ---- in the guest, under systemd ----------------------------------------------------------------

finish() {
    local code=$?
    trap - EXIT
    if [ $code != 0 ]; then
        systemctl list-jobs || true
        systemctl --no-pager status replicad.service 'replica@r0.service' srv.mount 2>&1 | tail -60
        journalctl --no-pager -b -u replicad -u 'replica@r0' -u systemd-udevd | tail -n 40
        dmesg | tail -n 20
    fi
    exit $code
}
alpha() { "$prefix/sbin/replicactl" "$@"; }
beta() { "$prefix/sbin/replicactl" --control /run/beta/control.sock "$@"; }

make() {
    wait_for 100 "the daemons run" systemctl is-active replicad.service beta.service
    seen "systemd has brought up both daemons"
    alpha create r0 --node-id 0 --disk /dev/vdb --size $size --peer beta,1,127.0.0.3:7788
    beta create r0 --node-id 1 --disk /dev/vdc --size $size --peer guest1,0,127.0.0.2:7788
    alpha up r0
    beta up r0
    alpha wait r0 --until connected --timeout 60
    alpha promote r0 --force
    alpha wait r0 --until synced --timeout 100
    systemctl start replica@r0.service
    volume_groups
    mkfs.ext4 -q $name
    udevadm control --ping  # it has seen that the device was written to,
    udevadm settle --timeout=100  # and has looked at it
    systemctl stop replica@r0.service
    [ ! -e $name ] || fail "the device is still there"
    [ "$(alpha status r0 --json | jq -r '.[0].role')" = Secondary ] || fail "it is still Primary"
    seen "replica@r0.service opens and closes the device"
    wait_for 100 "systemd forgets the device" unknown
    alpha promote r0
    alpha export r0 --door nbd
    [[ $(readlink -f $name) = /dev/nbd* ]] || fail "$name is $(readlink -f $name)"
    wait_for 100 "systemd knows an nbd device by its name" systemctl is-active "$unit"
    unexport
    alpha demote r0
    seen "systemd knows devices of both kinds by their name"
}

# filter N: the Nth line of the text, for this machine's disks.
filter() {
    local line
    line=$(grep -o 'global_filter = .*' "$here/../../docs/operations.md" | sed -n "$1p")
    echo "${line/'"r|^/dev/vg/r0$|"'/'"r|^/dev/vdb$|", "r|^/dev/vdc$|"'}"
}
seen_by_lvm() { pvs --noheadings -o pv_name "$@" 2>"$prefix.pvs" | tr -d ' '; }

# udev opens what was written to, for a moment: to take that away is refused.
unexport() { wait_for 60 "nobody has it open" alpha unexport r0; }

# A volume group on the replicated device: LVM sees it there, and nowhere below.
volume_groups() {
    local line device
    line=$(grep -o 'systemctl daemon-reload && udevadm .*' "$here/../../docs/operations.md")
    eval "$line" || fail "$line"
    for number in 1 2; do
        mkdir -p /run/lvm-$number
        printf 'devices {\n%s\n}\n' "$(filter $number)" >/run/lvm-$number/lvm.conf
    done
    export LVM_SYSTEM_DIR=/run/lvm-1
    device=$(readlink -f $name)
    pvcreate -q $name
    vgcreate -q vg1 $name
    lvcreate -q --yes -L 8M --name lv vg1
    [[ $(seen_by_lvm) = "$name" || $(seen_by_lvm) = "$device" ]] || fail "LVM sees $(seen_by_lvm)"
    ! alpha unexport r0 2>/dev/null || fail "a device with a volume group was taken away"
    vgchange -q -an vg1
    unexport
    [ "$(seen_by_lvm)" = "" ] || fail "LVM sees the disk below: $(seen_by_lvm)"
    [[ $(seen_by_lvm --config 'devices { global_filter = [ "a|.*|" ] }') = *vd* ]] ||
        fail "it would not have seen the disk below without the filter either"
    export LVM_SYSTEM_DIR=/run/lvm-2
    alpha export r0 --mapped >/dev/null
    [ "$(seen_by_lvm)" = /dev/mapper/replica-r0 ] || fail "LVM sees $(seen_by_lvm)"
    vgremove -q --yes vg1
    pvremove -q --yes /dev/mapper/replica-r0
    unexport
    unset LVM_SYSTEM_DIR
    alpha export r0 --door ublk >/dev/null
    seen "LVM keeps to the replicated device, and to the mapped one"
}

unknown() { ! systemctl is-active --quiet "$unit"; }
mounted() { findmnt --mountpoint /srv --source "$(readlink -f $name)"; }
stays() {
    mounted >/dev/null || fail "$1: it is not mounted any more"
    kill -0 "$load" || fail "$1: the load has ended"
    # Written, and read back from the device.
    timeout 100 dd if=/dev/zero of=/srv/probe bs=64k count=8 oflag=direct status=none ||
        fail "$1: an error above"
    seen "$1: still mounted, and goes on"
}
daemon_changed() { [ "$(systemctl show -P MainPID replicad.service)" != "$pid" ]; }

use() {
    wait_for 200 "/srv is mounted" mounted
    systemctl is-active --quiet "$unit" ||
        fail "systemd does not know the device by its name"
    seen "mounted at boot, from /etc/fstab"
    "$bin/tests/vm/file_tree" run /srv/tree /run/tree 7 &
    load=$!
    sleep 2
    systemctl restart replicad.service
    stays "the daemon was restarted"
    pid=$(systemctl show -P MainPID replicad.service)
    systemctl kill --signal=KILL replicad.service
    wait_for 100 "the daemon is started again" daemon_changed
    stays "the daemon was killed"
    kill "$load"
    wait "$load" || fail "the load saw an error"
    "$bin/tests/vm/file_tree" verify /srv/tree /run/tree || fail "the tree is not as it was left"
    if alpha unexport r0; then fail "a mounted device was taken away"; fi
    umount /srv
    exec 9<>$name  # by a process of root that has every capability
    if alpha unexport r0; then fail "a device that is open was taken away"; fi
    exec 9>&-
    mount /srv
    if dmesg | grep -E 'error, dev ublkb|EXT4-fs error|Aborting|BUG|Oops|blocked for more'; then
        fail "the kernel has seen errors"
    fi
    systemctl --no-block reboot
    seen "rebooting"
}

case "$step" in
    host) host ;;
    prepare) prepare "$3" "$4" ;;
    make | use)
        prefix=$3
        trap finish EXIT
        "$step"
        ;;
esac
