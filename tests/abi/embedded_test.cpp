// SPDX-License-Identifier: Apache-2.0
// The shared library with the real node in it, as a program sees that links nothing else: embedded
// nodes on disk files, alone and mirrored over loopback inside one process.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <replica/replica.hpp>
#include <thread>

#include "tests/catch.hpp"
#include "tests/loopback.hpp"

namespace fs = std::filesystem;
using namespace replica::client;
using namespace std::chrono_literals;
using replica::test::own_address;

namespace {

struct Directory {
    Directory() {
        std::string pattern = "/var/tmp/replica-embedded-XXXXXX";
        path = ::mkdtemp(pattern.data());
    }
    ~Directory() { fs::remove_all(path); }
    std::string disk(const std::string& name, std::uintmax_t bytes) const {
        const fs::path file = path / name;
        std::ofstream(file).close();
        fs::resize_file(file, bytes);
        return file.string();
    }
    fs::path path;
};

ResourceConfig lone(const std::string& name, const std::string& disk) {
    ResourceConfig config;
    config.name = name;
    config.disk = disk;
    return config;
}

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
    std::vector<std::byte> data(bytes);
    std::minstd_rand random(seed);
    for (auto& byte : data)
        byte = static_cast<std::byte>(random());
    return data;
}

template <class F>
replica_code refused(F&& call) {
    try {
        call();
        return REPLICA_OK;
    } catch (const Error& error) {
        INFO(error.what());
        CHECK(std::strlen(error.what()) > 10);
        return error.code();
    }
}

constexpr std::uintmax_t mib = 1U << 20;

}  // namespace

TEST_CASE("a lone volume keeps what was written over a restart", "[embedded]") {
    const Directory directory;
    const auto state = (directory.path / "state").string();
    const auto data = pattern(3 * mib + 512, 1);
    {
        Node node = Node::embed(state);
        node.create(lone("r0", directory.disk("r0.img", 16 * mib)));
        CHECK(node.status("r0").up == false);
        node.up("r0");
        CHECK(node.status("r0").disk == "Inconsistent");
        Volume volume = node.open_volume("r0");
        CHECK(refused([&] { volume.write(data, 0); }) == REPLICA_STATE);
        node.promote("r0", true);
        CHECK(volume.size_bytes() % 4096 == 0);
        CHECK(volume.size_bytes() > 15 * mib);
        volume.write(data, 512);  // across extents, not aligned to blocks
        volume.discard(8 * mib, mib);
        volume.write_zeroes(9 * mib, mib);
        volume.flush();
        CHECK(refused([&] { volume.write(data, volume.size_bytes() - 512); }) == REPLICA_INVALID);
        CHECK(refused([&] { volume.write(data, 1); }) == REPLICA_INVALID);
        CHECK(refused([&] { volume.write_zeroes(~std::uint64_t{511}, 1024); }) == REPLICA_INVALID);
        CHECK(node.status("r0").written_bytes >= data.size());
        CHECK(node.stats_json("r0").find("write-total") != std::string::npos);
    }
    Node node = Node::embed(state);
    CHECK(node.status("r0").role == "Secondary");
    CHECK(node.status("r0").disk == "UpToDate");
    node.promote("r0");
    Volume volume = node.open_volume("r0");
    std::vector<std::byte> found(data.size());
    volume.read(found, 512);
    CHECK(found == data);
    std::vector<std::byte> zeroes(2 * mib, std::byte{1});
    volume.read(zeroes, 8 * mib);
    CHECK(zeroes == std::vector<std::byte>(2 * mib));
}

TEST_CASE("many writes under way complete once each", "[embedded]") {
    const Directory directory;
    Node node = Node::embed((directory.path / "state").string());
    node.create(lone("r0", directory.disk("r0.img", 32 * mib)));
    node.up("r0");
    node.promote("r0", true);
    Volume volume = node.open_volume("r0");
    constexpr std::size_t blocks = 4096;
    const auto data = pattern(blocks * 4096, 2);
    std::vector<std::atomic<int>> done(blocks);
    std::atomic<std::size_t> left = blocks;
    const std::span<const std::byte> all(data);
    for (std::size_t i = 0; i < blocks; ++i) {
        volume.submit_write(all.subspan(i * 4096, 4096), i * 4096, i % 100 == 0, [&, i](int error) {
            done[i] += error == 0 ? 1 : 1000;
            left -= 1;
        });
    }
    while (left > 0)
        std::this_thread::sleep_for(1ms);
    for (const auto& count : done)
        REQUIRE(count == 1);
    std::vector<std::byte> found(data.size());
    volume.read(found, 0);
    CHECK(found == data);
    std::atomic<int> beyond = -1;
    const auto result = refused([&] {
        volume.submit_read(found, volume.size_bytes(), [&](int error) { beyond = error; });
        while (beyond < 0)
            std::this_thread::sleep_for(1ms);
    });
    CHECK((result == REPLICA_INVALID || beyond > 0));
}

