#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""replicad and replicactl as processes: starting, stopping, what is remembered, what is refused.

Two real daemons on a loopback address with disk files; no root needed.
Usage: control_daemon_test.py REPLICAD REPLICACTL
"""

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time

REPLICAD, REPLICACTL = map(os.path.abspath, sys.argv[1:3])
MIB = 1 << 20
# A loopback address of this process alone, so that no connection of another one has the port.
ADDRESS = f"127.{64 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
PORTS = itertools.count(7788)
LIMIT_S = 120  # for what takes moments, on a machine that is busy with other things


class Daemon:
    """One replicad; `ctl` runs replicactl against it."""

    def __init__(self, folder, name, listen=True):
        self.folder = os.path.join(folder, name)
        self.name = name
        self.socket = os.path.join(self.folder, "control.sock")
        self.address = f"{ADDRESS}:{next(PORTS)}" if listen else None
        self.process = None
        self.disks = []
        os.makedirs(self.folder, exist_ok=True)

    def command(self, *more):
        listen = ["--listen", self.address] if self.address else []
        return [REPLICAD, "--name", self.name, "--state", os.path.join(self.folder, "state"),
                "--control", self.socket, "--no-lock-memory", *listen, *more]

    def start(self, **environment):
        with open(os.path.join(self.folder, "log"), "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command(), stderr=log,
                                            env={**os.environ, **environment})
        until(lambda: self.ctl("list", rc=None).returncode == 0, f"{self.name} answers")

    def stop(self, how=signal.SIGTERM, rc=0):
        if self.process is None:
            return
        self.process.send_signal(how)
        code = self.process.wait(timeout=LIMIT_S)
        self.process = None
        # What is in the kernel's hands of a process that was killed ends after the process.
        until(lambda: not any(map(in_use, self.disks)), "the kernel lets go of the disks")
        if rc is not None:
            assert code == rc, f"{self.name} ended with {code}\n{self.log()}"

    def log(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8") as log:
            return log.read()

    def ctl(self, *arguments, rc=0):
        done = subprocess.run([REPLICACTL, "--control", self.socket, *arguments],
                              capture_output=True, text=True, check=False, timeout=LIMIT_S,
                              cwd=self.folder)
        if rc is not None and done.returncode != rc:
            raise AssertionError(f"{arguments}: exit code {done.returncode}, not {rc}\n"
                                 f"{done.stdout}{done.stderr}\n{self.log()}")
        return done

    def status(self, name="r0"):
        return json.loads(self.ctl("--json", "status", name).stdout)[0]

    def disk(self, size=32 * MIB, name="disk.img"):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as disk:
            disk.truncate(size)
        self.disks.append(path)
        return path


def until(condition, what):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"not in {LIMIT_S} s: {what}"
        time.sleep(0.05)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def in_use(disk):
    if not os.path.exists(disk):
        return False
    with open(disk, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def daemons(*names, listen=True):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        made = [Daemon(folder, name, listen) for name in names]
        try:
            for daemon in made:
                daemon.start()
            yield made
        finally:
            for daemon in made:
                if daemon.process is not None:
                    daemon.process.kill()
                    daemon.process.wait()


@contextlib.contextmanager
def mirror(size=32 * MIB):
    with daemons("alpha", "beta") as (alpha, beta):
        for daemon, peer, node_id in ((alpha, beta, 0), (beta, alpha, 1)):
            daemon.disk(size)
            daemon.ctl("create", "r0", "--node-id", str(node_id), "--disk", "disk.img",
                       "--peer", f"{peer.name},{1 - node_id},{peer.address}",
                       # A daemon may stand still for seconds on a busy machine; one that was killed
                       # is missed at once all the same.
                       "--ping-timeout-ms", "30000", "--request-timeout-ms", "60000")
            daemon.ctl("up", "r0")
        alpha.ctl("wait", "r0", "--until", "connected", "--timeout", "100")
        yield alpha, beta


def test_life_of_a_resource():
    """create, up, promote, export, demote, down, remove, with their texts and exit codes."""
    with daemons("alpha", listen=False) as (alpha,):
        disk = alpha.disk()
        assert alpha.ctl("status").stdout == "# no resource is defined\n"
        alpha.ctl("create", "r0", "--node-id", "0", "--disk", "disk.img", "--protocol", "B")
        assert "exists already" in alpha.ctl("create", "r0", "--node-id", "0", "--disk", disk,
                                             rc=3).stderr
        again = alpha.ctl("create", "r1", "--node-id", "0", "--disk", disk, rc=None)
        assert again.returncode in (3, 4), again
        shown = json.loads(alpha.ctl("--json", "show", "r0").stdout)
        assert shown["disk"] == disk and shown["options"]["protocol"] == "B", shown
        alpha.ctl("export", "r0", "--nbd", "unix:r0.sock", rc=8)
        alpha.ctl("up", "r0")
        refused = alpha.ctl("--json", "promote", "r0", rc=8)
        assert json.loads(refused.stdout)["error"]["kind"] == "state"
        assert "--force" in refused.stderr
        alpha.ctl("promote", "r0", "--force")
        alpha.ctl("wait", "r0", "--until", "primary", "--timeout", "100")
        alpha.ctl("export", "r0", "--nbd", "unix:r0.sock")
        door = f"unix:{alpha.folder}/r0.sock"
        assert alpha.status()["devices"][0]["doors"] == [door]
        assert f"disk:UpToDate door:{door}\n" in alpha.ctl("status", "r0").stdout
        alpha.ctl("unexport", "r0", "--nbd", "unix:r0.sock")
        alpha.ctl("export", "r0", "--door", "socket")
        assert alpha.status()["devices"][0]["doors"] == [f"unix:{alpha.folder}/r0.nbd"]
        alpha.ctl("unexport", "r0", "--door", "socket")
        chosen = alpha.ctl("export", "r0", "--nbd", "tcp:127.0.0.1:0", "--nbd", door).stdout
        assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9][0-9]*\n", chosen), chosen
        assert alpha.status()["devices"][0]["doors"] == [chosen.strip(), door]
        alpha.ctl("unexport", "r0", "--nbd", chosen.strip())
        half = alpha.ctl("export", "r0", "--nbd", "tcp:127.0.0.1:0", "--nbd", door, rc=3).stderr
        assert re.search(r"open by now: tcp:127\.0\.0\.1:[1-9]", half), half
        alpha.ctl("unexport", "r0")
        alpha.ctl("options", "r0", "--resync-rate-max", "10M")
        assert f"resync-rate-max {10 * MIB}\n" in alpha.ctl("options", "r0").stdout
        assert "same protocol" in alpha.ctl("options", "r0", "--protocol", "C").stderr
        assert alpha.ctl("options", "r0", "--al-extents", "100").stderr == ""
        assert "write-total" in alpha.ctl("stats", "r0").stdout
        alpha.ctl("demote", "r0")
        assert "down" in alpha.ctl("remove", "r0", rc=8).stderr
        alpha.ctl("down", "r0")
        alpha.ctl("remove", "r0")
        assert alpha.ctl("list").stdout == ""
        alpha.ctl("adopt", "r0", "--node-id", "0", "--disk", disk)
        alpha.ctl("up", "r0")
        assert alpha.status()["devices"][0]["disk-state"] == "UpToDate"


def test_bad_command_lines():
    """Each refusal says what is wrong, and nothing was done."""
    with daemons("alpha", listen=False) as (alpha,):
        disk = alpha.disk()
        create = ["create", "r0", "--node-id", "0", "--disk", disk]
        for arguments, code, text in (
                (["frob"], 64, 'no command "frob"'),
                ([], 64, "which command"),
                (["create", "r0"], 64, "required"),
                (["create", "r0", "--node-id", "32", "--disk", disk], 64, "32"),
                (["create", "../r0", *create[2:]], 1, "refused"),
                ([*create, "--peer", "beta"], 1, "NAME,ID,HOST:PORT"),
                ([*create, "--peer", "beta,0,127.0.0.1:1"], 1, "taken already"),
                ([*create, "--peer", "beta,1,127.0.0.1"], 1, "HOST:PORT"),
                ([*create, "--size", "7X"], 64, "7X"),
                ([*create, "--size", "0"], 64, '"0" is refused'),
                ([*create, "--size", ""], 64, "--size"),
                ([*create, "--size="], 64, "--size"),
                (["create", "r0", "--node-id", "0x3", "--disk", disk], 64, "no whole number"),
                (["create", "r0", "--node-id", "040", "--disk", disk], 64, "40"),
                (["resize", "r0", "--size", ""], 64, "--size"),
                (["upgrade", "--binary", ""], 64, "--binary is empty: is a variable not set?"),
                (["connect", "r0", ""], 64, "an argument is empty"),
                (["wait", "r0", "--until", "synced", "--peer", ""], 64, "--peer is empty"),
                (["primary", "r0"], 64, 'no command "primary"; here it is promote; see'),
                (["forget-peer", "r0"], 64, "nothing like it"),
                (["up", "all"], 2, "about one, by its name"),
                (["unexport", "r0", "--nbd", "unix:x", "--door", "nbd"], 64, "excludes"),
                (["unexport", "r0", "--door", "usb"], 64, "mapped"),
                ([*create, "--protocol", "D"], 1, "A, B, C"),
                ([*create, "--al-extents", "1"], 1, "67..6433"),
                (["up", "r9"], 2, "no resource"),
                (["wait", "r9", "--until", "connected"], 2, "no resource"),
                (["wait", "r0", "--until", "later"], 64, "later"),
                (["--frob"], 64, 'no option "--frob"'),
                (["wait", "r0", "--until", "primary", "--timeout", "nan"], 64, "nan"),
                (["status", "r0", "--until", "synced"], 64, "--watch"),
                (["status", "--watch", "--until", "synced"], 1, "name of a resource"),
                (["create", "r0", "--node-id", "0", "--disk", ""], 64, "--disk"),
                (["export", "r0", "--nbd", "unix:"], 1, "NBD socket \"\""),
                ([*create, "--ping-timeout-ms", "1s"], 1, '"1s" is refused'),
                (["--control", "", "list"], 64, "--control is empty")):
            done = alpha.ctl(*arguments, rc=code)
            assert text in done.stderr and done.stderr.startswith("replicactl: "), (arguments, done)
        usage = json.loads(alpha.ctl("--json", "create", "r0", rc=64).stdout)["error"]
        assert usage["kind"] == "invalid" and "create --help" in usage["message"], usage
        for path in ("./control.sock", "../alpha/control.sock"):
            alpha.ctl("--control", path, "list")
        missing = alpha.ctl("create", "r0", "--node-id", "0", "--disk", "/nowhere/disk", rc=2)
        assert "/nowhere/disk" in missing.stderr
        small = alpha.disk(16 << 10, "small.img")
        alpha.ctl("create", "r0", "--node-id", "0", "--disk", small, rc=9)
        assert alpha.ctl("list").stdout == ""
        nobody = Daemon(alpha.folder, "nobody", listen=False)
        assert "is replicad running" in nobody.ctl("status", rc=69).stderr
        assert "no node answers" in nobody.ctl("version").stdout
        # Decimal, whatever it begins with; and a disk that is configured already is not taken.
        alpha.ctl("create", "r0", "--node-id", "010", "--disk", disk, "--volume", "007")
        shown = json.loads(alpha.ctl("--json", "show", "r0").stdout)
        assert (shown["node-id"], shown["volume"]) == (10, 7), shown
        taken = alpha.ctl("create", "r1", *create[2:], "--force", rc=3)
        assert f"{disk} is configured for r0" in taken.stderr, taken


def test_daemon_command_line():
    """What keeps a daemon from starting has an exit code and a text."""
    with daemons("alpha") as (alpha,):
        def refused(*arguments):
            done = subprocess.run(arguments, capture_output=True, text=True, check=False,
                                  timeout=LIMIT_S)
            return done.returncode, done.stderr
        code, text = refused(*alpha.command())
        assert code == 4 and "in use by another node" in text, (code, text)
        other = Daemon(alpha.folder, "other", listen=False)
        code, text = refused(*other.command("--listen", alpha.address))
        assert code == 4 and alpha.address in text, (code, text)
        other.socket = alpha.socket
        code, text = refused(*other.command())
        assert code == 4 and "control socket" in text, (code, text)
        for wrong in (["--frob"], ["--name", "a/b"], ["--name", "a", "--listen", "nowhere"],
                      ["--listen", "192.0.2.1"], ["--reactors", "0x2"]):
            code, text = refused(REPLICAD, *wrong)
            assert code == 64, (wrong, code, text)
        assert refused(REPLICAD, "--frob")[1].startswith("replicad: ")
        alpha.ctl("list")  # unharmed
        other.socket = os.path.join(other.folder, "missing", "deeper", "control.sock")
        code, text = refused(*other.command())
        assert code == 2 and "create it" in text, (code, text)
        other.socket = other.disk(1)
        code, text = refused(*other.command())
        assert code == 3 and "no socket" in text and os.path.getsize(other.socket) == 1, text
        for option in ("--state", "--control"):
            code, text = refused(*other.command(option, ""))
            assert code == 64 and option in text, (code, text)
        code, text = refused(*other.command("--name", "a b"))  # the last one counts
        assert code == 64 and "a b" in text, (code, text)


def test_standard_streams():
    """A full disk below the output is an error, a reader that has gone is none, and a stream that
    was closed costs nothing but what would have been printed."""
    with daemons("alpha", listen=False) as (alpha,):
        def shell(line):
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True,
                                  check=False, timeout=LIMIT_S,
                                  env={**os.environ, "REPLICA_CONTROL": alpha.socket,
                                       "PATH": os.path.dirname(REPLICACTL) + ":" +
                                       os.environ["PATH"]})
            return done.returncode, done.stderr
        code, text = shell("replicactl --json status > /dev/full")
        assert code == 9 and "standard output" in text, (code, text)
        assert shell("replicactl up r9 2> /dev/full")[0] == 2
        assert shell("replicactl --json up r9 > /dev/full")[0] == 2
        assert shell("set -o pipefail; replicactl --json status | true")[0] == 0
        assert shell("set -o pipefail; sleep 0.2 | replicactl --json up r9 | true")[0] == 2
        assert shell("replicactl list >&- 2>&- <&-")[0] == 0
        # It ends by itself: the status of timeout would be 124.
        assert shell("set -o pipefail; timeout 100 replicactl events | head -n 1")[0] == 0
        other = Daemon(alpha.folder, "other", listen=False)
        closed = subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *other.command()])
        try:
            until(lambda: other.ctl("list", rc=None).returncode == 0, "other answers")
            for number in range(3):
                assert os.readlink(f"/proc/{closed.pid}/fd/{number}") == "/dev/null"
        finally:
            closed.terminate()
            assert closed.wait(timeout=LIMIT_S) == 0


def test_why_it_is_not_up():
    """A disk that is away at the start, or at `up`, is named by status and wait."""
    with daemons("alpha", listen=False) as (alpha,):
        disk = alpha.disk()
        alpha.ctl("create", "r0", "--node-id", "0", "--disk", disk)
        alpha.ctl("up", "r0")
        alpha.stop()
        os.rename(disk, disk + ".away")
        alpha.start()
        text = f"{disk} does not exist"
        assert text in alpha.status()["why"], alpha.status()
        assert f"  # disk {text}" in alpha.ctl("status").stdout
        assert text in alpha.ctl("wait", "r0", "--until", "uptodate", "--timeout", "0.1",
                                 rc=11).stderr
        alpha.ctl("down", "r0")
        assert alpha.status()["why"] == ""
        alpha.ctl("up", "r0", rc=2)
        assert text in alpha.status()["why"]
        os.rename(disk + ".away", disk)
        alpha.ctl("up", "r0")
        assert alpha.status()["up"] and alpha.status()["why"] == ""


def test_restart_remembers():
    """Configuration and up-ness survive SIGTERM and SIGKILL; roles do not."""
    with daemons("alpha", listen=False) as (alpha,):
        alpha.disk()
        alpha.disk(name="second.img")
        alpha.ctl("create", "r0", "--node-id", "0", "--disk", "disk.img")
        alpha.ctl("create", "r1", "--node-id", "0", "--disk", "second.img")
        alpha.ctl("up", "r0")
        alpha.ctl("promote", "r0", "--force")
        for how, code in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)):
            alpha.process.send_signal(signal.SIGHUP)
            alpha.stop(how, code)
            assert (how == signal.SIGKILL) == os.path.exists(alpha.socket)
            alpha.start()
            assert alpha.status("r0")["up"] and not alpha.status("r1")["up"]
            assert alpha.status("r0")["role"] == "Secondary"
            alpha.ctl("promote", "r0")


def test_what_could_not_be_brought_up():
    """A disk that is in use or missing at the start is taken as soon as it can be, until `down`."""
    with daemons("alpha", listen=False) as (alpha,):
        disk = alpha.disk()
        alpha.ctl("create", "r0", "--node-id", "0", "--disk", "disk.img")
        alpha.ctl("up", "r0")
        alpha.stop(signal.SIGKILL, -9)
        with open(disk, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            alpha.start()
            status = alpha.status()
            assert not status["up"] and "in use" in status["why"], status
        until(lambda: alpha.status()["up"], "the disk that was in use is taken")
        for taken in (True, False):
            alpha.stop()
            os.rename(disk, disk + ".away")
            alpha.start()
            status = alpha.status()
            assert not status["up"] and "does not exist" in status["why"], status
            if not taken:
                alpha.ctl("down", "r0")
            os.rename(disk + ".away", disk)
            if taken:
                until(lambda: alpha.status()["up"], "the disk that was missing is taken")
        time.sleep(2.5)  # more than two of the attempts that there may not be
        assert not alpha.status()["up"]
        alpha.ctl("up", "r0")
        assert alpha.log().count("resource r0 is up now") == 2, alpha.log()


def test_damaged_configuration():
    """A file cut short is named and set aside; the other resource comes up."""
    with daemons("alpha", listen=False) as (alpha,):
        for name in ("r0", "r1"):
            alpha.disk(name=name)
            alpha.ctl("create", name, "--node-id", "0", "--disk", name)
            alpha.ctl("up", name)
        alpha.stop()
        path = os.path.join(alpha.folder, "state", "resources", "r0.json")
        os.truncate(path, os.path.getsize(path) // 2)
        alpha.start()
        assert alpha.status("r1")["up"]
        whole = alpha.ctl("status")
        assert "r0.json is not used" in whole.stderr and "r1 role" in whole.stdout, whole
        assert "r0.json is not used" in alpha.ctl("--json", "status").stderr
        assert len(json.loads(alpha.ctl("--json", "version").stdout)["node"]["problems"]) == 1
        said = alpha.ctl("up", "r0", rc=6).stderr
        assert "r0.json.corrupt" in said and "`adopt`" in said, said
        assert os.path.exists(path + ".corrupt") and "r0.json" in alpha.log()
        alpha.ctl("adopt", "r0", "--node-id", "0", "--disk", "r0")
        assert alpha.ctl("status").stderr == ""  # it has a successor
        alpha.ctl("up", "r0")
        alpha.stop()
        os.rename(os.path.join(alpha.folder, "r1"), os.path.join(alpha.folder, "away"))
        alpha.start()
        assert alpha.status("r0")["up"] and not alpha.status("r1")["up"]
        os.rename(os.path.join(alpha.folder, "away"), os.path.join(alpha.folder, "r1"))
        alpha.ctl("up", "r1")
        # What a newer version wrote stays where it is.
        alpha.stop()
        with open(path, "w", encoding="utf-8") as newer:
            newer.write('{"version": 99}')
        alpha.start()
        assert "newer Replica" in alpha.ctl("up", "r0", rc=7).stderr
        assert os.path.exists(path)


def test_ready_notification():
    """A manager that gives a socket hears READY and STOPPING; journald's prefixes are written."""
    with daemons("alpha", listen=False) as (alpha,):
        alpha.stop()
        for name in (os.path.join(alpha.folder, "notify"), "@replica-test-%d" % os.getpid()):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind("\0" + name[1:] if name[0] == "@" else name)
                manager.settimeout(LIMIT_S)
                alpha.start(NOTIFY_SOCKET=name, JOURNAL_STREAM="8:1")
                assert manager.recv(4096).startswith(b"READY=1")
                alpha.stop()
                assert manager.recv(4096) == b"STOPPING=1"
        assert "\n<6>node alpha" in "\n" + alpha.log()


