#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Metadata of this tree against Debian's drbdmeta, on loop devices.

Each reads what the other made, both recognise each other's updates, and after a crash both apply
the activity log to the same bits: of this tree's encoder, and of a daemon that was killed.
Usage: drbdmeta_test.py REPLICAMETA CRASH_MAKER REPLICAD REPLICACTL [TEST...]
"""

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

import control_daemon_test as control

SKIPPED = 77
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
EXTENSION = 1392  # what v09 leaves zero starts here
PRIMARY = 0x13  # consistent, primary-ind, was-up-to-date
PEER_FLAGS = {"connected": 1, "peer-outdated": 2, "peer-fencing": 4, "full-sync": 8,
              "peer-device-seen": 16, "node-exists": 1 << 16}
REPLICAMETA, CRASH_MAKER = map(os.path.abspath, sys.argv[1:3])
control.REPLICAD, control.REPLICACTL = map(os.path.abspath, sys.argv[3:5])


def run(*command, rc=0):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if rc is not None and done.returncode != rc:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}, not {rc}\n"
                             f"{done.stdout}{done.stderr}")
    return done


@contextlib.contextmanager
def loop(path, *options):
    device = run("losetup", "--find", "--show", *options, path).stdout.strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def drbdmeta(path, *arguments, external=False, rc=0):
    with loop(path) as device:
        place = "flex-external" if external else "internal"
        return run("drbdmeta", "--force", "-", "v09", device, place, *arguments, rc=rc)


def replicameta(command, disk, *arguments, rc=0):
    place = ["--metadata", disk.metadata] if disk.metadata else []
    return run(REPLICAMETA, command, "--disk", disk.data, *place, *arguments, rc=rc)


class Disk:
    """A sparse file, with a second one for external metadata."""

    def __init__(self, folder, name, size, metadata_size=0):
        self.data = os.path.join(folder, name)
        self.metadata = os.path.join(folder, name + ".md") if metadata_size else ""
        for path, length in ((self.data, size), (self.metadata, metadata_size)):
            if path:
                with open(path, "wb") as file:
                    file.truncate(length)

    @classmethod
    def of(cls, path):
        disk = cls.__new__(cls)
        disk.data, disk.metadata = path, ""
        return disk

    @property
    def holder(self):
        return self.metadata or self.data

    def drbdmeta(self, *arguments, rc=0):
        return drbdmeta(self.holder, *arguments, external=bool(self.metadata), rc=rc)

    def dump(self):
        return json.loads(replicameta("dump", self, "--json").stdout)

    def check(self):
        return json.loads(replicameta("check", self, "--json").stdout)

    def area(self, offset, length):
        with open(self.holder, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def superblock(self):
        size = os.path.getsize(self.holder)
        return self.area(0 if self.metadata else (size & ~4095) - 4096, 4096)

    def copy(self, name):
        folder = os.path.dirname(self.data)
        other = Disk.of(os.path.join(folder, name))
        other.metadata = os.path.join(folder, name + ".md") if self.metadata else ""
        run("cp", "--sparse=always", self.data, other.data)
        if self.metadata:
            run("cp", "--sparse=always", self.metadata, other.metadata)
        return other


def parse_dump(text):
    """The fields of dump-md that both have."""
    found = {}
    number = r"(0x[0-9A-F]+|-?\d+)"
    for name, value in re.findall(rf"^(?:# )?([a-z0-9_-]+) {number};?$", text, re.MULTILINE):
        found[name] = int(value, 0)
    found["peers"] = {}
    for node, body in re.findall(r"^peer\[(\d+)\] \{(.*?)\}", text, re.MULTILINE | re.DOTALL):
        found["peers"][int(node)] = {
            name: int(value, 0) for name, value in re.findall(rf"([a-z-]+) {number};", body)}
    found["bits"] = []
    for body in re.findall(r"^bitmap\[\d+\] \{(.*?)\}", text, re.MULTILINE | re.DOTALL):
        words = re.findall(r"(?:(\d+) times )?(0x[0-9A-F]{16});", body)
        found["bits"].append(sum(int(n or 1) * int(word, 16).bit_count() for n, word in words))
    history = re.search(r"history-uuids \{(.*?)\}", text, re.DOTALL)
    found["history"] = [int(value, 16) for value in re.findall(r"0x[0-9A-F]+", history.group(1))]
    return found


def compare_dumps(disk):
    """drbdmeta's and our reading of the same bytes, field by field."""
    theirs, ours = parse_dump(disk.drbdmeta("dump-md").stdout), disk.dump()
    for their_name, value in (
            ("max-peers", ours["max-peers"]),
            ("md_size_sect", ours["md-size-sectors"]),
            ("md_offset", ours["layout"]["superblock-offset"]),
            ("al_offset", ours["layout"]["al-offset"]),
            ("bm_offset", ours["layout"]["bitmap-offset"]),
            ("node-id", ours["node-id"]),
            ("current-uuid", int(ours["current-uuid"], 16)),
            ("flags", ours["flags-value"]),
            ("al-extents", ours["al-nr-extents"]),
            ("la-size-sect", ours["effective-size-sectors"]),
            ("bm-byte-per-bit", ours["bm-bytes-per-bit"]),
            ("device-uuid", int(ours["device-uuid"], 16)),
            ("la-peer-max-bio-size", ours["la-peer-max-bio-size"]),
            ("al-stripes", ours["al-stripes"]),
            ("al-stripe-size-4k", ours["al-stripe-size-4k"])):
        assert theirs[their_name] == value, (their_name, theirs[their_name], value)
    peers = {peer["node-id"]: peer for peer in ours["peers"]}
    assert len(theirs["peers"]) == 32
    assert theirs["bits"] == [slot["bits-set"] for slot in ours["bitmap"]]
    for number, peer in theirs["peers"].items():
        mine = peers.get(number, {"bitmap-index": -1, "bitmap-uuid": "0", "bitmap-dagtag": "0",
                                  "flags": []})
        assert peer["flags"] == sum(PEER_FLAGS[name] for name in mine["flags"]), number
        assert peer["bitmap-index"] == mine["bitmap-index"], number
        assert peer["bitmap-uuid"] == int(mine["bitmap-uuid"], 16), number
        assert peer["bitmap-dagtag"] == int(mine["bitmap-dagtag"], 16), number
    history = [int(uuid, 16) for uuid in ours["history"]]
    assert theirs["history"] == history + [0] * (32 - len(history))
    return ours


