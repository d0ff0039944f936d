#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# What clients should not do, and what happens to them: an NBD server that is sent garbage, half
# messages and requests out of bounds, and clients that stall, vanish or never read. After each the
# server still serves, and at its end it has lost neither a buffer nor a request.
import contextlib
import os
import random
import resource
import socket
import stat
import struct
import subprocess
import threading
import time

from nbd_harness import (BLOCK_STATUS, CACHE, DF, DISC, EINVAL, EIO, ENOSPC, ENOTSUP, EOVERFLOW,
                         EPERM, FAST_ZERO, FLUSH, FUA, LIMIT_S, MIB, NO_HOLE, READ, TRIM,
                         WRITE, WRITE_ZEROES, Client, Closed, Server, check, equal, main, pattern)


def garbage_on_the_port():
    """garbage on the port ends that connection only"""
    samples = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10, b"\x16\x03\x01\x02\x00\x01" + bytes(600),
               b"\xff" * 100000, random.Random(1).randbytes(1 << 20),
               b"\0\0\0\3IHAVEOPX" + b"a" * 99]
    with Server(door="tcp") as server:
        for sample in samples:
            connection = server.connect()
            try:
                connection.sendall(sample)
            except ConnectionError:
                pass
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
            connection.close()
            server.prove_alive()


def options_that_lie():
    """oversized and malformed options are refused in words, or end the connection"""
    with Server() as server:
        with server.client(go=False) as client:
            kind, text = client.option(6, bytes(16385))[-1]
            equal(kind, 0x80000009, "an option of 16 KiB and a byte")
            check(b"16 KiB" in text, "the error says what is allowed")
            equal(client.option(7, b"\xff\xff\xff\xff")[-1][0], 0x80000003, "a name too long")
            equal(client.option(5)[-1][0], 0x80000002, "STARTTLS")
            equal(client.option(77, b"?" * 1000)[-1][0], 0x80000001, "an unknown option")
            equal(client.option(7, b"\0\0\0\5other\0\0")[-1][0], 0x80000006, "an unknown export")
            equal(client.option(7, b"\0\0\0\6volume\0\0")[-1][0], 1, "and then GO")
        with server.client(go=False) as client:
            client.send(b"IHAVEOPT" + struct.pack(">II", 6, 0xFFFFFFFF))
            check(client.closed(), "an option of 4 GiB ends the connection")
        # Thousands of options at once: answered one after the other, without piling up answers.
        with server.client(go=False) as client:
            client.send((b"IHAVEOPT" + struct.pack(">II", 77, 0)) * 1000)
            for _ in range(1000):
                equal(client.option_replies(77)[-1][0], 0x80000001, "an unknown option")
        server.prove_alive()


def silence_in_the_handshake():
    """a client that stalls in the handshake is dropped in time, others are not held up"""
    limit = 0.6

    def served(work):
        """In its first attempt, but for a handshake in which this program itself was too slow."""
        while True:
            begin = time.monotonic()
            try:
                return work()
            except (Closed, ConnectionError):
                check(time.monotonic() - begin >= limit, "dropped before its time was over")

    def idle_after_the_handshake():
        with server.client() as client:
            time.sleep(1)
            try:
                client.read(0, 512)
            except (Closed, ConnectionError) as error:
                raise AssertionError("dropped after the handshake") from error

    with Server("--handshake-ms", str(int(limit * 1000))) as server:
        begin = time.monotonic()
        silent = [server.connect() for _ in range(3)]
        silent[1].sendall(b"\0\0\0\3IHAVE")
        silent[2].sendall(b"\0\0\0\3IHAVEOPT" + struct.pack(">II", 7, 100) + b"half")
        served(server.prove_alive)
        for connection in silent:
            while connection.recv(4096):
                pass
            connection.close()
        check(time.monotonic() - begin >= limit, "dropped after the timeout")
        # The time counts for the handshake only.
        served(idle_after_the_handshake)


def half_a_request():
    """half a request, or half a payload, and then nothing: no harm, and no loss at the end"""
    with Server() as server:
        header = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 4 * MIB)
        for sent in (1, 27, 28, 28 + 1, 28 + 512, 28 + 65536, 28 + MIB, 28 + 3 * MIB + 77):
            message = (header + pattern(1, 4 * MIB))[:sent]
            for ending in ("close", "reset", "wait"):
                client = server.client()
                client.send(message)
                if ending == "close":
                    client.socket.close()
                elif ending == "reset":
                    client.vanish()
                else:
                    server.prove_alive()
                    client.socket.close()
        server.prove_alive()


