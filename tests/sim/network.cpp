// SPDX-License-Identifier: Apache-2.0
// Connections: streams of bytes that are delayed, cut anywhere, stalled, damaged and reset. Headers
// and payloads are those of the daemon, encoded, checked and decoded; only a sector of data travels
// as the 8 bytes of its stamp.
#include <algorithm>
#include <cstring>

#include "engine/base/crc32c.hpp"
#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

bool carries_data(MessageType type) {
    return type == MessageType::write || type == MessageType::resync_data ||
           type == MessageType::read_reply;
}
std::size_t bytes_on_the_wire(const Message& m) {
    return carries_data(m.type) ? m.payload_bytes / sector_bytes * sizeof(Stamp) : m.payload_bytes;
}
// Not the checksum of the protocol: says whether what was accepted is what was sent.
std::uint64_t digest(std::span<const std::byte> bytes) {
    std::uint64_t hash = 0xcbf29ce484222325U;
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + i, sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15U;
        hash ^= hash >> 29;
    }
    for (; i < bytes.size(); ++i)
        hash = (hash ^ std::to_integer<std::uint64_t>(bytes[i])) * 0x100000001b3U;
    return hash;
}

}  // namespace

std::uint64_t World::net_delay() {
    std::uint64_t d = 10'000 + random_.below(swarm_.net_delay_ns);
    if (faulty_ && swarm_.late && random_.chance(2'000)) d += random_.below(200 * ns_per_ms);
    return d;
}

void World::dial(int n, NodeId peer) {
    const int to = peer;
    schedule(n, net_delay(), [this, n, to, peer] {
        Node& node = nodes_[static_cast<std::size_t>(n)];
        Node& other = nodes_[static_cast<std::size_t>(to)];
        const bool ok = other.up && !cut(n, to) && !cut(to, n);
        if (ok) {
            for (unsigned s = 0; s < 2; ++s) {
                const std::uint64_t id = next_connection_++;
                Connection& c = connections_[id];
                c.node = {n, to};
                c.incarnation = {node.incarnation, other.incarnation};
                c.stream = static_cast<Stream>(s);
                c.bound[0] = true;
                node.links[peer].connection[s] = id;
            }
        }
        node.core->on_dialled(Instant{now_}, peer, ok);
        perform(n);
    });
}

// A connection that says hello and is closed: the other one can not answer.
void World::knock(int n, const Effect& e) {
    std::vector<std::byte> payload(e.message.payload_bytes);
    nodes_[static_cast<std::size_t>(n)].core->encode_payload(e, payload);
    const int to = e.peer;
    schedule(n, net_delay(), [this, n, to, payload, message = e.message] {
        const Node& other = nodes_[static_cast<std::size_t>(to)];
        if (!other.up || cut(n, to) || cut(to, n)) return;
        const std::uint64_t id = next_connection_++;
        Connection& c = connections_[id];
        c.node = {n, to};
        c.incarnation = {nodes_[static_cast<std::size_t>(n)].incarnation, other.incarnation};
        c.bound[0] = true;
        transmit(id, 0, message, payload);
        close_side(id, 0, false);
    });
}

// A target that is told that it is a member is one on the label of the node that says so.
void World::audit_admission(int n, int peer, std::span<const std::byte> payload) {
    const auto told = decode_generation(payload);
    const Result<Superblock>& label = nodes_[static_cast<std::size_t>(n)].disk->newest();
    if (!told || !label) fail("a label or an admission that cannot be read");
    if (!uuid_equal(label.value().current_uuid, told.value().current_uuid) ||
        !label.value().extension.in_sync.has(static_cast<NodeId>(peer))) {
        fail("I-Q9 a target is told that it is a member, and the source's label does not say so");
    }
    // The target does not know the Primary's writes from before it got the bits, and could not mark
    // them: they have to be stable everywhere, so that the journal has let go of them.
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    const Journal& journal = node.core->journal();
    const std::uint64_t first = node.first_to[static_cast<std::size_t>(peer)];
    if (node.core->role() == Role::primary &&
        journal.head() < (first == 0 ? journal.tail() : first))
        fail("I-Q10 a resync ends while writes from before it are not stable");
}

// The first write that each peer got after the exchange of bitmaps.
void World::note_first_write(Node& node, int peer, const Message& m) {
    std::uint64_t& first = node.first_to[static_cast<std::size_t>(peer)];
    const bool write = m.type == MessageType::write || m.type == MessageType::write_zeroes;
    if (m.type == MessageType::bitmap_done) first = 0;
    if (write && first == 0) first = m.seq;
}

void World::send(int n, const Effect& e) {
    const std::uint64_t id = nodes_[static_cast<std::size_t>(n)]
                                 .links[static_cast<std::size_t>(e.peer)]
                                 .connection[static_cast<std::size_t>(e.stream)];
    const auto found = connections_.find(id);
    std::vector<std::byte> payload(bytes_on_the_wire(e.message));
    if (e.buffer.kind != BufferKind::none) {
        const std::vector<Stamp>& stamps = buffer(n, e.buffer);
        if (stamps.size() * sizeof(Stamp) != payload.size()) fail("a payload of another length");
        std::memcpy(payload.data(), stamps.data(), payload.size());
    } else if (!payload.empty()) {
        nodes_[static_cast<std::size_t>(n)].core->encode_payload(e, payload);
    }
    if (e.message.type == MessageType::state) audit_told_size(n, payload);
    note_first_write(nodes_[static_cast<std::size_t>(n)], e.peer, e.message);
    if (e.message.type == MessageType::sync_done) audit_admission(n, e.peer, payload);
    if (found == connections_.end()) return;
    const int side = found->second.node[0] == n ? 0 : 1;
    if (hold_message_ && hold_message_(n, e.peer, e.message.type)) {
        found->second.held[static_cast<std::size_t>(side)] = true;
    }
    transmit(id, side, e.message, payload);
}

void World::refuse(int n, const Effect& e) {
    trace(n, "refuses a connection: %s", e.text);
    Message m;
    m.type = MessageType::reject;
    m.payload_bytes = static_cast<std::uint32_t>(std::min(std::strlen(e.text), wire_text_max));
    const auto* const text = reinterpret_cast<const std::byte*>(e.text);
    if (connections_.count(e.handle) != 0) transmit(e.handle, 1, m, {text, m.payload_bytes});
    close_side(e.handle, 1, false);
}

void World::transmit(std::uint64_t id, int side, const Message& m,
                     std::span<const std::byte> payload) {
    Connection& c = connections_.at(id);
    const auto s = static_cast<std::size_t>(side);
    if (!c.open[s]) return;
    std::vector<std::byte> bytes(wire_header_bytes + payload.size());
    encode_header(m, payload.empty() ? 0 : crc32c(payload),
                  HeaderBytes{bytes.data(), wire_header_bytes});
    std::copy(payload.begin(), payload.end(), bytes.begin() + wire_header_bytes);
    remember_frame(c, id, s, bytes);
    const std::uint64_t later = slowness(c.node[s], static_cast<int>(m.type), swarm_.slow_message);
    put_on_wire(id, side, bytes, wire_header_bytes + m.payload_bytes, later);
}

void World::put_on_wire(std::uint64_t id, int side, const std::vector<std::byte>& bytes,
                        std::uint64_t weight, std::uint64_t later) {
    Connection& c = connections_.at(id);
    const auto s = static_cast<std::size_t>(side);
    c.genuine[s].push_back(digest(bytes));
    // One recv brings what is there: mostly a frame, sometimes a part of one.
    std::size_t pieces = 1;
    if (swarm_.segments && random_.below(8) == 0) pieces += 1 + random_.below(3);
    for (std::size_t at = 0; at < bytes.size(); --pieces) {
        const std::size_t rest = bytes.size() - at;
        const std::size_t n = pieces <= 1 ? rest : 1 + random_.below(rest);
        Piece piece;
        const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(at);
        piece.bytes.assign(from, from + static_cast<std::ptrdiff_t>(n));
        piece.weight = weight * n / bytes.size();
        piece.order = c.sent[s]++;
        at += n;
        if (n < rest) met(Fault::cut_message, c.node[1 - s]);
        c.queued[s] += piece.weight;
        if (cut(c.node[s], c.node[1 - s]) || c.held[s]) {
            c.stalled[s].push_back(std::move(piece));
        } else {
            deliver(id, 1 - side, std::move(piece), at == n ? later : 0);
        }
    }
}

void World::deliver(std::uint64_t id, int to_side, Piece piece, std::uint64_t later) {
    Connection& c = connections_.at(id);
    std::uint64_t& last = c.last_arrival[static_cast<std::size_t>(to_side)];
    const bool slow = c.node == swarm_.slow_pair ||
                      (swarm_.slow_pair[1] == c.node[0] && swarm_.slow_pair[0] == c.node[1]);
    const std::uint64_t ns_per_kib = slow && faulty_ ? ns_per_ms : swarm_.ns_per_kib;
    const std::uint64_t sending = 1 + piece.weight * ns_per_kib / 1024;
    last = std::max(last, now_ + net_delay() + later) + sending;
    if (swarm_.bit_flips && faulty_ && accident(400)) {
        const std::size_t bit = random_.below(piece.bytes.size() * 8);
        piece.bytes[bit / 8] ^= std::byte{1} << bit % 8;
        c.damaged = true;
        met(Fault::bit_flip, c.node[static_cast<std::size_t>(to_side)]);
    }
    const int to = c.node[static_cast<std::size_t>(to_side)];
    auto shared = std::make_shared<Piece>(std::move(piece));
    schedule(to, last - now_, [this, id, to_side, shared] { receive(id, to_side, *shared); });
}

void World::receive(std::uint64_t id, int side, const Piece& piece) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    Connection& c = found->second;
    const auto s = static_cast<std::size_t>(side);
    if (!c.open[s] || (c.stranger && side == 0)) return;
    const int n = c.node[s];
    if (cut(c.node[1 - s], n)) {  // it arrives when the network heals
        c.stalled[1 - s].push_back(piece);
        return;
    }
    if (c.incarnation[s] != nodes_[static_cast<std::size_t>(n)].incarnation) return;
    // The stream keeps its order, whatever was lost and sent again.
    auto& early = c.early[1 - s];
    early.emplace(piece.order, piece);
    while (!early.empty() && early.begin()->first == c.arrived[1 - s]) {
        const Piece& next = early.begin()->second;
        c.inbox[s].insert(c.inbox[s].end(), next.bytes.begin(), next.bytes.end());
        c.queued[1 - s] -= next.weight;
        ++c.arrived[1 - s];
        early.erase(early.begin());
    }
    Node& sender = nodes_[static_cast<std::size_t>(c.node[1 - s])];
    if (c.stream == Stream::bulk && sender.up && c.incarnation[1 - s] == sender.incarnation) {
        sender.core->on_backlog(static_cast<NodeId>(n), c.queued[1 - s]);
    }
    while (parse(id, side)) {
    }
}

// One frame of what has arrived. False: it is not complete, or the connection is over.
bool World::parse(std::uint64_t id, int side) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return false;
    Connection& c = found->second;
    const auto s = static_cast<std::size_t>(side);
    std::vector<std::byte>& inbox = c.inbox[s];
    if (!c.open[s] || inbox.size() < wire_header_bytes) return false;
    const auto m = decode_header(ConstHeaderBytes{inbox.data(), wire_header_bytes});
    const bool trusting = options_.shell_mutant == ShellMutant::accept_damage;
    if (!m) {
        if (!c.damaged) fail("a header that its own decoder refuses: " + m.error().message);
        met(Fault::damage_found, c.node[s]);
        broken(id, side);
        return false;
    }
    const std::size_t size = bytes_on_the_wire(m.value());
    if (inbox.size() < wire_header_bytes + size) return false;
    const std::vector<std::byte> frame(
        inbox.begin(), inbox.begin() + static_cast<std::ptrdiff_t>(wire_header_bytes + size));
    inbox.erase(inbox.begin(), inbox.begin() + static_cast<std::ptrdiff_t>(frame.size()));
    const std::span<const std::byte> payload{frame.data() + wire_header_bytes, size};
    if ((size == 0 ? 0 : crc32c(payload)) !=
            header_payload_crc(ConstHeaderBytes{frame.data(), wire_header_bytes}) &&
        !trusting) {
        if (!c.damaged) fail("a payload whose own checksum does not fit");
        met(Fault::damage_found, c.node[s]);
        broken(id, side);
        return false;
    }
    if (c.genuine[1 - s].empty() || digest(frame) != c.genuine[1 - s].front()) {
        fail("N8 a frame was accepted that was not sent");
    }
    c.genuine[1 - s].pop_front();
    frame_arrived(id, side, m.value(), payload);
    return true;
}

