// SPDX-License-Identifier: Apache-2.0
// Resync: both sides send their bits and hold the union; the source reads chunks of set bits and
// sends them, the target makes each stable and answers, the source clears the bits. While a chunk
// is under way, writes to its blocks wait at the source, so that no newer write is overtaken. When
// no bit is left the source counts the target into the in-sync set, and only then tells it that it
// is UpToDate: a write after that moment waits for it.
#include <algorithm>

#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

constexpr int chunks_beside_app = 4;
// The application counts as busy for this long after a request. One that waits for each answer has
// nothing under way between two requests, and is busy all the same.
constexpr std::uint64_t app_recent_ns = 100 * ns_per_ms;

// The name of what the target of a full resync holds meanwhile.
Uuid full_sync_base(Uuid source_current) {
    return (uuid_identity(source_current) ^ 0x5e5e000000000000U) | 8;
}

}  // namespace

int Core::active_source() const {
    int found = -1;
    for_peers([&](const Peer& peer, NodeId id) {
        if (is_target(peer.repl) && !peer.paused_for_other && found < 0) found = id;
    });
    return found;
}

const Core::Chunk* Core::chunk_over(std::uint64_t offset, std::uint64_t length) const {
    const auto found = std::find_if(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) {
        return chunk.state != Chunk::State::free &&
               ranges_overlap(offset, length, chunk.offset, chunk.length);
    });
    return found == chunks_.end() ? nullptr : &*found;
}

bool Core::chunk_conflicts(std::uint64_t offset, std::uint64_t length) const {
    return chunk_over(offset, length) != nullptr;
}

void Core::start_source(NodeId id, bool full) {
    Peer& peer = peers_[id];
    peer.repl = ReplicationState::bitmap_source;
    peer.disk = DiskState::inconsistent;
    no_good_copy(id);
    peer.bitmap_sent = peer.bitmap_received = peer.finishing = peer.done_sent = false;
    peer.bitmap_cursor = peer.cursor = peer.backlog_bytes = 0;
    peer.done_bits = 0;
    peer.total_bits = 0;
    if (full) {
        // Both sides name the blank state that the bits start from, so that a cut resync goes on
        // where it was. It is on this disk before the target takes the name.
        sb_.peers[id].bitmap_uuid = full_sync_base(peer.sent.current_uuid);
        set_slot_full(id);
        barrier_version_ = sb_version_;
    }
    touch();
}

void Core::start_target(NodeId id, bool full) {
    Peer& peer = peers_[id];
    const int other = active_source();
    if (other >= 0 && other != id) {
        if (peer.role == Role::primary) {
            want_handshake(static_cast<NodeId>(other));
            abort_resync(static_cast<NodeId>(other));
        } else {
            peer.paused_for_other = true;
        }
    }
    peer.repl = ReplicationState::bitmap_target;
    peer.bitmap_sent = peer.bitmap_received = peer.finishing = peer.done_sent = false;
    peer.bitmap_cursor = peer.backlog_bytes = 0;
    peer.done_bits = 0;
    peer.total_bits = 0;
    peer.full_target = full;
    if (full) bitmap_->set_all(static_cast<unsigned>(peer.slot));
    all_zero_ = false;
    for_peers([](Peer& third, NodeId) { third.aligned = false; });
    stop_being_source();
    // Inconsistent is on the disk before the first block of the resync is.
    set_disk(DiskState::inconsistent);
    sync_flags();
    persist();
    barrier_version_ = sb_version_;
    update_pause(id);
    touch();
}

