// SPDX-License-Identifier: Apache-2.0
// The in-sync set S and the generations. A member leaves S before any write that it lacks is
// acknowledged: a new generation, with the member's bitmap slot based on the old one, is durable
// here and on every remaining member first. Promotion and demotion.
#include <algorithm>
#include <cerrno>

#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

bool meaningful(Uuid uuid) {
    return uuid_identity(uuid) != uuid_none && uuid_identity(uuid) != uuid_just_created;
}

}  // namespace

// Nothing that was decided is still on its way to a disk.
bool Core::settled() const {
    return awaiting_ack_.empty() && (sb_durable_ >= barrier_version_ || !metadata_usable());
}

void Core::evict(NodeMask lost) {
    ASSERT(role_ == Role::primary);
    const NodeMask rest = in_sync().without(lost);
    // The last copy does not leave: without it nothing is acknowledged anyway.
    if (rest.empty() || rest == in_sync()) return;
    NodeMask reachable;
    for_peers([&](const Peer& peer, NodeId id) {
        if (rest.has(id) && peer.phase == LinkPhase::up) reachable.add(id);
    });
    if (rest.has(config_.node_id)) reachable.add(config_.node_id);
    if (reachable.empty()) return;
    if (is(Mutant::evict_quietly)) {
        sb_.extension.in_sync = reachable;
        return persist();
    }
    open_generation(in_sync().without(reachable));
}

// The members of `lost` are behind from here on.
void Core::open_generation(NodeMask lost) {
    const Uuid old = sb_.current_uuid;
    std::uint64_t stable = ~std::uint64_t{0};
    for_peers([&](Peer& peer, NodeId id) {
        PeerMetadata& md = sb_.peers[id];
        if (lost.has(id)) {
            if (uuid_identity(md.bitmap_uuid) == uuid_none) md.bitmap_uuid = uuid_identity(old);
            stable = std::min(stable, peer.stable_seq);
        } else if (in_sync().has(id) && !peer.finishing) {
            // It may still carry the old generation if it is lost before it has the new one.
            if (!is(Mutant::no_admitting_base)) md.admitting_uuid = uuid_identity(old);
        }
    });
    if (lost.has(config_.node_id)) stable = std::min(stable, local_stable_seq_);
    SuperblockExtension& ext = sb_.extension;
    push_history(sb_.history, old);
    ext.in_sync = in_sync().without(lost);
    ext.parent_uuid = old;
    ext.generation_seq += 1;
    ext.primary_node = config_.node_id;
    sb_.current_uuid = new_id() | uuid_primary_bit;
    marked_seq_ = std::min(stable, journal_.tail());
    left_ = lost;
    persist();
    barrier_version_ = sb_version_;
    awaiting_ack_ = NodeMask{};
    commit_pending_ = true;
    touch();
    for_peers([&](const Peer& peer, NodeId id) {
        if (!ext.in_sync.has(id) || peer.phase != LinkPhase::up) return;
        if (peer.finishing && !peer.done_sent) return;  // that message will name this generation
        offer_generation(id);
    });
    notice(5, -1, "a new data generation");
}

void Core::offer_generation(NodeId id) {
    peers_[id].generation_order = expect_answer(id, 0);
    awaiting_ack_.add(id);
    Message m;
    m.type = MessageType::generation;
    m.seq = marked_seq_;
    m.nodes = left_.bits;
    send_generation(id, m);
}

GenerationPayload Core::make_generation() const {
    GenerationPayload g;
    g.current_uuid = sb_.current_uuid;
    g.parent_uuid = sb_.extension.parent_uuid;
    g.generation_seq = sb_.extension.generation_seq;
    g.in_sync = in_sync().bits;
    g.primary_node = sb_.extension.primary_node;
    g.disk = static_cast<std::uint8_t>(disk_);
    g.volume_id = sb_.extension.volume_id;
    g.history = sb_.history;
    return g;
}

