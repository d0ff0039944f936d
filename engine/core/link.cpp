// SPDX-License-Identifier: Apache-2.0
// Connections. The node with the lower id dials, both streams at once, and names the pair with a
// session id; the other side accepts. A new session from a peer replaces the old one: the old one
// is lost first, with everything that follows from it.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "engine/core/for_peers.hpp"

namespace replica {

void Core::send(NodeId id, Stream stream, Message message, BufferRef buffer) {
    const Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::up && peer.phase != LinkPhase::greeting) return;
    Effect& e = emit(EffectKind::send);
    e.peer = id;
    e.stream = stream;
    e.message = message;
    e.buffer = buffer;
    const MessageType type = message.type;
    if (type != MessageType::write && type != MessageType::write_zeroes &&
        type != MessageType::flush && type != MessageType::in_sync &&
        type != MessageType::promote && type != MessageType::promote_reply) {
        return;
    }
    const auto number = low_number(register_.number());
    e.message.set_generation = number[0];
    e.message.set_change = number[1];
}

// A message that depends on the in-sync set carries the set's number. It must be the number that
// the peer told last: the peer tells each change before it sends anything under it.
bool Core::under_told_set(NodeId id, const Message& m) {
    const auto& told = peers_[id].told_set;
    if (told[0] == m.set_generation && told[1] == m.set_change) return true;
    protocol_error(id, "a message under another in-sync set than the one that was told");
    return false;
}

// The payload is this generation as it is now: the same step may open another one afterwards.
void Core::send_generation(NodeId id, Message m) {
    const GenerationPayload now = make_generation();
    if (told_[told_last_] != now) {
        told_last_ = (told_last_ + 1) % static_cast<std::uint32_t>(told_.size());
        told_[told_last_] = now;
    }
    m.payload_bytes = generation_payload_bytes;
    const std::size_t before = effects_.size();
    send(id, Stream::bulk, m);
    if (effects_.size() > before) effects_.back().index = told_last_;
}

void Core::send_control(NodeId id, MessageType type, std::uint32_t message_id,
                        std::uint16_t flags) {
    Message m;
    m.type = type;
    m.id = message_id;
    m.flags = flags;
    send(id, Stream::control, m);
}

HelloPayload Core::hello_for(NodeId id, Stream stream) const {
    HelloPayload hello;
    hello.stream = stream;
    hello.from = config_.node_id;
    hello.to = id;
    hello.session = peers_[id].session;
    hello.incarnation = config_.entropy;
    hello.journal_entries = static_cast<std::uint32_t>(journal_.capacity());
    hello.io_bytes_max = io_bytes_max;
    hello.protocol = static_cast<std::uint8_t>(config_.options.protocol);
    if (metadata_usable()) hello.volume_id = sb_.extension.volume_id;
    const std::size_t n = std::min(config_.resource.size(), wire_name_max - 1);
    std::memcpy(hello.resource.data(), config_.resource.data(), n);
    return hello;
}

void Core::start_dial(NodeId id) {
    Peer& peer = peers_[id];
    peer.phase = LinkPhase::dialling;
    peer.phase_since = now_;
    peer.session = new_id();
    peer.greeted = {};
    Effect& e = emit(EffectKind::dial);
    e.peer = id;
    touch();
}

// Who only listens would have to wait for the next attempt of the peer, which may have seen this
// node end and does not know that it is back.
void Core::knock(NodeId id) {
    peers_[id].knocks = false;
    Effect& e = emit(EffectKind::knock);
    e.peer = id;
    e.message.type = MessageType::hello;
    e.message.payload_bytes = hello_payload_bytes;
}

Instant Core::next_attempt(const Peer& peer) const {
    const std::uint64_t interval_ns = config_.options.connect_interval_ms * ns_per_ms;
    return now_ + (peer.retries ? 2 * interval_ns : interval_ns);
}

void Core::on_dialled(Instant now, NodeId id, bool ok) {
    now_ = now;
    Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::dialling) {
        if (ok) emit(EffectKind::close_link).peer = id;
        return end_step();
    }
    if (!ok) {
        peer.phase = LinkPhase::down;
        peer.retry_at = next_attempt(peer);
        peer.retries = true;
        touch();
        return end_step();
    }
    peer.phase = LinkPhase::greeting;
    peer.phase_since = now_;
    Message hello;
    hello.type = MessageType::hello;
    hello.payload_bytes = hello_payload_bytes;
    send(id, Stream::bulk, hello);
    send(id, Stream::control, hello);
    end_step();
}

