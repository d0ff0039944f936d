#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Upgrades of a daemon without a block device: who is refused, who is told what, what goes on.

Real daemons with disk files; no root needed. Block devices under an upgrade: tests/vm/upgrade_test.
Usage: control_upgrade_test.py REPLICAD REPLICACTL
"""

import json
import os
import signal
import socket
import struct
import subprocess
import time

from control_daemon_test import LIMIT_S, REPLICACTL, REPLICAD, daemons, run_tests, until


def program(folder, name, at_version, else_do=f'exec {REPLICAD} "$@"'):
    """A shell script in the place of replicad."""
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as script:
        script.write(f'#!/bin/sh\nif [ "$1" = --version ]; then {at_version}; fi\n{else_do}\n')
    os.chmod(path, 0o755)
    return path


class Gate:
    """Holds up whatever runs `stop`, until it is opened; `reached` waits until something does."""

    def __init__(self, folder, name):
        self.came, self.may_go = (os.path.join(folder, f"{name}.{what}") for what in ("came", "go"))
        self.stop = f"touch {self.came}; while [ ! -e {self.may_go} ]; do sleep 0.02; done"

    def reached(self):
        until(lambda: os.path.exists(self.came), f"{self.came} is there")

    def open(self):
        with open(self.may_go, "w", encoding="utf-8"):
            pass


def begin_upgrade(daemon, *arguments):
    return subprocess.Popen([REPLICACTL, "--control", daemon.socket, "upgrade", *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def info(daemon):
    return json.loads(daemon.ctl("--json", "version").stdout)["node"]


def primary_with_door(daemon):
    """Its NBD door, after the resource was made."""
    daemon.disk()
    daemon.ctl("create", "r0", "--node-id", "0", "--disk", "disk.img")
    daemon.ctl("up", "r0")
    daemon.ctl("promote", "r0", "--force")
    daemon.ctl("export", "r0", "--nbd", "unix:r0.sock")
    return os.path.join(daemon.folder, "r0.sock")


def nbd_client(door):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT_S)
    client.connect(door)
    assert client.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
    # All of the handshake, which has a limit of time.
    client.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 2) + b"r0")
    assert len(client.recv(10, socket.MSG_WAITALL)) == 10
    return client


def is_open(client):
    client.settimeout(0.2)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True


def test_one_upgrade_at_a_time():
    """Whoever comes while another one is under way is told so, and the program changes once."""
    with daemons("alpha", listen=False) as (alpha,):
        gate = Gate(alpha.folder, "first")
        first = begin_upgrade(alpha, "--binary", program(alpha.folder, "slow", gate.stop))
        gate.reached()
        assert "an upgrade is under way" in alpha.ctl("upgrade", rc=4).stderr
        gate.open()
        assert first.wait(timeout=LIMIT_S) == 0, first.stderr.read()
        for _ in range(3):
            before = alpha.log().count("takes over from")
            both = [begin_upgrade(alpha, "--timeout", "30") for _ in range(2)]
            codes = [each.wait(timeout=LIMIT_S) for each in both]
            # 11: whoever looks for his new program only when the other one's has followed it.
            assert 0 in codes and set(codes) <= {0, 4, 5, 11, 12, 69}, \
                (codes, [each.stderr.read() for each in both])
            changes = alpha.log().count("takes over from") - before
            assert codes.count(0) <= changes <= codes.count(0) + codes.count(11), alpha.log()
            assert info(alpha)["upgrade"]["error"] == ""


def test_stray_signal():
    """SIGUSR2 that nobody has asked for is named in the log, and harms nothing."""
    with daemons("alpha", listen=False) as (alpha,):
        client = nbd_client(primary_with_door(alpha))
        alpha.process.send_signal(signal.SIGUSR2)
        until(lambda: f"SIGUSR2 from uid {os.getuid()} pid {os.getpid()} is ignored" in alpha.log(),
              "the log names the signal")
        assert alpha.status()["role"] == "Primary" and is_open(client)
        assert "starts" not in alpha.log() and "upgrade" not in info(alpha)


def test_clients_that_come_meanwhile():
    """A client that connects while the new program is tried out is not cut off."""
    with daemons("alpha", listen=False) as (alpha,):
        door = primary_with_door(alpha)
        gate = Gate(alpha.folder, "tried")
        waits = begin_upgrade(alpha, "--binary", program(alpha.folder, "slow", gate.stop))
        gate.reached()
        client = nbd_client(door)
        gate.open()
        assert waits.wait(timeout=LIMIT_S) == 4
        assert "1 client(s) at unix:" in waits.stderr.read()
        assert is_open(client) and alpha.status()["role"] == "Primary"
        assert "1 client(s) at unix:" in alpha.ctl("upgrade", rc=4).stderr
        nbd_client(door).close()  # the door is as it was
        said = alpha.ctl("upgrade", "--force").stdout
        assert not is_open(client)
        closed = f"# r0 is Secondary now, and closed: unix:{door}; promote, export\n"
        assert said.endswith(closed), said
        assert closed[2:-1] in alpha.log()
        assert info(alpha)["upgrade"]["remarks"] == [closed[2:-1]]
        alpha.ctl("promote", "r0")
        assert "# r0 is Secondary now: promote it again\n" in alpha.ctl("upgrade").stdout
        assert "#" not in alpha.ctl("upgrade").stdout


def test_a_program_that_ends_at_its_start():
    """Its end is seen at once, and so is a daemon that was started in its place."""
    with daemons("alpha", listen=False) as (alpha,):
        dies = program(alpha.folder, "dies", "echo replicad 9.9; exit", "exit 3")
        # Not at the limit of time, which says something else.
        gone = alpha.ctl("upgrade", "--binary", dies, rc=69)
        assert "start it again" in gone.stderr, gone
        assert alpha.process.wait(timeout=LIMIT_S) == 3
        alpha.start()
        gate = Gate(alpha.folder, "end")
        slow = program(alpha.folder, "slow", "echo replicad 9.9; exit", gate.stop + "; exit 3")
        asks = begin_upgrade(alpha, "--binary", slow)
        gate.reached()
        asks.send_signal(signal.SIGSTOP)
        gate.open()
        assert alpha.process.wait(timeout=LIMIT_S) == 3
        alpha.start()
        asks.send_signal(signal.SIGCONT)
        assert asks.wait(timeout=LIMIT_S) == 12
        assert f"another one was started (process {alpha.process.pid}" in asks.stderr.read()


def test_programs_that_are_refused():
    """Each with what is wrong with it; the daemon goes on."""
    with daemons("alpha", listen=False) as (alpha,):
        door = primary_with_door(alpha)
        plain = os.path.join(alpha.folder, "plain")
        with open(plain, "w", encoding="utf-8") as text:
            text.write("not a program")
        for binary, code, text in (
                (alpha.folder, 1, "is a directory"),
                (plain, 10, "chmod +x"),
                (os.path.join(alpha.folder, "missing"), 2, "does not exist"),
                (program(alpha.folder, "fails", "exit 7"), 1, "exit status 7"),
                (program(alpha.folder, "killed", "kill -9 $$"), 1, "killed by Killed"),
                (program(alpha.folder, "stranger", "echo hello; exit"), 1, "is not replicad")):
            refused = alpha.ctl("upgrade", "--binary", binary, rc=code)
            assert text in refused.stderr, refused
        begin = time.monotonic()
        hangs = program(alpha.folder, "hangs", "exec sleep 600")
        assert "does not end in 1 s" in alpha.ctl("upgrade", "--binary", hangs, "--timeout", "1",
                                                  rc=11).stderr
        assert time.monotonic() - begin < LIMIT_S
        nbd_client(door).close()
        # Seen only when everything is down: the program before is started again.
        vanishes = program(alpha.folder, "vanishes", 'echo replicad 9.9; rm "$0"; exit')
        said = alpha.ctl("upgrade", "--binary", vanishes, rc=1).stderr
        assert "can not be run: No such file" in said and "goes on" in said, said
        assert alpha.status()["up"]
        # The program that runs may have gone from the disk.
        moved = program(alpha.folder, "moved", ":", f'exec {alpha.folder}/copy "$@"')
        subprocess.run(["cp", REPLICAD, os.path.join(alpha.folder, "copy")], check=True)
        alpha.ctl("upgrade", "--binary", moved)
        os.remove(os.path.join(alpha.folder, "copy"))
        assert "--binary" in alpha.ctl("upgrade", rc=2).stderr


if __name__ == "__main__":
    run_tests(globals())
