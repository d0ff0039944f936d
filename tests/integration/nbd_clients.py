#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# The NBD server with clients that others wrote: libnbd's tools, QEMU's, fio, libnbd from Python.
# The name of a group is the second argument; a group whose programs are missing is skipped.
import filecmp
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

from nbd_harness import LIMIT_S, MIB, Server, check, equal, main, pattern, require, run


def image(path, size=64 * MIB, seed=5):
    """Data with holes, as a file."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(size)
        for _ in range(24):
            f.seek(rng.randrange(size // 4096 - 256) * 4096)
            f.write(rng.randbytes(4096 * rng.randrange(1, 256)))
    return path


def libnbd():
    """nbdinfo and nbdcopy: what the export says of itself, and copies both ways"""
    require("nbdinfo", "nbdcopy")
    for door in ("unix", "tcp"):
        with Server("--dirty", "1048576", "65536", door=door) as server:
            uri = server.uri()
            export = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
            expected = {"export-name": "volume", "export-size": 64 * MIB, "is_read_only": False,
                        "can_flush": True, "can_fua": True, "can_trim": True, "can_zero": True,
                        "can_multi_conn": True, "can_df": True, "can_cache": True,
                        "can_fast_zero": True, "block_size_minimum": 512,
                        "block_size_preferred": 4096, "block_size_maximum": 32 * MIB,
                        "contexts": ["base:allocation", "x-replica:dirty"]}
            equal({key: export.get(key) for key in expected}, expected, "nbdinfo --json")
            check('export="volume"' in run("nbdinfo", "--list", uri), "nbdinfo --list")
            equal(run("nbdinfo", "--size", server.uri("volume")).strip(), str(64 * MIB), "size")
            run("nbdinfo", server.uri("other"), fails=True)
            dirty = json.loads(run("nbdinfo", "--json", "--map=x-replica:dirty", uri))
            equal([(e["offset"], e["length"], e["type"]) for e in dirty],
                  [(0, MIB, 0), (MIB, 65536, 1), (MIB + 65536, 63 * MIB - 65536, 0)], "dirty map")

            source = image(os.path.join(server.directory, "source"))
            back = os.path.join(server.directory, "back")
            run("nbdcopy", "--flush", source, uri)
            check(filecmp.cmp(source, server.file, shallow=False), "nbdcopy to the export")
            run("nbdcopy", uri, back)
            check(filecmp.cmp(source, back, shallow=False), "nbdcopy from the export")
            run("nbdcopy", "--connections=4", "--requests=32", "--request-size=4194304", uri, back)
            check(filecmp.cmp(source, back, shallow=False), "with 4 connections, 4 MiB requests")
            check(os.stat(server.file).st_blocks * 512 < 60 * MIB, "holes stay holes")
            allocated = json.loads(run("nbdinfo", "--json", "--map", uri))
            check(any(e["type"] == 3 for e in allocated) and any(e["type"] == 0 for e in allocated),
                  "nbdinfo --map shows holes and data")
            equal(sum(e["length"] for e in allocated), 64 * MIB, "the map covers all")
    with Server("--read-only") as server:
        check(json.loads(run("nbdinfo", "--json", server.uri()))["exports"][0]["is_read_only"],
              "read-only")
        run("nbdcopy", server.file, server.uri(), fails=True)


def qemu():
    """qemu-img and qemu-io: convert, compare, map, and each kind of request"""
    require("qemu-img", "qemu-io")
    with Server(size=64 * MIB) as server:
        uri = server.uri("volume")
        source = image(os.path.join(server.directory, "source"))
        back = os.path.join(server.directory, "back")
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, back)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, back)
        extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
        equal(sum(e["length"] for e in extents), 64 * MIB, "qemu-img map covers all")
        check(any(e["zero"] for e in extents) and any(e["data"] for e in extents), "holes and data")

        steps = ["write -P 0x11 0 8M", "write -f -P 0x22 1M 64k", "flush", "read -P 0x22 1M 64k",
                 "write -z 2M 1M", "read -P 0 2M 1M", "write -z -u 3M 5M", "read -P 0 3M 5M",
                 "discard 0 1M", "read -P 0 0 1M", "aio_write -P 0x33 10M 3M",
                 "aio_write -P 0x44 20M 4k", "aio_flush", "read -P 0x33 10M 3M",
                 "read -P 0x44 20M 4k", "write -P 0x55 4194000 700", "read -P 0x55 4194000 700",
                 "write -q -P 0x66 63M 1M", "read -P 0x66 63M 1M", "flush"]
        arguments = [part for step in steps for part in ("-c", step)]
        output = run("qemu-io", "-t", "none", "-f", "raw", *arguments, uri)
        check("error" not in output.lower() and "failed" not in output.lower(), output)
        equal(server.data(MIB, 65536), b"\x22" * 65536, "what qemu-io wrote")
        equal(server.data(4194000, 700), b"\x55" * 700, "an unaligned write")
        output = run("qemu-io", "-f", "raw", "-c", "read 64M 512", uri, fails=True)
        server.stop()
        counts = server.process.stdout.read()
        check(int(re.search(r"flush (\d+)", counts)[1]) > 0, "flushes have reached the volume")
        check(int(re.search(r"write_zeroes (\d+)", counts)[1]) > 0, "zeroes as zeroes")
        check(int(re.search(r"discard (\d+)", counts)[1]) > 0, "discards as discards")
    with Server("--fail", str(4 * MIB), "4096") as server:
        output = run("qemu-io", "-f", "raw", "-c", "write 4M 4k", server.uri(), fails=True)
        check("Input/output error" in output, f"an error of the disk: {output}")


def fio():
    """fio with verification, at depth and over several connections at once"""
    require("fio")
    check("nbd" in run("fio", "--enghelp"), "fio was built without its nbd engine")
    for door in ("unix", "tcp"):
        with Server(door=door, size=64 * MIB) as server:
            def job(name, offset, *more):
                return subprocess.Popen(
                    ["fio", "--name=" + name, "--ioengine=nbd", "--uri=" + server.uri(),
                     "--rw=randwrite", "--bsrange=4k-128k", "--bs_unaligned=0", "--size=14M",
                     f"--offset={offset}", "--iodepth=32", "--verify=crc32c", "--do_verify=1",
                     "--verify_fatal=1", "--fsync=64", "--loops=2", *more],
                    cwd=server.directory, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT)

            jobs = [job(f"job{i}", i * 16 * MIB) for i in range(4)]
            for process in jobs:
                output, _ = process.communicate(timeout=2 * LIMIT_S)
                equal(process.returncode, 0, f"fio: {output}")
                check("err= 0" in output, output)


def killed_clients():
    """clients of others that are killed in the middle: the next ones are served, nothing is lost"""
    require("nbdcopy", "fio")
    with Server("--delay-us", "200", "--buffers", "12", size=256 * MIB) as server:
        source = image(os.path.join(server.directory, "source"), 256 * MIB)
        for round_ in range(6):
            command = ["nbdcopy", "--allocated", "--connections=4", source, server.uri()]
            if round_ % 2:
                command = ["fio", "--name=k", "--ioengine=nbd", "--uri=" + server.uri(),
                           "--rw=randrw", "--bs=256k", "--iodepth=32", "--size=256M",
                           # fio gives each job a session of its own, unless it is a thread.
                           "--thread", "--time_based", "--runtime=20"]
            process = subprocess.Popen(command, cwd=server.directory, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)
            time.sleep(0.25 + 0.05 * round_)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(LIMIT_S)
            server.prove_alive()


def python():
    """libnbd from Python: asynchronous requests, both contexts, errors, many connections"""
    try:
        import nbd
    except ImportError:
        print("SKIPPED: the Python binding of libnbd (python3-libnbd) is not installed")
        sys.exit(77)
    with Server("--delay-us", "300", "--dirty", "0", "4096") as server:
        handles = []
        for i in range(8):
            h = nbd.NBD()
            h.set_export_name("volume")
            if i == 1:
                h.set_request_structured_replies(False)
            else:
                h.add_meta_context("base:allocation")
                h.add_meta_context("x-replica:dirty")
            h.connect_unix(server.socket)
            handles.append(h)
        a, b = handles[0], handles[1]
        a.pwrite(pattern(1, MIB), 0)
        equal(bytes(b.pread(MIB, 0)), pattern(1, MIB), "a write is seen on another connection")
        b.pwrite(pattern(2, MIB), MIB, nbd.CMD_FLAG_FUA)
        a.flush()
        equal(bytes(a.pread(2 * MIB, 0)), pattern(1, MIB) + pattern(2, MIB), "both")

        # Many at a time on all connections, each in a place of its own.
        expected = {}
        for i, h in enumerate(handles):
            cookies = []
            for k in range(60):
                data = pattern(1000 * i + k, 65536)
                offset = 4 * MIB + (i * 60 + k) * 65536
                expected[offset] = data
                cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset))
            for cookie in cookies:
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
        for i, (offset, data) in enumerate(expected.items()):
            equal(bytes(handles[i % 8].pread(65536, offset)), data, f"data at {offset}")

        a.trim(MIB, 0)
        a.zero(MIB, MIB, nbd.CMD_FLAG_NO_HOLE)
        extents = {}
        a.block_status(4 * MIB, 0, lambda name, offset, entries, error:
                       extents.setdefault(name, list(entries)) and 0)
        equal(extents["base:allocation"][:2], [MIB, 3], "the hole of a trim")
        equal(extents["base:allocation"][3], 0, "zeroes that take up space")
        equal(extents["x-replica:dirty"][:4], [4096, 1, 4 * MIB - 4096, 0], "the dirty bitmap")
        a.set_strict_mode(0)
        for call in (lambda: a.pread(512, 64 * MIB), lambda: a.pwrite(bytes(512), 64 * MIB),
                     lambda: a.pread(100, 0), lambda: a.zero(MIB, 64 * MIB)):
            try:
                call()
                check(False, "a request out of bounds was accepted")
            except nbd.Error:
                pass
        for h in handles:
            h.shutdown()


if __name__ == "__main__":
    main([libnbd, qemu, fio, killed_clients, python])
