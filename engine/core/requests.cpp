// SPDX-License-Identifier: Apache-2.0
// The application's requests on a primary. A write goes through: overlap hold, resync hold,
// activity log, then in one step the decision for each peer (sent or marked), the journal entry and
// the effects; it is acknowledged when what the acknowledgement promises is true (rules 1 to 6 of
// the write path, docs/architecture.md).
#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/core/disk_errno.hpp"
#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

bool is_write(IoKind kind) {
    return kind == IoKind::write || kind == IoKind::discard || kind == IoKind::write_zeroes;
}

}  // namespace

void Core::on_request(Instant now, std::uint32_t slot, IoKind kind, std::uint64_t offset,
                      std::uint32_t length, bool fua) {
    now_ = now;
    ASSERT(slot < config_.limits.requests && requests_[slot].phase == Phase::free);
    Request& r = requests_[slot];
    r = Request{};
    r.phase = Phase::active;
    r.kind = kind;
    r.offset = offset;
    r.length = length;
    r.fua = fua;
    r.order = ++order_;
    app_request_at_ = now_;
    if (role_ != Role::primary || promotion_ != Promotion::none) {
        complete(slot, EROFS);  // a promotion that is being recorded may still be taken back
    } else if (kind != IoKind::flush && (length == 0 || offset + length > volume_bytes_)) {
        complete(slot, is_write(kind) ? ENOSPC : EINVAL);
    } else {
        ASSERT(kind == IoKind::flush ||
               offset / extent_bytes == (offset + length - 1) / extent_bytes);
        admit(slot);
        if (r.phase == Phase::held) held_.push_back(slot);
    }
    end_step();
}

void Core::admit(std::uint32_t slot) {
    Request& r = requests_[slot];
    if (!has_good_data()) return complete(slot, no_data_error());
    if (r.kind == IoKind::flush) return issue_flush(slot);
    const bool beyond = out_of_reach(r);
    if (beyond && !disk_usable()) return complete(slot, is_write(r.kind) ? ENOSPC : EIO);
    const bool held =
        beyond || conflicts(r) ||
        (is_write(r.kind) && (journal_full() || write_range_busy(r.offset, r.length) ||
                              (disk_usable() && !label_covers_data())));
    if (held) {
        r.phase = Phase::held;
        if (journal_full()) want_epoch_flush_ = true;
        return;
    }
    if (r.kind == IoKind::read) {
        r.phase = Phase::active;
        r.counted = true;
        ++active_reads_;
        return issue_read(slot);
    }
    if (disk_usable() && !is(Mutant::skip_activity_log)) {
        AlCache::Hold hold = AlCache::Hold::starved;
        // A peer's request that waits for a slot arrived earlier.
        const bool behind = al_starving_ || peer_al_starving_;
        if (!behind) hold = al_->hold(extent_of(r.offset));
        r.al_held = hold != AlCache::Hold::starved;
        if (hold != AlCache::Hold::granted) {
            r.phase = Phase::al_wait;
            al_waiting_.push_back(slot);
            if (hold == AlCache::Hold::starved) {
                if (!al_starving_) al_starving_order_ = r.order;
                al_starving_ = true;
                want_epoch_flush_ = true;
                touch();
            }
            return;
        }
    }
    issue_write(slot);
}

// An earlier request that this one must not overtake: a write against any other, a read against a
// write. A read that saw a write on its way could be answered before the write is, and the value
// vanish at a failover.
bool Core::conflicts(const Request& request) const {
    const std::uint32_t reads = is_write(request.kind) ? active_reads_ : 0;
    if (active_writes_ + reads == 0 && held_.empty() && al_waiting_.empty()) return false;
    if (is(Mutant::no_overlap_hold)) return false;
    if (!is_write(request.kind) && is(Mutant::read_overtakes_write)) return false;
    for (const Request& other : requests_) {
        if (other.phase == Phase::free || other.order >= request.order) continue;
        if (other.kind == IoKind::flush) continue;
        if (!is_write(request.kind) && !is_write(other.kind)) continue;
        if (ranges_overlap(request.offset, request.length, other.offset, other.length)) return true;
    }
    return false;
}