def requests_out_of_bounds():
    """requests out of bounds get the errors of the protocol, with words, and nothing is written"""
    with Server("--dirty", "0", "4096") as server, \
            server.client(contexts=[b"base:allocation"]) as client:
        end = client.size
        cases = [
            (WRITE, end, 512, 0, ENOSPC, "beyond the end"), (WRITE, end - 512, 1024, 0, ENOSPC, ""),
            (WRITE, (1 << 64) - 512, 1024, 0, ENOSPC, "beyond"),
            (READ, end, 512, 0, EINVAL, "beyond"),
            (READ, 0, 0, 0, EINVAL, "length of 0"), (READ, 1, 512, 0, EINVAL, "multiples of 512"),
            (WRITE, 512, 100, 0, EINVAL, "multiples"), (TRIM, end, 4096, 0, ENOSPC, "beyond"),
            (WRITE_ZEROES, end - 512, 1024, 0, ENOSPC, "beyond"),
            (READ, 0, 33 * MIB, 0, EINVAL, "at most"),
            (READ, 0, 2 * MIB, DF, EOVERFLOW, "one chunk"), (READ, 0, 512, 0x80, EINVAL, "flags"),
            (WRITE_ZEROES, 0, 512, FAST_ZERO | NO_HOLE, ENOTSUP, "not faster"),
            (FLUSH, 512, 0, 0, EINVAL, "flush"), (99, 0, 0, 0, EINVAL, "not known"),
            (BLOCK_STATUS, end, 512, 0, EINVAL, "beyond"), (CACHE, end, 512, 0, EINVAL, "beyond"),
        ]
        for kind, offset, length, flags, error, text in cases:
            payload = b"x" * length if kind == WRITE else b""
            found = client.command(kind, offset, length, flags, payload)
            equal(found[0], error, f"errno of {kind} at {offset}+{length}")
            check(text in found[2], f"{text!r} is in {found[2]!r}")
        # A write that is too long is skipped byte by byte, and the stream stays in step.
        equal(client.write(0, bytes(32 * MIB + 512)), EINVAL, "a write of more than 32 MiB")
        equal(client.read(0, 4096), bytes(4096), "nothing was written")
        client.start(WRITE, 0, 0xFFFFFFFF)
        check(client.closed(), "a write of 4 GiB ends the connection")
        server.prove_alive()
    with Server("--read-only") as server, server.client() as client:
        check(client.flags & 2, "the read-only flag")
        for kind in (WRITE, TRIM, WRITE_ZEROES):
            found = client.command(kind, 0, 512, 0, bytes(512) if kind == WRITE else b"")
            equal(found[0], EPERM, "a change of a read-only export")
            check("not primary" in found[2], "and why")
        equal(client.read(0, 512), bytes(512), "reads go on")


def wrong_magic():
    """a wrong magic number in the transmission ends the connection"""
    with Server() as server:
        with server.client() as client:
            client.write(0, pattern(1, 512))
            client.send(struct.pack(">IHHQQI", 0x25609514, 0, READ, 1, 0, 512))
            check(client.closed(), "closed")
        server.prove_alive()
        check("request magic" in server.log_text(), "the log says why")


