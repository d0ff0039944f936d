// SPDX-License-Identifier: Apache-2.0
// What a peer's messages do to this node's disk: replicated writes, flushes, resync writes, reads.
// Requests are queued in order of arrival; a write waits for earlier overlapping ones and for its
// extent in the activity log, a flush for every earlier write of its peer.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

// A primary counts its writes from 1, so no honest one comes near.
constexpr std::uint64_t seq_max = std::uint64_t{1} << 62;

}  // namespace

// It reaches the disk whatever becomes of its connection.
bool Core::landing(const PeerRequest& p) const {
    return p.phase == Phase::active || p.link != peers_[p.peer].link;
}

std::optional<std::uint32_t> Core::new_peer_request(NodeId peer) {
    // Slots are taken round robin, so a free one is usually the next.
    for (std::size_t i = 0; i < peer_requests_.size(); ++i) {
        const std::size_t index = (order_ + i) % peer_requests_.size();
        if (peer_requests_[index].phase != Phase::free) continue;
        PeerRequest& p = peer_requests_[index];
        p = PeerRequest{};
        p.phase = Phase::held;
        p.peer = peer;
        p.link = peers_[peer].link;
        p.order = ++order_;
        peer_queue_.push_back(static_cast<std::uint32_t>(index));
        return static_cast<std::uint32_t>(index);
    }
    return std::nullopt;
}

void Core::free_peer_request(std::uint32_t index) {
    PeerRequest& p = peer_requests_[index];
    if (p.buffer.kind == BufferKind::receive) emit(EffectKind::release).index = p.buffer.index;
    p.phase = Phase::free;
    std::erase(peer_queue_, index);
    if (peer_queue_.empty() && journal_.empty()) sync_flags();  // nothing is in flight any more
    retry_peers_ = true;
    if (!held_.empty()) retry_held_ = true;
    if (!al_waiting_.empty()) retry_al_ = true;
    if (meta_ == MetaPhase::detach_drain) detach_next();
}

void Core::on_peer_write(NodeId id, const Message& m, BufferRef buffer) {
    const bool zero = m.type == MessageType::write_zeroes || m.type == MessageType::resync_zeroes;
    const bool resync = m.type == MessageType::resync_data || m.type == MessageType::resync_zeroes;
    Peer& peer = peers_[id];
    const auto refuse = [&](const char* why) {
        if (buffer.kind == BufferKind::receive) emit(EffectKind::release).index = buffer.index;
        protocol_error(id, why);
    };
    const bool inside = m.length > 0 && m.offset % sector_bytes == 0 &&
                        m.length % sector_bytes == 0 && m.offset < volume_bytes_ &&
                        m.length <= volume_bytes_ - m.offset &&
                        m.offset / extent_bytes == (m.offset + m.length - 1) / extent_bytes;
    if (!inside && disk_usable()) return refuse("a write outside the volume");
    if (!resync && (peer.role != Role::primary || role_ == Role::primary))
        return refuse("a write from a peer that may not write here");
    const bool next = journal_owner_ != id || m.seq >= journal_.tail();
    const auto& told = peer.told_set;
    if (!resync && (told[0] != m.set_generation || told[1] != m.set_change))
        return refuse("a message under another in-sync set than the one that was told");
    if (!resync && (m.seq == 0 || m.seq > seq_max || !next))
        return refuse("a write with an impossible number");
    const auto index = new_peer_request(id);
    if (!index) return refuse("more requests than agreed");
    PeerRequest& p = peer_requests_[*index];
    p.kind = resync ? (zero ? PeerIo::resync_zero : PeerIo::resync_write)
                    : (zero ? PeerIo::zero : PeerIo::write);
    p.fua = (m.flags & write_flag::fua) != 0 && !resync;
    p.discard = resync || (m.flags & write_flag::discard) != 0;
    p.offset = m.offset;
    p.length = m.length;
    p.seq = m.seq;
    p.id = m.id;
    p.missing = NodeMask{m.nodes};
    p.buffer = buffer;
    (resync ? peer.resync_received_bytes : peer.received_bytes) += m.length;
    if (resync) {
        retry_peers_ = true;
        return;
    }
    app_request_at_ = now_;
    on_trim(id, m.trim_seq);
    follow_sequence(id, m.seq);
    JournalEntry entry;
    entry.offset = m.offset;
    entry.length = m.length;
    entry.local_pending = true;
    journal_.push(entry);
    p.journalled = true;
    last_seq_ = m.seq;
    if (disk_ == DiskState::inconsistent && disk_usable()) {
        // The target of a resync is no member: nobody tells it which of them is lost meanwhile.
        bitmap_->set_bytes_all_slots(m.offset, m.length, static_cast<unsigned>(peer.slot));
    } else if (disk_usable()) {
        for_peers([&](const Peer& other, NodeId other_id) {
            if (!NodeMask{m.nodes}.has(other_id) || other.slot < 0) return;
            if (is(Mutant::ignore_missing)) return;
            bitmap_->set_bytes(static_cast<unsigned>(other.slot), m.offset, m.length);
        });
    }
    if ((m.flags & write_flag::want_received) != 0) {
        Message ack;
        ack.type = MessageType::write_received;
        ack.seq = m.seq;
        send(id, Stream::control, ack);
    }
    retry_peers_ = true;
}