def each_shape(folder):
    """(disk, peers, al-stripes, al-stripe-size-kib) of many kinds."""
    internal = [(16 * MIB, 1, 1, 32), (64 * MIB, 3, 1, 32), (64 * MIB + 512, 1, 2, 64),
                (GIB, 7, 1, 32), (GIB + 3072, 1, 1, 32), (GIB + 4096 + 3584, 31, 1, 32),
                (10 * GIB + 1536, 2, 4, 32), (12 * GIB, 5, 1, 36), (1024 * GIB, 1, 1, 32)]
    external = [(64 * MIB, MIB, 1, 1, 32), (64 * MIB + 512, 2 * MIB + 1536, 3, 1, 32),
                (10 * GIB, 128 * MIB, 7, 2, 64), (20 * GIB + 512, 8 * MIB + 512, 15, 1, 32)]
    for i, (size, peers, stripes, stripe_kib) in enumerate(internal):
        yield Disk(folder, f"internal{i}", size), peers, stripes, stripe_kib
    for i, (size, metadata_size, peers, stripes, stripe_kib) in enumerate(external):
        yield Disk(folder, f"external{i}", size, metadata_size), peers, stripes, stripe_kib


def create_theirs(disk, peers, stripes, stripe_kib):
    disk.drbdmeta("create-md", str(peers), "--al-stripes", str(stripes), "--al-stripe-size-kB",
                  str(stripe_kib))


def create_ours(disk, peers, stripes, stripe_kib, *more):
    replicameta("create", disk, "--max-peers", str(peers), "--al-stripes", str(stripes),
                "--al-stripe-size-kib", str(stripe_kib), *more)


def test_created_metadata(folder):
    """What either creates is equal, but for what only we know."""
    for disk, peers, stripes, stripe_kib in each_shape(folder):
        theirs = disk.copy("theirs")
        create_theirs(theirs, peers, stripes, stripe_kib)
        assert compare_dumps(theirs)["extension"] is None
        assert theirs.check()["problems"] == []
        create_ours(disk, peers, stripes, stripe_kib)
        layout = compare_dumps(disk)["layout"]
        assert disk.check()["problems"] == []
        ours, reference = bytearray(disk.superblock()), bytearray(theirs.superblock())
        for block in (ours, reference):
            block[48:56] = bytes(8)  # device uuid
            block[72:76] = bytes(4)  # extents in use
            block[84:88] = bytes(4)  # largest request
        assert ours[:EXTENSION] == reference[:EXTENSION]
        for place in ("al", "bitmap"):
            offset, length = layout[f"{place}-offset"], layout[f"{place}-bytes"]
            assert disk.area(offset, length) == theirs.area(offset, length), place


