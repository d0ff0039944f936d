// SPDX-License-Identifier: Apache-2.0
// Two nodes in one process, with real files, sockets and rings: what a mirror has to do, end to
// end.
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "engine/node.hpp"
#include "tests/integration/node_support.hpp"

namespace replica::test {
namespace {

TEST_CASE("two nodes mirror a write") {
    Pair pair;
    pair.create(16 << 20);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    const auto bytes = pattern(1 << 20, 7);
    REQUIRE_OK(pair.a->write("r0", 4096, bytes, false));
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(pair.a->read("r0", 4096, back));
    CHECK(back == bytes);
    pair.down();
    CHECK(pair.same_content());
}

}  // namespace
}  // namespace replica::test
