// SPDX-License-Identifier: Apache-2.0
// Two nodes in one process, with real files, sockets and rings: what a mirror has to do as long as
// nobody is killed.
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/metadata_file.hpp"
#include "engine/node.hpp"
#include "tests/integration/loop_device.hpp"
#include "tests/integration/node_support.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t disk_bytes = 16U << 20;

// A mirror that is up, in sync, with alpha as its primary.
class Mirror : public Pair {
  public:
    explicit Mirror(ResourceOptions options = fast_options()) : Pair(options) {
        create(disk_bytes);
        up();
        REQUIRE_OK(a->promote("r0", true));
        wait_synced();
        remember_size();
    }
    void finish() {
        wait_synced();
        down();
        CHECK(same_content());
    }
};

std::uint64_t resynced(Pair& pair) {
    const PeerStatus peer = pair.status(0).peers[0];
    return peer.resync_sent_bytes + peer.resync_received_bytes;
}

TEST_CASE("a write is on both disks, with each protocol") {
    ResourceOptions options = Pair::fast_options();
    options.protocol = GENERATE(Protocol::a, Protocol::b, Protocol::c);
    Mirror mirror(options);
    const auto bytes = pattern(3 << 20, 7);
    REQUIRE_OK(mirror.a->write("r0", 4096, bytes, false));
    REQUIRE_OK(mirror.a->write("r0", 512, std::span(bytes).first(1024), true));
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.a->read("r0", 4096, back));
    CHECK(back == bytes);
    REQUIRE_OK(mirror.a->flush("r0"));
    CHECK(mirror.status(0).peers[0].sent_bytes == bytes.size() + 1024);
    mirror.finish();
}

TEST_CASE("zeroes and discards are equal on both disks") {
    Mirror mirror;
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(8 << 20, 3), false));
    REQUIRE_OK(mirror.a->write_zeroes("r0", 512, 5 << 20));
    REQUIRE_OK(mirror.a->discard("r0", 6 << 20, 1 << 20));
    std::vector<std::byte> back(7 << 20);
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    const auto first = pattern(8 << 20, 3);
    CHECK(std::equal(back.begin(), back.begin() + 512, first.begin()));
    CHECK(std::all_of(back.begin() + 512, back.begin() + 512 + (5 << 20),
                      [](std::byte b) { return b == std::byte{0}; }));
    CHECK(std::all_of(back.begin() + (6 << 20), back.end(),
                      [](std::byte b) { return b == std::byte{0}; }));
    mirror.finish();
}

// Sectors of 512 bytes are written, with either node as the Primary.
TEST_CASE("disks of different block sizes hold the same") {
    if (!loop_devices_work("a mirror of disks with blocks of 512 and 4096")) return;
    const TempFile backing(disk_bytes);
    const LoopDevice loop(backing.path(), "--sector-size 4096");
    Pair pair;
    pair.use_disk(1, loop.path());
    pair.create(disk_bytes);
    pair.up();
    Prng prng(5);
    for (const int primary : {0, 1}) {
        Node& node = *pair.node(primary);
        REQUIRE_OK(node.promote("r0", primary == 0));
        pair.wait_synced();
        pair.remember_size();
        for (int i = 0; i < 150; ++i) {
            const std::uint64_t at = prng.below(1000) * 512, bytes = (1 + prng.below(20)) * 512;
            if (prng.below(4) == 0) REQUIRE_OK(node.write_zeroes("r0", at, bytes));
            const auto written = pattern(bytes, prng.next());
            REQUIRE_OK(node.write("r0", at, written, prng.below(4) == 0));
            std::vector<std::byte> back(bytes);
            REQUIRE_OK(node.read("r0", at, back));
            REQUIRE(back == written);
        }
        REQUIRE_OK(node.demote("r0"));
    }
    pair.down();
    CHECK(pair.same_content());
    pair.a.reset(), pair.b.reset();  // before the device goes
}

