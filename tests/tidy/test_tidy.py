#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows every tidy check a bad sample that it must see and a good one that it must let pass."""

import unittest

import tidy
from source import Source

HEAD = "// SPDX-License-Identifier: Apache-2.0\n// A sample that says what it is.\n"


def found(check, *files):
    """The messages of `check` on (path, text) pairs."""
    return [finding.message for finding in check([Source(path, text) for path, text in files])]


def function_of(lines):
    return "int f() {\n" + "    g();\n" * (lines - 2) + "}\n"


class Layers(unittest.TestCase):
    def check(self, path, include, expected):
        messages = found(tidy.check_layers, (path, f"#include {include}\n"))
        self.assertEqual(len(messages), expected, messages)

    def test_an_arrow_that_points_up_is_seen(self):
        self.check("engine/base/x.hpp", '"engine/format/wire.hpp"', 1)
        self.check("engine/format/x.cpp", '"engine/core/resource.hpp"', 1)
        self.check("engine/core/x.cpp", '"engine/io/reactor.hpp"', 1)
        self.check("engine/core/x.cpp", '"engine/node.hpp"', 1)
        self.check("engine/io/x.cpp", '"engine/frontend/volume.hpp"', 1)
        self.check("engine/io/x.cpp", '"control/config.hpp"', 1)
        self.check("netlink/x.cpp", '"engine/core/resource.hpp"', 1)
        self.check("control/x.cpp", '"tools/x.hpp"', 1)
        self.check("engine/node.cpp", '"tests/catch.hpp"', 1)
        self.check("tests/sim/x.cpp", '"engine/io/reactor.hpp"', 1)
        self.check("examples/x.cpp", '"control/client.hpp"', 1)
        self.check("tools/replicactl.cpp", '"engine/node.hpp"', 1)
        self.check("engine/base/x.cpp", "<replica/replica.h>", 1)

    def test_an_arrow_that_points_down_passes(self):
        self.check("engine/core/x.cpp", '"engine/format/wire.hpp"', 0)
        self.check("engine/core/x.cpp", '"engine/core/events.hpp"', 0)
        self.check("engine/frontend/x.cpp", '"engine/io/reactor.hpp"', 0)
        self.check("engine/node.cpp", '"engine/frontend/volume.hpp"', 0)
        self.check("libreplica/x.cpp", "<replica/replica.h>", 0)
        self.check("tools/replicactl_status.cpp", '"tools/replicactl.hpp"', 0)
        self.check("tests/core/x.cpp", '"engine/node.hpp"', 0)
        self.check("engine/io/x.cpp", "<linux/fs.h>", 0)


class Banned(unittest.TestCase):
    def test_includes_of_clocks_threads_and_system_calls_are_seen_in_the_pure_layers(self):
        for name in ("unistd.h", "sys/stat.h", "thread", "chrono", "unordered_map", "liburing.h"):
            for folder in tidy.PURE:
                sample = (folder + "x.cpp", f"#include <{name}>\n")
                self.assertEqual(len(found(tidy.check_banned_includes, sample)), 1, sample)

    def test_they_pass_elsewhere(self):
        sample = ("engine/io/x.cpp", "#include <unistd.h>\n")
        self.assertEqual(found(tidy.check_banned_includes, sample), [])

    def test_calls_are_seen_in_the_core_but_not_members_or_comments(self):
        bad = ("engine/core/x.cpp", "auto t = time(nullptr);\nstd::printf(\"\");\n")
        self.assertEqual(len(found(tidy.check_banned_calls, bad)), 2)
        good = ("engine/core/x.cpp", "slots.free(3);  // time(0)\nresync_time(3);\n")
        self.assertEqual(found(tidy.check_banned_calls, good), [])


