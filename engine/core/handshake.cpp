// SPDX-License-Identifier: Apache-2.0
// The exchange of states. A round: both sides send their state, both evaluate the same two values
// and reach mirror-image verdicts (I-Q6). Either side may start another round at any time; a resync
// under way is given up first and goes on from its bitmap.
#include <algorithm>
#include <utility>

#include "engine/core/for_peers.hpp"

namespace replica {

void Core::want_handshake(NodeId id) {
    if (peers_[id].phase == LinkPhase::up) peers_[id].want_state = true;
}

bool Core::sees_primary() const {
    bool seen = false;
    for_peers([&](const Peer& peer, NodeId) {
        seen = seen || (peer.phase == LinkPhase::up && peer.role == Role::primary);
    });
    return seen;
}

StatePayload Core::make_state(NodeId id) const {
    const Peer& peer = peers_[id];
    StatePayload s;
    s.role = static_cast<std::uint8_t>(role_);
    s.disk = static_cast<std::uint8_t>(disk_);
    s.current_uuid = sb_.current_uuid;
    s.generation_seq = sb_.extension.generation_seq;
    s.in_sync = in_sync().bits;
    s.set_change = sb_.extension.set_change;
    s.last_seq = last_seq_;
    s.promoted_at = sb_.extension.promoted_at_s;
    s.volume_id = sb_.extension.volume_id;
    s.history = sb_.history;
    s.cache_losses = sb_.extension.cache_losses;
    s.after_sb = {static_cast<std::uint8_t>(config_.options.after_sb_0pri),
                  static_cast<std::uint8_t>(config_.options.after_sb_1pri),
                  static_cast<std::uint8_t>(config_.options.after_sb_2pri),
                  static_cast<std::uint8_t>(lowest_equal() + 1)};
    if (disk_usable()) {
        s.size_bytes = std::max(volume_bytes_, growing_to_);
        s.size_max_bytes = room();
        if (growing_to_ > volume_bytes_) s.flags |= state_flag::growing;
        s.bitmap_uuid = sb_.peers[id].bitmap_uuid;
        s.admitting_uuid = sb_.peers[id].admitting_uuid;
        s.bits = bitmap_->count(static_cast<unsigned>(peer.slot));
        if ((sb_.peers[id].flags & md_peer_flag::full_sync) != 0) s.flags |= state_flag::full_sync;
        if (all_zero_) s.flags |= state_flag::all_zero;
        if (rests()) s.content = content_;
    }
    if (crashed_) s.flags |= state_flag::crashed;
    if (crashed_power_) s.flags |= state_flag::crashed_power;
    if (was_primary_) s.flags |= state_flag::was_primary;
    if (sees_primary()) s.flags |= state_flag::sees_primary;
    if (peer.discard_my_data) s.flags |= state_flag::discard_my_data;
    if (config_.options.protocol != Protocol::c) s.flags |= state_flag::always_sync;
    return s;
}

void Core::maybe_send_state(NodeId id) {
    Peer& peer = peers_[id];
    const bool changing = meta_ != MetaPhase::attached && meta_ != MetaPhase::detached;
    if (peer.state_sent || changing || !settled() || promotion_ == Promotion::recording) return;
    if (ends_resync(peer) && !peer.state_received && !is(Mutant::interrupt_the_end)) return;
    if (disk_usable() && (flush_wanted_ || flushing_) && !is(Mutant::state_before_flush)) return;
    if (metadata_usable() && sb_durable_ < size_version_) return;  // it has the size that it names
    // Its size may have to change, and that of the bitmap.
    const bool created = uuid_identity(sb_.current_uuid) == uuid_just_created;
    if (disk_usable() && created && !quiet()) return;
    // What is still on its way to the disk from the last connection could land on newer data
    // (I-C8).
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& p = peer_requests_[index];
        if (p.peer == id && p.link != peer.link && !is(Mutant::state_before_landing)) return;
    }
    abort_resync(id);
    if (!settled()) return;  // the set has changed with that
    peer.want_state = false;
    peer.state_order = expect_answer(id, 0);
    peer.state_sent = true;
    peer.aligned = false;
    peer.sent = make_state(id);
    peer.sent_attachment = attachment_;
    Message m;
    m.type = MessageType::state;
    m.payload_bytes = state_payload_bytes;
    send(id, Stream::bulk, m);
    if (peer.state_received) evaluate(id);
}