// Makes room in the journal for write `seq` of `primary`. Those that did not come here, because a
// resync had to begin anew meanwhile, are marked by it already.
void Core::follow_sequence(NodeId primary, std::uint64_t seq) {
    if (journal_owner_ == primary && journal_.empty()) journal_.restart(seq);
    while (journal_owner_ == primary && journal_.tail() < seq && !journal_.full())
        journal_.push(JournalEntry{});
    if (journal_owner_ == primary && journal_.tail() == seq && !journal_.full()) return;
    drop_journal(true);
    journal_.restart(seq);
    journal_owner_ = primary;
    sync_flags();
}

void Core::on_peer_flush(NodeId id, const Message& m) {
    if (!under_told_set(id, m)) return;
    on_trim(id, m.trim_seq);
    const auto index = new_peer_request(id);
    if (!index) return protocol_error(id, "more requests than agreed");
    peer_requests_[*index].kind = PeerIo::flush;
    peer_requests_[*index].id = m.id;
    peer_requests_[*index].seq = m.seq;
    retry_peers_ = true;
}

// The primary says: every write up to this one is stable wherever it was sent.
void Core::on_trim(NodeId id, std::uint64_t trim_seq) {
    if (journal_owner_ != id) return;
    while (!journal_.empty() && journal_.head() <= trim_seq) {
        JournalEntry& entry = journal_.at(journal_.head());
        if (entry.local_pending) return;  // a peer that lies about us; keep what we know
        release_journal_entry(entry);
        journal_.pop();
        trim_asked_ = false;
    }
}

bool Core::peer_conflicts(const PeerRequest& p) const {
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& other = peer_requests_[index];
        if (other.order >= p.order) break;
        if (p.kind == PeerIo::flush) {
            // It waits only for writes that it covers: the others may wait for this flush.
            const bool write = other.kind == PeerIo::write || other.kind == PeerIo::zero;
            if (write && other.peer == p.peer && other.link == p.link && other.seq <= p.seq)
                return true;
        } else if (other.kind != PeerIo::flush &&
                   ranges_overlap(p.offset, p.length, other.offset, other.length)) {
            return true;
        }
    }
    if (p.kind == PeerIo::flush) return false;
    // A resync may bring a write of this Primary that is not on its own disk yet. A chunk that is
    // being read or sent from here must be on its target before it changes.
    const bool resync = p.kind == PeerIo::resync_write || p.kind == PeerIo::resync_zero;
    return resync ? own_write_under_way(p.offset, p.length) : chunk_conflicts(p.offset, p.length);
}