TEST_CASE("a Primary in use goes on over a disk of larger blocks") {
    if (!loop_devices_work("a disk with blocks of 4096 below a Primary")) return;
    const TempFile backing(disk_bytes);
    const LoopDevice loop(backing.path(), "");
    Pair pair;
    pair.use_disk(0, loop.path());
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    REQUIRE_OK(pair.a->detach("r0"));
    REQUIRE_OK(pair.a->write("r0", 512, pattern(512, 1), false));
    const int fd = open(loop.path().c_str(), O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    CHECK(ioctl(fd, LOOP_SET_BLOCK_SIZE, 4096) == 0);
    close(fd);
    REQUIRE_OK(pair.a->attach("r0"));
    pair.wait_synced();
    for (std::uint64_t at = 512; at < 64U << 10; at += 1536)
        REQUIRE_OK(pair.a->write("r0", at, pattern(1024, at), false));
    pair.down();
    CHECK(pair.same_content());
    pair.a.reset(), pair.b.reset();
}

TEST_CASE("down and up keep the data and need no resync") {
    Mirror mirror;
    const auto bytes = pattern(1 << 20, 9);
    REQUIRE_OK(mirror.a->write("r0", 0, bytes, false));
    mirror.down();
    CHECK(mirror.status(0).up == false);
    CHECK(mirror.status(0).disk == "Diskless");
    CHECK(mirror.status(0).peers[0].connection == "StandAlone");
    mirror.up();
    mirror.wait_synced();
    REQUIRE_OK(mirror.b->promote("r0", false));
    CHECK(resynced(mirror) == 0);
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.b->read("r0", 0, back));
    CHECK(back == bytes);
    mirror.finish();
}

TEST_CASE("a node that is created again finds its resources where they were") {
    Mirror mirror;
    const auto bytes = pattern(1 << 20, 11);
    REQUIRE_OK(mirror.a->write("r0", 1 << 20, bytes, false));
    mirror.a.reset();
    mirror.start(0);
    REQUIRE_OK(mirror.a->add_resource(mirror.config(0)));
    REQUIRE_OK(mirror.a->up("r0"));
    mirror.wait_synced();
    CHECK(resynced(mirror) == 0);
    REQUIRE_OK(mirror.a->promote("r0", false));
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.a->read("r0", 1 << 20, back));
    CHECK(back == bytes);
    mirror.finish();
}

TEST_CASE("only one primary, only the primary serves, and only within the volume") {
    Mirror mirror;
    auto refused = mirror.b->promote("r0", false);
    REQUIRE(!refused);
    CHECK(refused.error().code == Errc::state);
    CHECK(!mirror.b->promote("r0", true));
    const auto bytes = pattern(4096, 1);
    std::vector<std::byte> back(4096);
    CHECK(mirror.b->write("r0", 0, bytes, false).error().code == Errc::state);
    CHECK(mirror.b->read("r0", 0, back).error().code == Errc::state);
    const std::uint64_t size = mirror.status(0).size_bytes;
    CHECK(mirror.a->write("r0", size, bytes, false).error().code == Errc::invalid);
    CHECK(mirror.a->read("r0", size - 512, back).error().code == Errc::invalid);
    CHECK(mirror.a->write("r0", 100, bytes, false).error().code == Errc::invalid);
    CHECK(mirror.a->write("nope", 0, bytes, false).error().code == Errc::not_found);
    REQUIRE_OK(mirror.a->demote("r0"));
    REQUIRE_OK(mirror.b->promote("r0", false));
    CHECK(mirror.a->write("r0", 0, bytes, false).error().code == Errc::state);
    REQUIRE_OK(mirror.b->write("r0", size - 4096, bytes, false));
    mirror.finish();
}

TEST_CASE("writes go on while the peer is away, and only they are resynced") {
    Mirror mirror;
    REQUIRE_OK(mirror.b->disconnect("r0", "alpha"));
    REQUIRE_OK(mirror.a->write("r0", 1 << 20, pattern(256 << 10, 5), false));
    mirror.wait([&] { return mirror.status(0).peers[0].out_of_sync_bytes == 256 << 10; });
    const std::uint64_t before = resynced(mirror);
    REQUIRE_OK(mirror.b->connect("r0", "alpha", false));
    mirror.wait_synced();
    CHECK(resynced(mirror) - before == 256 << 10);
    mirror.finish();
}

TEST_CASE("a resync of everything goes on below the application's writes") {
    Mirror mirror;
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(12 << 20, 5), false));
    REQUIRE_OK(mirror.b->invalidate("r0"));
    for (int i = 0; i < 200; ++i) {
        const auto seed = static_cast<std::uint64_t>(i);
        REQUIRE_OK(
            mirror.a->write("r0", (seed * 37 % 3000) * 4096, pattern(8192, seed), i % 9 == 0));
    }
    mirror.wait_synced();
    CHECK(mirror.status(1).peers[0].resync_received_bytes > 0);
    mirror.finish();
}