void Core::on_generation(NodeId id, const Message& m, const GenerationPayload& g) {
    const NodeMask members{g.in_sync};
    if (!disk_usable()) return;  // the primary hears of the lost disk, or has already
    if (peers_[id].role != Role::primary || !members.has(config_.node_id) ||
        !uuid_equal(g.parent_uuid, sb_.current_uuid)) {
        return protocol_error(id, "a generation that does not follow this node's");
    }
    const NodeMask lost{m.nodes};
    const Uuid old = sb_.current_uuid;
    for_peers([&](Peer&, NodeId other) {
        PeerMetadata& md = sb_.peers[other];
        if (lost.has(other)) {
            if (uuid_identity(md.bitmap_uuid) == uuid_none) md.bitmap_uuid = uuid_identity(old);
        } else if (members.has(other) && !is(Mutant::no_admitting_base)) {
            md.admitting_uuid = uuid_identity(old);
        }
    });
    mark_journal(m.seq, lost);
    push_history(sb_.history, old);
    sb_.current_uuid = g.current_uuid;
    sb_.extension.parent_uuid = g.parent_uuid;
    sb_.extension.generation_seq = g.generation_seq;
    sb_.extension.in_sync = members;
    sb_.extension.primary_node = g.primary_node;
    peers_[id].received.current_uuid = g.current_uuid;
    persist();
    barrier_version_ = sb_version_;  // its name is not given out before it is on the disk
    touch();
    on_durable(OnDurable::What::generation_ack, id, g.current_uuid);
}

void Core::on_generation_ack(NodeId id, const Message& m) {
    if (m.offset == sb_.current_uuid && awaiting_ack_.has(id)) {
        answered(id, peers_[id].generation_order, 0);
        awaiting_ack_.remove(id);
    }
    peers_[id].received.current_uuid = peers_[id].recorded = m.offset;
    // It may have what this disk waits for.
    if (role_ == Role::primary && disk_ == DiskState::inconsistent) want_handshake(id);
}

// Every member has it: none can come back with the one before.
void Core::maybe_commit_generation() {
    if (!commit_pending_ || !settled()) return;
    commit_pending_ = false;
    Message m;
    m.type = MessageType::generation_committed;
    m.offset = sb_.current_uuid;
    for_peers([&](const Peer& peer, NodeId id) {
        if (!in_sync().has(id) || peer.finishing || peer.phase != LinkPhase::up) return;
        sb_.peers[id].admitting_uuid = uuid_none;
        send(id, Stream::bulk, m);
    });
    advance_trim();
    persist();
    touch();
}

void Core::on_generation_committed(NodeId, const Message& m) {
    if (m.offset != sb_.current_uuid) return;
    for_peers([&](Peer&, NodeId other) {
        if (in_sync().has(other)) sb_.peers[other].admitting_uuid = uuid_none;
    });
    persist();
}

// A Primary speaks of its in-sync set, and the stream puts that behind every write that somebody
// did not get: marks toward those that it counts are for nothing then. A Secondary names what it
// and others hold; that alone clears nothing (take_content()).
void Core::on_in_sync(NodeId id, const Message& m) {
    const Peer& sender = peers_[id];
    const NodeMask members{m.nodes};
    if (!members.has(config_.node_id) || !disk_usable() || role_ == Role::primary) return;
    const bool clean = bitmap_->count(static_cast<unsigned>(sender.slot)) == 0;
    if (is(Mutant::hearsay) && !sender.leads()) {
        for_peers([&](Peer& peer, NodeId other) {
            if (members.has(other)) bitmap_->clear_all(static_cast<unsigned>(peer.slot));
        });
    }
    if (!sender.leads()) {
        if (!sees_primary() && equal(sender) && clean && !sender.in_round())
            take_content(m.offset, members);
        return;
    }
    if (!in_sync().has(config_.node_id) || disk_ != DiskState::up_to_date) return;
    for_peers([&](const Peer&, NodeId other) {
        if (members.has(other)) clear_marks(other, Proof::primary);
    });
    sb_.extension.in_sync = members;
    maybe_clear_crash_marker();
    persist();
}

void Core::admit_to_in_sync(NodeId id) {
    sb_.extension.in_sync.add(id);
    peers_[id].stable_seq = std::max(peers_[id].stable_seq, journal_.head() - 1);
    persist();
    touch();
}

