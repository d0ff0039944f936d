#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The house rules that a program can check (docs/style.md). Prints findings, exits 1 on any.

Every check is a function from the list of sources to findings, and test_tidy.py shows each a bad
sample that it must see. A rule that turns out to be wrong is changed here, never worked around.
"""

import collections
import os
import re
import subprocess
import sys
from dataclasses import dataclass

from source import Source

LINES_MAX = 1000
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
RATCHET = "tests/tidy/function_length.txt"

# Folder (or file prefix) -> what of the project it may include besides itself. Arrows point down.
LAYERS = {
    "engine/base/": (),
    "engine/format/": ("engine/base/",),
    "engine/core/": ("engine/base/", "engine/format/"),
    "engine/io/": ("engine/base/", "engine/format/", "engine/core/"),
    "engine/frontend/": ("engine/base/", "engine/core/", "engine/io/"),
    "engine/mapper/": ("engine/base/", "engine/io/"),
    "engine/node": ("engine/", "netlink/"),
    "netlink/": ("engine/base/",),
    "control/": ("engine/base/", "engine/node", "engine/frontend/volume.hpp"),
    "include/": (),
    "libreplica/": ("include/", "control/", "engine/base/", "engine/node", "engine/frontend/"),
    "tools/replicactl": ("include/", "control/", "libreplica/", "netlink/", "engine/base/"),
    "tools/": ("include/", "control/", "libreplica/", "netlink/", "engine/"),
    "examples/": ("include/",),
    "bench/": ("include/", "control/", "libreplica/", "engine/", "netlink/"),
    "tests/sim/": ("engine/base/", "engine/format/", "engine/core/", "tests/"),
    "tests/explore/": ("engine/base/", "engine/format/", "engine/core/", "tests/"),
    "tests/": ("",),
}

PURE = ("engine/base/", "engine/format/", "engine/core/")
# Header -> what to use instead. The pure layers know no clock, thread, system call or hash order.
BANNED_IN_PURE = {
    "unistd.h": "an effect that the shell performs",
    "fcntl.h": "an effect that the shell performs",
    "liburing.h": "an effect that the shell performs",
    "sys/": "an effect that the shell performs",
    "netinet/": "an effect that the shell performs",
    "arpa/": "endian.hpp",
    "linux/": "an effect that the shell performs",
    "fstream": "an effect that the shell performs",
    "filesystem": "an effect that the shell performs",
    "iostream": "a value that the caller prints",
    "thread": "nothing: one thread owns a core",
    "mutex": "nothing: one thread owns a core",
    "shared_mutex": "nothing: one thread owns a core",
    "condition_variable": "nothing: one thread owns a core",
    "future": "nothing: one thread owns a core",
    "chrono": "Instant of base/units.hpp",
    "ctime": "Instant of base/units.hpp",
    "time.h": "Instant of base/units.hpp",
    "random": "base/prng.hpp, or random bytes given by the shell",
    "unordered_map": "a sorted vector or std::map: hash order must not reach the core",
    "unordered_set": "a sorted vector or std::set: hash order must not reach the core",
}
# What is allowed all the same, with the reason.
BANNED_EXCEPTIONS = {
    ("engine/base/crc32c.cpp", "sys/auxv.h"),  # which instructions the CPU has; no state, no effect
}
BANNED_CALLS_IN_CORE = re.compile(
    r"(?<![\w.>:])(?:std::)?(rand|srand|time|clock|clock_gettime|gettimeofday|getenv|getrandom|"
    r"printf|fprintf|malloc|calloc|free|usleep|nanosleep)\s*\("
)
# Spelled so that this file passes its own check.
MARKS = re.compile(
    r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|\bnot impl" r"emented\b|\bunimpl" r"emented\b"
)
COROUTINES = re.compile(r"\bco_(?:aw" r"ait|ret" r"urn|yi" r"eld)\b")
MACHINE_PATHS = re.compile(r"(?:^|[^\w./-])/(?:wo" r"rk|fa" r"rm)/")


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.message}"


def first_of(table, path):
    """The longest key of `table` that `path` starts with."""
    keys = [key for key in table if path.startswith(key)]
    return max(keys, key=len) if keys else None


def check_layers(sources):
    for source in sources:
        layer = first_of(LAYERS, source.path) if source.is_cpp else None
        if layer is None:
            continue
        folder = os.path.dirname(source.path) + "/"
        for line, name, quoted in source.includes:
            # <replica/...> is how users see include/; it is checked like the file it means.
            target = "include/" + name if name.startswith("replica/") else name
            known = first_of(LAYERS, target)
            if known is None or (not quoted and not target.startswith("include/")):
                continue
            if target.startswith((layer, folder) + LAYERS[layer]):
                continue
            yield Finding(source.path, line, f"{layer} must not include {name}: arrows point down")


def check_banned_includes(sources):
    for source in sources:
        if source.is_cpp and source.path.startswith(PURE):
            for line, name, _ in source.includes:
                if (source.path, name) in BANNED_EXCEPTIONS:
                    continue
                for banned, instead in BANNED_IN_PURE.items():
                    if name == banned or (banned.endswith("/") and name.startswith(banned)):
                        yield Finding(source.path, line, f"<{name}> is banned here; use {instead}")


# What the core does in one function only: the pattern, the functions that may, what it is.
ONE_WAY = (
    (re.compile(r"sb_\.current_uuid\s*=[^=]|\bext(?:ension)?\.(?:in_sync|generation_seq|set_change|"
                r"parent_uuid|primary_node)\s*[-+|&]?=[^=]"),
     ("Core::mirror_set", "rebuild_extension"),
     "the label takes the in-sync set from the register"),
    (re.compile(r"register_\.(?:propose|load)\("),
     ("Core::propose_set", "Core::take_set", "Core::prepare_attach"),
     "the in-sync set changes"),
    (re.compile(r"bitmap_->clear_all\("),
     ("Core::clear_marks", "Core::on_in_sync"), "marks are taken back, with a proof"),
    (re.compile(r"EffectKind::disk_(?:write|zero)\b"),
     ("Core::write_data",), "data goes to the disk, when label and log cover it"),
    (re.compile(r"\.stable_seq\s*=[^=]"),
     ("Core::mark_unstable", "Core::flush_answered", "Core::become_primary",
      "Core::admit_to_in_sync"), "a peer's writes become stable"),
)


def check_one_way(sources):
    """Some things are done in one function of the core, which checks whether they may be done."""
    for source in sources:
        if not (source.path.startswith("engine/core/") and source.path.endswith(".cpp")):
            continue
        for number, line in enumerate(source.code.split("\n"), 1):
            for pattern, allowed, what in ONE_WAY:
                inside = any(f.line <= number < f.line + f.length and f.name in allowed
                             for f in source.functions)
                if pattern.search(line) and not inside:
                    yield Finding(source.path, number, f"only in {', '.join(allowed)}: {what}")


def check_banned_calls(sources):
    for source in sources:
        if source.is_cpp and source.path.startswith("engine/core/"):
            for number, line in enumerate(source.code.split("\n"), 1):
                if found := BANNED_CALLS_IN_CORE.search(line):
                    yield Finding(source.path, number,
                                  f"{found.group(1)}() is banned in the core: it is a value")


def check_header_comment(sources):
    """The licence, then what the file is; an x.cpp beside an x.hpp leaves the latter to it."""
    headers = {s.path for s in sources if s.path.endswith(".hpp")}
    for source in sources:
        if not source.is_cpp and not source.is_script:
            continue
        lines = [line for line in source.lines if not line.startswith("#!")]
        mark = "//" if source.is_cpp else "#"
        if lines[0] != f"{mark} SPDX-License-Identifier: Apache-2.0":
            block = "/* SPDX-License-Identifier: Apache-2.0"  # headers that C89 users may include
            if not (source.is_cpp and lines[0].startswith(block)):
                yield Finding(source.path, 1, "does not start with the SPDX line of Apache-2.0")
                continue
        if source.path.endswith(".cpp") and source.path[:-4] + ".hpp" in headers:
            continue
        if not re.match(r'//+ \w|# \w|"""\w| \* \w|/\* \w', lines[1] if len(lines) > 1 else ""):
            yield Finding(source.path, 2, "says not what the file is, right below the SPDX line")