TEST_CASE("a paused resync waits") {
    Mirror mirror;
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(8 << 20, 5), false));
    REQUIRE_OK(mirror.b->disconnect("r0", ""));
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(8 << 20, 6), false));
    REQUIRE_OK(mirror.a->pause_sync("r0", "beta"));
    REQUIRE_OK(mirror.b->connect("r0", "", false));
    mirror.wait([&] { return mirror.status(0).peers[0].replication == "PausedSyncS"; });
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    CHECK(mirror.status(0).peers[0].replication == "PausedSyncS");
    CHECK(mirror.status(1).disk == "Inconsistent");
    REQUIRE_OK(mirror.a->resume_sync("r0", "beta"));
    mirror.finish();
}

TEST_CASE("a primary without a disk reads and writes through its peer") {
    Mirror mirror;
    const auto bytes = pattern(2 << 20, 21);
    REQUIRE_OK(mirror.a->write("r0", 0, bytes, false));
    REQUIRE_OK(mirror.a->detach("r0"));
    mirror.wait([&] { return mirror.status(0).disk == "Diskless"; });
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    CHECK(back == bytes);
    REQUIRE_OK(mirror.a->write("r0", 3 << 20, pattern(1 << 20, 22), false));
    REQUIRE_OK(mirror.a->flush("r0"));
    REQUIRE_OK(mirror.a->demote("r0"));
    REQUIRE_OK(mirror.a->attach("r0"));
    CHECK(mirror.a->attach("r0").error().code == Errc::busy);
    mirror.wait_synced();
    REQUIRE_OK(mirror.a->promote("r0", false));
    REQUIRE_OK(mirror.a->read("r0", 3 << 20, std::span(back).first(1 << 20)));
    CHECK(std::equal(back.begin(), back.begin() + (1 << 20), pattern(1 << 20, 22).begin()));
    mirror.finish();
}

TEST_CASE("what no replica can be asked for fails as that") {
    Mirror mirror;
    auto bytes = pattern(1 << 20, 23);
    REQUIRE_OK(mirror.a->write("r0", 0, bytes, false));
    REQUIRE_OK(mirror.a->detach("r0"));
    mirror.wait([&] { return mirror.status(0).disk == "Diskless"; });
    REQUIRE_OK(mirror.b->down("r0"));
    mirror.wait([&] { return mirror.status(0).peers[0].connection != "Connected"; });
    for (const Status& lost :
         {mirror.a->read("r0", 0, bytes), mirror.a->write("r0", 0, bytes, false),
          mirror.a->flush("r0"), mirror.a->discard("r0", 0, 1 << 20)}) {
        REQUIRE_FALSE(lost);
        CHECK(lost.error().code == Errc::io);
        CHECK(lost.error().os_errno == ENOLINK);
        CHECK(lost.error().message.find("can be reached") != std::string::npos);
    }
    REQUIRE_OK(mirror.a->demote("r0"));
}

TEST_CASE("the disk of a primary comes back under its application") {
    Mirror mirror;
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(2 << 20, 31), false));
    REQUIRE_OK(mirror.a->detach("r0"));
    const auto bytes = pattern(1 << 20, 32);
    REQUIRE_OK(mirror.a->write("r0", 3 << 20, bytes, false));
    const std::uint64_t moved = mirror.status(0).peers[0].resync_received_bytes;
    REQUIRE_OK(mirror.a->attach("r0"));
    for (std::uint64_t n = 0; n < 16; ++n)
        REQUIRE_OK(mirror.a->write("r0", n << 16, pattern(4096, 40 + n), false));
    mirror.wait_synced();
    CHECK(mirror.status(0).role == "Primary");
    // What was written meanwhile, and what its activity log covers: one extent here.
    CHECK(mirror.status(0).peers[0].resync_received_bytes - moved <= (1 << 20) + (4 << 20));
    // It does not need its peer any more.
    REQUIRE_OK(mirror.b->down("r0"));
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(mirror.a->read("r0", 3 << 20, back));
    CHECK(back == bytes);
    REQUIRE_OK(mirror.b->up("r0"));
    mirror.finish();
}

TEST_CASE("a secondary that is detached comes back with what it missed") {
    Mirror mirror;
    REQUIRE_OK(mirror.b->detach("r0"));
    mirror.wait([&] { return mirror.status(0).peers[0].disk == "Diskless"; });
    REQUIRE_OK(mirror.a->write("r0", 2 << 20, pattern(64 << 10, 23), false));
    REQUIRE_OK(mirror.b->attach("r0"));
    mirror.finish();
}