// What a node can say of itself.
static bool possible(Role role, DiskState disk) {
    const bool known = disk == DiskState::diskless || disk == DiskState::attaching ||
                       disk == DiskState::failed || disk == DiskState::inconsistent ||
                       disk == DiskState::outdated || disk == DiskState::consistent ||
                       disk == DiskState::up_to_date;
    return known && (role == Role::primary || role == Role::secondary);
}

void Core::on_state(NodeId id, const StatePayload& state) {
    Peer& peer = peers_[id];
    const auto disk = static_cast<DiskState>(state.disk);
    const bool sized = state.size_bytes > 0 && state.size_bytes % sector_bytes == 0;
    if (!possible(static_cast<Role>(state.role), disk) ||
        (disk >= DiskState::inconsistent ? !sized : state.size_bytes != 0)) {
        return protocol_error(id, "a state with impossible values");
    }
    if (peer.state_received) return protocol_error(id, "two states in one round");
    // The peer took sync_done before it sent this state: otherwise its disk would be Inconsistent.
    const bool complete =
        disk >= DiskState::outdated && (uuid_equal(state.current_uuid, sb_.current_uuid) ||
                                        uuid_equal(state.current_uuid, peer.done_uuid));
    if (peer.done_sent && complete && peer.repl == ReplicationState::sync_source)
        target_is_complete(id, state.current_uuid);
    abort_resync(id);
    peer.received = state;
    peer.told_set = low_number({state.generation_seq, state.set_change});
    if ((state.flags & state_flag::growing) == 0) peer.size_bytes = state.size_bytes;
    // What a new disk could hold says nothing of what it will have zeroed.
    const bool is_new = uuid_identity(state.current_uuid) == uuid_just_created;
    peer.room_bytes = is_new ? 0 : state.size_max_bytes;
    retry_held_ = retry_held_ || !held_.empty();
    peer.aligned = false;
    peer.state_received = true;
    if (peer.state_sent) {
        evaluate(id);
    } else {
        peer.want_state = true;
    }
}

// Why this node wants nothing to do with the peer, or nullptr.
const char* Core::not_to_be_met(NodeId id) const {
    const Peer& peer = peers_[id];
    const std::array<std::uint8_t, 16> unset{};
    if (peer.received.volume_id != unset && peer.sent.volume_id != unset &&
        peer.received.volume_id != peer.sent.volume_id) {
        return "the disks hold different volumes: to fill one from the other, make it anew (create "
               "--force)";
    }
    // Neither compares data without a disk, and neither may take the other's writes.
    const bool blind = peer.sent.size_bytes == 0 || peer.received.size_bytes == 0;
    if (role_ == Role::primary && peer.role == Role::primary && blind) {
        return "split brain: both sides are Primary, and one has no disk: demote one";
    }
    bool other_primary = false;
    for_peers([&](const Peer& other, NodeId other_id) {
        other_primary = other_primary || (other_id != id && other.phase == LinkPhase::up &&
                                          other.role == Role::primary);
    });
    if (role_ != Role::primary && peer.role == Role::primary && other_primary) {
        return "split brain: another connected peer is Primary already";
    }
    return nullptr;
}

// The generation that this node carries is on the peer's disk, by its own word.
bool Core::holds_generation(const Peer& peer) const {
    // A state that it sent before it got the generation may arrive after its generation_ack.
    return uuid_equal(peer.received.current_uuid, sb_.current_uuid) ||
           uuid_equal(peer.recorded, sb_.current_uuid);
}

