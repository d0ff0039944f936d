// SPDX-License-Identifier: Apache-2.0
// The in-sync set S and the generations. A member leaves S before any write that it lacks is
// acknowledged: a new generation, with the member's bitmap slot based on the old one, is durable
// here and on every remaining member first. Promotion and demotion.
#include <algorithm>
#include <cerrno>

#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

std::array<std::uint32_t, 2> set_number_of(const Message& m) {
    return {m.set_generation, m.set_change};
}

bool meaningful(Uuid uuid) {
    return uuid_identity(uuid) != uuid_none && uuid_identity(uuid) != uuid_just_created;
}

}  // namespace

// All that this node decided is on its own label, and on those of the nodes that must record it.
bool Core::settled() const {
    return register_.in_force() && (sb_durable_ >= barrier_version_ || !metadata_usable());
}

void Core::evict(NodeMask lost) {
    ASSERT(role_ == Role::primary);
    const NodeMask rest = in_sync().without(lost);
    // The last copy does not leave: without it nothing is acknowledged anyway.
    if (rest.empty() || rest == in_sync()) return;
    NodeMask reachable;
    for_peers([&](const Peer& peer, NodeId id) {
        const bool met = peer.phase == LinkPhase::up && peer.repl != ReplicationState::off;
        if (rest.has(id) && met) reachable.add(id);
    });
    if (rest.has(config_.node_id)) reachable.add(config_.node_id);
    if (reachable.empty()) return;
    if (is(Mutant::evict_quietly)) return propose_set(changed(register_.value(), reachable));
    open_generation(in_sync(), in_sync().without(reachable));
}

// The one place where the label takes the register's value.
void Core::mirror_set() {
    const InSyncSet& set = register_.value();
    sb_.current_uuid = set.generation;
    SuperblockExtension& ext = sb_.extension;
    ext.parent_uuid = set.parent;
    ext.generation_seq = set.number.generation;
    ext.set_change = set.number.change;
    ext.in_sync = set.members;
    ext.primary_node = set.primary;
}

// The next in-sync set of this lineage, proposed by this node. It is in force when it is on this
// label and on the labels of all nodes that the caller awaits.
void Core::propose_set(const InSyncSet& next) {
    persist();
    register_.propose(next, {}, sb_version_);
    if (!metadata_usable()) register_.recorded_here(sb_version_);
    barrier_version_ = sb_version_;
    mirror_set();
    touch();
}

// A set that another node proposed, or that two nodes found when they compared theirs.
void Core::take_set(const InSyncSet& set) {
    if (set == register_.value()) return;
    persist();
    register_.load(set, sb_version_);
    if (!metadata_usable()) register_.recorded_here(sb_version_);
    barrier_version_ = sb_version_;  // no other node hears of it before it is on the disk
    mirror_set();
    touch();
}

// Tells every change of the set on every link, in its place among the writes: what is sent later
// carries the new number, and the receiver compares it (under_told_set()).
void Core::announce_set(NodeMask except) {
    Message m;
    m.type = MessageType::in_sync;
    m.flags = role_ == Role::primary ? 1 : 0;
    m.nodes = in_sync().bits;
    for_peers([&](const Peer& peer, NodeId id) {
        if (knows_state(peer) && !except.has(id)) send(id, Stream::bulk, m);
    });
}

// Members that can record a set now. A target that is being counted in records it later.
NodeMask Core::recorders(NodeMask but) const {
    NodeMask able;
    for_peers([&](const Peer& peer, NodeId id) {
        const bool later = peer.finishing && !peer.done_sent;
        const bool met = peer.phase == LinkPhase::up && peer.repl != ReplicationState::off;
        if (in_sync().has(id) && met && !later) able.add(id);
    });
    return able.without(but);
}

InSyncSet Core::set_of(const StatePayload& s) const {
    InSyncSet set = register_.value();
    set.generation = s.current_uuid;
    set.number = {s.generation_seq, s.set_change};
    set.members = NodeMask{s.in_sync};
    return set;
}

InSyncSet Core::set_of(const GenerationPayload& g) const {
    return {g.current_uuid,
            g.parent_uuid,
            {g.generation_seq, g.set_change},
            NodeMask{g.in_sync},
            g.primary_node};
}