void Core::retry_peer_requests() {
    retry_peers_ = false;
    peer_scratch_.assign(peer_queue_.begin(), peer_queue_.end());
    const bool starved = std::exchange(peer_al_starving_, false);
    const std::uint64_t starved_order = peer_al_starving_order_;
    for (const std::uint32_t index : peer_scratch_) {
        const Phase phase = peer_requests_[index].phase;
        if (phase == Phase::held || phase == Phase::al_wait) admit_peer_request(index);
    }
    issue_peer_reads();
    const bool better = !peer_al_starving_ || peer_al_starving_order_ > starved_order;
    if (starved && better && al_starving_) {
        retry_al_ = true;  // own requests may wait behind it
        touch();
    }
    if (!peer_al_starving_) return;
    // The extents are held by writes that wait for the primary's word that they are stable.
    if (journal_owner_ == config_.node_id) {
        want_epoch_flush_ = true;
        touch();
    } else if (journal_owner_ >= 0 && !trim_asked_) {
        trim_asked_ = true;
        send_control(static_cast<NodeId>(journal_owner_), MessageType::want_trim, 0);
    }
}

void Core::admit_peer_request(std::uint32_t index) {
    PeerRequest& p = peer_requests_[index];
    const bool resync = p.kind == PeerIo::resync_write || p.kind == PeerIo::resync_zero;
    if (!disk_usable()) {
        if (p.al_held) p.al_held = false;
        answer_peer_request(p, false, false);
        if (p.journalled) journal_.at(p.seq).local_pending = false;
        return free_peer_request(index);
    }
    const Peer& from = peers_[p.peer];
    const bool write = p.kind == PeerIo::write || p.kind == PeerIo::zero;
    if ((p.link != from.link && !write) || (write && role_ == Role::primary) ||
        (resync && (from.repl != ReplicationState::sync_target || from.paused_for_other))) {
        // Of a connection or a resync that is over, or not its turn: two sources would overwrite
        // each other. A write that has arrived is written all the same: with protocol B its
        // primary may have counted on it, and lost its own disk since.
        if (p.al_held) al_->release(extent_of(p.offset));
        if (p.journalled) journal_.at(p.seq).local_pending = false;
        answer_peer_request(p, false, false);  // the source keeps a chunk's number until then
        return free_peer_request(index);
    }
    if (p.kind != PeerIo::flush && !label_covers_data()) return;
    // Requests take their extents in order of arrival, even if they have to wait for others. So a
    // request that holds an extent came before each that waits for one, and does not depend on it.
    const bool logs = p.kind != PeerIo::flush && !is(Mutant::skip_activity_log);
    if (logs && !p.al_held && !peer_al_starving_) {
        const bool behind = al_starving_ && al_starving_order_ < p.order;
        p.al_held = !behind && al_->hold(extent_of(p.offset)) != AlCache::Hold::starved;
        peer_al_starving_ = !p.al_held;
        peer_al_starving_order_ = p.order;
    }
    if (peer_conflicts(p)) return;
    if (resync && role_ == Role::primary && !is(Mutant::newer_is_overwritten) &&
        is_newer_here(p.peer, p.offset, p.length)) {
        if (p.al_held) al_->release(extent_of(p.offset));
        answer_peer_request(p, true, true);
        return free_peer_request(index);
    }
    if (logs && !p.al_held) return;
    p.phase = Phase::al_wait;
    if (p.al_held && !al_->is_active(extent_of(p.offset))) return;
    issue_peer_request(index);
}

