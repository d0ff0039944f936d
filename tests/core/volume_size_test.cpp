// SPDX-License-Identifier: Apache-2.0
// New disks of different sizes meet: all take the smallest, in whatever order they hear of each
// other (docs/protocol.md, "Handshake", step 3).
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "engine/core/core.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t big = std::uint64_t{64} << 30;

// Node 3 with a new disk, and its peers 0, 1 and 2. I/O ends when a test says so.
struct Node {
    Instant now{ns_per_s};
    std::unique_ptr<Core> core;
    std::vector<IoTag> io;
    std::array<unsigned, 3> states{};  // sent to each peer

    Node() {
        CoreConfig config;
        config.node_id = 3;
        config.peers = NodeMask{7};
        config.resource = "r0";
        config.limits = {4, 16, 4, 2, 65536, 4, 500 * ns_per_ms};
        config.entropy = 1;
        core = std::make_unique<Core>(config);
        Superblock sb;
        sb.effective_size_sectors = big / sector_bytes;
        sb.max_peers = 3;
        sb.extension.present = true;
        REQUIRE(core->prepare_attach(sb));
        core->on_attach(now, {{}, {}, big, false});
        finish_io();
        Command c;
        c.kind = CommandKind::connect;
        core->on_command(now, c);
        for (NodeId peer = 0; peer < 3; ++peer) {
            HelloPayload hello;
            hello.from = peer;
            hello.to = 3;
            hello.session = 7U + peer;
            hello.journal_entries = 16;
            hello.io_bytes_max = io_bytes_max;
            core->on_hello(now, 2U * peer + 1, hello);
            hello.stream = Stream::control;
            core->on_hello(now, 2U * peer + 2, hello);
            Message ping;
            core->on_message(now, peer, Stream::control, ping, {}, {});
        }
        finish_io();
    }

    void perform() {
        for (const Effect& e : core->effects()) {
            const bool state = e.kind == EffectKind::send && e.message.type == MessageType::state;
            if (state) ++states[static_cast<std::size_t>(e.peer)];
            const bool starts = e.kind == EffectKind::metadata || e.kind == EffectKind::disk_flush;
            if (starts) io.push_back(e.tag);
        }
        core->clear_effects();
    }

    void finish_io() {
        perform();
        while (!io.empty()) {
            const IoTag tag = io.back();
            io.pop_back();
            core->on_io(now, tag, 0);
            perform();
        }
    }

    void hear_state(NodeId peer, std::uint64_t size) {
        StatePayload state;
        state.role = static_cast<std::uint8_t>(Role::secondary);
        state.disk = static_cast<std::uint8_t>(DiskState::inconsistent);
        state.size_bytes = state.size_max_bytes = size;
        state.current_uuid = uuid_just_created;
        std::array<std::byte, state_payload_bytes> bytes{};
        encode_state(state, bytes);
        Message m;
        m.type = MessageType::state;
        m.payload_bytes = state_payload_bytes;
        core->on_message(now, peer, Stream::bulk, m, bytes, {});
        perform();
    }
};

}  // namespace

TEST_CASE("a new disk meets smaller ones one right after the other") {
    Node node;
    REQUIRE(node.states == std::array<unsigned, 3>{1, 1, 1});
    const std::array<std::uint64_t, 3> sizes{big - 8 * 4096, big - 16 * 4096, big - 4096};
    // The bitmap of the first new size is on its way to the disk when the second one comes.
    for (NodeId peer = 0; peer < 3; ++peer)
        node.hear_state(peer, sizes[peer]);
    CHECK(node.core->volume_bytes() == sizes[0]);
    // Rounds go on until nothing has to change any more.
    std::array<unsigned, 3> answered{1, 1, 1};
    for (int turn = 0; turn < 20; ++turn) {
        node.finish_io();
        for (NodeId peer = 0; peer < 3; ++peer) {
            if (node.states[peer] == answered[peer]) continue;
            answered[peer] = node.states[peer];
            const std::uint64_t own = node.core->volume_bytes();
            node.hear_state(peer, std::min(own, sizes[peer]));
        }
    }
    CHECK(node.core->volume_bytes() == sizes[1]);
    CHECK(node.states == answered);
    CHECK(node.core->idle());
}