TEST_CASE("what can not be a disk is refused, and says why", "[embedded]") {
    const Directory directory;
    Node node = Node::embed((directory.path / "state").string());
    const auto disk = directory.disk("r0.img", 16 * mib);
    CHECK(refused([&] { node.create(lone("r0", disk + ".not-there")); }) == REPLICA_NOT_FOUND);
    CHECK(refused([&] { node.create(lone("r0", directory.disk("tiny", 8192))); }) ==
          REPLICA_NO_SPACE);
    CHECK(refused([&] { node.create(lone("r0", directory.path.string())); }) != REPLICA_OK);
    auto large = lone("r0", disk);
    large.size_bytes = 1ULL << 40;
    CHECK(refused([&] { node.create(large); }) == REPLICA_NO_SPACE);
    node.adopt(lone("r0", disk));  // the disk is looked at when it is brought up
    CHECK(refused([&] { node.up("r0"); }) != REPLICA_OK);
    node.remove("r0");
    node.create(lone("r0", disk));
    node.up("r0");
    CHECK(refused([&] { node.create(lone("r1", disk)); }) != REPLICA_OK);
    CHECK(refused([&] { node.remove("r0"); }) == REPLICA_STATE);
    node.down("r0");
    node.remove("r0");
    // Its metadata is still there: to be overwritten only when told to.
    CHECK(refused([&] { node.create(lone("r0", disk)); }) == REPLICA_EXISTS);
    auto forced = lone("r0", disk);
    forced.force = true;
    node.create(forced);
    CHECK(node.status_json().find("\"r0\"") != std::string::npos);
}

TEST_CASE("two embedded nodes mirror a volume and change places", "[embedded]") {
    const Directory directory;
    const std::string addresses[2] = {own_address(7788), own_address(7789)};
    std::optional<Node> nodes[2];
    for (unsigned i = 0; i < 2; ++i) {
        EmbeddedOptions options;
        options.name = i == 0 ? "alpha" : "beta";
        options.listen = addresses[i];
        nodes[i] = Node::embed((directory.path / options.name).string(), options);
        auto config = lone("r0", directory.disk(options.name + ".img", 24 * mib));
        config.node_id = i;
        config.peers = {{i == 0 ? "beta" : "alpha", 1 - i, addresses[1 - i]}};
        // A thread that stands still for a second is no lost peer here.
        config.options = R"({"ping-timeout-ms":30000,"request-timeout-ms":60000,)"
                         R"("connect-interval-ms":100})";
        nodes[i]->create(config);
    }
    Events events = nodes[1]->events("r0");
    for (auto& node : nodes)
        node->up("r0");
    nodes[0]->wait("r0", Until::connected, 100s);
    nodes[0]->promote("r0", true);
    nodes[0]->wait("r0", Until::synced, 100s);

    const auto data = pattern(5 * mib, 3);
    std::optional<Volume> volume = nodes[0]->open_volume("r0");
    volume->write(data, mib);
    volume->flush();
    volume.reset();
    CHECK(refused([&] { nodes[1]->promote("r0"); }) == REPLICA_STATE);
    nodes[0]->demote("r0");
    nodes[1]->promote("r0");
    volume = nodes[1]->open_volume("r0");
    std::vector<std::byte> found(data.size());
    volume->read(found, mib);
    CHECK(found == data);

    // Beta goes on alone; alpha returns and gets what it missed and not much more.
    nodes[0].reset();
    const auto more = pattern(2 * mib, 4);
    volume->write(more, 12 * mib);
    volume->flush();
    EmbeddedOptions options;
    options.name = "alpha";
    options.listen = addresses[0];
    nodes[0] = Node::embed((directory.path / "alpha").string(), options);
    nodes[1]->wait("r0", Until::synced, 100s);
    nodes[0]->wait("r0", Until::synced, 100s);
    const auto status = nodes[0]->status("r0");
    CHECK(status.disk == "UpToDate");
    CHECK(status.peers.at(0).role == "Primary");
    CHECK(status.peers.at(0).out_of_sync_bytes == 0);
    volume.reset();
    nodes[1]->demote("r0");
    nodes[0]->promote("r0");
    Volume back = nodes[0]->open_volume("r0");
    found.resize(more.size());
    back.read(found, 12 * mib);
    CHECK(found == more);

    std::uint64_t last = 0;
    std::size_t heard = 0;
    while (auto event = events.next(0ms)) {
        CHECK(event->seq > last);
        last = event->seq;
        ++heard;
    }
    CHECK(heard > 10);
}