def client_dies_in_the_middle():
    """clients that die with many requests in flight leave nothing behind"""
    with Server("--delay-us", "3000", "--buffers", "16", door="tcp") as server:
        rng = random.Random(7)
        for round_ in range(40):
            client = server.client(structured=bool(round_ & 1))
            # It never reads, so the server may stop reading too.
            client.socket.settimeout(0.05)
            with contextlib.suppress(socket.timeout):
                for _ in range(rng.randrange(1, 60)):
                    length = rng.choice([512, 4096, 65536, 3 * MIB])
                    offset = rng.randrange((64 * MIB - length) // 512) * 512
                    if rng.random() < 0.3:
                        client.start(WRITE, offset, length, 0, bytes(length))
                    elif rng.random() < 0.2:
                        client.start(WRITE_ZEROES, offset, length, rng.choice([0, NO_HOLE]))
                    else:
                        client.start(READ, offset, length)
            client.vanish() if rng.random() < 0.5 else client.socket.close()
        server.prove_alive()


def client_that_never_reads():
    """a client that does not collect its replies keeps nobody waiting for ever"""
    with Server("--buffers", "4", "--stall-ms", "500", "--close-ms", "500") as server:
        hog = server.client()
        hog.write(0, pattern(3, 16 * MIB))  # data, so that reads are not answered with holes
        for _ in range(20):
            hog.start(READ, 0, 16 * MIB)
        # All buffers are the first one's, who would keep them for ever.
        begin = time.monotonic()
        server.prove_alive()
        with server.client() as other:
            equal(other.read(8 * MIB, 8 * MIB), pattern(3, 16 * MIB)[8 * MIB:], "a long read")
        check(time.monotonic() - begin < 60, "not the limit of 100 s that is usual here")
        server.wait_for_log("keeps others waiting")
        hog.socket.close()
    # Without anybody waiting it may take its time.
    with Server("--buffers", "32", "--stall-ms", "300") as server:
        with server.client() as slow:
            slow.write(0, pattern(4, 16 * MIB))
            cookies = {slow.start(READ, 0, 16 * MIB) for _ in range(3)}
            time.sleep(1.5)
            while cookies:
                cookie, error, data, _ = slow.reply()
                equal((error, data == pattern(4, 16 * MIB)), (0, True), "a late reply")
                cookies.remove(cookie)


def crowd():
    """many clients and few buffers: everybody is served, and gets what it wrote"""
    clients, share = 24, 2 * MIB
    failures = []

    def one(server, number):
        rng = random.Random(number)
        base = number * share
        model = bytearray(share)
        try:
            with server.client(structured=number % 3 > 0) as client:
                for _ in range(25):
                    length = rng.choice([512, 4096, 65536, 700 * 1024, share])
                    at = rng.randrange((share - length) // 512 + 1) * 512
                    if rng.random() < 0.5:
                        data = rng.randbytes(length)
                        equal(client.write(base + at, data, rng.choice([0, 0, FUA])), 0, "a write")
                        model[at:at + length] = data
                    else:
                        check(client.read(base + at, length) == model[at:at + length], "a read")
        except Exception as error:  # shown by the main thread
            failures.append(f"client {number}: {error!r}")

    for buffers in (("--buffers", "3", "--small-buffers", "2"), ("--buffers", "1")):
        with Server(*buffers, "--delay-us", "100") as server:
            threads = [threading.Thread(target=one, args=(server, i)) for i in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * LIMIT_S)
            check(not any(thread.is_alive() for thread in threads), "all are done")
            equal(failures, [], "failures")


def leaving():
    """a client that says goodbye, or closes its sending side, still gets its answers"""
    with Server("--delay-us", "20000") as server:
        for goodbye in ("disconnect", "half-close"):
            with server.client() as client:
                client.write(0, pattern(5, MIB))
                cookies = {client.start(READ, 0, 4096) for _ in range(10)}
                cookies.add(client.start(FLUSH))
                if goodbye == "disconnect":
                    client.start(DISC)
                else:
                    client.socket.shutdown(socket.SHUT_WR)
                while cookies:
                    cookie, error, _, _ = client.reply()
                    equal(error, 0, "an answer after the goodbye")
                    cookies.remove(cookie)
                check(client.closed(), "then the server closes")
        # ABORT in the handshake: acknowledged, then closed.
        with server.client(go=False) as client:
            equal(client.option(2)[-1][0], 1, "answer to ABORT")
            check(client.closed(), "closed after ABORT")


def too_many_clients():
    """more clients than allowed are turned away at once, and come in when others leave"""
    with Server("--clients", "3") as server:
        clients = [server.client() for _ in range(3)]
        extra = server.connect()
        equal(extra.recv(100), b"", "the fourth")
        extra.close()
        clients.pop().socket.close()
        server.wait_for_log("gone")
        server.prove_alive()
        for client in clients:
            equal(client.read(0, 512), bytes(512), "those who are in stay in")
            client.socket.close()


def out_of_descriptors():
    """out of descriptors: clients wait, and are served when there are some again"""
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    with Server(preexec_fn=limit) as server:
        waiting = [server.connect() for _ in range(20)]
        server.wait_for_log("no client can be accepted now: Too many open files")
        for connection in waiting[:15]:
            connection.close()
        client = Client(waiting[19])
        equal(client.read(0, 512), bytes(512), "a client that waited")
        for connection in waiting[15:]:
            connection.close()
        server.prove_alive()


def stop_with_clients():
    """SIGTERM answers what is in flight, closes the clients and removes the socket"""
    with Server("--delay-us", "100000") as server:
        idle, busy = server.client(), server.client()
        shaking = server.client(go=False)
        half = server.client()
        half.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 2 * MIB) + bytes(MIB + 5))
        data = pattern(9, 4096)
        cookie = busy.start(WRITE, 0, 4096, FUA, data)
        # Refused without a delay: what was sent before it is under way then.
        equal(busy.command(READ, 1, 512)[0], EINVAL, "a request that can not be")
        begin = time.monotonic()
        server.stop()
        check(time.monotonic() - begin < 60, "nobody was waited for until the limit of 100 s")
        equal(busy.reply()[:2], (cookie, 0), "the answer to what was in flight")
        for client in (idle, busy, shaking, half):
            check(client.closed(), "closed at the end")
        equal(server.data(0, 4096), data, "the write that was answered")