// These blocks are on their way: a resync's from here (chunk), or a peer's to this disk.
bool Core::write_range_busy(std::uint64_t offset, std::uint64_t length) const {
    for (const Chunk& chunk : chunks_) {
        if (chunk.state != Chunk::State::free && !is(Mutant::chunk_not_held) &&
            ranges_overlap(offset, length, chunk.offset, chunk.length)) {
            return true;
        }
    }
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& p = peer_requests_[index];
        // Also what a primary that is gone had sent: it may be on its way to the disk still.
        if (p.kind != PeerIo::flush && p.phase == Phase::active &&
            ranges_overlap(offset, length, p.offset, p.length)) {
            return true;
        }
    }
    return false;
}

// On its way to this disk.
bool Core::own_write_under_way(std::uint64_t offset, std::uint64_t length) const {
    if (active_writes_ == 0) return false;
    return std::any_of(requests_.begin(), requests_.end(), [&](const Request& r) {
        return r.phase == Phase::active && is_write(r.kind) && r.local_pending &&
               ranges_overlap(offset, length, r.offset, r.length);
    });
}

// The one place that decides a peer's share of a write: true: sent; false: its bits are set.
bool Core::replicates_to(const Peer& peer, NodeId id) const {
    if (peer.phase != LinkPhase::up) return false;
    if (in_sync().has(id)) return peer.disk >= DiskState::inconsistent;
    return is_source(peer.repl) && peer.bitmap_sent;
}

void Core::issue_write(std::uint32_t slot) {
    Request& r = requests_[slot];
    r.phase = Phase::active;
    ++active_writes_;
    JournalEntry entry;
    entry.offset = r.offset;
    entry.length = r.length;
    entry.request = slot + 1;
    entry.local_pending = disk_usable();
    entry.al_held = r.al_held;
    r.al_held = false;
    // The others are told which nodes may lack this write. The target of a resync is one of them:
    // if it is lost, no generation says so, and the journals let go of what only it lacks. A node
    // that is a peer of the receiver but not of this node does not get the write either.
    const NodeMask all = is(Mutant::miss_only_peers) ? config_.peers : NodeMask{~0U};
    NodeMask missing = all.without(in_sync() | self());
    for_peers([&](Peer& peer, NodeId id) {
        if (replicates_to(peer, id)) {
            entry.unwritten.add(id);
        } else {
            missing.add(id);
            if (bitmap_ && peer.slot >= 0) {
                bitmap_->set_bytes(static_cast<unsigned>(peer.slot), r.offset, r.length);
            }
        }
    });
    if (!disk_usable()) missing.add(config_.node_id);
    // FUA is a promise about every in-sync disk, whatever the protocol; and without a good disk of
    // its own, or soon without, a primary may not count on what its peers only received.
    const bool counts_on_received = has_own_copy() || is(Mutant::count_on_received);
    const bool strict = r.fua || !counts_on_received || detach_command_;
    const Protocol protocol = strict ? Protocol::c : config_.options.protocol;
    if (protocol == Protocol::b) entry.unreceived = entry.unwritten;
    if (protocol != Protocol::a && !is(Mutant::ack_before_peer)) r.waiting = entry.unwritten;
    r.local_pending = entry.local_pending;
    r.seq = journal_.push(entry);
    own_seq_ = r.seq + 1;
    last_seq_ = r.seq;
    journal_owner_ = config_.node_id;
    counters_.written_bytes += r.length;
    if (!idle_flush_at_) idle_flush_at_ = now_ + config_.limits.idle_flush_ns;
    for_peers([&](Peer&, NodeId id) {
        if (!entry.unwritten.has(id)) return;
        journal_.at(r.seq).sent_order = expect_answer(id, 1);
        send_write(slot, id, missing);
    });
    if (r.local_pending) {
        const bool bytes = r.kind == IoKind::write;
        Effect& e = write_data({IoOrigin::request, slot},
                               bytes ? BufferRef{BufferKind::request, slot} : BufferRef{}, r.offset,
                               r.length);
        e.durable = r.fua && !is(Mutant::fua_cached);
        e.discard = r.kind == IoKind::discard;
    }
    if (journal_.size() * 2 > journal_limit()) want_epoch_flush_ = true;
    maybe_complete(slot);
}