void Core::issue_peer_request(std::uint32_t index) {
    PeerRequest& p = peer_requests_[index];
    p.phase = Phase::active;
    const bool resync = p.kind == PeerIo::resync_write || p.kind == PeerIo::resync_zero;
    if (resync && !is(Mutant::ignore_target_marks)) {
        // Third nodes do not have what arrives here, unless they turn out to (I-R9).
        const int slot = peers_[p.peer].slot;
        bitmap_->set_bytes_all_slots(p.offset, p.length, static_cast<unsigned>(slot));
    }
    if (p.kind == PeerIo::flush) {
        if (is(Mutant::flush_answered_early)) answer_peer_request(p, true, false);
        ++disk_io_;
        emit(EffectKind::disk_flush).tag = {IoOrigin::peer_request, index};
        return;
    }
    Effect& e = write_data({IoOrigin::peer_request, index}, p.buffer, p.offset, p.length);
    // The source clears its bits at the answer: then the blocks must survive a power cut (I-R4).
    e.durable = (p.fua && !is(Mutant::fua_cached)) || (resync && !is(Mutant::resync_not_stable));
    e.discard = p.discard;
}

void Core::finish_peer_request(std::uint32_t index, int result) {
    PeerRequest& p = peer_requests_[index];
    ASSERT(p.phase == Phase::active);
    --disk_io_;
    const bool resync = p.kind == PeerIo::resync_write || p.kind == PeerIo::resync_zero;
    const bool metadata_good = metadata_usable();
    if (p.journalled) {
        JournalEntry& entry = journal_.at(p.seq);
        entry.local_pending = false;
        entry.al_held = p.al_held && metadata_good;
    } else if (p.al_held && metadata_good) {
        al_->release(extent_of(p.offset));
        retry_al_ = retry_al_ || al_starving_;
    }
    p.al_held = false;
    Peer& peer = peers_[p.peer];
    // A block of a resync that was given up meanwhile is not taken: the marks of both sides stay.
    const bool taken =
        !resync || (p.link == peer.link && peer.repl == ReplicationState::sync_target);
    if (result != 0) {
        local_io_failed(result);
    } else if (resync && taken && disk_usable()) {
        bitmap_->clear_bytes(static_cast<unsigned>(peer.slot), p.offset, p.length);
        peer.done_bits += p.length / block_bytes;
        touch();
    }
    const bool told = p.kind == PeerIo::flush && is(Mutant::flush_answered_early);
    if (!told) answer_peer_request(p, result == 0 && taken, false);
    free_peer_request(index);
    finish_failed_disk();
}

void Core::answer_peer_request(const PeerRequest& p, bool ok, bool skipped) {
    if (p.link != peers_[p.peer].link) return;
    Message m;
    m.flags = ok ? (skipped ? 2 : 0) : 1;
    switch (p.kind) {
        case PeerIo::write:
        case PeerIo::zero:
            m.type = MessageType::write_ack;
            m.seq = p.seq;
            break;
        case PeerIo::flush:
            m.type = MessageType::flush_ack;
            m.id = p.id;
            break;
        case PeerIo::resync_write:
        case PeerIo::resync_zero:
            m.type = MessageType::resync_ack;
            m.id = p.id;
            break;
    }
    send(p.peer, Stream::control, m);
}

// --- Reads that a peer asks for, and the answers to ours
// ----------------------------------------------

void Core::on_peer_read(NodeId id, const Message& m) {
    const auto free = std::find_if(peer_reads_.begin(), peer_reads_.end(),
                                   [](const PeerRead& read) { return !read.used; });
    const bool inside = m.length > 0 && m.length <= io_bytes_max && m.offset < volume_bytes_ &&
                        m.length <= volume_bytes_ - m.offset && m.offset % sector_bytes == 0 &&
                        m.length % sector_bytes == 0;
    if (disk_ != DiskState::up_to_date || !inside || free == peer_reads_.end()) {
        Message reply;
        reply.type = MessageType::read_reply;
        reply.id = m.id;
        reply.length = m.length;
        reply.flags = 1;
        return send(id, Stream::bulk, reply);
    }
    *free = {true, false, id, peers_[id].link, m.id, m.length, m.offset, ++order_};
    ++peer_reads_waiting_;
    issue_peer_reads();
}

