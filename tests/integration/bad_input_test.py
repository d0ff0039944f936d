#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a mirror of real daemons must refuse, in words that say why, and without losing anything.

Disks that are not ours to take, promotions that would lose data, a split brain, another volume's
disk, no descriptors left. What needs loop devices is left out, loudly, without root.
Usage: bad_input_test.py REPLICAD REPLICACTL [TEST...]
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time

from control_daemon_test import MIB, daemons, mirror, until

# exit codes of replicactl
EXISTS, BUSY, CORRUPT, UNSUPPORTED, STATE, PERMISSION = 3, 4, 6, 7, 8, 10


def refused(daemon, *arguments, rc, says):
    text = daemon.ctl(*arguments, rc=rc).stderr
    assert says in text, f"{arguments}: {text}"


def peer_of(daemon):
    return daemon.status()["connections"][0]


def says_everywhere(daemons_, words):
    until(lambda: all(words in daemon.ctl("status").stdout for daemon in daemons_),
          f'both say "{words}"')


def write(daemon, value, offset):
    """1 MiB of one byte through the door of a primary."""
    door = os.path.join(daemon.folder, "nbd")
    daemon.ctl("export", "r0", "--nbd", "unix:" + door, rc=None)  # or it is there already
    subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -P {value} {offset} 1M", "-c", "flush",
                    f"nbd+unix:///r0?socket={door}"], check=True, stdout=subprocess.DEVNULL)


def data(daemon, offset, length=MIB):
    with open(os.path.join(daemon.folder, "disk.img"), "rb") as disk:
        disk.seek(offset)
        return disk.read(length)


def synced_mirror(stack):
    alpha, beta = stack.enter_context(mirror())
    alpha.ctl("promote", "r0", "--force")
    alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
    return alpha, beta