// Gives up a resync; it goes on later from its bits. A chunk that was sent keeps its place until
// its answer came or the connection is gone: its number must not mean something else before.
void Core::abort_resync(NodeId id) {
    Peer& peer = peers_[id];
    for (Chunk& chunk : chunks_) {
        if (chunk.peer == id && chunk.state != Chunk::State::free) chunk.aborted = true;
    }
    give_up_reserved(id);
    peer.chunks = 0;
    if (!is_resyncing(peer.repl)) return;
    // It gets no more writes, and those that it got need not be stable there.
    if (role_ == Role::primary && peer.bitmap_sent && !in_sync().has(id)) {
        mark_journal(peer.stable_seq, NodeMask::of(id));
    }
    // A target gets no trim from its source any more, and writes may wait here for one.
    const bool own_journal = is_target(peer.repl) && journal_owner_ == id;
    if (active_source() == id) look_at_paused_sources();
    if (peer.done_sent) --peer.pending;
    const bool counted = peer.finishing && role_ == Role::primary && in_sync().has(id);
    peer.finishing = peer.done_sent = false;
    peer.repl = ReplicationState::established;
    peer.bitmap_sent = peer.bitmap_received = false;
    retry_held_ = retry_peers_ = retry_al_ = true;
    touch();
    if (own_journal && !is(Mutant::wait_for_no_trim)) drop_journal(true);
    // The target was counted in and has not answered: it carries this generation, or still the
    // label of a target. It must not count for acknowledgements.
    if (!counted) return;
    mark_journal(peer.stable_seq, NodeMask::of(id));
    evict(NodeMask::of(id));
}

// All data has arrived: the target is about to be admitted, or has not yet confirmed it. A round or
// a growth that this node begins waits for that: otherwise the Primary would have to expel the
// target again.
bool Core::ends_resync(const Peer& peer) const {
    if (peer.finishing) return true;
    const bool paused = peer.paused_for_other || peer.paused_there;
    return peer.repl == ReplicationState::sync_target && !paused &&
           bitmap_->count(static_cast<unsigned>(peer.slot)) == 0;
}

bool Core::ends_any_resync() const {
    bool ends = false;
    for_peers([&](const Peer& peer, NodeId) { ends = ends || ends_resync(peer); });
    return ends && !is(Mutant::interrupt_the_end);
}

// Half-written data is no source (I-R9): those that took from here look for another.
void Core::stop_being_source() {
    for_peers([&](Peer& peer, NodeId id) {
        if (!is_source(peer.repl) || is(Mutant::stay_source)) return;
        abort_resync(id);
        want_handshake(id);
    });
}

// A disk that is promoted by force takes no more from its sources.
void Core::give_up_targets() {
    for_peers([&](Peer& peer, NodeId id) {
        if (is_target(peer.repl)) abort_resync(id);
    });
}

// Several sources wait for each other's turn: somebody has to go on.
void Core::revive_paused_sources() {
    if (active_source() >= 0) return;
    for_peers([&](Peer& peer, NodeId id) {
        if (is_target(peer.repl) && peer.paused_for_other && !peer.in_round()) want_handshake(id);
    });
}

// The resync that others waited for is over, one way or the other.
void Core::look_at_paused_sources() {
    for_peers([&](Peer& peer, NodeId id) {
        if (peer.paused_for_other) want_handshake(id);
    });
}

// --- Bitmap exchange
// ------------------------------------------------------------------------------------

// The target sends first, when its label says Inconsistent. It gets writes after the source has
// sent its bits.
bool Core::may_send_bitmap(const Peer& peer) const {
    const bool turn = peer.repl == ReplicationState::bitmap_target || peer.bitmap_received;
    return is_exchanging_bitmaps(peer.repl) && turn && !peer.bitmap_sent &&
           (settled() || is(Mutant::write_before_label));
}