void World::frame_arrived(std::uint64_t id, int side, const Message& m,
                          std::span<const std::byte> payload) {
    Connection& c = connections_.at(id);
    const auto s = static_cast<std::size_t>(side);
    const int n = c.node[s];
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!c.bound[s]) {
        const auto hello = decode_hello(payload);
        if (m.type != MessageType::hello || !hello) return close_side(id, side, true);
        node.core->on_hello(Instant{now_}, id, hello.value());
        return perform(n);
    }
    const auto peer = static_cast<NodeId>(c.node[1 - s]);
    if (m.type == MessageType::reject) return broken(id, side);
    BufferRef into = node.core->destination(peer, m);
    if (into.kind == BufferKind::receive) {
        if (node.receive_free.empty()) {
            node.receive_free.push_back(static_cast<std::uint32_t>(node.receive.size()));
            node.receive.emplace_back();
        }
        into.index = node.receive_free.back();
        node.receive_free.pop_back();
    }
    if (into.kind != BufferKind::none) {
        std::vector<Stamp>& stamps = buffer(n, into);
        stamps.resize(payload.size() / sizeof(Stamp));
        std::memcpy(stamps.data(), payload.data(), payload.size());
    }
    mix(static_cast<std::uint64_t>(m.type));
    trace(n, "from n%d: message %u seq %llu offset %llu id %u flags %u nodes %x", peer,
          static_cast<unsigned>(m.type), static_cast<unsigned long long>(m.seq),
          static_cast<unsigned long long>(m.offset), m.id, m.flags, m.nodes);
    note_refusal(n, m, payload);
    const bool structured = !carries_data(m.type);
    node.core->on_message(Instant{now_}, peer, c.stream, m,
                          structured ? payload : std::span<const std::byte>{}, into);
    perform(n);
}