// Answers and pings have a connection of their own; everything else keeps its order on the other.
static bool on_control(MessageType type) {
    constexpr MessageType types[] = {
        MessageType::generation_ack, MessageType::write_received, MessageType::write_ack,
        MessageType::flush_ack,      MessageType::trim,           MessageType::want_trim,
        MessageType::resync_ack,     MessageType::sync_done_ack,  MessageType::ping,
        MessageType::pong,
    };
    return std::find(std::begin(types), std::end(types), type) != std::end(types);
}

// Why this hello is not for us, or nullptr. The other side shows it, too: the words fit both.
static const char* hello_fault(const HelloPayload& hello, const HelloPayload& own, bool is_peer) {
    if (hello.version_min > own.version_max || hello.version_max < own.version_min) {
        return "no protocol version in common: upgrade the older node";
    }
    if (hello.from == own.from)
        return "both ends have one node id: an address leads to its own node, or two nodes have "
               "one id";
    if (hello.to != own.from) return "the hello is for another node id: check the addresses";
    if (!is_peer) return "one node is not configured as a peer of the other";
    if (hello.io_bytes_max != own.io_bytes_max) return "another limit for the size of a request";
    if (hello.journal_entries < 8) return "the peer remembers too few writes";
    if (hello.protocol != own.protocol) {
        return "the nodes have different replication protocols: give both the same option";
    }
    const std::array<std::uint8_t, 16> unset{};
    if (hello.volume_id != unset && own.volume_id != unset && hello.volume_id != own.volume_id) {
        return "the disks hold different volumes: to fill one from the other, make it anew (create "
               "--force)";
    }
    return nullptr;
}

// Another process than the one that is connected says hello: it was started anew, or two nodes have
// one id. The connected one's answer to a ping tells.
const char* Core::ask_who_is_there(NodeId id) {
    constexpr const char* twice =
        "a node with this id is connected already: if it was not just restarted, two nodes have "
        "the same id";
    Peer& peer = peers_[id];
    if (!peer.ping_pending) {
        peer.ping_pending = true;
        peer.ping_at = now_;
        send_control(id, MessageType::ping, ++peer.ping_id);
    }
    if (peer.why != twice) notice(6, id, twice);
    peer.why = twice;
    return twice;
}

void Core::on_hello(Instant now, std::uint64_t handle, const HelloPayload& hello) {
    now_ = now;
    const auto refuse = [&](std::uint64_t which, const char* why, int told = -1) {
        Effect& e = emit(EffectKind::refuse);
        e.handle = which;
        e.text = why;
        e.peer = told;
    };
    const bool is_peer = hello.from < nodes_max && configured(hello.from);
    const char* fault =
        hello_fault(hello, hello_for(is_peer ? hello.from : 0, hello.stream), is_peer);
    if (fault == nullptr && dials(hello.from)) {
        refuse(handle, "the node with the lower id dials");
        on_knock(hello.from);
        return end_step();
    }
    if (fault == nullptr && !peers_[hello.from].wanted) {
        fault = "the node that was dialled is StandAlone: connect there, too";
    }
    if (fault != nullptr) {
        if (is_peer && peers_[hello.from].why != fault) {
            peers_[hello.from].why = fault;
            notice(4, hello.from, fault);
        }
        refuse(handle, fault, is_peer ? static_cast<int>(hello.from) : -1);
        return end_step();
    }
    const NodeId id = hello.from;
    Peer& peer = peers_[id];
    // A copy of an earlier hello is no new connection, whoever sends it.
    if (std::find(peer.used_sessions.begin(), peer.used_sessions.end(), hello.session) !=
        peer.used_sessions.end()) {
        refuse(handle, "the same connection twice");
        return end_step();
    }
    if (peer.phase == LinkPhase::up && hello.incarnation != peer.incarnation) {
        refuse(handle, ask_who_is_there(id));
        return end_step();
    }
    if (peer.pending_session != hello.session) {
        for (std::uint64_t& old : peer.pending_handle) {
            if (old != 0) refuse(old, "a newer connection came");
            old = 0;
        }
        peer.pending_session = hello.session;
        peer.pending_since = now_;
    }
    std::uint64_t& place = peer.pending_handle[static_cast<std::size_t>(hello.stream)];
    if (place != 0) refuse(place, "the same connection twice");
    place = handle;
    if (peer.pending_handle[0] == 0 || peer.pending_handle[1] == 0) return end_step();

    accept_pair(id, hello);
    end_step();
}

