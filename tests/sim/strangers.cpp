// SPDX-License-Identifier: Apache-2.0
// What does not belong to the cluster: connections of nodes that are no peers, old frames that come
// again, disks that went back in time or were replaced, and a state directory that fails alone.
#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/crc32c.hpp"
#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

std::vector<std::byte> frame_of(const Message& m, std::span<const std::byte> payload) {
    std::vector<std::byte> bytes(wire_header_bytes + payload.size());
    encode_header(m, payload.empty() ? 0 : crc32c(payload),
                  HeaderBytes{bytes.data(), wire_header_bytes});
    std::copy(payload.begin(), payload.end(), bytes.begin() + wire_header_bytes);
    return bytes;
}

}  // namespace

// Old frames are the first ones of a connection: its hello, and what followed.
void World::remember_frame(const Connection& c, std::uint64_t id, std::size_t side,
                           const std::vector<std::byte>& frame) {
    if (!swarm_.strangers || c.stranger || side != 0) return;
    constexpr std::size_t connections = 8, frames = 12;
    if (old_frames_.empty() || old_frames_.back().connection != id) {
        const auto known = std::find_if(old_frames_.begin(), old_frames_.end(),
                                        [&](const OldFrames& old) { return old.connection == id; });
        if (known != old_frames_.end()) {
            if (known->frames.size() < frames) known->frames.push_back(frame);
            return;
        }
        if (c.sent[0] != 0) return;  // its beginning was not seen
        if (old_frames_.size() == connections) old_frames_.erase(old_frames_.begin());
        old_frames_.push_back({id, false, c.node, {}});
    }
    if (old_frames_.back().frames.size() < frames) old_frames_.back().frames.push_back(frame);
}

// A hello that is for another node, or comes from a node that is no peer.
std::vector<std::byte> World::strange_hello(int from, int to) {
    HelloPayload hello;
    hello.stream = random_.below(2) == 0 ? Stream::bulk : Stream::control;
    hello.from = static_cast<NodeId>(from);
    hello.to = static_cast<NodeId>(to);
    hello.session = random_.next();
    hello.incarnation = random_.next();
    hello.journal_entries = 64;
    hello.io_bytes_max = io_bytes_max;
    hello.protocol = static_cast<std::uint8_t>(base_.options.protocol);
    switch (random_.below(6)) {
        case 0:
            hello.from = static_cast<NodeId>(nodes_.size() + random_.below(nodes_max));
            break;
        case 1:
            hello.to = static_cast<NodeId>(nodes_.size());
            break;
        case 2:
            hello.from = hello.to;
            break;
        case 3:
            hello.version_min = hello.version_max = wire_version_max + 1;
            break;
        case 4:
            hello.journal_entries = 1;
            break;
        default:
            hello.protocol = 'X';
            break;
    }
    std::array<std::byte, hello_payload_bytes> payload{};
    encode_hello(hello, payload);
    Message m;
    m.type = MessageType::hello;
    m.payload_bytes = hello_payload_bytes;
    return frame_of(m, payload);
}

// A connection to a node's address from another program, from another cluster, or from packets that
// come again.
void World::stranger(int to) {
    if (!nodes_[static_cast<std::size_t>(to)].up || nodes_.size() < 2) return;
    met(Fault::stranger, to);
    std::vector<std::vector<std::byte>> frames;
    int from = static_cast<int>(random_.below(nodes_.size()));
    bool noise = false;
    const std::uint64_t kind = random_.below(4);
    if (kind == 0 && !old_frames_.empty()) {
        const OldFrames& old = old_frames_[random_.below(old_frames_.size())];
        // A copy that comes before the original is accepted cannot be told from it: nothing between
        // the nodes is authenticated.
        if (!old.accepted) return;
        from = old.node[0];
        to = old.node[1];
        frames = old.frames;
    } else if (kind == 1) {
        noise = true;
        std::vector<std::byte> bytes(1 + random_.below(400));
        for (std::byte& byte : bytes)
            byte = static_cast<std::byte>(random_.below(256));
        frames.push_back(bytes);
    } else if (kind == 2) {  // no hello
        Message m;
        m.type = MessageType::ping;
        frames.push_back(frame_of(m, {}));
    } else {
        frames.push_back(strange_hello(from, to));
    }
    if (from == to) from = to == 0 ? 1 : 0;
    if (!nodes_[static_cast<std::size_t>(to)].up || cut(from, to)) return;
    tell(to, "a stranger comes, kind %d", static_cast<int>(kind));
    const std::uint64_t id = next_connection_++;
    Connection& c = connections_[id];
    c.node = {from, to};
    c.incarnation = {nodes_[static_cast<std::size_t>(from)].incarnation,
                     nodes_[static_cast<std::size_t>(to)].incarnation};
    c.bound[0] = true;
    c.stranger = true;
    c.damaged = noise;
    for (const std::vector<std::byte>& frame : frames)
        put_on_wire(id, 0, frame, frame.size(), 0);
    at(random_.below(2 * ns_per_s), [this, id] { close_side(id, 0, random_.below(2) == 0); });
}

// Only the state directory fails, or is lost while the node is down. The disk's label is enough.
void World::copy_fault(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    met(Fault::broken_copy, n);
    node.copy_broken = true;
    tell(n, "the state directory breaks");
    at(random_.below(4 * ns_per_s), [this, n] {
        Node& mended = nodes_[static_cast<std::size_t>(n)];
        mended.copy_broken = false;
        if (mended.up && mended.core->disk() == DiskState::diskless) attach(n);
    });
}

// What a node may find when it starts. If a label of ours is two updates behind its copy, the disk
// went back in time: it is refused, and the operator brings an empty one.
void World::find_other_disk(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!faulty_) return;
    const SimDisk::Block nothing{};
    if (swarm_.copy_errors && random_.below(4) == 0 &&
        choose_superblock(node.disk->superblock(), nothing)) {
        met(Fault::lost_copy, n);
        tell(n, "the superblock's copy is lost");
        node.disk->edit_copy() = node.disk->superblock();
    }
    if (!swarm_.old_disks || random_.below(3) != 0) return;
    if (node.old_label) {
        const auto& now = node.disk->newest();
        const auto then = decode_superblock(*node.old_label);
        if (!now) fail("a superblock cannot be read");
        if (!then) return;  // it was torn at that moment
        const std::uint64_t behind =
            now.value().extension.write_seq - then.value().extension.write_seq;
        const auto copy = decode_superblock(node.disk->copy());
        const bool newest =
            copy && copy.value().extension.write_seq == now.value().extension.write_seq;
        if (!newest || behind <= copy_lead_max) return;  // nothing could tell
        if (choose_superblock(*node.old_label, node.disk->copy()))
            fail("I-M3 a disk that went back in time is taken for the disk");
        met(Fault::old_disk, n);
        tell(n, "the disk went back in time: a new one comes");
    }
    met(Fault::new_disk, n);
    new_disk(n);
    node.old_label.reset();
    node.lost_power_at = now_;
    node.suspect = false;
}

void World::remember_label(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.old_label) node.old_label = node.disk->superblock();
}

}  // namespace replica::sim