@contextlib.contextmanager
def loop_device(path, *options):
    device = subprocess.run(["losetup", "--find", "--show", *options, path], check=True,
                            capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_disks_that_are_not_ours():
    """A file system, swap, a mounted or read-only device: each is named, and untouched."""
    with daemons("alpha", listen=False) as (alpha,):
        create = ("create", "r0", "--node-id", "0", "--disk")
        disk = alpha.disk()
        for maker, name in ((("mkfs.ext4", "-q", "-F"), "ext4"), (("mkswap", "-q"), "swap")):
            subprocess.run([*maker, disk], check=True)
            before = data(alpha, 0, 32 * MIB)
            refused(alpha, *create, disk, rc=EXISTS, says=f"holds {name}")
            assert data(alpha, 0, 32 * MIB) == before
        if os.geteuid() != 0:
            print("SKIPPED: devices that are read-only or mounted; run as root")
            return
        with loop_device(alpha.disk(name="read-only.img"), "--read-only") as device:
            refused(alpha, *create, device, rc=PERMISSION, says="read-only")
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        with loop_device(disk) as device:
            folder = os.path.join(alpha.folder, "mounted")
            os.mkdir(folder)
            subprocess.run(["mount", device, folder], check=True)
            try:
                refused(alpha, *create, device, "--force", rc=BUSY, says="mounted on " + folder)
                refused(alpha, *create, disk, "--force", rc=BUSY, says=device)
            finally:
                subprocess.run(["umount", folder], check=True)
        assert alpha.ctl("list").stdout == ""


def test_promotions_that_would_lose_data():
    """Inconsistent, a connected primary, Outdated, Consistent: refused, each with its reason."""
    with contextlib.ExitStack() as stack:
        alpha, beta = stack.enter_context(mirror())
        refused(alpha, "promote", "r0", rc=STATE, says="the disk is Inconsistent")
        alpha.ctl("promote", "r0", "--force")
        refused(beta, "promote", "r0", rc=STATE, says="a peer is Primary")
        refused(beta, "promote", "r0", "--force", rc=STATE, says="a peer is Primary")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        beta.ctl("disconnect", "r0")
        refused(beta, "promote", "r0", rc=STATE, says="the disk is Outdated")
        beta.ctl("connect", "r0")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        alpha.stop()
        beta.stop()
        beta.start()
        refused(beta, "promote", "r0", rc=STATE, says="the disk is ")
        assert beta.status()["role"] == "Secondary"


def test_split_brain_is_said_on_both_sides():
    """Two that were primary apart: neither touches the other, both say it, a person decides."""
    with contextlib.ExitStack() as stack:
        alpha, beta = synced_mirror(stack)
        write(alpha, 1, 0)
        alpha.stop(signal.SIGKILL, rc=None)
        until(lambda: peer_of(beta)["connection-state"] != "Connected", "the loss is seen")
        beta.ctl("disconnect", "r0")
        beta.ctl("promote", "r0")
        write(beta, 2, MIB)
        alpha.start()
        alpha.ctl("promote", "r0", "--force")
        write(alpha, 3, 2 * MIB)
        beta.ctl("connect", "r0")
        says_everywhere((alpha, beta), "plit brain")
        for daemon in (alpha, beta):
            assert daemon.status()["role"] == "Primary"
            assert "plit brain" in daemon.log(), daemon.log()
        write(alpha, 4, 4 * MIB)
        write(beta, 5, 5 * MIB)
        assert data(alpha, MIB) == bytes(MIB) and data(alpha, 2 * MIB) == b"\3" * MIB
        assert data(beta, MIB) == b"\2" * MIB and data(beta, 2 * MIB) == bytes(MIB)
        # The victim that a person names loses its part, and only that.
        beta.ctl("unexport", "r0")
        beta.ctl("demote", "r0")
        alpha.ctl("connect", "r0")
        beta.ctl("connect", "r0", "--discard-my-data")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        alpha.ctl("unexport", "r0")
        alpha.ctl("demote", "r0")
        for daemon in (alpha, beta):
            daemon.ctl("down", "r0")
        assert data(alpha, 0, 6 * MIB) == data(beta, 0, 6 * MIB)
        assert data(beta, 4 * MIB) == b"\4" * MIB


def test_disk_of_another_volume():
    """A disk of a volume of its own is not mirrored to one that has other data."""
    with contextlib.ExitStack() as stack:
        alpha, beta = synced_mirror(stack)
        write(alpha, 1, 0)
        beta.ctl("down", "r0")
        beta.ctl("remove", "r0")
        beta.ctl("create", "r0", "--node-id", "1", "--disk", "disk.img", "--force", "--peer",
                 f"alpha,0,{alpha.address}")
        alpha.ctl("disconnect", "r0")
        beta.ctl("up", "r0")
        beta.ctl("promote", "r0", "--force")
        write(beta, 2, 0)
        alpha.ctl("connect", "r0")
        says_everywhere((alpha, beta), "different volumes")
        assert data(alpha, 0) == b"\1" * MIB and data(beta, 0) == b"\2" * MIB


def crc32c(block):
    crc = 0xffffffff
    for byte in block:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def sealed(block, at, value):
    """A superblock with `value` at `at`, and the checksum of its extension right again."""
    block = bytearray(block)
    block[at:at + len(value)] = value
    block[1404:1408] = bytes(4)
    block[1404:1408] = crc32c(block).to_bytes(4, "big")
    return bytes(block)


def test_superblocks_that_can_not_be_read():
    """A wrong checksum without a copy, newer and older versions: refused and left as they are."""
    with contextlib.ExitStack() as stack:
        alpha, beta = synced_mirror(stack)
        write(alpha, 1, 0)
        alpha.ctl("down", "r0")
        copy = os.path.join(alpha.folder, "state", "superblocks", "r0.v0")
        place = 32 * MIB - 4096
        good = data(alpha, place, 4096)
        assert sealed(good, 0, b"") == good

        def put(block):
            with open(os.path.join(alpha.folder, "disk.img"), "r+b") as disk:
                disk.seek(place)
                disk.write(block)

        torn = good[:3000] + b"\x5a" + good[3001:]
        for block, code, words in (
                (torn, CORRUPT, "fails its checksum"),
                (sealed(good, 1400, b"\0\0\0\3"), UNSUPPORTED, "use the newer Replica"),
                (sealed(good, 1824, b"\1"), UNSUPPORTED, "newer DRBD or Replica"),
                (good[:60] + b"\x83\x74\x02\x6b" + good[64:], UNSUPPORTED, "v08"),
                (bytes(4096), CORRUPT, "no DRBD v09 superblock")):
            os.replace(copy, copy + ".kept")
            put(block)
            refused(alpha, "up", "r0", rc=code, says=words)
            assert words in alpha.ctl("status").stdout
            assert data(alpha, place, 4096) == block and not os.path.exists(copy), words
            os.replace(copy + ".kept", copy)
        put(torn)  # with the copy it is whole again
        alpha.ctl("up", "r0")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        assert data(alpha, 0) == data(beta, 0) == b"\1" * MIB


def test_out_of_descriptors():
    """A crowd that takes all descriptors: the volume goes on, and so do peers and control after."""
    with contextlib.ExitStack() as stack:
        alpha, beta = synced_mirror(stack)
        write(alpha, 1, 0)
        pid = alpha.process.pid
        used = len(os.listdir(f"/proc/{pid}/fd"))
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        host, port = alpha.address.split(":")
        crowd = []
        for i in range(200):
            one = socket.socket(socket.AF_INET if i % 2 else socket.AF_UNIX)
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                one.connect((host, int(port)) if i % 2 else alpha.socket)
            crowd.append(one)
        until(lambda: "raise the limit" in alpha.log(), "no descriptor is left")
        assert alpha.process.poll() is None, alpha.log()
        beta.stop(signal.SIGKILL, rc=None)
        beta.start()
        for one in crowd:
            one.close()
        until(lambda: alpha.ctl("list", rc=None).returncode == 0, "alpha answers again")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        write(alpha, 2, MIB)
        alpha.ctl("unexport", "r0")
        alpha.ctl("demote", "r0")
        for daemon in (alpha, beta):
            daemon.ctl("down", "r0")
        assert data(alpha, 0, 30 * MIB) == data(beta, 0, 30 * MIB)


def main():
    only = sys.argv[3:]
    for name, test in list(globals().items()):
        if not name.startswith("test_") or (only and name not in only):
            continue
        begin = time.monotonic()
        test()
        print(f"{name}: ok, {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