// Both connections are there: they replace what was.
void Core::accept_pair(NodeId id, const HelloPayload& hello) {
    Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::down) lose_link(id, "the peer connected anew");
    peer.phase = LinkPhase::greeting;
    peer.phase_since = now_;
    peer.session = hello.session;
    std::rotate(peer.used_sessions.begin(), peer.used_sessions.end() - 1, peer.used_sessions.end());
    peer.used_sessions[0] = hello.session;
    peer.incarnation = hello.incarnation;
    peer.journal_max = hello.journal_entries;
    Effect& e = emit(EffectKind::adopt);
    e.peer = id;
    e.handle = peer.pending_handle[0];
    e.handle2 = peer.pending_handle[1];
    peer.pending_handle = {};
    peer.pending_session = 0;
    Message answer;
    answer.type = MessageType::hello;
    answer.payload_bytes = hello_payload_bytes;
    send(id, Stream::bulk, answer);
    send(id, Stream::control, answer);
    peer.accepting = true;
}

void Core::on_knock(NodeId id) {
    Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::down || !peer.wanted || is(Mutant::deaf_to_knocks)) return;
    peer.retries = false;
    start_dial(id);
}

void Core::on_handle_closed(Instant now, std::uint64_t handle) {
    now_ = now;
    for_peers([&](Peer& peer, NodeId) {
        for (std::uint64_t& pending : peer.pending_handle) {
            if (pending == handle) pending = 0;
        }
        if (peer.pending_handle[0] == 0 && peer.pending_handle[1] == 0) peer.pending_session = 0;
    });
    end_step();
}

void Core::link_up(NodeId id) {
    Peer& peer = peers_[id];
    ASSERT(peer.phase == LinkPhase::greeting);
    peer.phase = LinkPhase::up;
    ++peer.link;
    peer.accepting = false;
    peer.retries = false;
    peer.ping_at = now_;
    peer.ping_pending = false;
    peer.pause_told = peer.paused_there = false;
    peer.backlog_bytes = 0;
    peer.size_bytes = peer.room_bytes = 0;
    peer.pending = 0;
    peer.recorded = uuid_none;
    peer.told_set = {};
    peer.answered_order = 0;
    peer.reads_given_up = 0;
    peer.watches = {};
    peer.why = "";
    mark_unstable(id);
    peer.trim_told = 0;
    peer.wants_trim = false;
    notice(6, id, "connected");
    want_handshake(id);
}

void Core::on_link_closed(Instant now, NodeId id) {
    now_ = now;
    Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::down) {
        if (peer.phase == LinkPhase::dialling || peer.phase == LinkPhase::greeting) {
            peer.retries = true;
        }
        lose_link(id, "the connection broke");
    }
    end_step();
}

// An attempt that is under way may have lost its first packet, and wait long to send it again.
void Core::on_path_found(Instant now, NodeId id) {
    now_ = now;
    Peer& peer = peers_[id];
    if (peer.phase == LinkPhase::dialling) lose_link(id, "the network changed: connecting anew");
    if (peer.phase == LinkPhase::down && peer.wanted) {
        peer.retries = false;
        if (dials(id)) {
            start_dial(id);
        } else {
            knock(id);
        }
    }
    end_step();
}