def test_their_updates(folder):
    """drbdmeta's updates of our metadata are read back, without the extension it does not know."""
    disk = Disk(folder, "updated", 64 * MIB)
    create_ours(disk, 3, 1, 32, "--node-id", "2")
    assert disk.dump()["extension"]["write-seq"] == 1
    disk.drbdmeta("--node-id", "1", "set-gi",
                  "1122334455667788:99AABBCCDDEEFF00:0102030405060708:1112131415161718:"
                  "1:1:0:1:1:0:0:1:0:0:0:0")
    disk.drbdmeta("write-dev-uuid", "0123456789ABCDEF")
    dump = compare_dumps(disk)
    assert dump["extension"] is None
    assert dump["node-id"] == 2
    assert dump["current-uuid"] == "1122334455667788"
    assert dump["device-uuid"] == "0123456789ABCDEF"
    assert dump["peers"][0]["bitmap-uuid"] == "99AABBCCDDEEFF00"
    assert dump["history"] == ["0102030405060708", "1112131415161718"]
    assert dump["flags"] == ["consistent", "was-up-to-date", "crashed-primary", "al-clean"]
    assert disk.superblock()[EXTENSION:] == bytes(4096 - EXTENSION)


def test_other_versions(folder):
    """v08 is named and refused; after drbdmeta's conversion it is read."""
    disk = Disk(folder, "v08", 64 * MIB)
    with loop(disk.data) as device:
        run("drbdmeta", "--force", "-", "v08", device, "internal", "create-md")
    refused = replicameta("dump", disk, rc=5)
    assert "v08" in refused.stderr and "create-md" in refused.stderr, refused.stderr
    held = replicameta("create", disk, rc=3)
    assert "DRBD metadata of another version" in held.stderr, held.stderr
    with loop(disk.data) as device:
        run("drbdmeta", "--force", "-", "v09", device, "internal", "create-md", "1")
    compare_dumps(disk)


def crash(disk, **values):
    place = {"disk": disk.data, "metadata": disk.metadata}
    run(CRASH_MAKER, *(f"{name}={value}" for name, value in {**place, **values}.items()))


def cut_at_end(bitmap, dump):
    """The bytes of all bits of the volume, and how many bits are set beyond its end."""
    bits, peers = (dump["effective-size-sectors"] + 7) // 8, dump["max-peers"]
    whole = bits // 32 * peers * 4  # bytes of words that lie in the volume wholly
    inside, beyond = bytearray(bitmap[:whole]), 0
    for word in struct.iter_unpack("<I", bitmap[whole:]):
        index = len(inside) // 4 // peers  # of this word in its slot
        valid = (1 << min(32, max(0, bits - 32 * index))) - 1
        inside += struct.pack("<I", word[0] & valid)
        beyond += (word[0] & ~valid).bit_count()
    return bytes(inside), beyond


def compare_bitmaps(ours, theirs, dump, label):
    """Every bit of the volume is equal. drbdmeta marks the last extent to its own end, beyond the
    volume's, where bits mean nothing and DRBD ignores them; replicameta stops at the end."""
    offset, length = dump["layout"]["bitmap-offset"], dump["layout"]["bitmap-bytes"]
    (our_bits, our_rest), (their_bits, their_rest) = (
        cut_at_end(disk.area(offset, length), dump) for disk in (ours, theirs))
    assert our_bits == their_bits, label
    assert our_rest == 0, label
    assert their_rest < 1024 * dump["max-peers"], label
    if their_rest == 0:
        assert ours.area(offset, length) == theirs.area(offset, length), label
        return True
    return False


def apply_both(disk, label, rc_theirs=0, rc_ours=0):
    """Applies the log to two copies, one by drbdmeta, and demands the same of both."""
    dump = disk.dump()
    theirs, ours = disk.copy("theirs"), disk.copy("ours")
    theirs.drbdmeta("apply-al", rc=rc_theirs)
    done = replicameta("apply-al", ours, "--json", rc=rc_ours)
    offset, length = dump["layout"]["al-offset"], dump["layout"]["al-bytes"]
    assert ours.area(offset, length) == theirs.area(offset, length), label
    assert ours.superblock()[:EXTENSION] == theirs.superblock()[:EXTENSION], label
    bytes_equal = compare_bitmaps(ours, theirs, dump, label)
    if rc_ours:
        assert ours.superblock() == disk.superblock(), label
        return None
    assert ours.check()["problems"] == theirs.check()["problems"] == [], label
    after = compare_dumps(ours)
    assert after["extension"]["write-seq"] == dump["extension"]["write-seq"] + 16, label
    return {**json.loads(done.stdout), "bytes-equal": bytes_equal}