// What a peer says of its disk is what a request may be told later.
void World::note_refusal(int n, const Message& m, std::span<const std::byte> payload) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const bool answer = m.type == MessageType::write_ack || m.type == MessageType::flush_ack;
    if (answer && m.flags != 0) node.refused_at = now_;
    if (m.type == MessageType::read_reply && m.flags != 0 &&
        read_slot(m.id) < node.requests.size()) {
        node.requests[read_slot(m.id)].peer_error = true;
    }
    auto disk = DiskState::up_to_date;
    if (m.type == MessageType::state_update) disk = static_cast<DiskState>(m.id >> 8 & 0xff);
    if (m.type == MessageType::state) {
        const auto state = decode_state(payload.first<state_payload_bytes>());
        if (state) disk = static_cast<DiskState>(state.value().disk);
    }
    if (disk < DiskState::inconsistent) node.refused_at = now_;
}

// This side has to give the connection up: what came can not be used, or a reset came.
void World::broken(std::uint64_t id, int side) {
    const auto found = connections_.find(id);
    if (found == connections_.end() || !found->second.open[static_cast<std::size_t>(side)]) return;
    const Connection& c = found->second;
    const auto s = static_cast<std::size_t>(side);
    const int n = c.node[s];
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto peer = static_cast<NodeId>(c.node[1 - s]);
    const bool bound = c.bound[s];
    const Link& link = node.links[peer];
    const bool current = bound && (link.connection[0] == id || link.connection[1] == id);
    close_side(id, side, true);
    if (!node.up) return;
    if (!bound) {
        node.core->on_handle_closed(Instant{now_}, id);
    } else if (current) {
        close_link(n, peer);
        node.core->on_link_closed(Instant{now_}, peer);
    } else {
        return;
    }
    perform(n);
}