void Core::pump_bitmap_exchange(NodeId id) {
    Peer& peer = peers_[id];
    if (!may_send_bitmap(peer)) return;
    const auto slot = static_cast<unsigned>(peer.slot);
    std::uint64_t ones = 0;
    const auto flush_ones = [&](std::uint64_t end) {
        if (ones == 0) return;
        Message m;
        m.type = MessageType::bitmap_ones;
        m.offset = end - ones;
        m.length = static_cast<std::uint32_t>(ones);
        send(id, Stream::bulk, m);
        ones = 0;
    };
    std::uint32_t sent = 0;
    while (peer.bitmap_cursor < bitmap_->wire_pages() && sent < 64 &&
           peer.backlog_bytes < 1U << 20) {
        const std::uint64_t page = peer.bitmap_cursor++;
        const Bitmap::PageKind kind = bitmap_->wire_page_kind(slot, page);
        if (kind == Bitmap::PageKind::ones) {
            ++ones;
            continue;
        }
        flush_ones(page);
        if (kind == Bitmap::PageKind::zeroes) continue;
        Message m;
        m.type = MessageType::bitmap_page;
        m.offset = page;
        m.payload_bytes = wire_bitmap_page_bytes;
        send(id, Stream::bulk, m);
        // What this step queues counts at once: the shell tells how much is left of it later.
        peer.backlog_bytes += wire_bitmap_page_bytes;
        ++sent;
    }
    flush_ones(peer.bitmap_cursor);
    if (peer.bitmap_cursor < bitmap_->wire_pages()) return;
    Message m;
    m.type = MessageType::bitmap_done;
    send(id, Stream::bulk, m);
    peer.bitmap_sent = true;
    // From here on writes are sent. What a member got before stays unstable until it is flushed.
    if (role_ == Role::primary && (!in_sync().has(id) || is(Mutant::false_stability)))
        mark_unstable(id);
    peer.first_seq = journal_.tail();
    bitmap_exchanged(id);
}

void Core::on_bitmap_message(NodeId id, const Message& m, std::span<const std::byte> payload) {
    Peer& peer = peers_[id];
    if (!is_exchanging_bitmaps(peer.repl) || peer.bitmap_received)
        return;  // of a round that was given up
    const auto slot = static_cast<unsigned>(peer.slot);
    if (m.type == MessageType::bitmap_done) {
        peer.bitmap_received = true;
        bitmap_exchanged(id);
        return;
    }
    const std::uint64_t count = m.type == MessageType::bitmap_ones ? m.length : 1;
    if (count == 0 || m.offset >= bitmap_->wire_pages() ||
        count > bitmap_->wire_pages() - m.offset) {
        return protocol_error(id, "a bitmap page past the end");
    }
    if (m.type == MessageType::bitmap_ones) {
        const std::uint64_t page_bytes = wire_bits_per_page * block_bytes;
        const std::uint64_t offset = m.offset * page_bytes;
        bitmap_->set_bytes(slot, offset, std::min(count * page_bytes, volume_bytes_ - offset));
        return;
    }
    ASSERT(payload.size() == wire_bitmap_page_bytes);
    bitmap_->merge_wire_page(slot, m.offset,
                             std::span<const std::byte, 4096>{payload.data(), 4096});
}

void Core::bitmap_exchanged(NodeId id) {
    Peer& peer = peers_[id];
    if (!peer.bitmap_sent || !peer.bitmap_received) return;
    const bool source = peer.repl == ReplicationState::bitmap_source;
    peer.repl = source ? ReplicationState::sync_source : ReplicationState::sync_target;
    peer.total_bits = bitmap_->count(static_cast<unsigned>(peer.slot));
    peer.done_bits = 0;
    if (!source && peer.full_target) {
        push_history(sb_.history, sb_.current_uuid);
        sb_.extension.volume_id = peer.received.volume_id;
        InSyncSet half = register_.value();
        half.generation = full_sync_base(peer.received.current_uuid);
        take_set(half);
    }
    notice(5, id,
           source ? "resync started, this node is the source"
                  : "resync started, this node is the target");
    update_pause(id);
}

// --- Source
// ---------------------------------------------------------------------------------------------

