// SPDX-License-Identifier: Apache-2.0
// Two nodes in one process whose disks grow while the volume is in use.
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "engine/node.hpp"
#include "tests/integration/node_support.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t small = 16U << 20, large = 40U << 20;

class GrowingMirror : public Pair {
  public:
    GrowingMirror() {
        create(small);
        up();
        REQUIRE_OK(a->promote("r0", true));
        wait_synced();
        remember_size();
        before_ = status(0).size_bytes;
    }
    std::uint64_t before() const { return before_; }
    void grow_disk(int i, std::uint64_t bytes = large) {
        REQUIRE(truncate(disk(i).c_str(), static_cast<off_t>(bytes)) == 0);
    }
    ResizeResult resize(int i, std::uint64_t bytes = 0) {
        auto result = node(i)->resize("r0", bytes, [] { return true; });
        if (!result) FAIL(result.error().message);
        return result.value();
    }
    void restart(int i) {
        node(i).reset();
        start(i);
        REQUIRE_OK(node(i)->add_resource(config(i)));
        REQUIRE_OK(node(i)->up("r0"));
    }

  private:
    std::uint64_t before_ = 0;
};

TEST_CASE("a volume grows when both disks have grown, and keeps its data") {
    GrowingMirror mirror;
    const auto first = pattern(4 << 20, 1);
    REQUIRE_OK(mirror.a->write("r0", 0, first, false));
    const std::uint64_t resynced = mirror.status(0).peers[0].resync_sent_bytes;
    mirror.grow_disk(0);
    const ResizeResult alone = mirror.resize(0);
    CHECK(alone.size_bytes == mirror.before());
    CHECK(alone.room_bytes > large - (1 << 20));
    REQUIRE(alone.waits_for.size() == 1);
    CHECK(alone.waits_for[0].name == "beta");
    CHECK(alone.waits_for[0].connected);
    mirror.grow_disk(1);
    const ResizeResult both = mirror.resize(1);
    CHECK(both.waits_for.empty());
    CHECK(both.size_bytes == alone.room_bytes);
    mirror.wait([&] { return mirror.status(0).size_bytes == both.size_bytes; });
    mirror.wait_synced();
    CHECK(mirror.status(0).peers[0].resync_sent_bytes == resynced);

    std::vector<std::byte> room(both.size_bytes - mirror.before());
    REQUIRE_OK(mirror.a->read("r0", mirror.before(), room));
    CHECK(std::all_of(room.begin(), room.end(), [](std::byte b) { return b == std::byte{0}; }));
    const auto last = pattern(1 << 20, 2);
    REQUIRE_OK(mirror.a->write("r0", both.size_bytes - last.size(), last, true));

    mirror.restart(1);
    mirror.wait_synced();
    mirror.remember_size();
    std::vector<std::byte> back(first.size());
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    CHECK(back == first);
    mirror.down();
    CHECK(mirror.same_content());
    for (int i = 0; i < 2; ++i)
        mirror.restart(i);
    mirror.wait_synced();
    REQUIRE_OK(mirror.a->promote("r0", false));
    back.resize(last.size());
    REQUIRE_OK(mirror.a->read("r0", both.size_bytes - last.size(), back));
    CHECK(back == last);
}

TEST_CASE("writes go on while the metadata is moved") {
    GrowingMirror mirror;
    std::atomic<bool> stop{false};
    std::atomic<int> written{0}, failed{0};
    std::thread writer([&] {
        const auto bytes = pattern(8192, 5);
        for (std::uint64_t at = 0; !stop; at = (at + 1'234'944) % (mirror.before() - 8192)) {
            (mirror.a->write("r0", at / 512 * 512, bytes, false) ? written : failed) += 1;
        }
    });
    for (const std::uint64_t bytes : {large, large + (8U << 20), large + (16U << 20)}) {
        for (int i = 0; i < 2; ++i) {
            mirror.grow_disk(i, bytes);
            mirror.resize(i);
        }
    }
    const int so_far = written;
    mirror.wait([&] { return written > so_far + 50; });
    stop = true;
    writer.join();
    CHECK(failed == 0);
    mirror.wait_synced();
    mirror.remember_size();
    CHECK(mirror.status(0).size_bytes > large + (15U << 20));
    mirror.down();
    CHECK(mirror.same_content());
}