// The connection is over. What the peer may lack is marked, and it leaves the in-sync set, before
// anything that it did not answer is acknowledged.
void Core::lose_link(NodeId id, const char* why, bool graceful, int level) {
    Peer& peer = peers_[id];
    const bool was_up = peer.phase == LinkPhase::up;
    const bool was_primary = peer.role == Role::primary;
    if (was_up) abort_resync(id);
    for (Chunk& chunk : chunks_) {
        if (chunk.peer == id && chunk.state == Chunk::State::sent) chunk = Chunk{};
    }
    const bool replicating = was_up && role_ == Role::primary && replicates_to(peer, id);
    if (replicating || (role_ == Role::primary && in_sync().has(id))) {
        mark_journal(peer.stable_seq, NodeMask::of(id));
    }
    peer.phase = LinkPhase::down;
    ++peer.link;
    peer.why = why;
    Effect& e = emit(EffectKind::close_link);
    e.peer = id;
    e.graceful = graceful;
    peer.retry_at = next_attempt(peer);
    peer.greeted = {};
    peer.accepting = false;
    peer.wants_trim = false;
    peer.role = Role::unknown;
    peer.agreed = false;
    peer.disk = DiskState::unknown;
    peer.repl = ReplicationState::off;
    peer.aligned = peer.named = false;
    peer.want_state = peer.state_sent = peer.state_received = false;
    peer.late_update.reset();
    if (was_up) {
        notice(level, id, why);
        if (role_ == Role::primary && in_sync().has(id)) evict(NodeMask::of(id));
        peer_gone_from_requests(id, 0);
        promote_waiting_.remove(id);
        register_.excuse(id);
        if (was_primary) primary_is_gone(id);
        if (role_ == Role::secondary && !sees_primary()) look_at_marked_peers();
    }
    retry_peers_ = true;
    touch();
}

// This Primary has no good disk, and the peer did not answer writes that protocols A and B
// acknowledged without it: nobody else is sure to have them.
bool Core::lacks_acknowledged(NodeId id) const {
    if (role_ != Role::primary || has_own_copy() || !in_sync().has(id)) return false;
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        const JournalEntry& entry = journal_.at(seq);
        if (entry.request == 0 && entry.unwritten.has(id)) return true;
    }
    return false;
}

void Core::go_standalone(NodeId id, const char* why) {
    peers_[id].wanted = false;
    Message m;
    m.type = MessageType::goodbye;
    m.flags = 2;
    send(id, Stream::bulk, m);
    lose_link(id, why, true, 3);
}

void Core::protocol_error(NodeId id, const char* why) {
    if (peers_[id].phase != LinkPhase::down) lose_link(id, why, false, 3);
}

bool Core::awaits_answer(const Peer& peer, NodeId id) const {
    const bool records = register_.awaited().has(id) && !is(Mutant::never_expel);
    return peer.pending > 0 || peer.state_sent || promote_waiting_.has(id) || records;
}

// Something is sent that the peer has to answer; it adds `pending` to the peer's count. Returns its
// place in the order of all that is sent.
std::uint64_t Core::expect_answer(NodeId id, std::uint32_t pending) {
    Peer& peer = peers_[id];
    if (!awaits_answer(peer, id)) peer.progress_at = now_;
    peer.pending += pending;
    return ++order_;
}

void Core::answered(NodeId id, std::uint64_t order, std::uint32_t pending) {
    Peer& peer = peers_[id];
    ASSERT(peer.pending >= pending);
    peer.pending -= pending;
    peer.progress_at = now_;
    peer.answered_order = std::max(peer.answered_order, order);
}

// For each kind, the place of the oldest request that the peer has not answered; 0: none.
std::array<std::uint64_t, Core::unanswered_kinds> Core::oldest_unanswered(NodeId id) const {
    const Peer& peer = peers_[id];
    std::array<std::uint64_t, unanswered_kinds> oldest{};
    const auto owes = [&](std::size_t kind, std::uint64_t order) {
        if (order != 0 && (oldest[kind] == 0 || order < oldest[kind])) oldest[kind] = order;
    };
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        if (!journal_.at(seq).unwritten.has(id)) continue;
        owes(0, journal_.at(seq).sent_order);
        break;
    }
    for (const Request& r : requests_) {
        const bool flush = r.kind == IoKind::flush && r.waiting.has(id);
        const bool read = r.remote_read && r.read_peer == id;
        if (r.phase == Phase::active && (flush || read)) owes(1, r.sent_order);
    }
    for (const Chunk& chunk : chunks_) {
        if (chunk.state == Chunk::State::sent && chunk.peer == id) owes(2, chunk.sent_order);
    }
    if (peer.state_sent) owes(3, peer.state_order);
    if (peer.done_sent) owes(3, peer.done_order);
    if (register_.awaited().has(id)) owes(3, peer.generation_order);
    if (promote_waiting_.has(id)) owes(3, peer.promote_order);
    return oldest;
}