void Core::send_write(std::uint32_t slot, NodeId id, NodeMask missing) {
    const Request& r = requests_[slot];
    Message m;
    m.type = r.kind == IoKind::write ? MessageType::write : MessageType::write_zeroes;
    m.seq = r.seq;
    m.offset = r.offset;
    m.length = r.length;
    m.trim_seq = journal_.head() - 1;
    m.nodes = missing.bits;
    if (r.fua) m.flags |= write_flag::fua;
    if (r.kind == IoKind::discard) m.flags |= write_flag::discard;
    if (config_.options.protocol == Protocol::b) m.flags |= write_flag::want_received;
    peers_[id].trim_told = m.trim_seq;
    if (r.kind == IoKind::write) {
        m.payload_bytes = r.length;
        peers_[id].sent_bytes += r.length;
        send(id, Stream::bulk, m, {BufferKind::request, slot});
    } else {
        send(id, Stream::bulk, m);
    }
}

void Core::issue_read(std::uint32_t slot) {
    Request& r = requests_[slot];
    bool local = disk_ == DiskState::up_to_date;
    if (!local && disk_usable()) {
        // A primary that is being resynced reads its clean blocks itself.
        const int source = active_source();
        if (source >= 0 && peers_[static_cast<unsigned>(source)].bitmap_received) {
            const int bits = peers_[static_cast<unsigned>(source)].slot;
            local = !bitmap_->any_in_bytes(static_cast<unsigned>(bits), r.offset, r.length);
        }
    }
    local = local && !r.refused.has(config_.node_id);
    if (local) {
        r.local_pending = true;
        ++disk_io_;
        Effect& e = emit(EffectKind::disk_read);
        e.tag = {IoOrigin::request, slot};
        e.buffer = {BufferKind::request, slot};
        e.offset = r.offset;
        e.length = r.length;
        return;
    }
    int from = -1;
    for_peers([&](const Peer& peer, NodeId id) {
        const bool good =
            peer.phase == LinkPhase::up && in_sync().has(id) && peer.disk == DiskState::up_to_date;
        if (good && from < 0 && !r.refused.has(id)) from = id;
    });
    if (from < 0) return complete(slot, r.error != 0 ? r.error : no_data_error());
    r.remote_read = true;
    r.read_peer = from;
    Message m;
    m.type = MessageType::read;
    r.read_serial = ++read_serial_;
    m.id = slot | std::uint32_t{r.read_serial} << 16;
    m.offset = r.offset;
    m.length = r.length;
    r.sent_order = expect_answer(static_cast<NodeId>(from), 1);
    send(static_cast<NodeId>(from), Stream::bulk, m);
}

void Core::retry_read(std::uint32_t slot) {
    Request& r = requests_[slot];
    r.remote_read = false;
    issue_read(slot);
}

void Core::issue_flush(std::uint32_t slot) {
    Request& r = requests_[slot];
    r.phase = Phase::active;
    r.read_serial = ++read_serial_;
    for_peers([&](Peer& peer, NodeId id) {
        if (!replicates_to(peer, id) || is(Mutant::flush_local_only)) return;
        r.waiting.add(id);
        r.sent_order = expect_answer(id, 1);
        Message m;
        m.type = MessageType::flush;
        m.id = slot | std::uint32_t{r.read_serial} << 16;
        m.seq = flush_seqs_[slot * nodes_max + id] = flush_bound(id, slot);
        m.trim_seq = journal_.head() - 1;
        send(id, Stream::bulk, m);
    });
    if (disk_usable()) flush_here(slot);
    maybe_complete(slot);
}

void Core::flush_here(std::uint32_t slot) {
    Request& r = requests_[slot];
    r.local_pending = r.flushed_here = true;
    r.flush_local_seq = local_done_seq();
    ++disk_io_;
    emit(EffectKind::disk_flush).tag = {
        slot == config_.limits.requests ? IoOrigin::epoch_flush : IoOrigin::request, slot};
}

