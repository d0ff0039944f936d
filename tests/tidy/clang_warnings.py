#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows every product source to clang with the flags of this build: its warnings are errors too.

Only the front end of the compiler runs (-fsyntax-only), which costs a fraction of a second build.
Usage: clang_warnings.py SOURCE_DIR BUILD_DIR
"""

import concurrent.futures
import json
import os
import shlex
import shutil
import subprocess
import sys

PRODUCT = ("engine/", "control/", "libreplica/", "netlink/", "tools/", "bench/")


def commands(source, build):
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        entries = json.load(file)
    seen = set()
    for entry in entries:
        path = os.path.relpath(entry["file"], source)
        if not path.startswith(PRODUCT) or path in seen:
            continue
        seen.add(path)
        words = shlex.split(entry["command"])
        if words[0].endswith("ccache"):
            words = words[1:]
        compiler = "clang" if path.endswith(".c") else "clang++"
        flags, skip = [], False
        for word in words[1:]:
            if skip or word in ("-c",):
                skip = False
            elif word in ("-o", "-MF", "-MT", "-MQ"):
                skip = True
            elif word not in ("-MD", "-MMD"):
                flags.append(word)
        yield path, [compiler, "-fsyntax-only", *flags], entry["directory"]


def main():
    source, build = map(os.path.abspath, sys.argv[1:3])
    if not shutil.which("clang++"):
        print("SKIPPED: clang++ is not installed, so its warnings were not looked at")
        return 77
    failed = 0

    def run(job):
        path, command, directory = job
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        return path, done.returncode, done.stderr

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, commands(source, build)))
    for path, code, output in results:
        if code:
            failed += 1
            print(f"{path}:\n{output}")
    print(f"clang: {len(results)} sources, {failed} with warnings or errors")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