// The connection stands, the peer's data is gone.
void Core::peer_lost_data(NodeId id) {
    Peer& peer = peers_[id];
    abort_resync(id);
    awaiting_ack_.remove(id);  // it records nothing any more
    if (role_ == Role::primary) {
        mark_journal(peer.stable_seq, NodeMask::of(id));
        if (in_sync().has(id)) evict(NodeMask::of(id));
        peer_gone_from_requests(id, EIO);
    }
    if (peer.disk >= DiskState::inconsistent) peer.disk = DiskState::failed;
    if (peer.repl != ReplicationState::off) peer.repl = ReplicationState::established;
    touch();
}

// --- Promotion
// ----------------------------------------------------------------------------------------

void Core::try_promote() {
    ASSERT(promotion_ == Promotion::asking);
    for_peers([&](const Peer& peer, NodeId id) {
        if (peer.phase != LinkPhase::up) promote_waiting_.remove(id);
    });
    if (!promote_waiting_.empty()) return;
    if (!disk_usable()) return abandon_promotion(Errc::state, "the disk is gone");
    bool handshake = false;
    for_peers([&](const Peer& peer, NodeId) { handshake = handshake || peer.in_round(); });
    if (handshake || !settled()) return;
    if (sees_primary()) return abandon_promotion(Errc::state, "a peer is Primary; demote it first");
    if (disk_ != DiskState::up_to_date && !promote_command_.force) {
        return abandon_promotion(Errc::state, "the disk is not UpToDate any more");
    }
    if (promote_command_.force) give_up_targets();
    // What peers had sent lands before anything is promised about this disk.
    const bool lands =
        std::any_of(peer_queue_.begin(), peer_queue_.end(),
                    [&](std::uint32_t index) { return landing(peer_requests_[index]); });
    if (!lands) become_primary();
}

void Core::abandon_promotion(Errc code, const char* why) {
    if (promotion_ == Promotion::recording) {
        role_ = Role::secondary;  // nothing was acknowledged in it
        drop_journal(true);
    }
    promotion_ = Promotion::none;
    promote_waiting_ = NodeMask{};
    awaiting_ack_ = NodeMask{};
    commit_pending_ = false;
    reply(promote_command_.token, code, why);
    sync_flags();
    Message m;  // the peers that agreed count on a primary
    m.type = MessageType::promote;
    m.id = promote_attempt_;
    m.flags = 1;
    for_peers([&](const Peer& peer, NodeId id) {
        if (peer.phase == LinkPhase::up) send(id, Stream::bulk, m);
    });
    announce_state();
    for_peers([&](Peer&, NodeId id) {
        if (promote_command_.force) want_handshake(id);  // its resync was given up for it
    });
    touch();
}

void Core::become_primary() {
    promotion_ = Promotion::recording;
    content_ = 0;
    role_ = Role::primary;
    was_primary_ = true;
    ASSERT(journal_.empty() || journal_owner_ != config_.node_id);
    drop_journal(true);
    journal_.restart(1);
    journal_owner_ = config_.node_id;
    local_stable_seq_ = 0;
    last_seq_ = 0;
    const bool forced = disk_ != DiskState::up_to_date;
    NodeMask members = self();
    for_peers([&](Peer& peer, NodeId id) {
        peer.discard_my_data = false;  // offered before this data was written
        peer.stable_seq = 0;
        if (equal(peer) && peer.disk == DiskState::up_to_date && !forced) members.add(id);
    });
    const std::array<std::uint8_t, 16> unset{};
    if (sb_.extension.volume_id == unset) {
        for (std::uint8_t& byte : sb_.extension.volume_id)
            byte = static_cast<std::uint8_t>(entropy_.next());
    }
    // The last primary may live on without a disk, and takes this data for its own by the name.
    const std::int32_t last = sb_.extension.primary_node;
    const bool unseen_primary = last >= 0 && last != config_.node_id &&
                                peers_[static_cast<std::size_t>(last)].phase != LinkPhase::up;
    sb_.extension.promoted_at_s = promote_command_.wall_clock_s;
    sb_.extension.primary_node = config_.node_id;
    const NodeMask lost = (in_sync() | config_.peers).without(members);
    const bool diverges =
        (!in_sync().without(members).empty() && !is(Mutant::promote_without_members)) || forced ||
        unseen_primary || !meaningful(sb_.current_uuid);
    for_peers([&](Peer&, NodeId id) {
        if (forced && lost.has(id) && !meaningful(sb_.current_uuid)) set_slot_full(id);
    });
    if (diverges) {
        sb_.extension.in_sync = in_sync() | members;
        open_generation(in_sync().without(members));
    } else {
        sb_.extension.in_sync = members;
    }
    if (disk_ != DiskState::up_to_date) {
        disk_ = DiskState::up_to_date;
        notice(4, -1, "promoted by force: newer data elsewhere is given up");
    }
    all_zero_ = false;
    sync_flags();
    persist();
    barrier_version_ = sb_version_;
    touch();
}