// A primary without a good disk meets one of its last copies again. Nothing compares the data here,
// so the copy must hold what this primary acknowledged. False: it does not, and the link is closed.
bool Core::meet_without_disk(NodeId id) {
    if (role_ != Role::primary || has_own_copy() || !in_sync().has(id)) return true;
    const StatePayload& theirs = peers_[id].received;
    if (static_cast<DiskState>(theirs.disk) < DiskState::inconsistent) return true;
    if (theirs.cache_losses != peers_[id].cache_losses && !is(Mutant::ignore_cache_loss)) {
        // The only copy lost its cache under a primary that goes on: what it acknowledged is gone.
        orphaned_ = true;
        why_ = "the last disk lost acknowledged writes in a power cut; demote to accept that";
        notice(2, id, why_);
        return true;
    }
    if (peers_[id].lacks_acknowledged) {
        orphaned_ = true;
        why_ = "the last disk lacks acknowledged writes; demote to accept that";
        notice(2, id, why_);
        return true;
    }
    if (holds_generation(peers_[id]) || register_.awaited().has(id)) return true;
    if (!nothing_acknowledged_since(theirs.current_uuid)) {
        go_standalone(id, "the peer's data is not what this diskless Primary works on; demote it");
        return false;
    }
    open_generation_after(theirs.current_uuid);
    return true;
}

// A node that carries a generation is a member of its set, no matter who counted it in: what is
// written without it needs another generation. Returns whether a primary has opened one.
bool Core::learn_members(NodeId id) {
    const StatePayload& theirs = peers_[id].received;
    if (!uuid_equal(theirs.current_uuid, sb_.current_uuid) || theirs.size_bytes == 0) return false;
    const InSyncSet set = joined(register_.value(), set_of(theirs));
    NodeMask grown = set.members.without(in_sync());
    if (role_ != Role::primary) {
        if (set != register_.value()) {
            take_set(set);
            announce_set({});
        }
        return false;
    }
    grown = grown.without(NodeMask::of(id) | self());
    if (!grown.empty()) {
        open_generation(in_sync() | grown, grown);
        return true;
    }
    // The peer's set has a later number: nodes that this one could not hear have changed it.
    pass_number(set.number);
    return false;
}

// One of the two got a new generation after it had sent its state: this node, or the peer, which
// has then recorded a generation that its state does not name.
bool Core::is_overtaken(const Peer& peer, NodeId id) const {
    if (is(Mutant::judge_the_past)) return false;
    if (!uuid_equal(peer.sent.current_uuid, sb_.current_uuid)) return true;
    const bool offered = (peer.sent.flags & state_flag::discard_my_data) != 0;
    if (offered && !peer.discard_my_data) return true;  // that was of the data before
    // It sees a Primary by now, which decides for both.
    const bool alone = (peer.sent.flags & state_flag::sees_primary) == 0;
    const bool secondaries = role_ != Role::primary && peer.role != Role::primary;
    if (secondaries && alone && sees_primary()) return true;
    return role_ == Role::primary && in_sync().has(id) && !peer.finishing &&
           !uuid_equal(peer.received.current_uuid, sb_.current_uuid) &&
           uuid_equal(peer.recorded, sb_.current_uuid);
}

void Core::evaluate(NodeId id) {
    Peer& peer = peers_[id];
    peer.state_sent = peer.state_received = false;
    judge(id);
    // It came while this node asked the others, and its state says Secondary of this one.
    if (promotion_ == Promotion::asking && peer.phase == LinkPhase::up) ask_to_agree(id);
    if (!peer.late_update) return;
    const Message update = *peer.late_update;
    peer.late_update.reset();
    if (peer.phase == LinkPhase::up) on_state_update(id, update);
}