// The last write up to which this peer has answered all that it got.
std::uint64_t Core::answered_bound(NodeId id) const {
    std::uint64_t seq = journal_.head();
    while (seq < journal_.tail() && !journal_.at(seq).unwritten.has(id))
        ++seq;
    return seq - 1;
}

// The last write that a flush covers on this peer. The core's own flush covers only what the peer
// has answered, so it never waits there: a write under way may wait for room in the peer's activity
// log, and only this flush makes that room. A flush of the application covers all that is complete;
// with protocols A and B that includes writes that the peer has not answered yet.
std::uint64_t Core::flush_bound(NodeId id, std::uint32_t slot) const {
    if (is(Mutant::flush_waits_for_all)) return journal_.tail() - 1;
    std::uint64_t bound = answered_bound(id);
    if (slot == config_.limits.requests) return bound;
    for (std::uint64_t seq = bound + 1; seq < journal_.tail(); ++seq) {
        const JournalEntry& entry = journal_.at(seq);
        if (entry.unwritten.has(id) && entry.request == 0) bound = seq;
    }
    return bound;
}

// Something waits for room in the journal or in an activity log, which only a flush frees.
bool Core::starving() const {
    bool found = al_starving_ || journal_full();
    for_peers([&](const Peer& peer, NodeId) { found = found || peer.wants_trim; });
    return found;
}

void Core::on_want_trim(NodeId id) {
    if (journal_owner_ != config_.node_id) return;
    peers_[id].wants_trim = true;
    if (flush_helps()) want_epoch_flush_ = true;  // else the flush under way brings the trim
    tell_trim();
}

// The oldest entry of the journal, or the core's own flush, waits for this peer's answer. A peer
// that only waits for room in its log has answered both, because neither needs room.
bool Core::holds_up_trim(NodeId id) const {
    const Request& flush = requests_[config_.limits.requests];
    return journal_.at(journal_.head()).unwritten.has(id) ||
           (epoch_flush_ && flush.waiting.has(id));
}

// The oldest entry of the journal waits for this node's disk or for another peer, and not for this
// peer. A peer whose activity log is full of earlier writes can answer nothing until that entry is
// trimmed.
bool Core::trim_waits_for_another(NodeId id) const {
    if (journal_.empty() || journal_owner_ != config_.node_id || holds_up_trim(id)) return false;
    const Request& flush = requests_[config_.limits.requests];
    bool waits =
        journal_.at(journal_.head()).local_pending || (epoch_flush_ && flush.local_pending);
    for_peers([&](const Peer& peer, NodeId other) {
        waits = waits || (other != id && replicates_to(peer, other) && holds_up_trim(other));
    });
    return waits && !is(Mutant::blame_the_waiting);
}

// Another flush would cover writes that the last one came too early for.
bool Core::flush_helps() const {
    bool helps = disk_usable() && local_done_seq() > local_stable_seq_;
    for_peers([&](const Peer& peer, NodeId id) {
        helps = helps || (replicates_to(peer, id) && answered_bound(id) > peer.stable_seq);
    });
    return helps;
}

std::uint64_t Core::local_done_seq() const {
    std::uint64_t seq = journal_.head();
    while (seq < journal_.tail() && !journal_.at(seq).local_pending)
        ++seq;
    return seq - 1;
}

// A flush of the core's own, that lets the journal and the activity log go on.
void Core::start_epoch_flush() {
    if (epoch_flush_) return;  // complete() asks again if that one was too early
    want_epoch_flush_ = false;
    if (role_ != Role::primary || journal_.empty()) return;
    if (!has_good_data()) {  // later, when there is a disk to flush
        if (!idle_flush_at_) idle_flush_at_ = now_ + config_.limits.idle_flush_ns;
        return;
    }
    epoch_flush_ = true;
    const std::uint32_t slot = config_.limits.requests;
    requests_[slot] = Request{};
    requests_[slot].kind = IoKind::flush;
    requests_[slot].order = ++order_;
    issue_flush(slot);
}

// A flush that failed says nothing about what is stable: never passed on, never repeated. Nor is a
// write that a peer has: the nodes would differ, and only this one know where.
bool Core::may_pass_on(const Request& r) const {
    if (config_.options.on_io_error != OnIoError::pass_on || r.kind == IoKind::flush) return false;
    if (!is_write(r.kind)) return true;
    return journal_.at(r.seq).unwritten.empty() && r.answered_ok.empty();
}