// Whether one request hangs while others are answered. The peer has it, because it answered
// something that was sent later; and it has been the oldest of its kind for a request timeout.
bool Core::hangs(NodeId id) {
    Peer& peer = peers_[id];
    const std::uint64_t timeout_ns = config_.options.request_timeout_ms * ns_per_ms;
    peer.watch_at = now_ + timeout_ns / 4;
    if (is(Mutant::one_may_hang)) return false;
    const auto oldest = oldest_unanswered(id);
    for (std::size_t kind = 0; kind < unanswered_kinds; ++kind) {
        Watch& watch = peer.watches[kind];
        const std::uint64_t order = oldest[kind] < peer.answered_order ? oldest[kind] : 0;
        if (order == 0 || order != watch.order) watch = {order, now_};
        if (order != 0 && now_ >= watch.since + timeout_ns) return true;
    }
    return false;
}

void Core::tick_link(NodeId id) {
    Peer& peer = peers_[id];
    const ResourceOptions& o = config_.options;
    if (peer.pending_session != 0 && now_ >= peer.pending_since + 5 * ns_per_s) {
        for (std::uint64_t& handle : peer.pending_handle) {
            if (handle == 0) continue;
            Effect& e = emit(EffectKind::refuse);
            e.handle = handle;
            e.text = "the other connection of the pair did not come";
            handle = 0;
        }
        peer.pending_session = 0;
    }
    if (peer.phase == LinkPhase::down) {
        if (!peer.wanted || now_ < peer.retry_at) return;
        if (dials(id)) return start_dial(id);
        if (peer.knocks) knock(id);
        return;
    }
    if (peer.phase != LinkPhase::up) {
        if (now_ >= peer.phase_since + o.request_timeout_ms * ns_per_ms) {
            lose_link(id, "the peer did not answer the hello");
        }
        return;
    }
    if (peer.wants_trim && trim_waits_for_another(id)) {
        peer.progress_at = now_;
        peer.watches = {};
        peer.watch_at = now_ + o.request_timeout_ms * ns_per_ms / 4;
    } else if (awaits_answer(peer, id)) {
        const bool silent = now_ >= peer.progress_at + o.request_timeout_ms * ns_per_ms;
        if (silent || (now_ >= peer.watch_at && hangs(id)))
            return lose_link(id, "the peer did not answer in time");
    }
    if (peer.ping_pending) {
        if (now_ >= peer.ping_at + o.ping_timeout_ms * ns_per_ms) {
            lose_link(id, "the peer did not answer a ping");
        }
    } else if (now_ >= peer.ping_at + o.ping_interval_ms * ns_per_ms) {
        peer.ping_pending = true;
        peer.ping_at = now_;
        send_control(id, MessageType::ping, ++peer.ping_id);
    }
}

void Core::on_message(Instant now, NodeId id, Stream stream, const Message& m,
                      std::span<const std::byte> payload, BufferRef buffer) {
    now_ = now;
    Peer& peer = peers_[id];
    if (peer.phase == LinkPhase::greeting && !peer.accepting && m.type == MessageType::hello) {
        const auto hello = decode_hello(payload);
        const char* fault = hello ? hello_fault(hello.value(), hello_for(id, stream), true)
                                  : "a hello that can not be read";
        if (fault == nullptr && hello.value().from != id)
            fault = "another node answered: check the address";
        if (fault == nullptr && hello.value().session != peer.session)
            fault = "an answer to another hello";
        if (fault != nullptr) {
            protocol_error(id, fault);
            return end_step();
        }
        peer.greeted[static_cast<std::size_t>(stream)] = true;
        peer.incarnation = hello.value().incarnation;
        peer.journal_max = hello.value().journal_entries;
        if (peer.greeted[0] && peer.greeted[1]) {
            link_up(id);
            peer.ping_pending = true;  // tells the accepting side that both hellos have arrived
            send_control(id, MessageType::ping, ++peer.ping_id);
        }
        return end_step();
    }
    if (peer.phase == LinkPhase::greeting && peer.accepting && m.type != MessageType::hello)
        link_up(id);
    if (peer.phase == LinkPhase::up && on_control(m.type) != (stream == Stream::control)) {
        if (buffer.kind == BufferKind::receive) emit(EffectKind::release).index = buffer.index;
        protocol_error(id, "a message on the wrong connection");
    } else if (peer.phase == LinkPhase::up) {
        dispatch(id, m, payload, buffer);
    } else {
        if (buffer.kind == BufferKind::receive) emit(EffectKind::release).index = buffer.index;
        if (peer.phase == LinkPhase::greeting) protocol_error(id, "a message before the hello");
    }
    end_step();
}