void Core::judge(NodeId id) {
    Peer& peer = peers_[id];
    const StatePayload& theirs = peer.received;
    const bool was_primary = peer.role == Role::primary && !peer.agreed;
    peer.role = static_cast<Role>(theirs.role);
    peer.agreed = false;  // if it still asks, it asks again
    peer.disk = static_cast<DiskState>(theirs.disk);
    peer.repl = ReplicationState::established;
    peer.paused_there = peer.paused_for_other = peer.pause_told = false;  // of the last round
    touch();
    if (peer.disk <= DiskState::inconsistent) no_good_copy(id);
    if (was_primary && peer.role != Role::primary) primary_is_gone(id);
    leave_it_to_the_primary();
    sync_flags();

    // This comes first: from here on a Primary without a good disk uses the peer as a copy,
    // whatever follows.
    if (!meet_without_disk(id)) return;
    // The peer's answer is to what was said of another disk, or of this one before it was away.
    if (peer.sent_attachment != attachment_) return want_handshake(id);
    if (is_overtaken(peer, id)) return want_handshake(id);
    if (const char* why = not_to_be_met(id)) return go_standalone(id, why);
    if (!agree_on_size(id)) return;
    if (orphaned_) return announce_state();
    if (peer.disk >= DiskState::inconsistent) peer.cache_losses = theirs.cache_losses;
    if (learn_members(id)) return want_handshake(id);
    const Decision d = decide(peer.sent, config_.node_id, theirs, id);
    Verdict verdict = d.verdict;
    if (verdict == Verdict::split_brain) {
        verdict = resolve_split_brain(d, peer.sent, theirs);
        const bool by_hand = ((peer.sent.flags ^ theirs.flags) & state_flag::discard_my_data) != 0;
        notice(verdict == Verdict::split_brain ? 3 : 4, id,
               verdict == Verdict::split_brain
                   ? "split brain: both sides have data that the other lacks"
               : by_hand ? "split brain resolved: one side was told to discard its data"
                         : "split brain resolved by policy");
    } else {
        notice(6, id, d.why);
    }
    // An operator offers the data of this side once, not for every split brain to come.
    peer.discard_my_data = false;
    // What changed since the state was sent belongs to the next round.
    const bool was_good = static_cast<DiskState>(peer.sent.disk) >= DiskState::outdated;
    const bool stale =
        disk_usable() != (peer.sent.size_bytes != 0) || (disk_ >= DiskState::outdated) != was_good;
    if (stale) return want_handshake(id);
    switch (verdict) {
        case Verdict::no_sync:
            return apply_no_sync(id);
        case Verdict::source_bitmap:
            return start_source(id, false);
        case Verdict::source_full:
            return start_source(id, true);
        case Verdict::target_bitmap:
            return start_target(id, false);
        case Verdict::target_full:
            return start_target(id, true);
        case Verdict::no_data:
            return announce_state();
        case Verdict::deferred:
            announce_state();
            return ask_the_lowest(id);
        case Verdict::split_brain:
            return go_standalone(id,
                                 "split brain: resolve it with connect --discard-my-data on the "
                                 "side whose changes are to be lost");
        case Verdict::unrelated:
            return go_standalone(id, "unrelated data: the disks never held the same volume");
    }
}

void Core::apply_no_sync(NodeId id) {
    Peer& peer = peers_[id];
    const bool same = peer.sent.content != 0 && peer.sent.content == peer.received.content;
    const bool as_sent = same ? content_ == peer.sent.content && rests()
                              : bitmap_->count(static_cast<unsigned>(peer.slot)) == 0;
    if (!as_sent) return want_handshake(id);  // written since the state was sent
    clear_marks(id, Proof::equal);
    peer.aligned = true;
    admit_to_in_sync(id);
    if (peer.role == Role::primary) follow(id);
    maybe_clear_crash_marker();
    maybe_up_to_date(peer.disk == DiskState::up_to_date);
    announce_state();
    take_content(peer.received.content, config_.peers);  // of two names both keep one
    tell_in_sync();
    hear_name_again(id);
}

// The only place where all marks toward a peer are cleared at once. While this node and the peer
// are in a resync, no third node's message clears them: only the last block of that resync does.
bool Core::clear_marks(NodeId id, Proof proof) {
    const Peer& peer = peers_[id];
    const bool own = proof == Proof::delivered || proof == Proof::received;
    if (peer.slot < 0 || (is_resyncing(peer.repl) && !own)) return false;
    bitmap_->clear_all(static_cast<unsigned>(peer.slot));
    PeerMetadata& md = sb_.peers[id];
    md.bitmap_uuid = uuid_none;
    // While a generation is being recorded, the peer may still carry the one before.
    if (!commit_pending_) md.admitting_uuid = uuid_none;
    md.flags &= ~md_peer_flag::full_sync;
    flush_bitmap_ = true;
    persist();
    touch();
    return true;
}

