#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Power cuts by replay: reads the log of dm-log-writes, and knows what has to be there.

The log has every write to a device in the order in which it became durable. So each prefix of it
is what a loss of power may leave, of all that lies on that device.

  log_writes.py load SOCKET EXPORT STATE DEVICE BLOCKS COUNT     writes, flushes, marks the log
  log_writes.py index LOG INDEX                                  what there is in the log
  log_writes.py cuts INDEX COUNT SEED                            places in the log, while it loaded
  log_writes.py replay LOG INDEX TARGET FROM TO                  entries FROM to TO, exclusive
  log_writes.py verify SOCKET EXPORT STATE INDEX CUT             all that was flushed is there
"""

import fcntl
import json
import os
import random
import struct
import sys
import zlib

import nbd

SECTOR = 512
BLOCK = 4096
EXTENT_BLOCKS = 1024  # of the activity log
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def content(block, version):
    head = struct.pack("<QQ", block, version)
    body = random.Random(block << 32 | version).randbytes(BLOCK - len(head) - 4)
    return head + body + struct.pack("<I", zlib.crc32(head + body))


def version_of(block, data):
    """0: never written; None: neither that nor whole."""
    if data.count(0) == BLOCK:
        return 0
    number, version = struct.unpack_from("<QQ", data)
    if number != block or data != content(block, version):
        return None
    return version


def connect(socket, export):
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_unix(socket)
    return handle


class Marker:
    """Marks the log by the kernel's own call: a program for each would be slow."""

    TARGET_MESSAGE = 0xC138FD0E  # _IOWR(0xfd, 14, struct dm_ioctl)
    HEADER_BYTES = 312

    def __init__(self, device):
        self.device = device.encode()
        self.control = os.open("/dev/mapper/control", os.O_RDWR)

    def __call__(self, text):
        message = struct.pack("<Q", 0) + f"mark {text}".encode() + b"\0"
        header = struct.pack("<3I6I4xQ128s129s7x", 4, 0, 0, self.HEADER_BYTES + len(message),
                             self.HEADER_BYTES, 0, 0, 0, 0, 0, self.device, b"")
        assert len(header) == self.HEADER_BYTES
        fcntl.ioctl(self.control, self.TARGET_MESSAGE, bytearray(header + message))


def load(socket, export, state, device, blocks, count):
    """So many batches of writes to a few blocks in each extent. Each is made stable, by FUA or by a
    flush of all, and then marked."""
    handle = connect(socket, export)
    chance = random.Random(4711)
    places = [extent + chance.randrange(EXTENT_BLOCKS)
              for extent in range(0, blocks, EXTENT_BLOCKS) for _ in range(6)]
    places = [place for place in places if place < blocks]
    batches, version = [], 0
    mark = Marker(device)
    mark("begin")
    for _ in range(count):
        batch = {}
        for block in chance.sample(places, min(12, len(places))):
            version += 1
            batch[block] = version
        flags = nbd.CMD_FLAG_FUA if chance.random() < 0.5 else 0
        waiting = {handle.aio_pwrite(content(block, number), block * BLOCK, flags=flags)
                   for block, number in batch.items()}
        while waiting:
            handle.poll(1000)
            waiting = {cookie for cookie in waiting if not handle.aio_command_completed(cookie)}
        if not flags:
            handle.flush()
        batches.append(batch)
        mark(f"flushed-{len(batches)}")
    mark("end")
    with open(state, "w", encoding="utf-8") as out:
        json.dump(batches, out)
    print(f"{len(batches)} batches, {version} writes to {len(places)} blocks")


def index(log, to):
    entries = []
    with open(log, "rb") as source:
        magic, version, count, sector_bytes = struct.unpack("<QQQI", source.read(28))
        if magic != MAGIC or version != 1 or sector_bytes != SECTOR:
            sys.exit(f"{log} is no log of dm-log-writes: {magic:x} {version} {sector_bytes}")
        at = SECTOR
        for _ in range(count):
            source.seek(at)
            sector, sectors, flags, length = struct.unpack("<QQQQ", source.read(32))
            text = source.read(length).decode() if flags & MARK else ""
            entries.append([at, sector, sectors, flags, text])
            at += SECTOR + (0 if flags & (DISCARD | MARK) else sectors * SECTOR)
    with open(to, "w", encoding="utf-8") as out:
        json.dump(entries, out)
    print(f"{count} entries, {sum(1 for e in entries if e[3] & FLUSH)} flushes, "
          f"{sum(1 for e in entries if e[3] & FUA)} with FUA")


def read_json(path):
    with open(path, encoding="utf-8") as source:
        return json.load(source)


def cuts(path, count, seed):
    """After entries that changed something, between the marks of the load."""
    entries = read_json(path)
    texts = [entry[4] for entry in entries]
    begin, end = texts.index("begin"), texts.index("end")
    places = [n + 1 for n in range(begin, end) if not entries[n][3] & MARK]
    chosen = random.Random(seed).sample(places, count)
    print(" ".join(str(place) for place in sorted(chosen)))


def replay(log, path, target, first, last):
    with open(log, "rb") as source, open(target, "r+b") as to:
        for at, sector, sectors, flags, _ in read_json(path)[first:last]:
            if flags & MARK or sectors == 0:
                continue
            source.seek(at + SECTOR)
            data = bytes(sectors * SECTOR) if flags & DISCARD else source.read(sectors * SECTOR)
            to.seek(sector * SECTOR)
            to.write(data)
        to.flush()
        os.fsync(to.fileno())


def verify(socket, export, state, path, cut):
    batches = read_json(state)
    marks = [entry[4] for entry in read_json(path)[:cut] if entry[4].startswith("flushed")]
    done = int(marks[-1].split("-")[1]) if marks else 0
    needed, newest = {}, {}
    for number, batch in enumerate(batches):
        for block, version in batch.items():
            newest[int(block)] = version
            needed[int(block)] = version if number < done else needed.get(int(block), 0)
    handle = connect(socket, export)
    wrong = newer = 0
    for block, version in needed.items():
        found = version_of(block, handle.pread(BLOCK, block * BLOCK))
        if found is None or not version <= found <= newest[block]:
            print(f"block {block}: found {found}, flushed was {version}")
            wrong += 1
        elif found > version:
            newer += 1
    print(f"cut at {cut}: {done} batches were flushed, {len(needed)} blocks right, {newer} newer"
          if wrong == 0 else f"cut at {cut}: {wrong} blocks wrong")
    return wrong != 0


def main():
    command, *rest = sys.argv[1:]
    call = {"load": load, "index": index, "cuts": cuts, "replay": replay, "verify": verify}[command]
    sys.exit(call(*(int(word) if word.isdigit() else word for word in rest)))


main()