void Core::on_request_io(std::uint32_t slot, int result) {
    Request& r = requests_[slot];
    ASSERT(r.phase == Phase::active && r.local_pending);
    --disk_io_;
    r.local_pending = false;
    if (r.kind == IoKind::flush && is(Mutant::failed_flush_passes)) result = 0;
    // A failed flush may have taken what its cache held: what is read after it may be old.
    const bool unbelieved = r.kind == IoKind::read && result == 0 && !disk_usable();
    if (unbelieved) result = EIO;
    r.local_ok = result == 0;
    if (is_write(r.kind)) {
        JournalEntry& entry = journal_.at(r.seq);
        entry.local_pending = false;
        if (starving()) want_epoch_flush_ = true;
        if (!peer_queue_.empty()) retry_peers_ = true;
        if (result != 0) bitmap_->set_bytes_all_slots(r.offset, r.length);
        if (is(Mutant::clear_bit_on_completion)) {
            for_peers([&](const Peer& peer, NodeId id) {
                if (!entry.unwritten.has(id)) {
                    bitmap_->clear_bytes(static_cast<unsigned>(peer.slot), r.offset, r.length);
                }
            });
        }
    } else if (r.kind == IoKind::flush && result == 0) {
        local_stable_seq_ = std::max(local_stable_seq_, r.flush_local_seq);
    }
    if (result != 0) {
        if (!may_pass_on(r)) local_io_failed(result);
        // A disk that was detached in good order did not fail.
        const bool failed = !unbelieved || disk_failed_;
        if (failed && !is(Mutant::blame_path)) r.error = told_errno(result);
        if (r.kind == IoKind::read) {
            r.refused.add(config_.node_id);
            return retry_read(slot);
        }
    }
    finish_failed_disk();
    maybe_complete(slot);
}

void Core::peer_answered(std::uint64_t seq, NodeId id, bool written) {
    if (!journal_.has(seq)) return;
    JournalEntry& entry = journal_.at(seq);
    if (!entry.unwritten.has(id)) return;
    if (!written && !entry.unreceived.has(id)) return;
    entry.unreceived.remove(id);
    if (written) {
        answered(id, entry.sent_order, 1);
        entry.unwritten.remove(id);
        if (starving()) want_epoch_flush_ = true;
    }
    if (entry.request != 0) {
        Request& r = requests_[entry.request - 1];
        r.waiting.remove(id);
        if (written || is(Mutant::count_on_received)) r.answered_ok.add(id);
        maybe_complete(entry.request - 1);
    } else if (written) {
        advance_trim();
    }
}

void Core::flush_answered(std::uint32_t flush, NodeId id, bool ok) {
    const std::uint32_t slot = read_slot(flush);
    if (slot >= requests_.size())
        return protocol_error(id, "an answer to a flush that was not asked");
    Request& r = requests_[slot];
    if (r.phase != Phase::active || r.kind != IoKind::flush || !r.waiting.has(id)) return;
    if (r.read_serial != flush >> 16) return;  // of an earlier flush, which did not wait for it
    Peer& peer = peers_[id];
    answered(id, r.sent_order, 1);
    r.waiting.remove(id);
    if (ok) {
        r.answered_ok.add(id);
        peer.stable_seq = std::max(peer.stable_seq, flush_seqs_[slot * nodes_max + id]);
        maybe_complete(slot);
    } else {
        peer_lost_data(id);
        maybe_complete(slot);
    }
}

// This node's disk is a copy of what the node acknowledges. A disk that is being filled is not.
bool Core::has_own_copy() const { return metadata_usable() && in_sync().has(config_.node_id); }

// Enough of the in-sync set has it: this node's disk, or a member that answered. Without a disk
// here the generation is recorded by the members only: one that never got it will not know later
// that those who left lack what it has.
bool Core::request_succeeded(const Request& r) const {
    if (is(Mutant::ack_without_copy)) return true;
    if (r.local_ok && has_own_copy()) return true;
    bool found = false;
    for_peers([&](const Peer& peer, NodeId id) {
        const bool counts = r.answered_ok.has(id) && in_sync().has(id);
        found = found || (counts && (has_own_copy() || holds_generation(peer)));
    });
    return found;
}