def test_replay(folder):
    """Shapes, slot tables, wraps, damage and sizes: always the same bits."""
    results = []
    for disk, peers, stripes, stripe_kib in each_shape(folder):
        if os.path.getsize(disk.data) > 200 * GIB:
            continue
        create_ours(disk, peers, stripes, stripe_kib)
        blocks = stripes * stripe_kib // 4
        # Sectors of a last extent that is cut short.
        whole = disk.dump()["layout"]["data-bytes-max"] // 512 % 8192
        for start, count, slots, damage, smaller in (
                (0, 1, 1237, 0, 0), (5, 3, 67, 0, 8), (0, 40, 1237, 0, 1),
                (0xfffffffe, 5, 1237, 0, 100),
                (0xffffff00 // blocks * blocks, 300, 900, 0, whole),
                (77, 50, 1237, 1, 7), (0, 60, min(6433, (blocks - 1) * 919), 0, 9),
                (1000, 45, 300, 6, whole)):
            trial = disk.copy("trial")
            values = {"seed": len(results), "transactions": count, "start": start, "slots": slots,
                      "damage": damage, "flags": PRIMARY, "smaller_by_sectors": smaller}
            crash(trial, **values)
            compare_dumps(trial)  # as it is while in use
            results.append(apply_both(trial, (disk.data, values)))
            assert results[-1]["was-primary"]
            assert results[-1]["bytes-equal"] or smaller != whole
    marked = sum(result["marked-bits"] for result in results)
    equal = sum(result["bytes-equal"] for result in results)
    assert marked > 0
    print(f"{len(results)} crashed disks, {marked} bits marked by both; all bytes of the bitmap "
          f"are equal on {equal}, elsewhere drbdmeta also set bits beyond the volume's end")


def test_not_primary(folder):
    """A log of a node that was not primary marks nothing."""
    disk = Disk(folder, "secondary", 64 * MIB)
    create_ours(disk, 2, 1, 32)
    crash(disk, seed=1, transactions=20, start=0, slots=1237, damage=0, flags=0x11,
          smaller_by_sectors=0)
    applied = apply_both(disk, "secondary")
    assert applied["hot-extents"] > 0 and applied["marked-bits"] == 0


def test_lost_log(folder):
    """A log without any valid block: refused for a primary, ignored otherwise."""
    disk = Disk(folder, "lost", 64 * MIB)
    create_ours(disk, 2, 1, 32)
    for flags, rc_theirs, rc_ours in ((PRIMARY, 1, 5), (0x11, 0, 0)):
        lost = disk.copy("lost_copy")
        crash(lost, seed=1, transactions=20, start=0, slots=1237, damage=0, flags=flags,
              smaller_by_sectors=0)
        layout = lost.dump()["layout"]
        with open(lost.data, "r+b") as file:
            file.seek(layout["al-offset"])
            file.write(bytes(layout["al-bytes"]))
        apply_both(lost, f"lost, flags {flags:#x}", rc_theirs, rc_ours)


def test_refusals(folder):
    """Disks in use, read-only, too small or with contents are left alone."""
    disk = Disk(folder, "held", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", "-L", "precious", disk.data)
    before = disk.area(0, 64 * MIB)

    def refused(target, rc, *parts, force=True):
        more = ["--force"] if force else []
        done = run(REPLICAMETA, "create", "--disk", target, *more, rc=rc)
        assert all(part in done.stderr for part in parts), done.stderr

    refused(disk.data, 3, "ext4 (label precious)", force=False)
    with loop(disk.data) as device:
        refused(disk.data, 3, "in use", device)
    with loop(disk.data, "--read-only") as device:
        refused(device, 3, "read-only")
    assert disk.area(0, 64 * MIB) == before
    refused(Disk(folder, "small", 40 * KIB).data, 4, "no room", force=False)
    refused(os.path.join(folder, "missing"), 4, "does not exist")
    refused(folder, 2, "neither a regular file nor a block device")
    with loop(disk.data) as device, mounted(device) as point:
        if point:
            refused(device, 3, f"mounted on {point}")
        else:
            print("left out: file systems can not be mounted here")


@contextlib.contextmanager
def mounted(device):
    """The mount point, or nothing where mounting is not allowed."""
    with tempfile.TemporaryDirectory() as point:
        if run("mount", device, point, rc=None).returncode:
            yield None
            return
        try:
            yield point
        finally:
            run("umount", point)


def load(daemon, *jobs):
    """fio on the door of a primary, as a process."""
    door = os.path.join(daemon.folder, "nbd")
    daemon.ctl("export", "r0", "--nbd", "unix:" + door, rc=None)  # or it is there already
    return subprocess.Popen(
        ["fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///r0?socket={door}",
         "--rw=randwrite", "--bs=4k", "--iodepth=16", "--verify_state_save=0", *jobs],
        cwd=daemon.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_killed_primary(_):
    """A daemon killed with writes in flight: drbdmeta, replicameta and an attach mark the same."""
    with control.mirror(512 * MIB) as (alpha, beta):
        disk = Disk.of(os.path.join(alpha.folder, "disk.img"))
        alpha.ctl("new-current-uuid", "r0", "--clear-bitmap")
        alpha.ctl("promote", "r0")
        writer = load(alpha, "--size=400M", "--time_based", "--runtime=600")
        control.until(lambda: alpha.status()["devices"][0]["al-used"] > 50, "fio has begun")
        alpha.stop(signal.SIGKILL, rc=None)
        writer.wait(timeout=control.LIMIT_S)
        beta.stop()
        applied = apply_both(disk, "a killed primary")
        assert applied["was-primary"] and applied["hot-extents"] > 10, applied
        marked = sum(slot["bits-set"] for slot in Disk.of(
            os.path.join(alpha.folder, "ours")).dump()["bitmap"])
        assert applied["marked-bits"] > 0
        alpha.start()
        seen = alpha.status()["connections"][0]["peer_devices"][0]["out-of-sync-bytes"]
        assert seen == marked * 4 * KIB, (seen, marked)
        print(f"{applied['hot-extents']} extents were active, {marked} bits are marked")


def test_adopted(_):
    """Metadata that drbdmeta made becomes a mirror, and stays readable for drbdmeta."""
    with control.daemons("alpha", "beta") as (alpha, beta):
        disks = []
        for daemon, peer, node_id in ((alpha, beta, 0), (beta, alpha, 1)):
            disks.append(Disk.of(daemon.disk(64 * MIB)))
            create_theirs(disks[-1], 1, 1, 32)
            daemon.ctl("adopt", "r0", "--node-id", str(node_id), "--disk", "disk.img", "--peer",
                       f"{peer.name},{1 - node_id},{peer.address}")
            daemon.ctl("up", "r0")
        alpha.ctl("wait", "r0", "--until", "connected", "--timeout", "100")
        alpha.ctl("promote", "r0", "--force")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        assert load(alpha, "--size=16M", "--verify=crc32c").wait(timeout=control.LIMIT_S) == 0
        beta.stop(signal.SIGKILL, rc=None)
        assert load(alpha, "--size=16M", "--offset=20M").wait(timeout=control.LIMIT_S) == 0
        beta.start()
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        for daemon in (alpha, beta):
            daemon.ctl("down", "r0")
        dumps = [compare_dumps(disk) for disk in disks]
        assert all(dump["extension"] for dump in dumps)
        assert dumps[0]["current-uuid"] == dumps[1]["current-uuid"]
        size = dumps[0]["effective-size-sectors"] * 512
        assert size > 63 * MIB and disks[0].area(0, size) == disks[1].area(0, size)


def skip_reason():
    if os.geteuid() != 0:
        return "needs root for loop devices"
    for tool in ("drbdmeta", "losetup", "mkfs.ext4", "fio"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(MIB)
        done = run("losetup", "--find", "--show", file.name, rc=None)
        if done.returncode:
            return f"loop devices do not work here: {done.stderr.strip()}"
        run("losetup", "--detach", done.stdout.strip())
    return None


def main():
    reason = skip_reason()
    if reason:
        print(f"SKIPPED: metadata was not compared with drbdmeta's: {reason}")
        return SKIPPED
    only = sys.argv[5:]
    for test in (test_created_metadata, test_their_updates, test_other_versions, test_replay,
                 test_not_primary, test_lost_log, test_refusals, test_killed_primary, test_adopted):
        if only and test.__name__ not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            test(folder)
        print(f"ok: {test.__doc__.splitlines()[0]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