void Core::on_promote(NodeId id, const Message& m) {
    Peer& peer = peers_[id];
    if (m.flags != 0) return on_promotion_given_up(id, m.id);
    // Two that ask at once: the lower id goes first.
    bool refuse =
        role_ == Role::primary || (promotion_ != Promotion::none &&
                                   (config_.node_id < id || promotion_ == Promotion::recording));
    for_peers([&](const Peer& other, NodeId other_id) {
        refuse = refuse ||
                 (other_id != id && other.phase == LinkPhase::up && other.role == Role::primary);
    });
    Message answer;
    answer.type = MessageType::promote_reply;
    answer.id = m.id;
    answer.flags = refuse ? 1 : 0;
    if (refuse) return send(id, Stream::bulk, answer);
    if (promotion_ == Promotion::asking) {
        abandon_promotion(Errc::busy, "another node is being promoted");
    }
    if (peer.role != Role::primary) peer.agreed = true;
    peer.agreed_to = m.id;
    peer.role = Role::primary;
    for_peers([&](Peer& other, NodeId other_id) {
        // A resync among secondaries ends: the primary is its source from here on.
        if (other_id != id && is_resyncing(other.repl)) {
            want_handshake(other_id);
            abort_resync(other_id);
        }
    });
    sync_flags();  // the crash marker is durable before the first write can come
    touch();
    on_durable(OnDurable::What::promote_reply, id, m.id);
}

// Only this ends an agreement, or the loss of the link: whatever else the peer says of itself in
// the meantime says nothing of what it asked for.
void Core::on_promotion_given_up(NodeId id, std::uint32_t attempt) {
    Peer& peer = peers_[id];
    if (!peer.agreed || peer.agreed_to != attempt) return;
    peer.agreed = false;
    peer.role = Role::secondary;
    primary_is_gone(id);
    sync_flags();
    touch();
}

void Core::on_promote_reply(NodeId id, const Message& m) {
    if (promotion_ != Promotion::asking || m.id != promote_attempt_) return;
    if (m.flags != 0) {
        return abandon_promotion(Errc::state, "a peer is primary already, or is becoming it");
    }
    if (uuid_equal(m.offset, sb_.current_uuid)) {
        sb_.extension.in_sync = in_sync() | NodeMask{m.nodes};
    }
    answered(id, peers_[id].promote_order, 0);
    promote_waiting_.remove(id);
}

void Core::try_demote() {
    if (!demote_command_ || role_ != Role::primary || promotion_ != Promotion::none) return;
    if (active_writes_ > 0 || !held_.empty() || !al_waiting_.empty()) return;
    if (!journal_.empty() && has_good_data() && !is(Mutant::demote_unflushed)) {
        want_epoch_flush_ = true;
        if (!epoch_flush_) start_epoch_flush();
        return;
    }
    if (epoch_flush_ || !settled()) return;
    for (const Request& r : requests_) {
        if (r.phase != Phase::free) return;
    }
    role_ = Role::secondary;
    orphaned_ = false;
    drop_journal(!has_good_data());
    sync_flags();
    announce_state();
    on_durable(OnDurable::What::demoted, 0, demote_command_->token);
    demote_command_.reset();
    for_peers([&](Peer& peer, NodeId id) {
        if (peer.phase == LinkPhase::up && !in_sync().has(id)) want_handshake(id);
    });
    touch();
}

}  // namespace replica