TEST_CASE("a disk that has grown is used as before until it is told") {
    GrowingMirror mirror;
    const auto bytes = pattern(1 << 20, 3);
    REQUIRE_OK(mirror.a->write("r0", 0, bytes, false));
    mirror.down();
    for (int i = 0; i < 2; ++i) {
        mirror.grow_disk(i);
        mirror.restart(i);
    }
    mirror.wait_synced();
    CHECK(mirror.status(0).size_bytes == mirror.before());
    REQUIRE_OK(mirror.a->promote("r0", false));
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    CHECK(back == bytes);
    const ResizeResult wanted = mirror.resize(0, 20 << 20);
    CHECK(wanted.size_bytes == mirror.before());
    CHECK(mirror.resize(1, 20 << 20).size_bytes == 20 << 20);
    mirror.wait([&] { return mirror.status(0).size_bytes == 20 << 20; });
    CHECK(mirror.resize(0).size_bytes == 20 << 20);  // beta made no more room
    CHECK(mirror.resize(1).size_bytes > large - (1 << 20));
}

// A thousand pieces to zero. A command that comes while they are zeroed is obeyed before the last
// one: the zeroing is slowed down while the command is on its way, and ended when it was obeyed.
TEST_CASE("the zeroing lets other commands go first, and can be ended") {
    constexpr std::uint64_t most = 64ULL << 30, wanted = 1000U << 20;
    GrowingMirror mirror;
    for (int i = 0; i < 2; ++i)
        mirror.grow_disk(i, most);
    std::atomic<bool> zeroing{false}, obeyed{false};
    Status changed = ok_status();
    std::thread other([&] {
        wait_until([&] { return zeroing.load(); });
        changed = mirror.a->change_options("r0", Pair::fast_options());
        obeyed = true;
    });
    const auto ended = mirror.a->resize("r0", 0, [&] {
        zeroing = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        return !obeyed;
    });
    zeroing = true;
    other.join();
    REQUIRE_OK(changed);
    REQUIRE_FALSE(ended);
    CHECK(ended.error().code == Errc::cancelled);
    CHECK(mirror.status(0).zeroing_total_bytes == 0);
    for (int i = 0; i < 2; ++i)
        mirror.resize(i, wanted);  // goes on from there
    mirror.wait([&] { return mirror.status(0).size_bytes == wanted; });
}

TEST_CASE("a disk without data is not zeroed behind the volume") {
    Pair pair;
    pair.create(small);
    REQUIRE_OK(pair.a->up("r0"));
    REQUIRE(truncate(pair.disk(0).c_str(), static_cast<off_t>(large)) == 0);
    const auto refused = pair.a->resize("r0", 0, [] { return true; });
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::state);
}

TEST_CASE("a size that can not be is refused with the reason") {
    GrowingMirror mirror;
    const auto refused = [&](std::uint64_t bytes) {
        const auto result = mirror.a->resize("r0", bytes, [] { return true; });
        REQUIRE_FALSE(result);
        return result.error().code;
    };
    CHECK(refused(100) == Errc::invalid);
    CHECK(refused(large) == Errc::no_space);
    CHECK(refused(4096) == Errc::unsupported);
    CHECK(mirror.resize(0).size_bytes == mirror.before());
    REQUIRE_OK(mirror.b->down("r0"));
    mirror.grow_disk(0);
    const ResizeResult waiting = mirror.resize(0);
    CHECK(waiting.size_bytes == mirror.before());
    REQUIRE(waiting.waits_for.size() == 1);
    CHECK_FALSE(waiting.waits_for[0].connected);
    REQUIRE_OK(mirror.a->demote("r0"));
    REQUIRE_OK(mirror.a->detach("r0"));
    CHECK(refused(0) == Errc::state);
}

}  // namespace
}  // namespace replica::test