void Core::maybe_complete(std::uint32_t slot) {
    Request& r = requests_[slot];
    if (r.phase != Phase::active || r.kind == IoKind::read) {
        if (r.phase == Phase::active && !r.local_pending && !r.remote_read) complete(slot, 0);
        return;
    }
    if (r.local_pending || !r.waiting.empty()) return;
    if (!settled() && !is(Mutant::generation_after_ack)) {
        completions_waiting_ = true;
        return;
    }
    // The last copy went while it was told of the generation: that it has the data is known to
    // nobody who comes after this node.
    if (!has_good_data()) return complete(slot, r.error != 0 ? r.error : no_data_error());
    if (!request_succeeded(r)) {
        // Protocols A and B did not wait for the peers' disks; without the own one they have to.
        if (is_write(r.kind) && !journal_.at(r.seq).unwritten.empty()) {
            r.waiting = journal_.at(r.seq).unwritten;
            return;
        }
        // The disk has come since the flush began, and is a copy now.
        if (r.kind == IoKind::flush && has_own_copy() && disk_usable() && !r.flushed_here)
            return flush_here(slot);
        return complete(slot, r.error != 0 ? r.error : no_data_error());
    }
    complete(slot, 0);
}

void Core::complete(std::uint32_t slot, int error) {
    Request& r = requests_[slot];
    const bool epoch = slot == config_.limits.requests;
    if (is_write(r.kind) && r.seq != 0) {
        journal_.at(r.seq).request = 0;
        --active_writes_;
    }
    if (r.counted) --active_reads_;
    r.counted = false;
    if (r.kind == IoKind::read && error == 0) counters_.read_bytes += r.length;
    if (r.kind != IoKind::read && error == 0) acknowledged_in_ = sb_.current_uuid;
    const bool was_flush = r.kind == IoKind::flush;
    r.phase = Phase::free;
    if (epoch) {
        epoch_flush_ = false;
        // What was still on its way when it went out is for the next one.
        if (!idle_flush_at_) idle_flush_at_ = now_ + config_.limits.idle_flush_ns;
    } else {
        Effect& e = emit(EffectKind::complete);
        e.index = slot;
        e.error = error;
        e.offset = sb_.current_uuid;  // what it was decided under: for checkers
        e.message.nodes = in_sync().bits;
    }
    advance_trim();
    if (!held_.empty()) retry_held_ = true;
    if (!peer_queue_.empty()) retry_peers_ = true;
    // It came too early for a write that has ended since: that one may be what all wait for.
    if (was_flush && starving() && flush_helps()) want_epoch_flush_ = true;
}

void Core::complete_waiting() {
    completions_waiting_ = false;
    for (std::uint32_t slot = 0; slot < requests_.size(); ++slot) {
        if (requests_[slot].phase == Phase::active) maybe_complete(slot);
    }
}

void Core::retry_held() {
    retry_held_ = false;
    scratch_.swap(held_);
    // Arrival order: what stays held keeps its place in front of what came later.
    for (const std::uint32_t slot : scratch_) {
        Request& r = requests_[slot];
        ASSERT(r.phase == Phase::held);
        r.phase = Phase::active;
        admit(slot);
        if (r.phase == Phase::held) held_.push_back(slot);
    }
    scratch_.clear();
}