def test_mirror_status_wait_and_events():
    """Two nodes: a resync is watched to its end and told by events."""
    with mirror() as (alpha, beta):
        assert "Inconsistent" in beta.ctl("wait", "r0", "--until", "synced", "--timeout", "0.2",
                                          rc=11).stderr
        with open(os.path.join(beta.folder, "events"), "w", encoding="utf-8") as out:
            follower = subprocess.Popen([REPLICACTL, "--control", beta.socket, "--json", "events",
                                         "r0"], stdout=out)
        until(lambda: os.path.getsize(out.name) > 0, "the follower has subscribed")
        # The resync ends when it was seen.
        alpha.ctl("options", "r0", "--resync-rate-max", "1M")
        with open(os.path.join(alpha.folder, "watched"), "w+", encoding="utf-8") as screen:
            watch = subprocess.Popen([REPLICACTL, "--control", alpha.socket, "status", "r0",
                                      "--watch", "--interval", "0.05", "--until", "synced"],
                                     stdout=screen)
            alpha.ctl("promote", "r0", "--force")
            until(lambda: "replication:SyncSource" in read(screen.name), "the resync is shown")
            alpha.ctl("options", "r0", "--resync-rate-max", "0")
            assert watch.wait(timeout=LIMIT_S) == 0
        watched = read(screen.name)
        assert "# no" not in watched, watched
        assert watched.endswith("  beta role:Secondary\n    peer-disk:UpToDate\n\n"), watched
        beta.ctl("wait", "r0", "--until", "uptodate", "--timeout", "100")
        assert "Primary" in beta.ctl("promote", "r0", rc=8).stderr
        status = alpha.status()
        peer = status["connections"][0]
        assert peer["connection-state"] == "Connected" and peer["peer-role"] == "Secondary"
        device = peer["peer_devices"][0]
        assert device["out-of-sync"] == 0 and "done" not in device, device
        assert device["resync-sent-bytes"] == status["devices"][0]["size-bytes"], status
        beta.ctl("disconnect", "r0")
        assert beta.status()["connections"][0]["connection-state"] == "StandAlone"
        beta.ctl("connect", "r0", "alpha")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        until(lambda: read(out.name).count("connection:Connected") > 0, "the last event is heard")
        follower.terminate()
        follower.wait()
        events = [json.loads(line) for line in read(out.name).rpartition("\n")[0].splitlines()]
        assert events[0]["action"] == "exists" and events[0]["status"][0]["name"] == "r0"
        seqs = [event["seq"] for event in events[1:]]
        assert seqs == sorted(set(seqs)) and len(seqs) > 5, seqs
        assert any(event["kind"] == "connection" for event in events[1:])