def socket_files():
    """the socket file is private; a dead one is replaced, a live one and other files are not"""
    def start_second(server, door):
        return subprocess.run([Server.program, "--file", other, "--door", door], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_S)

    with Server() as server:
        other = os.path.join(server.directory, "other")
        with open(other, "wb") as f:
            f.truncate(MIB)
        equal(stat.S_IMODE(os.stat(server.socket).st_mode), 0o600, "mode of the socket")
        second = start_second(server, f"unix:{server.socket}")
        equal(second.returncode, 1, "a second server on the same socket")
        check(server.socket in second.stderr, f"the error names the socket: {second.stderr}")
        server.prove_alive()
        for door, words in ((f"unix:{server.file}", "socket"), ("unix:", ""), ("tcp:x", ""),
                            ("tcp:127.0.0.1:99999", ""), ("tcp:192.0.2.1:0", ""), ("floppy:", ""),
                            ("unix:/" + "x" * 200, ""), ("unix:/no/such/directory/s", "")):
            second = start_second(server, door)
            equal(second.returncode, 1, f"a server on {door}")
            check(words in second.stderr and len(second.stderr) > 20, f"words for {door}")
        check(os.path.exists(server.file), "the file is still there")
        # Left over by a server that was killed.
        stale = os.path.join(server.directory, "stale")
        left = socket.socket(socket.AF_UNIX)
        left.bind(stale)
        left.close()
        third = subprocess.Popen([Server.program, "--file", other, "--door", f"unix:{stale}"],
                                 stdout=subprocess.PIPE, text=True)
        equal(third.stdout.readline().strip(), f"listening on unix:{stale}", "a stale socket")
        third.terminate()
        equal(third.wait(LIMIT_S), 0, "its end")
        third.stdout.close()
        check(not os.path.exists(stale), "and its socket is gone")


def disk_errors():
    """an error of the disk reaches the client, with words, and the connection goes on"""
    with Server("--fail", str(8 * MIB + 4096), "4096") as server:
        with server.client() as client:
            equal(client.write(0, pattern(1, 16 * MIB)), EIO, "a write over the bad block")
            error, _, text = client.command(READ, 8 * MIB, 8192)
            equal(error, EIO, "a read of the bad block")
            check("disk" in text, f"words: {text!r}")
            error, _, _ = client.command(READ, 0, 32 * MIB)
            equal(error, EIO, "a long read over the bad block")
            equal(client.read(0, MIB), pattern(1, 16 * MIB)[:MIB], "other blocks")
            equal(client.command(TRIM, 0, 32 * MIB)[0], EIO, "a trim over the bad block")
        with server.client(structured=False) as client:
            equal(client.command(READ, 8 * MIB, 8192)[0], EIO, "a simple reply with an error")
            equal(client.command(READ, 7 * MIB, 4 * MIB)[0], EIO, "a read of a few pieces")
            # Longer than what is collected before the header: there is no place for the error.
            client.start(READ, 0, 32 * MIB)
            try:
                client.reply()
                check(False, "a read that failed was answered")
            except Closed:
                pass
        server.prove_alive()