// With protocols A and B a write is answered before it is on the disk: a read that came after it
// waits for it.
void Core::issue_peer_reads() {
    if (peer_reads_waiting_ == 0) return;
    for (std::size_t index = 0; index < peer_reads_.size(); ++index) {
        PeerRead& read = peer_reads_[index];
        if (!read.used || read.issued) continue;
        const bool held = std::any_of(peer_queue_.begin(), peer_queue_.end(), [&](std::uint32_t i) {
            const PeerRequest& p = peer_requests_[i];
            return p.kind != PeerIo::flush && p.order < read.order &&
                   ranges_overlap(read.offset, read.length, p.offset, p.length);
        });
        if (held && !is(Mutant::peer_read_overtakes)) continue;
        read.issued = true;
        --peer_reads_waiting_;
        if (disk_ != DiskState::up_to_date) {
            answer_peer_read(read, {});
            continue;
        }
        ++disk_io_;
        Effect& e = emit(EffectKind::disk_read);
        e.tag = {IoOrigin::peer_read, static_cast<std::uint32_t>(index)};
        e.buffer = {BufferKind::serve, static_cast<std::uint32_t>(index)};
        e.offset = read.offset;
        e.length = read.length;
    }
}

// buffer: where the bytes are; kind none: the read failed.
void Core::answer_peer_read(PeerRead& read, BufferRef buffer) {
    const bool ok = buffer.kind != BufferKind::none;
    Message m;
    m.type = MessageType::read_reply;
    m.id = read.id;
    m.length = read.length;
    m.flags = ok ? 0 : 1;
    m.payload_bytes = ok ? read.length : 0;
    if (read.link == peers_[read.peer].link) send(read.peer, Stream::bulk, m, buffer);
    read.used = false;
}

void Core::on_peer_read_io(std::uint32_t index, int result) {
    PeerRead& read = peer_reads_[index];
    ASSERT(read.used && read.issued);
    --disk_io_;
    const bool good = result == 0 && disk_usable();
    answer_peer_read(read, good ? BufferRef{BufferKind::serve, index} : BufferRef{});
    if (result != 0 && config_.options.on_io_error != OnIoError::pass_on) local_io_failed(result);
}

void Core::on_read_reply(NodeId id, const Message& m, BufferRef buffer) {
    if (!read_is_asked(id, m)) {
        // It may be one that was given up when the peer's disk failed.
        if (peers_[id].reads_given_up == 0)
            return protocol_error(id, "an answer to a read that was not asked");
        --peers_[id].reads_given_up;
        return;
    }
    const std::uint32_t slot = read_slot(m.id);
    Request& r = requests_[slot];
    answered(id, r.sent_order, 1);
    if (m.flags != 0) {
        if (r.error == 0) r.error = EIO;
        r.refused.add(id);
        return retry_read(slot);
    }
    ASSERT(buffer.kind == BufferKind::request && buffer.index == slot);
    r.remote_read = false;
    complete(slot, 0);
}

// The answer is to the read that this slot waits for, not to an earlier one.
bool Core::read_is_asked(NodeId id, const Message& m) const {
    const std::uint32_t slot = read_slot(m.id);
    if (slot >= config_.limits.requests) return false;
    const Request& r = requests_[slot];
    return r.phase == Phase::active && r.remote_read && r.read_peer == id && r.length == m.length &&
           r.read_serial == m.id >> 16;
}

BufferRef Core::destination(NodeId id, const Message& m) const {
    if (m.payload_bytes == 0) return {};
    if (m.type == MessageType::write || m.type == MessageType::resync_data) {
        return {BufferKind::receive, 0};
    }
    if (m.type != MessageType::read_reply || !read_is_asked(id, m)) return {};
    return {BufferKind::request, read_slot(m.id)};
}

}  // namespace replica