void Core::pump_resync(NodeId id) {
    Peer& peer = peers_[id];
    if (peer.repl != ReplicationState::sync_source) return;
    for (std::uint32_t index = 0; index < chunks_.size(); ++index) {
        const Chunk& chunk = chunks_[index];
        const bool waits = chunk.state == Chunk::State::reserved && chunk.peer == id;
        // Writes that have not begun wait for this chunk.
        if (waits && disk_usable() && !written_now(chunk.offset, chunk.length, true))
            read_chunk(index);
    }
    while (disk_usable() && now_ >= resync_next_at_ && start_chunk(id)) {
    }
    maybe_finish_source(id);
    send_sync_done(id);
}

// The application's requests share the disk and the line with the resync. While there are any, only
// a few chunks are under way at a time.
bool Core::leaves_room() const {
    if (now_.ns > app_request_at_.ns + app_recent_ns) return false;
    const auto busy = std::count_if(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) {
        return chunk.state != Chunk::State::free;
    });
    return busy >= chunks_beside_app;
}

bool Core::start_chunk(NodeId id) {
    Peer& peer = peers_[id];
    const auto slot = static_cast<unsigned>(peer.slot);
    const auto free = std::find_if(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) {
        return chunk.state == Chunk::State::free;
    });
    if (free == chunks_.end() || bitmap_->count(slot) == 0 || leaves_room()) return false;
    const auto index = static_cast<std::uint32_t>(free - chunks_.begin());
    const auto take = [&](Chunk::State state, std::uint64_t offset, std::uint64_t length) {
        *free = {state, false, id, offset, static_cast<std::uint32_t>(length)};
        ++peer.chunks;
        peer.busy_passes = 0;
    };
    bool wrapped = false;
    std::uint64_t busy = Bitmap::none;
    for (int tries = 0; tries < 64; ++tries) {
        const std::uint64_t bit = bitmap_->find_set(slot, peer.cursor);
        if (bit == Bitmap::none) {
            if (wrapped || peer.cursor == 0) break;
            wrapped = true;
            peer.cursor = 0;
            continue;
        }
        const std::uint64_t blocks_max =
            peer.small_chunks > 0 ? 1 : config_.limits.resync_chunk_bytes / block_bytes;
        const std::uint64_t to_extent_end = blocks_per_extent - bit % blocks_per_extent;
        const std::uint64_t run =
            bitmap_->run_length(slot, bit, std::min(blocks_max, to_extent_end));
        const std::uint64_t offset = bit * block_bytes;
        std::uint64_t length = std::min(run * block_bytes, volume_bytes_ - offset);
        if (const Chunk* other = chunk_over(offset, std::min<std::uint64_t>(length, block_bytes))) {
            peer.cursor = (other->offset + other->length + block_bytes - 1) / block_bytes;
            continue;
        }
        if (!is(Mutant::chunk_beside_write)) length = unwritten_part(offset, length);
        peer.cursor = bit + std::max<std::uint64_t>(1, (length + block_bytes - 1) / block_bytes);
        if (length == 0) {
            if (busy == Bitmap::none) busy = bit;
            continue;
        }
        if (peer.small_chunks > 0) --peer.small_chunks;
        take(Chunk::State::reading, offset, length);
        read_chunk(index);
        return true;
    }
    // All that is left is being written again and again. The source reserves a block: it reads the
    // block when the writes under way have ended, and later writes to it wait.
    constexpr std::uint32_t passes = 64;
    if (busy == Bitmap::none || ++peer.busy_passes < passes) return false;
    take(Chunk::State::reserved, busy * block_bytes,
         std::min<std::uint64_t>(block_bytes, volume_bytes_ - busy * block_bytes));
    return false;
}

// Writes wait for a reserved block, and it is not going to be read now.
void Core::give_up_reserved(NodeId id) {
    for (Chunk& chunk : chunks_) {
        if (chunk.peer != id || chunk.state != Chunk::State::reserved) continue;
        if (!chunk.aborted) --peers_[id].chunks;
        chunk = Chunk{};
        retry_held_ = retry_peers_ = retry_al_ = true;
    }
}