def simple_replies():
    """a client without structured replies gets the data of each read in one piece, in order"""
    with Server("--delay-us", "500", "--buffers", "8", door="tcp") as server, \
            server.client(structured=False) as client:
        image = pattern(11, 64 * MIB)
        for at in range(0, 64 * MIB, 16 * MIB):
            equal(client.write(at, image[at:at + 16 * MIB]), 0, "a long write")
        rng = random.Random(3)
        reads = {}
        for _ in range(25):
            length = rng.choice([512, 4096, MIB, 5 * MIB, 20 * MIB])
            offset = rng.randrange((64 * MIB - length) // 512) * 512
            reads[client.start(READ, offset, length)] = (offset, length)
        while reads:
            cookie, error, data, _ = client.reply()
            offset, length = reads.pop(cookie)
            equal((error, data == image[offset:offset + length]), (0, True), "data of a read")


def structured_reads():
    """structured replies: holes as holes, one chunk for DF, every flag of write-zeroes"""
    contexts = [b"base:allocation", b"x-replica:dirty"]
    with Server() as server, server.client(contexts=contexts) as client:
        equal(client.read(0, 4 * MIB), bytes(4 * MIB), "a hole")
        equal(client.last_kinds, [2], "said in a few bytes")
        data = pattern(12, 2 * MIB)
        equal(client.write(3 * MIB + 512, data), 0, "a write across an extent")
        equal(client.read(3 * MIB + 512, 2 * MIB), data, "its data")
        equal(client.read(3 * MIB + 512 + 65536, MIB, DF), data[65536:65536 + MIB], "in one chunk")
        equal(client.last_kinds, [1], "one chunk")
        equal(client.command(WRITE_ZEROES, 4 * MIB, 8192, NO_HOLE)[0], 0, "zeroes without a hole")
        found = client.command(BLOCK_STATUS, 4 * MIB, 4096)[1]
        equal(struct.unpack(">III", found[0][1])[2], 0, "allocated")
        equal(client.command(WRITE_ZEROES, 4 * MIB, 8192, FAST_ZERO)[0], 0, "fast zeroes")
        found = client.command(BLOCK_STATUS, 4 * MIB, 4096)[1]
        equal(struct.unpack(">III", found[0][1])[2], 3, "a hole")
        equal(client.read(4 * MIB, 8192), bytes(8192), "zeroes")
        equal(client.command(CACHE, 0, MIB)[0], 0, "cache")
        equal(client.command(TRIM, 0, 64 * MIB, FUA)[0], 0, "trim of all")
        equal(client.read(3 * MIB, 2 * MIB), bytes(2 * MIB), "nothing is left")


def random_messages():
    """random changes to a valid stream: whatever comes of it, the server goes on"""
    with Server("--commands", "8", "--buffers", "6") as server:
        rng = random.Random(int(os.environ.get("REPLICA_SEED", "42")))
        for _ in range(300):
            stream = bytearray(struct.pack(">I", 3))
            stream += b"IHAVEOPT" + struct.pack(">II", 8, 0)
            stream += b"IHAVEOPT" + struct.pack(">II", 7, 6) + b"\0\0\0\0\0\0"
            for _ in range(rng.randrange(10)):
                kind = rng.randrange(9)
                length = rng.choice([0, 512, 4096, 100000, 2 * MIB])
                offset = rng.randrange(1 << 26) & ~511
                stream += struct.pack(">IHHQQI", 0x25609513, rng.choice([0, 1, 2, 4, 0xFF]), kind,
                                      rng.randrange(1 << 64), offset, length)
                if kind == WRITE:
                    stream += bytes(rng.choice([length, length, length, length // 2]))
            for _ in range(rng.choice([0, 1, 1, 3])):
                stream[rng.randrange(len(stream))] = rng.randrange(256)
            connection = server.connect()
            connection.settimeout(0.05)
            try:
                connection.sendall(stream[:rng.choice([len(stream), rng.randrange(len(stream))])])
                for _ in range(rng.randrange(3)):
                    connection.recv(MIB)
            except OSError:
                pass
            connection.close()
        server.prove_alive()


if __name__ == "__main__":
    main([garbage_on_the_port, options_that_lie, silence_in_the_handshake, half_a_request,
          requests_out_of_bounds, wrong_magic, client_dies_in_the_middle, client_that_never_reads,
          crowd, leaving, too_many_clients, out_of_descriptors, stop_with_clients, socket_files,
          disk_errors, simple_replies, structured_reads, random_messages])