// Nothing writes to this disk: what it holds can have a name.
bool Core::rests() const {
    const bool written = std::any_of(
        peer_queue_.begin(), peer_queue_.end(),
        [&](std::uint32_t index) { return peer_requests_[index].kind != PeerIo::flush; });
    return role_ == Role::secondary && disk_usable() && disk_ >= DiskState::outdated &&
           active_source() < 0 && !written;
}

// An equal node names what both hold. Another node that states the same name, on its own link, is
// equal too: this node begins another handshake with each that may have it.
void Core::take_content(std::uint64_t content, NodeMask others) {
    if (content == 0 || !rests()) return;
    const bool news = content_ == 0 || content < content_;
    if (news) content_ = content;
    // Only with peers that this node has not told the name: a round in which both say the same as
    // before would end as before.
    for_peers([&](const Peer& peer, NodeId id) {
        const bool open = others.has(id) && equal_and_usable(peer) && !peer.in_round();
        if (open && !peer.aligned && peer.sent.content != content_) want_handshake(id);
    });
    if (news) tell_in_sync();  // others may wait to hear the name from this node
}

// The peer named what it holds before this node knew that it holds the same. The peer says the name
// again in its next state, so this node begins a handshake.
void Core::hear_name_again(NodeId id) {
    Peer& peer = peers_[id];
    const bool heard = peer.received.content != 0 && !peer.in_round();
    if (std::exchange(peer.named, false) && !heard) want_handshake(id);
}

// A node that this one is aligned with may be able to say that the two are equal; what it said
// before this round was of no use.
void Core::ask_the_lowest(NodeId deferred) {
    const int lowest = sees_primary() ? -1 : lowest_equal();
    if (lowest < 0 || lowest == config_.node_id || lowest == deferred) return;
    want_handshake(static_cast<NodeId>(lowest));
}

// Who aligned them may be gone: then it is their own turn.
void Core::look_at_marked_peers() {
    if (!disk_usable()) return;
    for_peers([&](Peer& peer, NodeId id) {
        const bool rests = peer.repl == ReplicationState::established;
        if (rests && bitmap_->count(static_cast<unsigned>(peer.slot)) > 0) want_handshake(id);
    });
}

// A connected peer, at rest, whose disk holds this node's generation.
bool Core::equal_and_usable(const Peer& peer) const {
    return peer.phase == LinkPhase::up && peer.repl == ReplicationState::established &&
           peer.disk >= DiskState::outdated && peer.disk != DiskState::unknown &&
           uuid_equal(peer.received.current_uuid, sb_.current_uuid);
}

// A connected peer whose disk holds just what this node's holds. The generation alone does not say
// so: after a crash two disks of one generation may differ in what is marked.
bool Core::equal(const Peer& peer) const { return equal_and_usable(peer) && peer.aligned; }

// The lowest id among those that could align this generation, or -1.
int Core::lowest_equal() const {
    int lowest = disk_ >= DiskState::outdated && disk_usable() ? config_.node_id : -1;
    for_peers([&](const Peer& peer, NodeId id) {
        if (equal_and_usable(peer) && (lowest < 0 || id < lowest)) lowest = id;
    });
    return lowest;
}

// A Consistent disk is UpToDate once a peer of its generation is, or once everybody who could know
// of newer data has been heard.
void Core::maybe_up_to_date(bool peer_is_up_to_date) {
    if (disk_ != DiskState::consistent && disk_ != DiskState::outdated) return;
    NodeMask heard = self();
    for_peers([&](const Peer& peer, NodeId id) {
        if (equal(peer)) heard.add(id);
    });
    if (peer_is_up_to_date || members().without(heard).empty()) set_disk(DiskState::up_to_date);
}

// An Inconsistent disk is no copy: whoever counts on the in-sync set must not count on it (I-R9).
void Core::no_good_copy(NodeId id) {
    if (role_ == Role::primary && in_sync().has(id) && !peers_[id].finishing)
        evict(NodeMask::of(id));
}