void Core::read_chunk(std::uint32_t index) {
    Chunk& chunk = chunks_[index];
    chunk.state = Chunk::State::reading;
    ++disk_io_;
    Effect& e = emit(EffectKind::disk_read);
    e.tag = {IoOrigin::resync, index};
    e.buffer = {BufferKind::resync, index};
    e.offset = chunk.offset;
    e.length = chunk.length;
    if (const std::uint64_t rate = config_.options.resync_rate_max; rate > 0)
        resync_next_at_ = std::max(resync_next_at_, now_) + chunk.length * ns_per_s / rate;
}

// How many bytes, from `offset` on, no write and no other chunk touches at this moment.
std::uint64_t Core::unwritten_part(std::uint64_t offset, std::uint64_t length) const {
    if (!written_now(offset, length) && !chunk_conflicts(offset, length)) return length;
    std::uint64_t part = 0;
    while (part < length) {
        const std::uint64_t block = std::min<std::uint64_t>(block_bytes, length - part);
        if (written_now(offset + part, block) || chunk_conflicts(offset + part, block)) break;
        part += block;
    }
    return part;
}

// A write to these blocks is under way, so what a read finds may be older than what the target
// gets.
bool Core::written_now(std::uint64_t offset, std::uint64_t length, bool begun) const {
    for (const Request& r : requests_) {
        const bool counts = r.phase == Phase::active || (r.phase == Phase::al_wait && !begun);
        const bool write = counts && r.kind != IoKind::read && r.kind != IoKind::flush;
        if (write && ranges_overlap(offset, length, r.offset, r.length)) return true;
    }
    return std::any_of(peer_queue_.begin(), peer_queue_.end(), [&](std::uint32_t index) {
        const PeerRequest& p = peer_requests_[index];
        return p.kind != PeerIo::flush && (p.phase == Phase::active || !begun) &&
               ranges_overlap(offset, length, p.offset, p.length);
    });
}

void Core::on_chunk_read(std::uint32_t index, int result, bool zeroes) {
    Chunk& chunk = chunks_[index];
    ASSERT(chunk.state == Chunk::State::reading);
    --disk_io_;
    if (chunk.aborted || result != 0) {
        Peer& target = peers_[chunk.peer];
        if (!chunk.aborted) --target.chunks;
        const bool one_block = chunk.length <= block_bytes;
        chunk = Chunk{};
        retry_held_ = retry_peers_ = retry_al_ = true;
        if (result != 0 && config_.options.on_io_error == OnIoError::pass_on) {
            // The next chunks are single blocks: readable ones go out, the others are tried again.
            target.small_chunks = 64;
            if (one_block) resync_next_at_ = std::max(resync_next_at_, now_ + ns_per_s);
            touch();
        } else if (result != 0) {
            local_io_failed(result);
        }
        finish_failed_disk();
        return;
    }
    chunk.state = Chunk::State::sent;
    Peer& peer = peers_[chunk.peer];
    Message m;
    m.type = zeroes ? MessageType::resync_zeroes : MessageType::resync_data;
    m.id = index;
    m.offset = chunk.offset;
    m.length = chunk.length;
    chunk.sent_order = expect_answer(chunk.peer, 1);
    peer.resync_sent_bytes += chunk.length;
    if (zeroes) return send(chunk.peer, Stream::bulk, m);
    m.payload_bytes = chunk.length;
    send(chunk.peer, Stream::bulk, m, {BufferKind::resync, index});
}

void Core::on_resync_ack(NodeId id, const Message& m) {
    if (m.id >= chunks_.size() || chunks_[m.id].state != Chunk::State::sent ||
        chunks_[m.id].peer != id) {
        return protocol_error(id, "an answer to resync data that was not sent");
    }
    const Chunk chunk = chunks_[m.id];
    chunks_[m.id] = Chunk{};
    retry_held_ = retry_peers_ = retry_al_ = true;
    Peer& peer = peers_[id];
    answered(id, chunk.sent_order, 1);
    touch();
    if (chunk.aborted) return;
    --peer.chunks;
    if (m.flags == 0) {
        bitmap_->clear_bytes(static_cast<unsigned>(peer.slot), chunk.offset, chunk.length);
        mark_held_writes(id, chunk);
        peer.done_bits += (chunk.length + block_bytes - 1) / block_bytes;
    } else if (m.flags == 2) {
        peer.small_chunks = 64;
    }
}