// From here on the nodes in `lost` are behind; `members` are those of the set before.
void Core::open_generation(NodeMask members, NodeMask lost) {
    const Uuid old = sb_.current_uuid;
    std::uint64_t stable = ~std::uint64_t{0};
    for_peers([&](Peer& peer, NodeId id) {
        PeerMetadata& md = sb_.peers[id];
        if (lost.has(id)) {
            if (uuid_identity(md.bitmap_uuid) == uuid_none) md.bitmap_uuid = uuid_identity(old);
            stable = std::min(stable, peer.stable_seq);
            mark_journal(peer.stable_seq, NodeMask::of(id));
        } else if (members.has(id) && !peer.finishing) {
            // It may still carry the old generation if it is lost before it has the new one.
            if (!is(Mutant::no_admitting_base)) md.admitting_uuid = uuid_identity(old);
        }
    });
    if (lost.has(config_.node_id)) stable = std::min(stable, local_stable_seq_);
    push_history(sb_.history, old);
    InSyncSet before = register_.value();
    before.members = members;
    propose_set(without(before, lost, new_id() | uuid_primary_bit, config_.node_id));
    marked_seq_ = std::min(stable, journal_.tail());
    left_ = lost;
    tell_generation();
}

// This Primary has no good disk. A member was lost before it had recorded the generations since its
// own, `theirs`. Nothing was acknowledged in them, and perhaps no node has recorded them: the next
// generation is a child of the member's.
void Core::open_generation_after(Uuid theirs) {
    push_history(sb_.history, sb_.current_uuid);
    InSyncSet before = register_.value();
    before.generation = uuid_identity(theirs);
    propose_set(without(before, {}, new_id() | uuid_primary_bit, config_.node_id));
    marked_seq_ = journal_.head() - 1;
    left_ = (config_.peers | self()).without(in_sync());
    tell_generation();
}

// True if this Primary's line has the generation `theirs`, and acknowledged nothing since.
bool Core::nothing_acknowledged_since(Uuid theirs) const {
    if (uuid_equal(theirs, sb_.current_uuid)) return true;
    Uuid at = sb_.current_uuid;
    for (const Uuid earlier : sb_.history) {
        if (uuid_equal(at, acknowledged_in_) || uuid_identity(earlier) == uuid_none) return false;
        if (uuid_equal(theirs, earlier)) return true;
        at = earlier;
    }
    return false;
}

void Core::tell_generation() {
    commit_pending_ = true;
    const NodeMask offered = recorders({});
    for_peers([&](const Peer&, NodeId id) {
        if (offered.has(id)) offer_generation(id);
    });
    announce_set(offered);
    notice(5, -1, "a new data generation");
}

void Core::offer_generation(NodeId id) {
    peers_[id].generation_order = expect_answer(id, 0);
    register_.await(id);
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
    g.set_change = sb_.extension.set_change;
    g.primary_node = sb_.extension.primary_node;
    g.disk = static_cast<std::uint8_t>(disk_);
    g.volume_id = sb_.extension.volume_id;
    g.history = sb_.history;
    return g;
}

void Core::on_generation(NodeId id, const Message& m, const GenerationPayload& g) {
    const InSyncSet next = set_of(g);
    peers_[id].told_set = low_number(next.number);
    if (!disk_usable()) return;  // the primary hears of the lost disk, or has already
    // A target that never became the member that the Primary counts: its state tells that.
    if (disk_ == DiskState::inconsistent) return;
    const Uuid old = sb_.current_uuid;
    if (peers_[id].role != Role::primary || uuid_equal(next.generation, old) ||
        !register_.follows(next, config_.node_id)) {
        return protocol_error(id, "a generation that does not follow this node's");
    }
    const NodeMask lost{m.nodes};
    for_peers([&](Peer&, NodeId other) {
        PeerMetadata& md = sb_.peers[other];
        if (lost.has(other)) {
            if (uuid_identity(md.bitmap_uuid) == uuid_none) md.bitmap_uuid = uuid_identity(old);
        } else if (next.members.has(other) && !is(Mutant::no_admitting_base)) {
            md.admitting_uuid = uuid_identity(old);
        }
    });
    mark_journal(m.seq, lost);
    push_history(sb_.history, old);
    // The history also names generations that were opened in between and never reached this node.
    for (auto it = g.history.rbegin(); it != g.history.rend(); ++it)
        push_history(sb_.history, *it);
    take_set(next);
    peers_[id].received.current_uuid = g.current_uuid;
    // If this node was away, the Primary takes it back as a copy: it lacks nothing.
    set_disk(DiskState::up_to_date);
    tell_recorded(id);
    announce_set({});
}

// Tells the proposer that this node has recorded its set, once the label has it.
void Core::tell_recorded(NodeId id) {
    on_durable(OnDurable::What::generation_ack, id, sb_.current_uuid);
    on_durable_.back().number = register_.number();
}

