// SPDX-License-Identifier: Apache-2.0
// Construction, the end of each step, timers, views, invariants.
#include "engine/core/core.hpp"

#include <algorithm>
#include <cerrno>

#include "engine/core/for_peers.hpp"

namespace replica {

Core::Core(const CoreConfig& config)
    : config_(config), entropy_(config.entropy), journal_(config.limits.journal) {
    ASSERT(!config.peers.has(config.node_id));
    const CoreLimits& limits = config.limits;
    ASSERT(read_slot(limits.requests) == limits.requests);
    requests_.resize(limits.requests + 1);
    flush_seqs_.resize(requests_.size() * nodes_max);
    // A primary's journal bounds its writes here, its requests the flushes, its chunks the resync.
    peer_requests_.resize(limits.journal + 4 * std::size_t{limits.requests} + 256);
    peer_reads_.resize(limits.peer_reads_max());
    chunks_.resize(limits.resync_chunks);
    held_.reserve(limits.requests);
    al_waiting_.reserve(limits.requests);
    peer_queue_.reserve(peer_requests_.size());
    scratch_.reserve(limits.requests);
    peer_scratch_.reserve(peer_requests_.size());
    on_durable_.reserve(4 * nodes_max);
    effects_.reserve(std::size_t{16} * limits.requests + peer_requests_.size() + 1024);
}

std::uint64_t Core::new_id() {
    // Never 0 (none) nor 4 (just created); the low bits are left to uuid_primary_bit.
    return (entropy_.next() & ~std::uint64_t{7}) | 8;
}

Effect& Core::emit(EffectKind kind) {
    effects_.emplace_back();
    effects_.back().kind = kind;
    return effects_.back();
}

void Core::notice(int level, int peer, const char* text) {
    Effect& e = emit(EffectKind::notice);
    e.level = level;
    e.peer = peer;
    e.text = text;
    touch();
}

void Core::reply(std::uint32_t token, Errc code, const char* text) {
    Effect& e = emit(EffectKind::reply);
    e.index = token;
    e.errc = code;
    e.text = text;
}

// Everything that a step may have made possible, until nothing moves any more.
void Core::end_step() {
    for (int turn = 0; progress(); ++turn)
        ASSERT(turn < 1000);
#ifdef REPLICA_EXPENSIVE_ASSERT
    check_invariants();
#endif
}

bool Core::progress() {
    const std::size_t before = effects_.size();
    const std::uint64_t state_before = state_version_;
    const std::uint64_t label_before = sb_version_;
    pump_activity_log();
    pump_superblock();
    run_on_durable();
    maybe_commit_generation();
    if (completions_waiting_ && settled()) complete_waiting();
    if (want_epoch_flush_) start_epoch_flush();
    if (retry_al_) retry_al_waiters();
    if (retry_peers_) retry_peer_requests();
    if (retry_held_) retry_held();
    if (disk_ == DiskState::inconsistent) revive_paused_sources();
    for_peers([&](Peer& peer, NodeId id) {
        if (peer.phase != LinkPhase::up) return;
        if (peer.want_state) maybe_send_state(id);
        if (!is_resyncing(peer.repl)) return;
        pump_bitmap_exchange(id);
        pump_resync(id);
    });
    if (flush_bitmap_) pump_bitmap();
    if (flush_wanted_) pump_local_flush();
    if (promotion_ == Promotion::asking) try_promote();
    finish_commands();
    // A hold taken late in this turn waits for a transaction that nobody has started yet.
    const bool log_waits = meta_ == MetaPhase::attached && hold_ == MetadataHold::none &&
                           !al_writing_ && !al_preparing_ && al_->wants_transaction();
    return log_waits || effects_.size() != before || state_version_ != state_before ||
           sb_version_ != label_before;
}

void Core::on_tick(Instant now) {
    now_ = now;
    for_peers([&](Peer&, NodeId id) { tick_link(id); });
    if (idle_flush_at_ && *idle_flush_at_ <= now) {
        idle_flush_at_.reset();
        want_epoch_flush_ = !journal_.empty();
    }
    end_step();
}

void Core::on_options(Instant now, const ResourceOptions& options) {
    now_ = now;
    const std::uint32_t al_extents = config_.options.al_extents;  // fixed while attached
    config_.options = options;
    if (metadata_usable()) config_.options.al_extents = al_extents;
    end_step();
}

std::optional<Instant> Core::next_deadline() const {
    std::optional<Instant> next = idle_flush_at_;
    const auto at = [&](Instant when) {
        if (!next || when < *next) next = when;
    };
    const ResourceOptions& o = config_.options;
    for_peers([&](const Peer& peer, NodeId id) {
        if (peer.pending_session != 0) at(peer.pending_since + 5 * ns_per_s);
        if (peer.phase == LinkPhase::down) {
            if (peer.wanted && (dials(id) || peer.knocks)) at(peer.retry_at);
            return;
        }
        if (peer.phase != LinkPhase::up) {
            at(peer.phase_since + o.request_timeout_ms * ns_per_ms);
            return;
        }
        at(peer.ping_pending ? peer.ping_at + o.ping_timeout_ms * ns_per_ms
                             : peer.ping_at + o.ping_interval_ms * ns_per_ms);
        if (awaits_answer(peer, id)) {
            at(peer.progress_at + o.request_timeout_ms * ns_per_ms);
            at(peer.watch_at);
        }
        if (peer.repl == ReplicationState::sync_source && resync_next_at_ > now_) {
            at(resync_next_at_);
        }
        if (may_send_bitmap(peer)) at(now_ + ns_per_ms);  // as soon as what is queued is sent
    });
    return next;
}

bool Core::has_good_data() const {
    if (disk_ == DiskState::up_to_date) return true;
    if (orphaned_) return false;
    bool found = false;
    for_peers([&](const Peer& peer, NodeId id) {
        found = found || (peer.phase == LinkPhase::up && in_sync().has(id) &&
                          peer.disk == DiskState::up_to_date);
    });
    return found;
}

// What a request is told that no replica could be asked for. Another way may lead to the data, but
// not where it is gone, or was nowhere else.
int Core::no_data_error() const { return orphaned_ || config_.peers.empty() ? EIO : ENOLINK; }

PeerView Core::view(NodeId id) const {
    const Peer& peer = peers_[id];
    PeerView v;
    v.connection = peer.phase == LinkPhase::up                  ? ConnectionState::connected
                   : !peer.wanted                               ? ConnectionState::standalone
                   : peer.phase == LinkPhase::down && dials(id) ? ConnectionState::unconnected
                                                                : ConnectionState::connecting;
    v.role = peer.role;
    v.disk = peer.disk;
    v.replication = peer.repl;
    v.why = peer.why;
    if (bitmap_ && peer.slot >= 0) {
        v.out_of_sync_bits = bitmap_->count(static_cast<unsigned>(peer.slot));
    }
    v.resync_total_bits = peer.total_bits;
    v.resync_done_bits = peer.done_bits;
    v.sent_bytes = peer.sent_bytes;
    v.received_bytes = peer.received_bytes;
    v.resync_sent_bytes = peer.resync_sent_bytes;
    v.resync_received_bytes = peer.resync_received_bytes;
    v.pending = peer.pending;
    for (const std::uint32_t index : peer_queue_)
        v.unacked += peer_requests_[index].peer == id ? 1 : 0;
    v.in_sync = in_sync().has(id);
    v.size_bytes = peer.size_bytes;
    v.room_bytes = peer.room_bytes;
    return v;
}

bool Core::idle() const {
    return active_writes_ == 0 && disk_io_ == 0 && held_.empty() && al_waiting_.empty() &&
           peer_queue_.empty() && !sb_in_flight_ && !al_writing_ && !al_initialising_ &&
           bitmap_in_flight_ == 0;
}

void Core::check_invariants() const {
    ASSERT(role_ != Role::unknown);
    if (meta_ == MetaPhase::attached) ASSERT(bitmap_ && al_);
    if (role_ == Role::primary && settled())
        ASSERT((sb_.flags & md_flag::primary_ind) != 0 || !metadata_usable());
    if (disk_ == DiskState::up_to_date) ASSERT(meta_ != MetaPhase::detached);
    ASSERT(sb_durable_ <= sb_version_);
    std::uint32_t chunks = 0;
    for_peers([&](const Peer& peer, NodeId) {
        chunks += peer.chunks;
        if (peer.phase != LinkPhase::up) ASSERT(peer.repl == ReplicationState::off);
        ASSERT(!peer.state_received || peer.in_round());
        // A disk that promises good data is not the target of a resync.
        const bool good = disk_usable() && disk_ >= DiskState::outdated;
        ASSERT(!good || !is_target(peer.repl) || is(Mutant::two_sources));
    });
    std::uint32_t sent = 0;
    for (const Chunk& chunk : chunks_) {
        sent += chunk.state != Chunk::State::free && !chunk.aborted ? 1 : 0;
    }
    ASSERT(chunks == sent);
    // A step ends when nothing more can be done at once: what a write waits for is under way.
    if (meta_ == MetaPhase::attached && hold_ == MetadataHold::none)
        ASSERT(al_writing_ || al_preparing_ || !al_->wants_transaction());
    if (meta_ == MetaPhase::attached && hold_ == MetadataHold::none)
        ASSERT(sb_in_flight_ || sb_durable_ == sb_version_);
}

}  // namespace replica