def test_watch_on_a_terminal():
    """On a terminal the status is drawn over the old one and never wraps."""
    with mirror() as (alpha, _):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        watch = subprocess.Popen([REPLICACTL, "--control", alpha.socket, "status", "r0", "--watch",
                                  "--interval", "0.05", "--until", "synced"], stdout=slave)
        os.close(slave)
        drawn = os.read(master, 65536)  # the first status is seen, and more than one is drawn
        alpha.ctl("promote", "r0", "--force")
        with contextlib.suppress(OSError):  # how a terminal says that its program has gone
            while piece := os.read(master, 65536):
                drawn += piece
        assert watch.wait(timeout=LIMIT_S) == 0
        os.close(master)
        text = drawn.decode()
        first, *redrawn = re.split("\x1b\\[([0-9]+)A\x1b\\[J", text)
        assert redrawn and "peer-disk:UpToDate" in redrawn[-1], text
        for before, up in zip([first, *redrawn[1::2]], redrawn[::2]):
            assert before.count("\r\n") == int(up), text
        lines = re.sub("\x1b\\[[0-9]*[A-Z]", "", text).split("\r\n")
        assert max(map(len, lines)) < 40, lines


def test_stop_during_resync():
    """SIGTERM in the middle of a resync is clean, and the resync goes on afterwards."""
    with mirror(96 * MIB) as (alpha, beta):
        alpha.ctl("promote", "r0", "--force")
        alpha.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        alpha.ctl("options", "r0", "--resync-rate-max", "2M")
        beta.ctl("invalidate", "r0")

        def progress():
            device = alpha.status()["connections"][0]["peer_devices"][0]
            return device.get("resync-done-bytes", 0)
        until(lambda: progress() > 4 * MIB, "4 MiB are resynced")
        beta.stop()
        assert alpha.status()["role"] == "Primary"
        beta.start()
        alpha.ctl("wait", "r0", "--until", "connected", "--timeout", "100")
        alpha.stop()
        alpha.start()
        alpha.ctl("options", "r0", "--resync-rate-max", "0")
        beta.ctl("wait", "r0", "--until", "synced", "--timeout", "100")
        sent = alpha.status()["connections"][0]["peer_devices"][0]["resync-sent-bytes"]
        assert sent < 94 * MIB, f"{sent} bytes were sent again: the resync began anew"


