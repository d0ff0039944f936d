#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""replicameta as its manual describes it, on files: needs neither root nor loop devices.

Usage: replicameta_test.py REPLICAMETA CRASH_MAKER
"""

import json
import os
import subprocess
import sys
import tempfile

REPLICAMETA, CRASH_MAKER = map(os.path.abspath, sys.argv[1:3])
SIZE = 64 << 20
SUPERBLOCK = SIZE - 4096


def run(command, disk, *arguments, rc=0, says=""):
    done = subprocess.run([REPLICAMETA, command, "--disk", disk, *arguments],
                          capture_output=True, text=True, check=False)
    assert done.returncode == rc, \
        f"{command} {arguments}: exit code {done.returncode}, not {rc}\n{done.stdout}{done.stderr}"
    assert says in done.stderr, f"{command}: {done.stderr!r} does not say {says!r}"
    return done.stdout


def read_json(command, disk, *arguments, rc=0):
    return json.loads(run(command, disk, "--json", *arguments, rc=rc))


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        old = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return old


def new_disk(folder, name, size=SIZE):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_life(folder):
    """Created, looked at, checked, wiped; what --force is for."""
    disk = new_disk(folder, "disk")
    run("dump", disk, rc=5, says="no DRBD v09 superblock")
    run("create", disk, "--max-peers", "2", "--node-id", "3", "--size", "32M")
    dump = read_json("dump", disk)
    assert dump["node-id"] == 3 and dump["max-peers"] == 2
    assert dump["effective-size-sectors"] == 65536
    assert dump["extension"]["write-seq"] == 1
    assert "node-id: 3\n" in run("dump", disk)
    assert read_json("check", disk)["problems"] == []
    run("create", disk, rc=3, says="Replica metadata (node 3")
    run("wipe", disk, rc=3, says="--force")
    run("wipe", disk, "--force")
    run("wipe", disk, "--force", rc=4, says="nothing was changed")
    run("create", disk)


def test_usage(folder):
    """Wrong arguments are told apart from wrong disks."""
    disk = new_disk(folder, "usage")
    for arguments in (("--max-peers", "32"), ("--node-id", "32"), ("--size", "1000"),
                      ("--al-stripe-size-kib", "6"), ("--al-stripe-size-kib", "28"), ("--bogus",),
                      ("--node-id", "0x3"), ("--node-id", ""), ("--size", "10MB"), ("--size", "0"),
                      ("--size", "-5"), ("--size", "18446744073709551616"),
                      ("--size", "16777216T")):
        run("create", disk, *arguments, rc=2, says="replicameta: ")
    run("create", disk, "--size", "-5", rc=2, says='"-5" is refused')
    assert "does not exist" in read_json("dump", disk + ".none", rc=4)["error"]["message"]
    run("create", disk, "--node-id", "010")
    assert read_json("dump", disk)["node-id"] == 10
    run("wipe", disk, "--force")
    run("create", disk, "--size", "64M", rc=4, says="does not fit")
    run("create", os.path.join(folder, "none"), rc=4, says="does not exist")
    run("create", new_disk(folder, "small", 40960), rc=4, says="no room")
    run("dump", disk, "--copy", os.path.join(folder, "none"), rc=4, says="not there")
    assert subprocess.run([REPLICAMETA], capture_output=True, check=False).returncode == 2
    assert subprocess.run([REPLICAMETA, "--help"], capture_output=True, check=False).returncode == 0


def test_output(folder):
    """Output that can not be written is an error; a closed one does not end up on the disk."""
    disk = new_disk(folder, "disk")
    run("create", disk)
    with open(disk, "rb") as file:
        before = file.read()

    def shell(line):
        return subprocess.run(["bash", "-c", line, REPLICAMETA, disk], capture_output=True,
                              text=True, check=False)
    full = shell('"$0" dump --disk "$1" > /dev/full')
    assert full.returncode == 4 and "standard output" in full.stderr, full
    assert shell('"$0" dump --disk "$1.none" 2> /dev/full').returncode == 4
    assert shell('"$0" apply-al --disk "$1" <&- >&- 2>&-').returncode == 0
    with open(disk, "rb") as file:
        assert file.read(SUPERBLOCK) == before[:SUPERBLOCK]
    run("check", disk)


def test_crash(folder):
    """A crashed primary: check tells, apply-al marks, the copy follows."""
    disk, copy = new_disk(folder, "crashed"), os.path.join(folder, "copy")
    run("create", disk, "--max-peers", "2")
    values = {"disk": disk, "seed": 1, "transactions": 20, "start": 0, "slots": 67, "damage": 0,
              "flags": 0x13, "smaller_by_sectors": 0}
    subprocess.run([CRASH_MAKER, *(f"{name}={value}" for name, value in values.items())],
                   check=True)
    with open(disk, "rb") as file:
        file.seek(SUPERBLOCK)
        block = file.read(4096)
    with open(copy, "wb") as file:
        file.write(block)
    notes = read_json("check", disk, "--copy", copy)["notes"]
    assert any("was not applied yet" in note for note in notes), notes
    hot = read_json("dump", disk)["activity-log"]["hot-extents"]

    patch(disk, SUPERBLOCK + 512, b"torn")
    problems = read_json("check", disk, rc=1)["problems"]
    assert len(problems) == 1 and "checksum" in problems[0], problems
    run("apply-al", disk, rc=5, says="--copy")
    applied = read_json("apply-al", disk, "--copy", copy)
    assert applied["was-primary"] and applied["hot-extents"] == len(hot) > 0
    assert applied["marked-bits"] > 0
    with open(copy, "rb") as file, open(disk, "rb") as disk_file:
        disk_file.seek(SUPERBLOCK)
        assert file.read() == disk_file.read(4096)
    found = read_json("check", disk, "--copy", copy)
    assert found["problems"] == [], found
    assert sum(slot["bits-set"] for slot in read_json("dump", disk)["bitmap"]) == \
        applied["marked-bits"]


def test_damage(folder):
    """check goes on after the first finding."""
    disk = new_disk(folder, "damaged")
    run("create", disk, "--size", "32M")
    layout = read_json("dump", disk)["layout"]
    for block in (0, 1, 2):
        patch(disk, layout["al-offset"] + 4096 * block + 100, b"x")
    patch(disk, layout["bitmap-offset"] + layout["bitmap-bytes"] - 1, b"\x80")
    found = read_json("check", disk)
    assert any("no transaction is left" in note for note in found["notes"]), found
    assert any("1 bits are set beyond" in note for note in found["notes"]), found
    patch(disk, SUPERBLOCK + 60, bytes.fromhex("8374026b"))
    found = read_json("check", disk, rc=1)
    assert any("v08" in problem for problem in found["problems"]), found
    with open(disk, "r+b") as file:
        file.truncate(SIZE + 4096)
    run("check", disk, rc=1)


def main():
    for test in (test_life, test_usage, test_output, test_crash, test_damage):
        with tempfile.TemporaryDirectory() as folder:
            test(folder)
        print(f"ok: {test.__doc__.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
