#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A node without privileges, as in a container: it serves by NBD and says what it lacks, or ends
with a sentence that says what would help.

    unprivileged_test.py REPLICAD REPLICACTL
"""

import ctypes
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time

NOBODY = 65534
LIMIT_S = 120  # for what takes moments, on a machine that is busy with other things
IO_URING_SETUP = 425  # the same on all architectures
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CAPABILITIES_MAX = 64
PR_CAPBSET_DROP = 24


def fail(message):
    print("FAILED:", message)
    sys.exit(1)


def forbid_io_uring():
    """As the seccomp profiles of container engines do: io_uring_setup ends with EPERM."""
    steps = [
        (0x20, 0, 0, 0),  # the number of the system call
        (0x15, 0, 1, IO_URING_SETUP),
        (0x06, 0, 0, 0x00050000 | 1),  # SECCOMP_RET_ERRNO, EPERM
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    program = ctypes.create_string_buffer(header)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        os._exit(99)


def become_nobody():
    libc = ctypes.CDLL(None)
    if os.getuid() == 0:
        for capability in range(CAPABILITIES_MAX):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def little_locked_memory():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    become_nobody()


class Node:
    def __init__(self, directory):
        self.directory = directory
        self.client = directory + "/replicactl"
        self.control = directory + "/control.sock"
        self.command = [directory + "/replicad", "--name", "alpha", "--state", directory + "/state",
                        "--control", self.control]

    def start(self, prepare):
        self.log = open(self.directory + "/log", "w+b")
        self.process = subprocess.Popen(self.command, preexec_fn=prepare, stderr=self.log)
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                return
            if subprocess.run([self.client, "--control", self.control, "status"],
                              capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.05)
        fail("replicad neither answers nor ends")

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()

    def ctl(self, *arguments, status=0):
        done = subprocess.run([self.client, "--control", self.control, *arguments],
                              capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode not in (status if isinstance(status, tuple) else (status,)):
            fail(f"replicactl {' '.join(arguments)}: {done.returncode}, {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def ends_with(self, status, sentence):
        try:
            ended = self.process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            fail("replicad does not end")
        if ended != status or sentence not in self.said():
            fail(f"ended with {ended}, not {status}, or without '{sentence}':\n{self.said()}")


def without_privileges(node):
    node.start(become_nobody)
    if node.process.poll() is not None:
        fail("replicad ended:\n" + node.said())
    disk = node.directory + "/disk"
    with open(disk, "wb") as file:
        file.truncate(32 << 20)
    os.chown(disk, NOBODY if os.getuid() == 0 else -1, -1)
    node.ctl("create", "r0", "--node-id", "0", "--disk", disk)
    node.ctl("up", "r0")
    node.ctl("promote", "r0", "--force")
    said = node.ctl("export", "r0")
    if not said.startswith("unix:") or "NBD" not in said or "ublk" not in said:
        fail("export does not say what it gives, and why: " + said)
    print("export:", said.strip())
    print("ublk:", node.ctl("export", "r0", "--door", "ublk",
                            status=(7, 10)).strip())
    print("block:", node.ctl("export", "r0", "--door", "block", status=(7, 10)).strip())
    mapped = node.ctl("export", "r0", "--mapped", status=(7, 10))
    if mapped.count("device-mapper here") > 1 or mapped.count("needs root") > 1:
        fail("the same reason twice: " + mapped)
    door = said.split(",")[0].removeprefix("unix:")
    if shutil.which("qemu-io"):
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 1M 1M", "-c", "flush", "-c",
                        "read -P 7 1M 1M", f"nbd+unix:///r0?socket={door}"], check=True,
                       stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    else:
        print("SKIPPED: qemu-io is missing, so nothing was written through the door")
    node.ctl("down", "r0")
    node.process.terminate()
    node.ends_with(0, "everything is down")
    for advice in ("CAP_IPC_LOCK", "CAP_SYS_RESOURCE"):
        if os.getuid() == 0 and advice not in node.said():
            fail(f"the log does not speak of {advice}:\n{node.said()}")
    print("without privileges: served by NBD, and the log says what is missing")


def main():
    directory = tempfile.mkdtemp(prefix="replica-unprivileged.", dir="/var/tmp")
    try:
        os.chmod(directory, 0o755)
        for program in sys.argv[1:3]:  # where nobody can read them
            shutil.copy(program, directory)
        if os.getuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        node = Node(directory)
        without_privileges(node)
        node.start(forbid_io_uring)
        node.ends_with(7, "io_uring is forbidden")
        print("without io_uring:", node.said().splitlines()[-1])
        node.start(little_locked_memory)
        if node.process.poll() is None:
            node.process.terminate()
            node.ends_with(0, "memory is not locked")
        else:
            node.ends_with(9, "raise the limit of locked memory")
        print("with little locked memory: it says so")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