TEST_CASE("a split brain is seen on both sides, and ends with a victim that was named") {
    Mirror mirror;
    std::atomic<int> told = 0;
    const auto token = mirror.b->subscribe([&](const Event& event) {
        if (event.kind == "split-brain") ++told;
    });
    REQUIRE_OK(mirror.a->disconnect("r0", ""));
    REQUIRE_OK(mirror.b->disconnect("r0", ""));
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(64 << 10, 1), false));
    REQUIRE_OK(mirror.b->promote("r0", true));
    REQUIRE_OK(mirror.b->write("r0", 1 << 20, pattern(64 << 10, 2), false));
    REQUIRE_OK(mirror.b->demote("r0"));
    REQUIRE_OK(mirror.a->connect("r0", "", false));
    REQUIRE_OK(mirror.b->connect("r0", "", false));
    mirror.wait([&] { return told > 0; });
    mirror.wait([&] {
        return mirror.status(0).peers[0].connection == "StandAlone" &&
               mirror.status(1).peers[0].connection == "StandAlone";
    });
    CHECK(mirror.status(0).peers[0].why.find("plit brain") != std::string::npos);
    std::vector<std::byte> back(64 << 10);
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    CHECK(back == pattern(64 << 10, 1));
    REQUIRE_OK(mirror.b->connect("r0", "", true));
    REQUIRE_OK(mirror.a->connect("r0", "", false));
    mirror.wait_synced();
    mirror.b->unsubscribe(token);
    REQUIRE_OK(mirror.a->read("r0", 0, back));
    CHECK(back == pattern(64 << 10, 1));
    mirror.finish();
}

TEST_CASE("disks that are all zeroes need no first resync if one says so") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    pair.wait([&] {
        return pair.status(0).peers[0].replication == "Established" &&
               pair.status(1).peers[0].replication == "Established";
    });
    REQUIRE_OK(pair.a->new_current_uuid("r0", true));
    pair.wait_synced();
    CHECK(resynced(pair) == 0);
    REQUIRE_OK(pair.a->promote("r0", false));
    REQUIRE_OK(pair.a->write("r0", 0, pattern(1 << 20, 5), false));
    pair.remember_size();
    pair.down();
    CHECK(pair.same_content());
}

// Three nodes with a resource r0 among them, up.
class Trio {
  public:
    Trio() {
        for (std::uint16_t& port : ports_)
            port = free_port();
        for (std::size_t i = 0; i < 3; ++i)
            start(i);
    }
    std::array<std::unique_ptr<Node>, 3> nodes;

    std::string disk(std::size_t i) const { return dir_ / ("disk" + std::to_string(i)); }
    void wait_synced() {
        const bool reached = wait_until([this] {
            return std::all_of(nodes.begin(), nodes.end(), [](const auto& node) {
                const auto status = node->status("r0").value();
                return status.disk == "UpToDate" &&
                       std::all_of(status.peers.begin(), status.peers.end(), [](const auto& peer) {
                           return peer.disk == "UpToDate" && peer.replication == "Established" &&
                                  peer.out_of_sync_bytes == 0;
                       });
            });
        });
        if (reached) return;
        FAIL(describe(*nodes[0], "r0") + "\n" + describe(*nodes[1], "r0") + "\n" +
             describe(*nodes[2], "r0"));
    }

  private:
    void start(std::size_t i) {
        NodeOptions options;
        options.name = "n" + std::to_string(i);
        options.state_dir = dir_ / ("state" + std::to_string(i));
        options.listen = "127.0.0.1:" + std::to_string(ports_[i]);
        options.lock_memory = false;
        options.log = log_of(options.name);
        auto made = Node::create(options);
        REQUIRE(made);
        nodes[i] = std::move(made).value();
        ResourceConfig config;
        config.name = "r0";
        config.node_id = static_cast<NodeId>(i);
        config.disk = disk(i);
        config.options = Pair::fast_options();
        for (std::size_t other = 0; other < 3; ++other) {
            if (other == i) continue;
            config.peers.push_back({"n" + std::to_string(other), static_cast<NodeId>(other),
                                    "127.0.0.1:" + std::to_string(ports_[other])});
        }
        Pair::make_file(config.disk, disk_bytes);
        REQUIRE_OK(nodes[i]->create_resource(config, {}));
        REQUIRE_OK(nodes[i]->up("r0"));
    }