void Core::on_generation_ack(NodeId id, const Message& m) {
    const bool current = uuid_equal(m.offset, sb_.current_uuid) &&
                         low_number(register_.number()) == set_number_of(m);
    if (current && register_.recorded_by(id, register_.number())) {
        answered(id, peers_[id].generation_order, 0);
    }
    peers_[id].recorded = m.offset;
    // A state that waits for its verdict stays as it came.
    if (!peers_[id].state_received) peers_[id].received.current_uuid = m.offset;
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

// From a Primary: its in-sync set. The stream puts the message behind every write that some node
// did not get, so the marks toward the nodes that it lists can go. From a Secondary: its set, or a
// name for what it and others hold; a name alone clears no marks (take_content()).
void Core::on_in_sync(NodeId id, const Message& m) {
    const Peer& sender = peers_[id];
    const NodeMask members{m.nodes};
    peers_[id].told_set = set_number_of(m);
    if (!members.has(config_.node_id) || !disk_usable() || role_ == Role::primary) return;
    const bool clean = bitmap_->count(static_cast<unsigned>(sender.slot)) == 0;
    if (is(Mutant::hearsay) && m.flags == 0) {
        for_peers([&](Peer& peer, NodeId other) {
            if (members.has(other)) bitmap_->clear_all(static_cast<unsigned>(peer.slot));
        });
    }
    if (m.flags != 0) return take_primarys_set(id, m);
    if (sees_primary()) return;
    if (equal(sender) && clean && !sender.in_round()) {
        take_content(m.offset, members);
    } else {
        peers_[id].named = sender.named || m.offset != 0;
    }
}

// The next set of this generation, or the same again. Any other set is refused: then this node and
// the Primary have to compare their states.
void Core::take_primarys_set(NodeId id, const Message& m) {
    const Peer& sender = peers_[id];
    const InSyncSet& own = register_.value();
    if (sender.role != Role::primary || !in_sync().has(config_.node_id) ||
        disk_ < DiskState::outdated || sender.repl == ReplicationState::off ||
        !uuid_equal(sender.received.current_uuid, own.generation)) {
        return;  // no member: the next handshake compares the sets
    }
    InSyncSet next = own;
    next.members = NodeMask{m.nodes};
    next.number.change = (own.number.change & ~std::uint64_t{0xffffffff}) | m.set_change;
    const bool same_generation = low_number(own.number)[0] == m.set_generation;
    const bool known = next.number == own.number && next.members == own.members;
    if (!same_generation || (!known && !register_.follows(next, config_.node_id)))
        return lose_link(id, "the in-sync sets of both differ: comparing them anew");
    next.primary = id;
    take_set(next);
    tell_recorded(id);
    for_peers([&](const Peer&, NodeId other) {
        if (NodeMask{m.length}.has(other)) clear_marks(other, Proof::primary);
    });
    maybe_clear_crash_marker();
    announce_set({});
}

// The peer has all that this node has. Members record that, and a Primary acknowledges nothing
// and tells the new member nothing before they have (send_sync_done()).
void Core::admit_to_in_sync(NodeId id) {
    Peer& peer = peers_[id];
    peer.stable_seq = std::max(peer.stable_seq, journal_.head() - 1);
    if (in_sync().has(id) && in_sync().has(config_.node_id)) return persist();
    const NodeMask own = disk_usable() && disk_ >= DiskState::outdated ? self() : NodeMask{};
    change_members(in_sync() | NodeMask::of(id) | own, NodeMask::of(id));
}

// A peer has a set of this generation with a later number. The next set here gets a number after
// it.
void Core::pass_number(SetNumber theirs) {
    const SetNumber own = register_.number();
    if (theirs.generation == own.generation && theirs > own)
        change_members(in_sync(), {}, theirs.change);
}

// Another set of the same generation, with a number after change `passed`. The members in `later`
// record it later.
void Core::change_members(NodeMask members, NodeMask later, std::uint64_t passed) {
    InSyncSet before = register_.value();
    before.number.change = std::max(before.number.change, passed);
    propose_set(changed(before, members));
    if (role_ == Role::primary) {
        const NodeMask must = recorders(later);
        for_peers([&](Peer& peer, NodeId id) {
            if (!must.has(id)) return;
            peer.generation_order = expect_answer(id, 0);
            register_.await(id);
        });
    }
    announce_set({});
}

// The connection stands, the peer's data is gone.
void Core::peer_lost_data(NodeId id) {
    Peer& peer = peers_[id];
    abort_resync(id);
    register_.excuse(id);  // it records nothing any more
    peer.recorded = uuid_none;
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
    for_peers([&](const Peer& peer, NodeId) {
        handshake = handshake || (peer.in_round() && !ends_resync(peer));
        // It is counted in, and its answer is on the way: then it is equal.
        handshake = handshake || peer.finishing;
    });
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
    register_.excuse_all();
    commit_pending_ = false;
    reply(promote_command_.token, code, why);
    sync_flags();
    Message m;  // the peers that agreed count on a primary
    m.type = MessageType::promote;
    m.flags = 1;
    for_peers([&](const Peer& peer, NodeId id) {
        m.id = peer.promote_asked;
        if (knows_state(peer)) send(id, Stream::bulk, m);
    });
    announce_state();
    for_peers([&](Peer&, NodeId id) {
        if (promote_command_.force) want_handshake(id);  // its resync was given up for it
    });
    touch();
}

void Core::become_primary() {
    promotion_ = Promotion::recording;
    data_changes();
    role_ = Role::primary;
    was_primary_ = true;
    ASSERT(journal_.empty() || journal_owner_ != config_.node_id);
    drop_journal(true);
    acknowledged_in_ = sb_.current_uuid;
    // Numbers go on where the last reign ended: a trim or an answer of that may still come.
    journal_.restart(own_seq_);
    journal_owner_ = config_.node_id;
    local_stable_seq_ = own_seq_ - 1;
    last_seq_ = 0;
    const bool forced = disk_ != DiskState::up_to_date;
    NodeMask members = self();
    for_peers([&](Peer& peer, NodeId id) {
        peer.lacks_acknowledged = false;
        peer.stable_seq = own_seq_ - 1;
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
    const NodeMask all = in_sync() | members;
    const NodeMask lost = all.without(members);
    const bool diverges = (!lost.empty() && !is(Mutant::promote_without_members)) || forced ||
                          unseen_primary || !meaningful(sb_.current_uuid);
    for_peers([&](Peer&, NodeId id) {
        if (forced && !members.has(id) && !meaningful(sb_.current_uuid)) set_slot_full(id);
    });
    register_.note_primary(config_.node_id);
    if (diverges) {
        open_generation(all, lost);
    } else if (members != in_sync()) {
        change_members(members, {});
    }
    mirror_set();
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
    if (m.flags == 1) return on_promotion_given_up(id, m.id);
    if (!under_told_set(id, m)) return;
    const bool forced = (m.flags & 2) != 0;
    // Two that ask at once: the lower id goes first.
    bool refuse =
        role_ == Role::primary || (promotion_ != Promotion::none &&
                                   (config_.node_id < id || promotion_ == Promotion::recording));
    for_peers([&](const Peer& other, NodeId other_id) {
        refuse = refuse ||
                 (other_id != id && other.phase == LinkPhase::up && other.role == Role::primary);
    });
    // What it said of its generation may be older than the set in which it is a member.
    const bool member = disk_usable() && in_sync().has(id);
    const bool behind = !forced && !member && is_past(peer.received.current_uuid);
    Message answer;
    answer.type = MessageType::promote_reply;
    answer.id = m.id;
    answer.flags = refuse ? 1 : behind ? 2 : 0;
    if (refuse || behind) return send(id, Stream::bulk, answer);
    if (promotion_ == Promotion::asking) {
        abandon_promotion(Errc::busy, "another node is being promoted");
    }
    if (peer.role != Role::primary) peer.agreed = true;
    peer.agreed_to = m.id;
    peer.role = Role::primary;
    leave_it_to_the_primary();
    sync_flags();  // the crash marker is durable before the first write can come
    touch();
    on_durable(OnDurable::What::promote_reply, id, m.id);
}

// True if this node knows that data of this generation is behind. A node without a disk only knows
// what it has acknowledged itself.
bool Core::is_past(Uuid generation) const {
    if (is(Mutant::agree_to_the_past) || uuid_equal(generation, sb_.current_uuid)) return false;
    const bool past = in_history(sb_.history, generation);
    return past && (disk_usable() || !nothing_acknowledged_since(generation));
}

// An agreement ends by this, by the loss of the link, or by a new handshake. A state_update does
// not end it: an asker is still Secondary, and says so.
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
    if (promotion_ != Promotion::asking || m.id != peers_[id].promote_asked) return;
    if (m.flags == 2) {
        return abandon_promotion(
            Errc::state,
            "a peer knows of newer data: wait until this node has it, or promote with "
            "--force and lose that");
    }
    if (m.flags != 0) {
        return abandon_promotion(Errc::state, "a peer is primary already, or is becoming it");
    }
    // Two nodes of one generation each count the members of both.
    if (uuid_equal(m.offset, sb_.current_uuid) && !NodeMask{m.nodes}.without(in_sync()).empty()) {
        change_members(in_sync() | NodeMask{m.nodes}, {});
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