// Messages whose payload is a structure of the handshake or of a generation.
void Core::dispatch_structured(NodeId id, const Message& m, std::span<const std::byte> payload) {
    if (m.type == MessageType::state) {
        const auto state = decode_state(payload);
        return state ? on_state(id, state.value())
                     : protocol_error(id, "a state that can not be read");
    }
    const auto g = decode_generation(payload);
    if (!g) return protocol_error(id, "a generation that can not be read");
    const Uuid named = uuid_identity(g.value().current_uuid);
    if (named == uuid_none || named == uuid_just_created) {
        return protocol_error(id, "a generation without a name");
    }
    if (m.type == MessageType::sync_done) return on_sync_done(id, m.id, g.value());
    if (m.type == MessageType::adopt_generation) return on_adopt_generation(id, g.value());
    on_generation(id, m, g.value());
}

void Core::dispatch(NodeId id, const Message& m, std::span<const std::byte> payload,
                    BufferRef buffer) {
    switch (m.type) {
        case MessageType::hello:
        case MessageType::reject:
            return protocol_error(id, "a hello in the middle");
        case MessageType::state:
        case MessageType::generation:
        case MessageType::adopt_generation:
        case MessageType::sync_done:
            return dispatch_structured(id, m, payload);
        case MessageType::state_update:
            return on_state_update(id, m);
        case MessageType::generation_ack:
            return on_generation_ack(id, m);
        case MessageType::generation_committed:
            return on_generation_committed(id, m);
        case MessageType::in_sync:
            return on_in_sync(id, m);
        case MessageType::promote:
            return on_promote(id, m);
        case MessageType::promote_reply:
            return on_promote_reply(id, m);
        case MessageType::invalidate:
            return m.flags == 0 ? on_invalidate(id) : on_invalidate_refused(id);
        case MessageType::goodbye:
            return on_goodbye(id, m);
        case MessageType::write:
        case MessageType::write_zeroes:
        case MessageType::resync_data:
        case MessageType::resync_zeroes:
            return on_peer_write(id, m, buffer);
        case MessageType::write_received:
            return peer_answered(m.seq, id, false);
        case MessageType::write_ack:
            return on_write_ack(id, m);
        case MessageType::flush:
            return on_peer_flush(id, m);
        case MessageType::flush_ack:
            return flush_answered(m.id, id, m.flags == 0);
        case MessageType::trim:
            return on_trim(id, m.trim_seq);
        case MessageType::want_trim:
            return on_want_trim(id);
        case MessageType::read:
            return on_peer_read(id, m);
        case MessageType::read_reply:
            return on_read_reply(id, m, buffer);
        case MessageType::bitmap_page:
        case MessageType::bitmap_ones:
        case MessageType::bitmap_done:
            return on_bitmap_message(id, m, payload);
        case MessageType::resync_ack:
            return on_resync_ack(id, m);
        case MessageType::sync_done_ack:
            return on_sync_done_ack(id, m);
        case MessageType::sync_pause:
            return on_sync_pause(id, m);
        case MessageType::ping:
            return send_control(id, MessageType::pong, m.id);
        case MessageType::pong:
            if (m.id == peers_[id].ping_id) {
                peers_[id].ping_pending = false;
                peers_[id].ping_at = now_;
            }
            return;
    }
}

// A peer whose disk failed a write does not have it, and has no good data any more.
void Core::on_write_ack(NodeId id, const Message& m) {
    if (m.flags == 0) return peer_answered(m.seq, id, true);
    // This answer is no longer awaited: it is about a disk that the peer had before.
    if (!journal_.has(m.seq) || !journal_.at(m.seq).unwritten.has(id)) return;
    if (bitmap_ && peers_[id].slot >= 0) {
        const JournalEntry& entry = journal_.at(m.seq);
        bitmap_->set_bytes(static_cast<unsigned>(peers_[id].slot), entry.offset, entry.length);
    }
    peer_lost_data(id);
}

void Core::on_goodbye(NodeId id, const Message& m) {
    if ((m.flags & 1) != 0 && role_ == Role::secondary && disk_ >= DiskState::consistent) {
        set_disk(DiskState::outdated);
    }
    lose_link(id, (m.flags & 2) != 0 ? "the peer is StandAlone: connect it there"
                                     : "the peer disconnected");
}

}  // namespace replica