    TempDir dir_;
    std::array<std::uint16_t, 3> ports_{};
};

struct Load {
    Node& node;
    std::atomic<int> in_flight{0}, done{0}, failed{0};
    static void ended(void* context, int error) {
        Load& load = *static_cast<Load*>(context);
        if (error != 0) ++load.failed;
        ++load.done;
        --load.in_flight;
    }
};

TEST_CASE("requests that overlap in time end in the same bytes on both disks") {
    Mirror mirror;
    Load load{*mirror.a};
    std::vector<std::vector<std::byte>> buffers;
    for (int i = 0; i < 64; ++i)
        buffers.push_back(pattern(4096U << (i % 6), static_cast<std::uint64_t>(i)));
    Prng prng(4);
    for (int i = 0; i < 4000; ++i) {
        REQUIRE(wait_until([&] { return load.in_flight < 64; }));
        ++load.in_flight;
        const std::uint64_t at = prng.below(512) * 4096;
        REQUIRE_OK(mirror.a->submit("r0", IoKind::write, i % 50 == 0, at, buffers[prng.below(64)],
                                    0, &Load::ended, &load));
        if (i % 100 == 0) {
            ++load.in_flight;
            REQUIRE_OK(mirror.a->submit("r0", IoKind::flush, false, 0, {}, 0, &Load::ended, &load));
        }
    }
    REQUIRE(wait_until([&] { return load.in_flight == 0; }));
    CHECK(load.failed == 0);
    const auto stats = mirror.a->stats("r0");
    REQUIRE(stats);
    CHECK(stats.value().write_total.total >= 4000);
    CHECK(stats.value().write_local.total >= 4000);
    CHECK(stats.value().write_remote.total >= 4000);
    CHECK(stats.value().flush_total.total == 40);
    mirror.finish();
}

TEST_CASE("options change while the volume is in use") {
    Mirror mirror;
    ResourceOptions options = Pair::fast_options();
    options.protocol = Protocol::a;
    options.resync_rate_max = 1 << 20;
    REQUIRE_OK(mirror.a->change_options("r0", options));
    REQUIRE_OK(mirror.a->write("r0", 0, pattern(1 << 20, 2), false));
    options.ping_timeout_ms = 1;
    CHECK(mirror.a->change_options("r0", options).error().code == Errc::invalid);
    mirror.finish();
}

TEST_CASE("a volume goes down in the middle of its resync and goes on with it later") {
    Pair pair;
    pair.create(64U << 20);
    pair.up();
    ResourceOptions slow = Pair::fast_options();
    slow.resync_rate_max = 4 << 20;
    REQUIRE_OK(pair.a->change_options("r0", slow));
    REQUIRE_OK(pair.a->promote("r0", true));
    REQUIRE_OK(pair.a->write("r0", 0, pattern(8 << 20, 3), false));
    pair.wait([&] { return pair.status(1).peers[0].resync_done_bytes > 1 << 20; });
    CHECK(pair.status(0).peers[0].resync_total_bytes > 0);
    REQUIRE_OK(pair.b->down("r0"));
    CHECK(pair.status(0).peers[0].out_of_sync_bytes > 0);
    CHECK(pair.status(0).peers[0].out_of_sync_bytes < 64U << 20);
    REQUIRE_OK(pair.a->change_options("r0", Pair::fast_options()));
    REQUIRE_OK(pair.b->up("r0"));
    pair.wait_synced();
    pair.remember_size();
    pair.down();
    CHECK(pair.same_content());
}

TEST_CASE("metadata on a device of its own") {
    Pair pair;
    ResourceConfig configs[2];
    for (int i = 0; i < 2; ++i) {
        configs[i] = pair.config(i);
        configs[i].metadata = configs[i].disk + ".md";
        Pair::make_file(configs[i].disk, disk_bytes);
        Pair::make_file(configs[i].metadata, 1 << 20);
        REQUIRE_OK(pair.node(i)->create_resource(configs[i], {}));
    }
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    CHECK(pair.status(0).size_bytes == disk_bytes);
    REQUIRE_OK(pair.a->write("r0", disk_bytes - (1 << 20), pattern(1 << 20, 4), true));
    pair.remember_size();
    pair.down();
    CHECK(pair.same_content());
    pair.up();
    pair.wait_synced();
    CHECK(resynced(pair) == 0);
}