def check_pragma_once(sources):
    for source in sources:
        if source.path.endswith(".hpp") and "#pragma once" not in source.lines:
            yield Finding(source.path, 1, "a header without #pragma once")


def check_file_length(sources):
    for source in sources:
        length = source.text.count("\n")
        if (source.is_cpp or source.is_script) and length > LINES_MAX:
            yield Finding(source.path, LINES_MAX,
                          f"{length} lines; more than {LINES_MAX} is a room to divide")


def parse_ratchet(sources):
    allowed = {}
    for source in sources:
        if source.path == RATCHET:
            for line in source.lines:
                if line and not line.startswith("#"):
                    path, name, length = line.split()
                    allowed[path, name] = int(length)
    return allowed


def check_function_length(sources):
    """Longer functions than the limit are listed with their length, and may only shrink."""
    allowed = parse_ratchet(sources)
    longest = collections.defaultdict(int)
    where = {}
    for source in sources:
        for function in source.functions:
            key = (source.path, function.name)
            if function.length > longest[key]:
                longest[key] = function.length
                where[key] = function.line
    for key, length in longest.items():
        if length > max(FUNCTION_LINES_MAX, allowed.get(key, 0)):
            yield Finding(key[0], where[key],
                          f"{key[1]} has {length} lines, {FUNCTION_LINES_MAX} are allowed")
    for (path, name), length in allowed.items():
        now = longest.get((path, name), 0)
        if now < length:
            fix = f"write {now}" if now > FUNCTION_LINES_MAX else "delete its line"
            yield Finding(RATCHET, 1, f"{path} {name} has {now} lines, not {length}: {fix}")


