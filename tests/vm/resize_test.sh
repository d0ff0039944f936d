#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume that grows under a mounted file system in a guest: the disks of both nodes are made
# larger, resize is said on both under load, the block devices follow where the kernel lets them,
# and the file system after them.
#   tests/vm/resize_test.sh BIN_DIR      on the host: boots the guest, runs itself there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

bin=${1:?usage: resize_test.sh BIN_DIR}
if [ -z "${VM_GUEST:-}" ]; then
    exec "$here/run.sh" --cache "$bin/vm" --timeout 600 "$here/$(basename "$0")" "$bin"
fi
# shellcheck source=scripts/cluster.sh
. "$here/../../scripts/cluster.sh"
resource=r0 name=/dev/replica/by-res/r0
size=$((48 << 20))
door=nbd device=/dev/nbd0
# shellcheck source=tests/vm/doors.sh
. "$here/doors.sh"

# Alpha has a block device, whose size the kernel tells of, and beta a file.
modprobe loop
modprobe nbd nbds_max=0
modprobe ublk_drv
alpha_file=/var/tmp/alpha.disk
truncate -s 64M $alpha_file /var/tmp/beta.disk
loop=$(losetup --find --show $alpha_file)
disk_of() { [ "$1" = alpha ] && echo "$loop" || echo /var/tmp/beta.disk; }

grow_disks() {  # grow_disks SIZE
    truncate -s "$1" $alpha_file /var/tmp/beta.disk
    losetup --set-capacity "$loop"
}
volume_size() { status_field alpha $resource '.devices[0]."size-bytes"'; }
device_follows() { [ "$(blockdev --getsize64 $device)" = "$(volume_size)" ]; }

grow_under_load() {
    local before said
    mkfs.ext4 -q $device
    mkdir -p /mnt/volume
    mount $device /mnt/volume
    before=$(df --output=size -B1 /mnt/volume | tail -n 1)
    begin_load 1 2
    grow_disks 192M
    said=$(ctl beta resize $resource)
    [[ $said == *"waits for alpha"* ]] || cluster_fail "beta's resize says: $said"
    [ "$(volume_size)" = $size ] || cluster_fail "it has grown before alpha had room"
    said=$(ctl alpha resize $resource)
    [[ $said == size:* && $said != *"#"* ]] || cluster_fail "alpha's resize says: $said"
    [ "$(volume_size)" -gt $((190 << 20)) ] || cluster_fail "the volume has $(volume_size) bytes"
    wait_for 60 "$device follows" device_follows
    resize2fs $device >/dev/null 2>&1 || cluster_fail "resize2fs failed"
    [ "$(df --output=size -B1 /mnt/volume | tail -n 1)" -gt $((before + (100 << 20))) ] ||
        cluster_fail "the file system has not grown"
    end_load
    no_errors
    seen "grown under load, device and file system follow"
}

use_the_room() {
    dd if=/dev/urandom of=/mnt/volume/file bs=1M count=56 conv=fsync status=none
    local sum
    sum=$(sha256sum </mnt/volume/file)
    cluster_crash alpha
    cluster_start alpha
    wait_for 60 "the device is adopted" adopted
    device_follows || cluster_fail "the device lost its size"
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(sha256sum </mnt/volume/file)" = "$sum" ] || cluster_fail "the data is another one"
    no_errors
    ctl alpha wait $resource --until synced --timeout 100
    seen "what lies behind the old end is there after a kill"
}

# Linux 6.12 can not change a ublk device; a size that was asked for is kept to.
what_does_not_follow() {
    local said
    ctl alpha export $resource --door ublk >/dev/null
    grow_disks 256M
    ctl beta resize $resource --size 200M >/dev/null
    said=$(ctl alpha resize $resource --size 200M)
    [ "$(volume_size)" = $((200 << 20)) ] || cluster_fail "the volume has $(volume_size) bytes"
    [[ $said == *"# /dev/ublkb0 stays as large as it was"* ]] || cluster_fail "resize says: $said"
    wait_for 60 "$device follows" device_follows
    refuses alpha 7 resize $resource --size 100M
    refuses alpha 9 resize $resource --size 4G
    ctl alpha unexport $resource --door ublk
    seen "what can not follow is named, and what can not be is refused"
}

bring_up
ctl alpha export $resource --door nbd >/dev/null
grow_under_load
use_the_room
what_does_not_follow
umount /mnt/volume
e2fsck -fn $device >/dev/null 2>&1 || cluster_fail "the file system is damaged"
total=$(volume_size)
ctl alpha unexport $resource
for node in "${NODES[@]}"; do ctl "$node" down $resource; done
blockdev --flushbufs "$loop"
cmp --bytes="$total" "$loop" /var/tmp/beta.disk || cluster_fail "the replicas differ"
seen "file system clean, $total bytes equal"