TEST_CASE("metadata that another tool made, of a volume that never had a size") {
    Pair pair;
    for (int i = 0; i < 2; ++i) {
        // What `drbdmeta create-md` leaves: no node id, no size, no extension.
        Superblock fresh;
        fresh.device_uuid = 0x1234 + static_cast<std::uint64_t>(i);
        Pair::make_file(pair.disk(i), disk_bytes);
        REQUIRE(create_metadata({pair.disk(i), ""}, fresh, false));
        REQUIRE_OK(pair.node(i)->add_resource(pair.config(i)));
    }
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    CHECK(pair.status(0).size_bytes > disk_bytes - (1 << 20));
    REQUIRE_OK(pair.a->write("r0", 0, pattern(1 << 20, 4), true));
    pair.remember_size();
    pair.down();
    CHECK(pair.same_content());
    pair.up();
    pair.wait_synced();
    CHECK(resynced(pair) == 0);
}

TEST_CASE("three nodes hold the same, also after one was away") {
    Trio trio;
    REQUIRE_OK(trio.nodes[0]->promote("r0", true));
    trio.wait_synced();
    REQUIRE_OK(trio.nodes[0]->write("r0", 0, pattern(2 << 20, 1), false));
    REQUIRE_OK(trio.nodes[2]->down("r0"));
    REQUIRE_OK(trio.nodes[0]->write("r0", 1 << 20, pattern(3 << 20, 2), false));
    REQUIRE_OK(trio.nodes[0]->discard("r0", 5 << 20, 1 << 20));
    REQUIRE_OK(trio.nodes[2]->up("r0"));
    trio.wait_synced();
    REQUIRE_OK(trio.nodes[0]->demote("r0"));
    REQUIRE_OK(trio.nodes[2]->promote("r0", false));
    REQUIRE_OK(trio.nodes[2]->write("r0", 512, pattern(4096, 3), true));
    trio.wait_synced();
    const std::uint64_t size = trio.nodes[0]->status("r0").value().size_bytes;
    for (auto& node : trio.nodes)
        REQUIRE_OK(node->down("r0"));
    CHECK(equal_files(trio.disk(0), trio.disk(1), size));
    CHECK(equal_files(trio.disk(0), trio.disk(2), size));
}

TEST_CASE("several resources on several reactors") {
    Pair pair;
    pair.a.reset();
    pair.b.reset();
    pair.start(0, 2);
    pair.start(1, 2);
    constexpr int count = 4;
    std::vector<ResourceConfig> configs[2];
    for (int r = 0; r < count; ++r) {
        for (int i = 0; i < 2; ++i) {
            ResourceConfig config = pair.config(i);
            config.name = "r" + std::to_string(r);
            config.disk += "-" + std::to_string(r);
            Pair::make_file(config.disk, disk_bytes);
            REQUIRE_OK(pair.node(i)->create_resource(config, {}));
            REQUIRE_OK(pair.node(i)->up(config.name));
            configs[i].push_back(config);
        }
        // Half of them are primary here, half there.
        REQUIRE_OK(pair.node(r % 2)->promote("r" + std::to_string(r), true));
    }
    std::vector<std::thread> writers;
    for (int r = 0; r < count; ++r) {
        writers.emplace_back([&, r] {
            const std::string name = "r" + std::to_string(r);
            for (std::uint64_t i = 0; i < 100; ++i) {
                const auto bytes = pattern(100'000 / 512 * 512, i);
                if (!pair.node(r % 2)->write(name, i * 120 * 1024, bytes, false)) return;
            }
        });
    }
    for (auto& writer : writers)
        writer.join();
    for (int r = 0; r < count; ++r) {
        const std::string name = "r" + std::to_string(r);
        REQUIRE(wait_until([&] {
            const auto s = pair.node(r % 2)->status(name);
            return s && s.value().peers[0].disk == "UpToDate" &&
                   s.value().peers[0].replication == "Established";
        }));
        const std::uint64_t size = pair.a->status(name).value().size_bytes;
        CHECK(pair.node(r % 2)->status(name).value().written_bytes == 100 * (100'000 / 512 * 512));
        REQUIRE_OK(pair.a->down(name));
        REQUIRE_OK(pair.b->down(name));
        CHECK(equal_files(configs[0][static_cast<std::size_t>(r)].disk,
                          configs[1][static_cast<std::size_t>(r)].disk, size));
    }
}

}  // namespace
}  // namespace replica::test