void Core::retry_al_waiters() {
    retry_al_ = false;
    if (al_waiting_.empty()) {
        al_starving_ = false;
        return;
    }
    scratch_.swap(al_waiting_);
    al_starving_ = false;
    for (const std::uint32_t slot : scratch_) {
        Request& r = requests_[slot];
        ASSERT(r.phase == Phase::al_wait);
        if (!disk_usable()) {
            r.al_held = false;
            r.phase = Phase::active;
            admit(slot);
            if (r.phase == Phase::held) held_.push_back(slot);
            continue;
        }
        // No flush makes room any more: the disk that is here is no copy, and the others are lost.
        if (!has_good_data()) {
            if (std::exchange(r.al_held, false)) al_->release(extent_of(r.offset));
            complete(slot, no_data_error());
            continue;
        }
        // One order of arrival for this node's requests and its peers': they share the log.
        if (!r.al_held && !al_starving_) {
            const bool behind = peer_al_starving_ && peer_al_starving_order_ < r.order;
            r.al_held = !behind && al_->hold(extent_of(r.offset)) != AlCache::Hold::starved;
            al_starving_ = !r.al_held;
            al_starving_order_ = r.order;
        }
        // Since it was admitted a resync may have begun with these blocks.
        const bool free =
            !journal_full() && !write_range_busy(r.offset, r.length) && label_covers_data();
        if (r.al_held && al_->is_active(extent_of(r.offset)) && free) {
            issue_write(slot);
        } else {
            al_waiting_.push_back(slot);
        }
    }
    scratch_.clear();
    if (!al_starving_) return;
    want_epoch_flush_ = true;
    touch();
}

// A peer may remember fewer writes than this node.
std::uint64_t Core::journal_limit() const {
    std::uint64_t limit = journal_.capacity();
    for_peers([&](const Peer& peer, NodeId id) {
        if (replicates_to(peer, id)) limit = std::min<std::uint64_t>(limit, peer.journal_max);
    });
    return limit;
}

// Entries that are stable on this node and on every peer that got them leave the journal.
void Core::advance_trim() {
    // Who records a generation marks from its journal what the lost ones lack: not before that.
    if (journal_owner_ != config_.node_id) return;
    if (!settled() && !is(Mutant::trim_while_recording)) return;
    std::uint64_t stable = disk_usable() ? local_stable_seq_ : ~std::uint64_t{0};
    for_peers([&](const Peer& peer, NodeId id) {
        if (replicates_to(peer, id)) stable = std::min(stable, peer.stable_seq);
    });
    bool moved = false;
    while (!journal_.empty() && journal_.head() <= stable) {
        JournalEntry& entry = journal_.at(journal_.head());
        if (entry.local_pending || !entry.unwritten.empty() || entry.request != 0) break;
        release_journal_entry(entry);
        journal_.pop();
        moved = true;
    }
    if (!moved) return;
    if (!al_waiting_.empty()) retry_al_ = true;
    if (!held_.empty()) retry_held_ = true;
    tell_trim();
}

void Core::tell_trim() {
    // The next write carries it. But if a peer waits for it, that write may never come.
    const bool soon = !journal_.empty() && journal_.size() * 4 > journal_.capacity();
    for_peers([&](Peer& peer, NodeId id) {
        if (!replicates_to(peer, id) || peer.trim_told >= journal_.head() - 1) return;
        if (soon && !std::exchange(peer.wants_trim, false)) return;
        peer.wants_trim = false;
        Message m;
        m.type = MessageType::trim;
        m.trim_seq = peer.trim_told = journal_.head() - 1;
        send(id, Stream::control, m);
    });
}

// The peer answers nothing any more; what it may lack was marked by the caller.
void Core::peer_gone_from_requests(NodeId id, int error) {
    if (lacks_acknowledged(id)) peers_[id].lacks_acknowledged = true;
    // Chunks of a resync are still answered.
    peers_[id].pending = static_cast<std::uint32_t>(std::count_if(
        chunks_.begin(), chunks_.end(),
        [&](const Chunk& chunk) { return chunk.peer == id && chunk.state == Chunk::State::sent; }));
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        journal_.at(seq).unwritten.remove(id);
        journal_.at(seq).unreceived.remove(id);
    }
    for (std::uint32_t slot = 0; slot < requests_.size(); ++slot) {
        Request& r = requests_[slot];
        if (r.phase != Phase::active) continue;
        const bool asked = r.remote_read ? r.read_peer == id : r.waiting.has(id);
        if (!asked) continue;
        if (r.error == 0) r.error = error;
        if (r.remote_read) {
            ++peers_[id].reads_given_up;
            retry_read(slot);
            continue;
        }
        r.waiting.remove(id);
        maybe_complete(slot);
    }
    if (role_ == Role::primary) advance_trim();
    retry_held_ = retry_al_ = true;
}

}  // namespace replica