// One side closes; the other learns of it after what was sent before, or never while the net is
// cut. Abrupt: a reset, which overtakes what was sent.
void World::close_side(std::uint64_t id, int side, bool abrupt) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    Connection& c = found->second;
    const auto s = static_cast<std::size_t>(side);
    if (!c.open[s]) return;
    c.open[s] = false;
    const int other = c.node[1 - s];
    if (!c.open[1 - s]) {
        connections_.erase(found);
        return;
    }
    if (cut(c.node[s], other)) return;  // the reset is lost: half-open until a timeout
    const std::uint64_t last = c.last_arrival[1 - s];
    std::uint64_t delay = net_delay();
    if (!abrupt && last > now_) delay += last - now_;
    const std::uint32_t incarnation = c.incarnation[1 - s];
    schedule(other, delay, [this, id, other, s, incarnation] {
        if (incarnation != nodes_[static_cast<std::size_t>(other)].incarnation) return;
        broken(id, static_cast<int>(1 - s));
    });
}

void World::close_link(int n, NodeId peer, bool graceful) {
    Link& link = nodes_[static_cast<std::size_t>(n)].links[peer];
    for (std::uint64_t& id : link.connection) {
        const auto found = connections_.find(id);
        const bool abrupt = !graceful && random_.below(2) == 0;
        if (id != 0 && found != connections_.end()) {
            close_side(id, found->second.node[0] == n ? 0 : 1, abrupt);
        }
        id = 0;
    }
}

void World::set_cut(int a, int b, bool value, bool one_way) {
    const auto x = static_cast<std::size_t>(a), y = static_cast<std::size_t>(b);
    cut_[x][y] = value;
    if (!one_way) cut_[y][x] = value;
    if (value) return;
    for (auto& [id, c] : connections_) {
        if (!((c.node[0] == a && c.node[1] == b) || (c.node[0] == b && c.node[1] == a))) continue;
        for (std::size_t side = 0; side < 2; ++side) {
            auto& stalled = c.stalled[side];
            if (cut(c.node[side], c.node[1 - side]) || c.held[side]) continue;
            while (!stalled.empty()) {
                deliver(id, static_cast<int>(1 - side), std::move(stalled.front()));
                stalled.pop_front();
            }
        }
        // A side that closed meanwhile answers the retransmission with a reset.
        for (std::size_t s = 0; s < 2; ++s) {
            if (c.open[s] || !c.open[1 - s]) continue;
            c.open[s] = true;
            const std::uint64_t handle = id;
            const int closed = static_cast<int>(s);
            at(1, [this, handle, closed] { close_side(handle, closed, false); });
        }
    }
}

}  // namespace replica::sim
