# SPDX-License-Identifier: Apache-2.0
# For the NBD tests: a server in front of a file of its own, and a client that speaks the protocol
# byte by byte, so that it can also speak it wrongly. Standard library only.
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
LIMIT_S = 120  # for what takes moments, on a machine that is busy with other things
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def equal(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: found {found!r:.300}, expected {expected!r:.300}")


def require(*tools):
    """Ends the test as skipped, and says why, if a program is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            print(f"SKIPPED: {tool} is not installed, this test can not run without it")
            sys.exit(77)


def run(*command, fails=False, timeout=LIMIT_S, **options):
    """Runs a program to its end; its output is shown if the result is not as expected."""
    result = subprocess.run([str(part) for part in command], timeout=timeout, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, **options)
    if (result.returncode != 0) != fails:
        print(result.stdout)
        raise AssertionError(f"{' '.join(map(str, command))}: exit code {result.returncode}")
    return result.stdout


def pattern(seed, length):
    """Bytes that differ from block to block."""
    block = bytearray()
    for i in range(0, length, 512):
        block += struct.pack(">QQ", seed, i) * 32
    return bytes(block[:length])


class Server:
    """nbd_file_server in front of a sparse file; a context manager that demands a clean end."""

    program = None  # set by main()

    def __init__(self, *arguments, size=64 * MIB, door="unix", preexec_fn=None):
        self.arguments = arguments
        self.size = size
        self.door_kind = door
        self.preexec_fn = preexec_fn

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="replica-nbd-")
        self.file = os.path.join(self.directory, "disk")
        self.socket = os.path.join(self.directory, "socket")
        with open(self.file, "wb") as f:
            f.truncate(self.size)
        door = f"unix:{self.socket}" if self.door_kind == "unix" else "tcp:127.0.0.1:0"
        self.log = open(os.path.join(self.directory, "log"), "w+")
        self.process = subprocess.Popen(
            # The limits of time are for the tests that set them: here clients may stand still.
            [self.program, "--file", self.file, "--door", door, "--verbose",
             "--handshake-ms", "100000", "--stall-ms", "100000", "--close-ms", "100000",
             *self.arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True, preexec_fn=self.preexec_fn)
        line = self.process.stdout.readline().strip()
        if not line.startswith("listening on "):
            self.process.wait(LIMIT_S)
            self.log.seek(0)
            raise AssertionError(f"the server did not start: {self.log.read()}")
        self.port = None if self.door_kind == "unix" else int(line.rsplit(":", 1)[1])
        return self

    def __exit__(self, kind, value, trace):
        try:
            self.stop()
            equal(self.process.returncode, 0, "exit code of the server")
            check(not os.path.exists(self.socket), "the socket file is still there")
        except Exception as error:  # do not hide what came first
            self.process.kill()
            self.process.wait(LIMIT_S)
            if kind is None:
                self.show_log()
                raise
            print(f"then also: {error}")
        if kind is not None:
            self.show_log()
        self.log.close()
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        return False

    def stop(self, timeout=LIMIT_S):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout)

    def log_text(self):
        self.log.flush()
        with open(self.log.name) as f:
            return f.read()

    def show_log(self):
        print("--- log of the server\n" + self.log_text() + "---")

    def wait_for_log(self, text, seconds=LIMIT_S):
        deadline = time.monotonic() + seconds
        while text not in self.log_text():
            check(time.monotonic() < deadline, f'the server never said "{text}"')
            time.sleep(0.02)

    def uri(self, export=""):
        if self.port is not None:
            return f"nbd://127.0.0.1:{self.port}/{export}"
        return f"nbd+unix:///{export}?socket={self.socket}"

    def data(self, offset, length):
        with open(self.file, "rb") as f:
            f.seek(offset)
            return f.read(length)

    def connect(self):
        if self.port is not None:
            return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(LIMIT_S)
        connection.connect(self.socket)
        return connection

    def client(self, **options):
        return Client(self.connect(), **options)

    def prove_alive(self):
        """A client that comes now is served."""
        with self.client() as client:
            data = pattern(time.monotonic_ns(), 8192)
            equal(client.write(4096, data, FUA), 0, "a write afterwards")
            equal(client.read(4096, 8192), data, "a read afterwards")
            equal(client.command(FLUSH)[0], 0, "a flush afterwards")


class Closed(Exception):
    """The server closed the connection."""


class Client:
    """One connection. Replies are waited for one by one, in any order."""

    def __init__(self, connection, structured=True, contexts=(), go=True, export=b""):
        self.socket = connection
        self.structured = structured
        self.cookie = 0
        self.reads = {}  # by cookie: offset and length
        self.chunks = {}  # by cookie: those that have come
        equal(self.receive(18), b"NBDMAGICIHAVEOPT\0\3", "greeting")
        self.send(struct.pack(">I", 3))
        if structured:
            equal(self.option(8)[-1][0], 1, "answer to STRUCTURED_REPLY")
        if contexts:
            data = struct.pack(">I", len(export)) + export + struct.pack(">I", len(contexts))
            for name in contexts:
                data += struct.pack(">I", len(name)) + name
            equal(self.option(10, data)[-1][0], 1, "answer to SET_META_CONTEXT")
        if go:
            answer = self.option(7, struct.pack(">I", len(export)) + export + b"\0\0")
            equal(answer[-1][0], 1, "answer to GO")
            self.size, self.flags = struct.unpack(">QH", answer[0][1][2:])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                part = self.socket.recv(min(length - len(data), MIB))
            except ConnectionError as error:
                raise Closed(str(error)) from error
            if not part:
                raise Closed(f"{len(data)} of {length} bytes")
            data += part
        return bytes(data)

    def closed(self):
        """True if the server closes the connection (whatever it sends before)."""
        try:
            while self.socket.recv(MIB):
                pass
            return True
        except ConnectionError:
            return True
        except socket.timeout:
            return False

    def option(self, number, data=b""):
        """Sends an option; returns the replies as (type, data) up to the last one."""
        self.send(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        return self.option_replies(number)

    def option_replies(self, number):
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
            equal((magic, option), (0x3E889045565A9, number), "option reply")
            replies.append((kind, self.receive(length)))
            if kind == 1 or kind & 0x80000000:
                return replies

    def start(self, kind, offset=0, length=0, flags=0, payload=b""):
        """Sends a request and returns its cookie."""
        self.cookie += 1
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, self.cookie, offset, length) +
                  payload)
        if kind == READ:
            self.reads[self.cookie] = (offset, length)
        return self.cookie

    def reply(self):
        """The next complete answer: (cookie, errno, data of a read or list of chunks, text)."""
        while True:
            magic = struct.unpack(">I", self.receive(4))[0]
            if magic == 0x67446698:
                failed, cookie = struct.unpack(">IQ", self.receive(12))
                length = self.reads.pop(cookie, (0, 0))[1]
                check(not (self.structured and length), "a simple reply to a read")
                return cookie, failed, [] if failed else self.receive(length), ""
            equal(magic, 0x668E33EF, "reply magic")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            # Chunks of several answers may come mixed.
            self.chunks.setdefault(cookie, []).append((kind, self.receive(length)))
            if flags & 1:
                return self.collect(cookie, self.chunks.pop(cookie))

    def collect(self, cookie, chunks):
        failed, text = 0, ""
        offset, length = self.reads.pop(cookie, (0, None))
        data = None if length is None else bytearray(length)
        self.last_kinds = [kind for kind, _ in chunks]
        for kind, payload in chunks:
            if kind == 0x8001:
                failed, size = struct.unpack(">IH", payload[:6])
                text = payload[6:6 + size].decode()
            elif kind in (1, 2):
                at = struct.unpack(">Q", payload[:8])[0] - offset
                part = payload[8:] if kind == 1 else bytes(struct.unpack(">I", payload[8:])[0])
                check(0 <= at and at + len(part) <= length, "a chunk outside of the read")
                data[at:at + len(part)] = part
        return cookie, failed, chunks if data is None else bytes(data), text

    def command(self, kind, offset=0, length=0, flags=0, payload=b""):
        """One request and its answer: (errno, data or chunks, text)."""
        cookie = self.start(kind, offset, length, flags, payload)
        answer = self.reply()
        equal(answer[0], cookie, "cookie")
        return answer[1:]

    def write(self, offset, data, flags=0):
        return self.command(WRITE, offset, len(data), flags, data)[0]

    def read(self, offset, length, flags=0):
        error, data, _ = self.command(READ, offset, length, flags)
        equal(error, 0, "read")
        return data

    def vanish(self):
        """Closes with a reset, like a process that was killed with data under way."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def main(tests):
    """Runs the functions in `tests`; with a name as second argument only that one."""
    Server.program = sys.argv[1]
    chosen = [test for test in tests if len(sys.argv) < 3 or test.__name__ == sys.argv[2]]
    check(chosen, "no such test")
    for test in chosen:
        begin = time.monotonic()
        test()
        print(f"ok {time.monotonic() - begin:6.2f} s  {test.__doc__}", flush=True)