// A primary's writes that waited here for the chunk to arrive were not in it.
void Core::mark_held_writes(NodeId id, const Chunk& chunk) {
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& p = peer_requests_[index];
        const bool write = p.kind == PeerIo::write || p.kind == PeerIo::zero;
        if (!write || !p.missing.has(id)) continue;
        if (!ranges_overlap(p.offset, p.length, chunk.offset, chunk.length)) continue;
        bitmap_->set_bytes(static_cast<unsigned>(peers_[id].slot), p.offset, p.length);
    }
}

void Core::maybe_finish_source(NodeId id) {
    Peer& peer = peers_[id];
    const auto slot = static_cast<unsigned>(peer.slot);
    if (peer.repl != ReplicationState::sync_source || peer.finishing || peer.chunks > 0) return;
    if (bitmap_->count(slot) > 0 || !settled() || peer.in_round()) return;
    // A state that is on its way names the set as it is now, and its receiver may be a Primary.
    bool told = false;
    for_peers([&](const Peer& other, NodeId) {
        told = told || other.state_sent || other.state_received;
    });
    if (role_ != Role::primary && told && !is(Mutant::admit_beside_primary)) return;
    if (role_ == Role::primary && journal_.head() < peer.first_seq && !is(Mutant::end_unstable)) {
        // It got these writes by the resync, so they are not in its journal, and it could not mark
        // them toward a member that lacks them: they have to be stable everywhere first.
        want_epoch_flush_ = true;
        return;
    }
    peer.finishing = true;
    peer.done_sent = false;
    if (!is(Mutant::no_fence)) {
        // Counted in first: a write from now on is not acknowledged without it. Until it has
        // answered it may carry either generation.
        sb_.peers[id].admitting_uuid = uuid_identity(sb_.current_uuid);
        admit_to_in_sync(id);
    }
    touch();
}

// That the target counts is on this disk, and on those of the other members: a node that forgot it
// would go on in this generation without the target, which carries it from here on.
void Core::send_sync_done(NodeId id) {
    Peer& peer = peers_[id];
    if (!peer.finishing || peer.done_sent) return;
    if (!settled() && !is(Mutant::done_before_record)) return;
    peer.done_order = expect_answer(id, 1);
    peer.done_sent = true;
    Message m;
    m.type = MessageType::sync_done;
    m.id = ++peer.done_id;
    peer.done_uuid = sb_.current_uuid;
    send_generation(id, m);
}

void Core::on_sync_done_ack(NodeId id, const Message& m) {
    const Peer& peer = peers_[id];
    const bool current = peer.done_sent && peer.repl == ReplicationState::sync_source;
    if (current && m.id == peer.done_id) target_is_complete(id, m.offset);
}

// The target has recorded that it is a copy: it says so by sync_done_ack, or by a state that may
// overtake that on the other stream.
void Core::target_is_complete(NodeId id, Uuid generation) {
    Peer& peer = peers_[id];
    ASSERT(peer.done_sent && peer.repl == ReplicationState::sync_source);
    peer.finishing = peer.done_sent = peer.lacks_acknowledged = false;
    answered(id, peer.done_order, 1);
    peer.aligned = true;
    peer.repl = ReplicationState::established;  // its disk state comes by its own word
    peer.received.current_uuid = generation;
    if (is(Mutant::no_fence)) admit_to_in_sync(id);
    clear_marks(id, Proof::delivered);
    peer.total_bits = peer.done_bits = 0;
    notice(5, id, "resync done");
    maybe_clear_crash_marker();
    maybe_up_to_date(peer.disk == DiskState::up_to_date);
    persist();
    tell_in_sync();
    // What the peer said of others in the meantime could not be believed yet.
    if (role_ != Role::secondary || sees_primary()) return;
    look_at_marked_peers();
    hear_name_again(id);
}