class Files(unittest.TestCase):
    def test_what_has_one_way_is_seen_elsewhere(self):
        for bad in ("sb_.current_uuid = 1;", "sb_.extension.in_sync = m;", "ext.set_change += 1;",
                    "register_.load(set, 0);", "bitmap_->clear_all(0);", "peer.stable_seq = 4;",
                    "emit(EffectKind::disk_write);"):
            sample = ("engine/core/x.cpp", "void Core::other() {\n    " + bad + "\n}\n")
            self.assertEqual(len(found(tidy.check_one_way, sample)), 1, bad)
        good = ("engine/core/x.cpp", "void Core::mirror_set() {\n    sb_.current_uuid = 1;\n}\n")
        self.assertEqual(found(tidy.check_one_way, good), [])
        same = ("engine/core/x.cpp", "void Core::f() {\n    if (sb_.current_uuid == a) g();\n}\n")
        self.assertEqual(found(tidy.check_one_way, same), [])

    def test_a_missing_licence_or_description_is_seen(self):
        self.assertEqual(len(found(tidy.check_header_comment, ("a.cpp", "#include <x>\n"))), 1)
        bare = "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n"
        self.assertEqual(len(found(tidy.check_header_comment, ("a.hpp", bare))), 1)
        self.assertEqual(len(found(tidy.check_header_comment, ("a.sh", "#!/bin/sh\nls\n"))), 1)

    def test_a_source_beside_its_header_leaves_the_description_to_it(self):
        bare = "// SPDX-License-Identifier: Apache-2.0\n#include <x>\n"
        self.assertEqual(len(found(tidy.check_header_comment, ("a.cpp", bare))), 1)
        header = ("a.hpp", HEAD)
        self.assertEqual(found(tidy.check_header_comment, ("a.cpp", bare), header), [])

    def test_good_heads_pass(self):
        script = "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n# Does it.\n"
        for sample in (("a.cpp", HEAD), ("a.sh", script), ("a.md", "words\n")):
            self.assertEqual(found(tidy.check_header_comment, sample), [])

    def test_a_header_without_pragma_once_is_seen(self):
        self.assertEqual(len(found(tidy.check_pragma_once, ("a.hpp", HEAD))), 1)
        self.assertEqual(found(tidy.check_pragma_once, ("a.hpp", HEAD + "#pragma once\n")), [])

    def test_a_long_file_is_seen(self):
        self.assertEqual(len(found(tidy.check_file_length, ("a.cpp", "\n" * 1001))), 1)
        self.assertEqual(found(tidy.check_file_length, ("a.cpp", "\n" * 1000)), [])

    def test_dead_files_are_seen(self):
        makefile = ("engine/CMakeLists.txt", "add_library(x used.cpp)\n")
        used = ("engine/used.cpp", '#include "engine/used.hpp"\n')
        good = (makefile, used, ("engine/used.hpp", ""))
        self.assertEqual(found(tidy.check_dead_files, *good), [])
        for dead in ("engine/z.cpp", "engine/z.hpp", "tests/integration/z.sh", "man/z.8"):
            self.assertEqual(len(found(tidy.check_dead_files, *good, (dead, ""))), 1, dead)

    def test_a_link_that_leads_nowhere_is_seen(self):
        files = (("docs/a.md", ""), ("examples/a/b.c", ""))
        good = ("README.md", "[a](docs/a.md) [b](docs/a.md#b) [c](examples/a) [d](https://x.org)\n")
        self.assertEqual(found(tidy.check_doc_links, good, *files), [])
        bad = ("docs/b.md", "[a](docs/a.md)\n")
        self.assertEqual(len(found(tidy.check_doc_links, bad, *files)), 1)


class Lines(unittest.TestCase):
    def test_each_kind_of_bad_line_is_seen(self):
        for text in ("x" * 101 + "\n", "\tx\n", "x \n", "x"):
            self.assertEqual(len(found(tidy.check_lines, ("a.cpp", text))), 1, text)
        self.assertEqual(found(tidy.check_lines, ("a.cpp", "x" * 100 + "\n")), [])

    def test_columns_are_characters_not_bytes(self):
        self.assertEqual(found(tidy.check_lines, ("a.cpp", "ü" * 100 + "\n")), [])

    def test_marks_coroutines_and_machine_paths_are_seen(self):
        for bad in ("// TO" + "DO later", "co_aw" + "ait x;", "cd /wo" + "rk/main", "XX" + "X"):
            self.assertEqual(len(found(tidy.check_marks, ("a.cpp", bad))), 1, bad)
        for good in ("mktemp -d /tmp/x.XXXXXX", "build/work/here", "the hacker"):
            self.assertEqual(found(tidy.check_marks, ("a.cpp", good)), [], good)


class Functions(unittest.TestCase):
    def lengths(self, text):
        return {f.name: f.length for f in Source("a.cpp", text).functions}

    def test_a_long_function_is_seen_wherever_it_stands(self):
        for before, after in (("", ""), ("namespace a {\nstruct B final : C {\n", "};\n}\n")):
            long = ("a.cpp", before + function_of(71) + after)
            self.assertEqual(len(found(tidy.check_function_length, long)), 1, before)
            fits = ("a.cpp", before + function_of(70) + after)
            self.assertEqual(found(tidy.check_function_length, fits), [], before)

    def test_the_ratchet_allows_what_it_lists_and_only_shrinks(self):
        def ratchet(length):
            return (tidy.RATCHET, f"# comment\na.cpp f {length}\n")

        long = ("a.cpp", function_of(80))
        self.assertEqual(found(tidy.check_function_length, long, ratchet(80)), [])
        self.assertEqual(len(found(tidy.check_function_length, long, ratchet(79))), 1)
        self.assertIn("write 80", found(tidy.check_function_length, long, ratchet(90))[0])
        self.assertIn("delete", found(tidy.check_function_length, ratchet(90))[0])

    def test_bodies_are_told_from_other_braces(self):
        text = """
#define M(x) \\
    do { x; } while (false)
template <class T>
    requires(sizeof(T) > 1)
struct Box {
    Box() : a_{1}, b_(2) {
        run();
    }
    int get() const { return a_; }
    bool operator()(int x) const {
        return x > 1;
    }
    std::array<int, 2> pair_{{1, 2}};
    int a_ = 0;
};
enum class Kind : int { one, two };
constexpr int table[] = {
    1, f(2),
};
TEST_CASE("a { brace in a name") {
    if (x) {
        y('{', R"(})");
    }
}
"""
        self.assertEqual(self.lengths(text), {"Box": 3, "get": 1, "operator()": 3, "TEST_CASE": 5})

    def test_public_functions_need_a_comment(self):
        path = "include/replica/replica.h"
        good = "/* Closes it. */\nREPLICA_API void replica_close(int x);\n"
        self.assertEqual(found(tidy.check_public_comments, (path, good)), [])
        bad = good + "REPLICA_API void replica_open(int x);\n"
        self.assertEqual(len(found(tidy.check_public_comments, (path, bad))), 1)


class Completeness(unittest.TestCase):
    def test_every_check_is_run_by_main(self):
        checks = {value for name, value in vars(tidy).items() if name.startswith("check_")}
        self.assertEqual(checks, set(tidy.CHECKS))


if __name__ == "__main__":
    unittest.main()