def test_bash_completion():
    """Commands, options, resources and peers are offered."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                          "replicactl.bash-completion")
    with mirror() as (alpha, _):
        def offered(*words):
            line = " ".join(f"'{word}'" for word in ("replicactl", *words))
            done = subprocess.run(
                ["bash", "-c", f"source {script}; COMP_WORDS=({line}); "
                 f"COMP_CWORD={len(words)}; _replicactl; printf '%s\\n' \"${{COMPREPLY[@]}}\""],
                capture_output=True, text=True, check=True,
                env={**os.environ, "REPLICA_CONTROL": alpha.socket,
                     "PATH": os.path.dirname(REPLICACTL) + ":" + os.environ["PATH"]})
            assert done.stderr == "", done.stderr
            return done.stdout.split()
        assert offered("prom") == ["promote"]
        assert offered("promote", "") == ["r0"]
        assert offered("promote", "r0", "--f") == ["--force"]
        assert "node-id:" in alpha.ctl("status", "r0", "--verbose").stdout
        assert "volume:" not in alpha.ctl("status", "r0").stdout
        assert "received:" in alpha.ctl("status", "r0", "--statistics").stdout
        assert offered("connect", "r0", "") == ["beta"]
        assert offered("wait", "r0", "--until", "s") == ["synced"]
        assert offered("export", "r0", "--door", "") == ["ublk", "nbd", "block", "socket"]
        assert offered("unexport", "r0", "--door", "") == ["ublk", "nbd", "mapped", "socket"]
        assert offered("export", "--mapped", "") == ["r0"]
        assert offered("down", "r0", "--f") == ["--force"]
        assert offered("--control", alpha.socket, "up", "") == ["r0"]
        help_text = alpha.ctl("--help").stdout
        commands = [line.split()[0] for line in
                    help_text.split("Subcommands:")[1].splitlines() if line.startswith("  ")
                    and not line.startswith("   ")]
        assert len(commands) > 20, help_text
        for command in commands:
            assert command in offered(command), command
            options = set(offered(command, "r0", "--"))
            for word in alpha.ctl(command, "--help").stdout.replace(",", " ").split():
                assert not word.startswith("--") or word in options, (command, word)


def run_tests(names):
    tests = [(name, test) for name, test in sorted(names.items()) if name.startswith("test_")]
    for name, test in tests:
        begin = time.monotonic()
        test()
        print(f"{name}: ok, {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    run_tests(globals())