// Tells those who hold what this node holds who the others are: they clear what they track toward
// each other.
void Core::tell_in_sync() {
    if (role_ != Role::primary && (sees_primary() || !disk_usable())) return;
    NodeMask members = self();
    for_peers([&](const Peer& peer, NodeId id) {
        const bool counts = role_ == Role::primary
                                ? in_sync().has(id) && !peer.finishing
                                : equal(peer) && !peer.in_round() &&
                                      bitmap_->count(static_cast<unsigned>(peer.slot)) == 0;
        if (counts && peer.phase == LinkPhase::up) members.add(id);
    });
    Message m;
    m.type = MessageType::in_sync;
    m.nodes = role_ == Role::primary ? in_sync().bits : members.bits;
    if (role_ == Role::primary) m.length = members.bits, m.flags = 1;
    if (role_ != Role::primary && members.count() > 2 && rests()) {
        if (content_ == 0) content_ = new_id();
        m.offset = content_;
    }
    for_peers([&](const Peer&, NodeId id) {
        if (members.has(id) && members.count() > 2) send(id, Stream::bulk, m);
    });
}

// --- Target
// ---------------------------------------------------------------------------------------------

void Core::on_sync_done(NodeId id, std::uint32_t done, const GenerationPayload& g) {
    Peer& peer = peers_[id];
    if (peer.repl != ReplicationState::sync_target) return;  // of a round that was given up
    const auto disk = static_cast<DiskState>(g.disk);
    if (!disk_usable() || disk < DiskState::outdated || disk > DiskState::up_to_date) return;
    if (bitmap_->count(static_cast<unsigned>(peer.slot)) > 0 && !is(Mutant::unchecked_end)) {
        notice(4, id, "the source ends a resync that is not done: once more");
        return want_handshake(id);
    }
    if (role_ == Role::primary) return primary_is_complete(id, done);
    const Uuid old = sb_.current_uuid;
    const bool old_is_known =
        uuid_identity(old) != uuid_just_created && uuid_identity(old) != uuid_none;
    const NodeMask members{g.in_sync};
    // Only a primary knows that the other members hold what it holds; among secondaries each pair
    // has to look at itself after a crash.
    const bool source_leads = peer.leads();
    for_peers([&](Peer&, NodeId other_id) {
        PeerMetadata& md = sb_.peers[other_id];
        const bool counted = members.has(other_id) && source_leads;
        if (other_id == id || counted) {
            clear_marks(other_id, other_id == id ? Proof::received : Proof::primary);
        } else if (uuid_identity(md.bitmap_uuid) == uuid_none && !members.has(other_id)) {
            // What was received is marked toward it, starting from the generation that was
            // replaced.
            if (old_is_known) {
                md.bitmap_uuid = uuid_identity(old);
            } else {
                set_slot_full(other_id);
            }
        }
    });
    push_history(sb_.history, old);
    for (auto it = g.history.rbegin(); it != g.history.rend(); ++it)
        push_history(sb_.history, *it);
    InSyncSet set = set_of(g);
    if (uuid_equal(old, g.current_uuid)) set = joined(set, register_.value());
    if (!set.members.has(config_.node_id)) set = changed(set, set.members | self());
    take_set(set);
    SuperblockExtension& ext = sb_.extension;
    ext.volume_id = g.volume_id;
    peer.received.current_uuid = g.current_uuid;
    peer.told_set = low_number({g.generation_seq, g.set_change});
    announce_set({});
    peer.aligned = true;
    peer.repl = ReplicationState::established;
    // It lacks what its source lost in a crash, unless a primary goes on with that.
    const std::uint16_t lost = source_leads ? std::uint16_t{0} : peer.received.flags;
    crashed_ = (lost & state_flag::crashed) != 0;
    crashed_power_ = (lost & state_flag::crashed_power) != 0;
    ext.crash_kind = crashed_power_ ? 2 : crashed_ ? 1 : 0;
    // It is as good a source now as the one that it took everything from; not for long, if that
    // goes on as primary.
    was_primary_ = !source_leads && (peer.received.flags & state_flag::was_primary) != 0;
    last_seq_ = std::max(last_seq_, peer.received.last_seq);
    flush_bitmap_ = true;
    peer.total_bits = peer.done_bits = 0;
    notice(5, id, "resync done");
    set_disk(disk);
    sync_flags();
    persist();
    answer_sync_done(id, done);
    look_at_others(id);
    touch();
}