void Core::announce_state() {
    Message m;
    m.type = MessageType::state_update;
    m.id = static_cast<std::uint32_t>(role_) | static_cast<std::uint32_t>(disk_) << 8;
    for_peers([&](const Peer& peer, NodeId id) {
        if (peer.phase == LinkPhase::up) send(id, Stream::bulk, m);
    });
}

void Core::on_state_update(NodeId id, const Message& m) {
    Peer& peer = peers_[id];
    const auto role = static_cast<Role>(m.id & 0xff);
    const auto disk = static_cast<DiskState>(m.id >> 8 & 0xff);
    if (!possible(role, disk)) return protocol_error(id, "a state with impossible values");
    // Between its state and this node's answer it says nothing new to the verdict, and before the
    // first verdict nothing counts: a copy that was not judged yet must not be used.
    if (peer.state_received) peer.late_update = m;
    const bool lost = disk < DiskState::inconsistent;
    if ((peer.state_received || peer.repl == ReplicationState::off) && !lost) return;
    if (role_ == Role::primary && role == Role::primary) {
        return go_standalone(id, "split brain: both sides are Primary");
    }
    const bool demoted = peer.role == Role::primary && role == Role::secondary &&
                         (!peer.agreed || is(Mutant::forget_agreement));
    const bool lost_data = peer.disk >= DiskState::inconsistent &&
                           peer.disk != DiskState::unknown && disk < DiskState::inconsistent;
    if (role == Role::primary && role_ != Role::primary && equal(peer)) follow(id);
    // It had everything, and is another node's target now: its answer to sync_done, which may still
    // be on its way by the other stream, says nothing any more.
    const bool fell = peer.finishing && peer.disk >= DiskState::outdated &&
                      peer.disk != DiskState::unknown && disk <= DiskState::inconsistent;
    const bool fell_out = peer.disk > DiskState::inconsistent && disk <= DiskState::inconsistent;
    const bool still_asks = peer.agreed && role == Role::secondary && !is(Mutant::forget_agreement);
    peer.role = still_asks ? Role::primary : role;
    peer.agreed = still_asks;
    // A disk that the peer has attached counts when its state has been compared, and not before.
    const bool comes = peer.disk < DiskState::inconsistent && !lost && !is(Mutant::use_unjudged);
    if (!comes) peer.disk = disk;
    if (disk <= DiskState::inconsistent) peer.aligned = false;
    leave_it_to_the_primary();
    if (fell) {
        abort_resync(id);
        want_handshake(id);
    }
    touch();
    if (lost_data) peer_lost_data(id);
    const bool member = role_ == Role::primary && in_sync().has(id) && !peer.finishing;
    if (fell_out && member) {
        no_good_copy(id);
        want_handshake(id);
    }
    if (demoted) {
        // It had made everything stable everywhere before it stepped down.
        if (journal_owner_ == id) drop_journal(false);
        primary_is_gone(id);
    }
    sync_flags();
    if (equal(peer)) {
        maybe_up_to_date(disk == DiskState::up_to_date);
        if (role_ != Role::primary) tell_in_sync();
    }
}

// From here on the peer is the one that is sure to have what it acknowledges (R26).
void Core::follow(NodeId primary) {
    was_primary_ = false;
    if (register_.value().primary == primary) return;
    register_.note_primary(primary);
    mirror_set();
    persist();
}

// A resync among Secondaries is given up when one of them sees a Primary: only the Primary admits a
// target, because it alone knows which nodes get its writes.
void Core::leave_it_to_the_primary() {
    if (role_ == Role::primary || !sees_primary() || is(Mutant::admit_beside_primary)) return;
    for_peers([&](Peer& peer, NodeId id) {
        if (peer.role == Role::primary || !is_resyncing(peer.repl)) return;
        want_handshake(id);
        abort_resync(id);
    });
}

// Secondaries that left the decisions to it have to look at each other now.
void Core::primary_is_gone(NodeId id) {
    if (journal_owner_ == id) drop_journal(true);
    for_peers([&](Peer& peer, NodeId other) {
        if (other != id && peer.phase == LinkPhase::up) want_handshake(other);
    });
    if (peers_[id].phase == LinkPhase::up) want_handshake(id);
}

}  // namespace replica
