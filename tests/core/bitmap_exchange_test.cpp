// SPDX-License-Identifier: Apache-2.0
// How a core sends a large bitmap: in pieces that its shell can hold. docs/protocol.md, "Bits".
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "engine/core/core.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr Uuid generation = 0x1000;
constexpr std::uint64_t pages = 512;
constexpr std::uint64_t volume = pages * wire_bits_per_page * block_bytes;

// Node 1 with one bit in each page, toward its peer 0.
struct Node {
    Instant now{ns_per_s};
    std::unique_ptr<Core> core;

    Node() {
        CoreConfig config;
        config.node_id = 1;
        config.peers = NodeMask::of(0);
        config.resource = "r0";
        config.limits = {4, 16, 4, 2, 65536, 4, 500 * ns_per_ms};
        config.options.al_extents = 4;
        config.entropy = 1;
        core = std::make_unique<Core>(config);
        Superblock sb;
        sb.effective_size_sectors = volume / sector_bytes;
        sb.current_uuid = generation;
        sb.flags = md_flag::consistent | md_flag::was_up_to_date;
        sb.extension.present = true;
        sb.extension.in_sync = NodeMask{3};
        sb.peers[0].bitmap_index = 0;
        REQUIRE(core->prepare_attach(sb));
        std::array<std::byte, 4096> page{};
        page[100] = std::byte{1};
        for (std::uint64_t n = 0; n < core->bitmap_pages(); ++n)
            core->load_bitmap_page(n, page);
        core->on_attach(now, {{}, {}, volume, false});
        settle();
    }

    // Ends all I/O at once; returns what was sent since the last call.
    std::vector<Message> settle() {
        std::vector<Message> sent;
        while (!core->effects().empty()) {
            const std::vector<Effect> effects = core->effects();
            core->clear_effects();
            for (const Effect& e : effects) {
                if (e.kind == EffectKind::send) sent.push_back(e.message);
                const bool io = e.kind == EffectKind::metadata || e.kind == EffectKind::disk_flush;
                if (io) core->on_io(now, e.tag, 0);
            }
        }
        return sent;
    }

    void hear(MessageType type, std::span<const std::byte> payload = {}) {
        Message m;
        m.type = type;
        m.payload_bytes = static_cast<std::uint32_t>(payload.size());
        const Stream stream = type == MessageType::pong ? Stream::control : Stream::bulk;
        core->on_message(now, 0, stream, m, payload, {});
    }

    void connect() {
        Command c;
        c.kind = CommandKind::connect;
        core->on_command(now, c);
        HelloPayload hello;
        hello.to = 1;
        hello.session = 7;
        hello.journal_entries = 16;
        hello.io_bytes_max = io_bytes_max;
        core->on_hello(now, 1, hello);
        hello.stream = Stream::control;
        core->on_hello(now, 2, hello);
        hear(MessageType::pong);
        StatePayload state;
        state.role = static_cast<std::uint8_t>(Role::secondary);
        state.disk = static_cast<std::uint8_t>(DiskState::up_to_date);
        state.in_sync = 3;
        state.size_bytes = state.size_max_bytes = volume;
        state.current_uuid = generation;
        std::array<std::byte, state_payload_bytes> bytes{};
        encode_state(state, bytes);
        hear(MessageType::state, bytes);
    }
};

std::size_t pages_in(const std::vector<Message>& messages) {
    return static_cast<std::size_t>(
        std::count_if(messages.begin(), messages.end(),
                      [](const Message& m) { return m.type == MessageType::bitmap_page; }));
}

}  // namespace

TEST_CASE("a large bitmap is sent in pieces, as the connection takes them") {
    Node node;
    node.connect();
    std::size_t sent = pages_in(node.settle());
    CHECK(sent > 0);
    // What one step may queue: about a MiB. All of it at once would be more frames than a
    // connection holds, from 2 TiB on.
    CHECK(sent <= 320);
    for (int i = 0; i < 100 && sent < pages; ++i) {
        node.core->on_backlog(0, 2U << 20);
        node.now.ns += ns_per_ms;
        node.core->on_tick(node.now);
        CHECK(pages_in(node.settle()) == 0);  // the connection is full
        node.core->on_backlog(0, 0);
        node.now.ns += ns_per_ms;
        node.core->on_tick(node.now);
        const std::size_t more = pages_in(node.settle());
        CHECK(more > 0);
        CHECK(more <= 320);
        sent += more;
    }
    CHECK(sent == pages);
}