// `source` has completed this disk: resyncs from others are given up, and states compared again.
void Core::look_at_others(NodeId source) {
    for_peers([&](Peer& peer, NodeId id) {
        if (id == source) return;
        if (is_target(peer.repl) && !is(Mutant::two_sources)) abort_resync(id);
        want_handshake(id);
    });
}

void Core::answer_sync_done(NodeId id, std::uint32_t done) {
    on_durable(OnDurable::What::sync_done_ack, id, sb_.current_uuid);
    on_durable_.back().id = done;
}

// A Primary's disk has what it lacked. The name of the data is this node's to give; what the source
// says of it may be older.
void Core::primary_is_complete(NodeId id, std::uint32_t done) {
    Peer& source = peers_[id];
    for_peers([&](Peer&, NodeId other_id) {
        const PeerMetadata& md = sb_.peers[other_id];
        if (in_sync().has(other_id)) {
            clear_marks(other_id, other_id == id ? Proof::received : Proof::equal);
        } else if (uuid_identity(md.bitmap_uuid) == uuid_none) {
            set_slot_full(other_id);  // nobody knows where its marks start
        }
    });
    source.aligned = true;
    source.repl = ReplicationState::established;
    source.total_bits = source.done_bits = 0;
    crashed_ = crashed_power_ = false;
    sb_.extension.crash_kind = 0;
    change_members(in_sync() | self(), {});
    flush_bitmap_ = true;
    notice(5, id, "resync done");
    set_disk(DiskState::up_to_date);
    sync_flags();
    persist();
    answer_sync_done(id, done);
    tell_in_sync();
    look_at_others(id);
    touch();
}

// A write of this Primary to these blocks that the source did not have when it read them.
bool Core::is_newer_here(NodeId source, std::uint64_t offset, std::uint64_t length) const {
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        const JournalEntry& entry = journal_.at(seq);
        if (entry.unwritten.has(source) &&
            ranges_overlap(offset, length, entry.offset, entry.length)) {
            return true;
        }
    }
    return false;
}

// --- Pause
// ----------------------------------------------------------------------------------------------

void Core::update_pause(NodeId id) {
    Peer& peer = peers_[id];
    const bool paused = peer.paused_here || peer.paused_there;
    // Not at its end: the target is counted in, and its answer is on the way.
    if (peer.repl == ReplicationState::sync_source && paused && !peer.finishing) {
        peer.repl = ReplicationState::paused_source;
        give_up_reserved(id);
    }
    if (peer.repl == ReplicationState::paused_source && !paused)
        peer.repl = ReplicationState::sync_source;
    const bool want = peer.paused_here || peer.paused_for_other;
    if (want != peer.pause_told && is_resyncing(peer.repl) && !peer.finishing &&
        peer.repl != ReplicationState::bitmap_source) {
        peer.pause_told = want;
        Message m;
        m.type = MessageType::sync_pause;
        m.flags = want ? 1 : 0;
        send(id, Stream::bulk, m);
    }
    touch();
}

void Core::on_sync_pause(NodeId id, const Message& m) {
    peers_[id].paused_there = m.flags != 0;
    update_pause(id);
}

}  // namespace replica