def check_lines(sources):
    for source in sources:
        is_makefile = source.path.endswith(("CMakeLists.txt", ".cmake"))
        if not (source.is_cpp or source.is_script or is_makefile):
            continue
        for number, line in enumerate(source.lines, 1):
            if len(line) > COLUMNS_MAX:
                yield Finding(source.path, number, f"{len(line)} columns, {COLUMNS_MAX} allowed")
            if "\t" in line:
                yield Finding(source.path, number, "a tab")
            if line != line.rstrip():
                yield Finding(source.path, number, "white space at the end of the line")
        if source.text and not source.text.endswith("\n"):
            yield Finding(source.path, len(source.lines), "no newline at the end of the file")


def check_marks(sources):
    for source in sources:
        for number, line in enumerate(source.lines, 1):
            if found := MARKS.search(line):
                yield Finding(source.path, number, f"left-over mark '{found.group(0)}'")
            if source.is_cpp and COROUTINES.search(line):
                yield Finding(source.path, number, "coroutines are out: g++ 12 miscompiles them")
            if MACHINE_PATHS.search(line):
                yield Finding(source.path, number, "a path of one machine")


def check_public_comments(sources):
    """Every function of the public headers has a comment of its own right above it."""
    for source in sources:
        if not source.path.startswith("include/replica/"):
            continue
        if source.path.endswith(".h"):
            starts = [n for n, line in enumerate(source.lines) if line.startswith("REPLICA_API")]
        else:
            starts = [function.line - 1 for function in source.functions]
        for start in starts:
            above = source.lines[start - 1].strip() if start else ""
            own_line = source.lines[start]
            if not above.startswith(("//", "*", "/*")) and not above.endswith("*/"):
                if "//" not in own_line and not source.path.endswith(".hpp"):
                    yield Finding(source.path, start + 1, "a public function without a comment")


def check_dead_files(sources):
    """Every source is in a CMakeLists.txt, every header is included, every script is named."""
    makefiles = " ".join(s.text for s in sources if s.path.endswith(("CMakeLists.txt", ".cmake")))
    included = {os.path.basename(name) for s in sources for _, name, _ in s.includes if s.is_cpp}
    for source in sources:
        name = os.path.basename(source.path)
        if source.path.endswith((".cpp", ".c")) and not re.search(
            rf"(?<![\w.]){re.escape(name)}", makefiles
        ):
            yield Finding(source.path, 1, "is in no CMakeLists.txt: a dead file")
        if source.path.endswith((".hpp", ".h")) and name not in included:
            if not source.path.startswith("include/"):
                yield Finding(source.path, 1, "is included by nobody: a dead file")
        if re.fullmatch(r"man/[\w.-]+\.\d", source.path) and name not in makefiles:
            yield Finding(source.path, 1, "is in no CMakeLists.txt: it would not be installed")
        if source.path.startswith("tests/") and source.is_script:
            stem = re.escape(os.path.splitext(name)[0])
            users = (s.text for s in sources if s.path != source.path and not s.is_cpp)
            if not any(re.search(rf"\b{stem}\b", text) for text in users):
                yield Finding(source.path, 1, "is run by nobody: a dead file")


def check_doc_links(sources):
    """Relative links in the documents lead to files or folders of the tree."""
    known = {source.path for source in sources}
    folders = {os.path.dirname(path) for path in known}
    for source in sources:
        if not source.path.endswith(".md"):
            continue
        for number, line in enumerate(source.lines, 1):
            for target in re.findall(r"\]\(([^)#\s]+)", line):
                path = os.path.normpath(os.path.join(os.path.dirname(source.path), target))
                if "://" not in target and path not in known and path not in folders:
                    yield Finding(source.path, number, f"a link to {target}, which is not there")


CHECKS = (
    check_one_way,
    check_layers,
    check_banned_includes,
    check_banned_calls,
    check_header_comment,
    check_pragma_once,
    check_file_length,
    check_function_length,
    check_lines,
    check_marks,
    check_public_comments,
    check_dead_files,
    check_doc_links,
)


def tree(root):
    """Every text file that git knows or would take, or all but build/ where git is missing."""
    try:
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [os.path.relpath(os.path.join(folder, name), root)
                  for folder, _, names in os.walk(root) for name in names]
        listed = [path for path in listed if not path.startswith(("build", ".git/"))]
    for path in sorted(filter(None, listed)):
        try:
            with open(os.path.join(root, path), encoding="utf-8") as file:
                yield Source(path, file.read())
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # binary, deleted but not committed yet, a submodule


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "."
    sources = list(tree(root))
    findings = sorted({str(finding) for check in CHECKS for finding in check(sources)})
    print("\n".join(findings))
    print(f"tidy: {len(sources)} files, {len(CHECKS)} checks, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
