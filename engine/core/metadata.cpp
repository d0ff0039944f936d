// SPDX-License-Identifier: Apache-2.0
// Attach and detach, and the metadata writes while attached: superblock, activity log, bitmap.
// The order is I-R5's: bitmap pages of the extents that leave, then the log's transaction, then the
// writes that waited for it. A metadata write that fails is never retried: the disk is Failed.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/core/for_peers.hpp"

namespace replica {
namespace {

Error state_error(std::string message) { return Error{Errc::state, 0, std::move(message)}; }

// Each peer needs a slot, and the one of a node that is no peer any more stays its own.
Status check_slots(const Superblock& sb, NodeMask peers) {
    unsigned needed = 0;
    std::string strangers;
    for (NodeId id = 0; id < nodes_max; ++id) {
        const bool owns = sb.peers[id].bitmap_index >= 0;
        needed += owns || peers.has(id) ? 1 : 0;
        if (owns && !peers.has(id)) strangers += " " + std::to_string(id);
    }
    if (needed <= sb.max_peers) return ok_status();
    const std::string anew = "create the metadata anew with more --max-peers, which costs a resync";
    const std::string slots = "the metadata has " + std::to_string(sb.max_peers) + " bitmap slots";
    if (strangers.empty()) {
        return Error{Errc::limit, 0,
                     slots + " and " + std::to_string(needed) + " peers need one; " + anew};
    }
    return Error{Errc::limit, 0,
                 slots +
                     ", and not one for each peer, as some belong to what is no configured "
                     "peer, node id" +
                     strangers +
                     ": correct the node ids of the peers (remove, adopt); or, if such a node is "
                     "gone for good, " +
                     anew};
}

// DRBD wrote last and zeroed the extension: what v09 says is all there is.
void rebuild_extension(Superblock& sb, NodeId node_id) {
    sb.extension = SuperblockExtension{};
    sb.extension.present = true;
    sb.extension.in_sync = NodeMask::of(node_id);
    for (unsigned n = 0; n < nodes_max; ++n) {
        PeerMetadata& peer = sb.peers[n];
        peer.admitting_uuid = uuid_none;
        if (peer.bitmap_index >= 0 && uuid_identity(peer.bitmap_uuid) == uuid_none) {
            sb.extension.in_sync.add(static_cast<NodeId>(n));
        }
    }
    if ((sb.flags & (md_flag::crashed_primary | md_flag::primary_ind)) != 0) {
        sb.extension.primary_node = node_id;
    }
}

}  // namespace

bool Core::disk_usable() const {
    return meta_ == MetaPhase::attached && disk_ >= DiskState::inconsistent;
}

void Core::set_disk(DiskState state) {
    if (disk_ == state) return;
    disk_ = state;
    if (state >= DiskState::inconsistent && meta_ == MetaPhase::attached) sync_flags();
    announce_state();
    touch();
}

// Derives the v09 flags from the state words and records them if they changed.
void Core::sync_flags() {
    if (!metadata_usable()) return;
    std::uint32_t flags = sb_.flags & (md_flag::al_disabled);
    if (disk_ >= DiskState::outdated) flags |= md_flag::consistent;
    if (disk_ >= DiskState::consistent) flags |= md_flag::was_up_to_date;
    if (crashed_) flags |= md_flag::crashed_primary;
    const bool target = active_source() >= 0;
    const bool queued = std::any_of(
        peer_queue_.begin(), peer_queue_.end(),
        [&](std::uint32_t index) { return peer_requests_[index].kind != PeerIo::flush; });
    const bool in_use = role_ == Role::primary || promotion_ != Promotion::none || sees_primary() ||
                        target || queued || !journal_.empty();
    // Set at once; cleared only when what the log covers is in the bitmap on the disk, and what the
    // drive's cache held is stable: else a power cut would lose it, and nothing would say so.
    const bool was_set = (sb_.flags & md_flag::primary_ind) != 0;
    const bool unsaved =
        bitmap_->dirty_pages() + bitmap_in_flight_ > 0 || flush_wanted_ || flushing_;
    if (in_use || (was_set && unsaved && !is(Mutant::mark_cleared_early))) {
        flags |= md_flag::primary_ind;
    }
    if (!in_use && was_set) flush_bitmap_ = true;
    if (flags == sb_.flags) return;
    sb_.flags = flags;
    persist();
}

// Whether data may be written to this disk. After a crash the label must tell what may be lost: it
// says that writes may be in flight, and it does not promise good data if there is none. That must
// hold for the label on the disk, for one that is on its way there, and for the next.
bool Core::label_covers_data() const {
    const auto covers = [this](const Superblock& label) {
        const bool marked = (label.flags & md_flag::primary_ind) != 0;
        const bool promises = (label.flags & md_flag::consistent) != 0;
        return (marked || is(Mutant::write_before_mark)) &&
               (!promises || disk_ != DiskState::inconsistent || is(Mutant::write_before_label));
    };
    return covers(label_) && covers(sb_) && (!sb_in_flight_ || covers(flying_label_));
}

// The data of this disk changes: its name ends, and so does an operator's offer to discard it.
void Core::data_changes() {
    content_ = 0;
    if (!std::exchange(offers_, false)) return;
    for_peers([](Peer& peer, NodeId) { peer.discard_my_data = false; });
}

// All data goes to this disk through here. Its label and its activity log cover what is written.
Effect& Core::write_data(IoTag tag, BufferRef buffer, std::uint64_t offset, std::uint32_t length) {
    ASSERT(disk_usable() && label_covers_data());
    ASSERT(al_->is_active(extent_of(offset)) || is(Mutant::skip_activity_log));
    data_changes();
    ++disk_io_;
    Effect& e =
        emit(buffer.kind == BufferKind::none ? EffectKind::disk_zero : EffectKind::disk_write);
    e.tag = tag;
    e.buffer = buffer;
    e.offset = offset;
    e.length = length;
    return e;
}

void Core::persist() {
    if (metadata_usable()) ++sb_version_;
}

void Core::on_durable(OnDurable::What what, NodeId peer, std::uint64_t value) {
    on_durable_.push_back({what, sb_version_, peer, peers_[peer].link, value, {}, 0});
}

// Also without a disk: there is nothing to record then.
void Core::agree_to_promotion(const OnDurable& asked) {
    const Peer& peer = peers_[asked.peer];
    if (peer.phase != LinkPhase::up || peer.link != asked.link) return;
    Message m;
    m.type = MessageType::promote_reply;
    m.id = static_cast<std::uint32_t>(asked.value);
    m.offset = sb_.current_uuid;
    m.nodes = in_sync().bits;
    send(asked.peer, Stream::bulk, m);
}

void Core::run_on_durable() {
    for (std::size_t i = 0; i < on_durable_.size();) {
        const OnDurable next = on_durable_[i];
        // A disk that is being detached is written once more: what waits is recorded by that.
        if (next.version > sb_durable_ && meta_ != MetaPhase::detached) {
            ++i;
            continue;
        }
        on_durable_.erase(on_durable_.begin() + static_cast<std::ptrdiff_t>(i));
        const Peer& peer = peers_[next.peer];
        const bool linked = peer.phase == LinkPhase::up && peer.link == next.link;
        Message m;
        m.offset = next.value;
        switch (next.what) {
            case OnDurable::What::generation_ack:
                m.type = MessageType::generation_ack;
                m.set_generation = low_number(next.number)[0];
                m.set_change = low_number(next.number)[1];
                if (linked) send(next.peer, Stream::control, m);
                break;
            case OnDurable::What::sync_done_ack:
                m.type = MessageType::sync_done_ack;
                m.id = next.id;
                if (linked) send(next.peer, Stream::control, m);
                break;
            case OnDurable::What::promote_reply:
                agree_to_promotion(next);
                break;
            case OnDurable::What::promoted:
            case OnDurable::What::demoted:
            case OnDurable::What::reply_ok:
            case OnDurable::What::detached:
                reply(static_cast<std::uint32_t>(next.value), Errc::ok, "");
                break;
        }
    }
}

void Core::pump_superblock() {
    const bool writing = meta_ == MetaPhase::attached || meta_ == MetaPhase::attach_mark ||
                         meta_ == MetaPhase::attach_superblock ||
                         meta_ == MetaPhase::detach_superblock || meta_ == MetaPhase::detach_seal;
    if (!writing || sb_in_flight_ || sb_durable_ == sb_version_) return;
    if (hold_ == MetadataHold::draining || hold_ == MetadataHold::held) return;
    sb_in_flight_ = true;
    sb_flying_ = sb_version_;
    sb_.extension.write_seq += 1;
    flying_label_ = sb_;
    ++counters_.md_writes;
    emit(EffectKind::metadata).tag = {IoOrigin::superblock, 0};
}

void Core::on_superblock_written(int result) {
    ASSERT(sb_in_flight_);
    sb_in_flight_ = false;
    if (result != 0) return local_io_failed(result, "a superblock write failed");
    sb_durable_ = sb_flying_;
    label_ = flying_label_;
    register_.recorded_here(sb_durable_);
    if (hold_ == MetadataHold::recording) end_hold(Errc::ok, "");
    retry_peers_ = retry_held_ = retry_al_ = true;  // data may wait for what the label says now
    touch();
    if (meta_ == MetaPhase::attach_mark || meta_ == MetaPhase::attach_superblock) attach_next();
    if (meta_ == MetaPhase::detach_superblock || meta_ == MetaPhase::detach_seal) detach_next();
}

void Core::pump_activity_log() {
    if (meta_ != MetaPhase::attached || al_writing_ || hold_ != MetadataHold::none) return;
    if (!al_preparing_) {
        if (!al_->wants_transaction()) return;
        evicted_.clear();
        al_->begin_transaction(evicted_);
        al_preparing_ = true;
        al_pages_.clear();
        if (is(Mutant::log_before_bitmap)) evicted_.clear();
        for (const std::uint32_t extent : evicted_) {
            const std::uint64_t first = std::uint64_t{extent} * blocks_per_extent;
            const std::uint64_t last = std::min(first + blocks_per_extent, bitmap_->bits()) - 1;
            for (std::uint64_t page = bitmap_->page_of_bit(first);
                 page <= std::min(bitmap_->page_of_bit(last) + 1, bitmap_->pages() - 1); ++page) {
                al_pages_.push_back(page);
            }
        }
    }
    // The pages must be clean on the disk at the moment that the transaction goes out.
    bool clean = true;
    for (const std::uint64_t page : al_pages_) {
        if (bitmap_->page_dirty(page) && page_in_flight_[page] == 0) {
            bitmap_->page_taken(page);
            page_in_flight_[page] = 1;
            ++bitmap_in_flight_;
            ++counters_.bm_writes;
            emit(EffectKind::metadata).tag = {IoOrigin::bitmap_page,
                                              static_cast<std::uint32_t>(page)};
        }
        clean = clean && page_in_flight_[page] == 0 && !bitmap_->page_dirty(page);
    }
    if (!clean) return;
    al_preparing_ = false;
    al_writing_ = true;
    ++counters_.al_writes;
    emit(EffectKind::metadata).tag = {IoOrigin::al, 0};
}

std::uint32_t Core::al_block() const {
    return al_block_index(al_->transaction().number, sb_.al_stripes, sb_.al_stripe_blocks);
}

void Core::on_al_written(int result) {
    al_writing_ = false;
    if (result != 0) return local_io_failed(result, "an activity-log write failed");
    if (meta_ != MetaPhase::attached) return;
    al_->finish_transaction();
    touch();
    retry_al_ = retry_peers_ = true;
}

void Core::on_al_initialised(int result) {
    al_initialising_ = false;
    if (result != 0) return local_io_failed(result, "initialising the activity log failed");
    if (meta_ == MetaPhase::attach_al) attach_next();
    if (meta_ == MetaPhase::detach_al) detach_next();
}

void Core::pump_bitmap() {
    const bool writing = meta_ == MetaPhase::attached || meta_ == MetaPhase::attach_bitmap ||
                         meta_ == MetaPhase::detach_bitmap;
    if (!writing || hold_ != MetadataHold::none) return;
    while (bitmap_in_flight_ < config_.limits.bitmap_writes && bitmap_->dirty_pages() > 0) {
        std::uint64_t page = bitmap_->find_dirty(bitmap_cursor_);
        if (page == Bitmap::none) page = bitmap_->find_dirty(0);
        // The page is on its way and was changed again: wait for it.
        if (page == Bitmap::none || page_in_flight_[page] != 0) break;
        bitmap_cursor_ = page + 1;
        bitmap_->page_taken(page);
        page_in_flight_[page] = 1;
        ++bitmap_in_flight_;
        ++counters_.bm_writes;
        emit(EffectKind::metadata).tag = {IoOrigin::bitmap_page, static_cast<std::uint32_t>(page)};
    }
    if (bitmap_in_flight_ > 0 || bitmap_->dirty_pages() > 0) return;
    flush_bitmap_ = false;
    if (meta_ == MetaPhase::attach_bitmap) attach_next();
    if (meta_ == MetaPhase::detach_bitmap) detach_next();
    if (meta_ != MetaPhase::attached) return;
    bool changed = false;
    for_peers([&](Peer& peer, NodeId id) {
        // All bits of a full sync are on the disk: the bitmap says it, and remembers progress.
        if (peer.slot < 0 || (sb_.peers[id].flags & md_peer_flag::full_sync) == 0) return;
        sb_.peers[id].flags &= ~md_peer_flag::full_sync;
        changed = true;
    });
    if (changed) persist();
    sync_flags();
}

// What this disk got and did not flush was only as safe as the marks that go with it. Before a
// handshake may lead to their being cleared, and before a clean detach, it is made stable.
void Core::pump_local_flush() {
    if (!flush_wanted_ || flushing_) return;
    if (meta_ != MetaPhase::attached && meta_ != MetaPhase::detach_drain) return;
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& p = peer_requests_[index];
        if (landing(p) && p.kind != PeerIo::flush) return;  // it has to be covered
    }
    flush_wanted_ = false;
    flushing_ = true;
    ++disk_io_;
    emit(EffectKind::disk_flush).tag = {IoOrigin::local_flush, 0};
}

void Core::on_local_flushed(int result) {
    flushing_ = false;
    --disk_io_;
    if (result != 0) return local_io_failed(result, "a flush of the backing disk failed");
    sync_flags();
    touch();
}

void Core::on_bitmap_page_written(std::uint64_t page, int result) {
    ASSERT(page_in_flight_[page] == 1 && bitmap_in_flight_ > 0);
    page_in_flight_[page] = 0;
    --bitmap_in_flight_;
    if (result != 0) return local_io_failed(result, "a bitmap write failed");
    touch();
}

void Core::encode_metadata(IoTag tag, std::span<std::byte> out) const {
    ASSERT(out.size() == 4096);
    std::span<std::byte, 4096> block{out.data(), 4096};
    if (tag.origin == IoOrigin::superblock) {
        encode_superblock(flying_label_, block);
    } else if (tag.origin == IoOrigin::al) {
        encode_al_transaction(al_->transaction(), block);
    } else if (tag.origin == IoOrigin::al_init) {
        encode_al_initialised(block);
    } else {
        ASSERT(tag.origin == IoOrigin::bitmap_page);
        bitmap_->encode_page(tag.index, block);
    }
}

// --- Attach
// ---------------------------------------------------------------------------------------

void Core::assign_slots() {
    std::uint32_t taken = 0;
    for (const PeerMetadata& peer : sb_.peers) {
        if (peer.bitmap_index >= 0) taken |= 1U << peer.bitmap_index;
    }
    for (unsigned n = 0; n < nodes_max; ++n) {
        // Nobody tracks what nodes lack that are not configured: they start from nothing later on.
        PeerMetadata& md = sb_.peers[n];
        if (config_.peers.has(static_cast<NodeId>(n))) continue;
        md.bitmap_uuid = md.admitting_uuid = uuid_none;
        if (md.bitmap_index >= 0) md.flags |= md_peer_flag::full_sync;
    }
    for_peers([&](Peer& peer, NodeId id) {
        PeerMetadata& md = sb_.peers[id];
        if (md.bitmap_index < 0) {
            // A slot that nobody looked after says nothing about what the peer has (R21, R28).
            const auto free = static_cast<std::int32_t>(std::countr_one(taken));
            ASSERT(free < static_cast<std::int32_t>(sb_.max_peers));
            md.bitmap_index = free;
            md.flags |= md_peer_flag::full_sync;
            taken |= 1U << free;
        }
        md.flags |= md_peer_flag::node_exists;
        peer.slot = md.bitmap_index;
    });
}

// A Primary that lives on its peers' disks gets one of its own. What they recorded last is the
// truth; the disk takes that name, as Inconsistent, until one of them has sent what it lacks. That
// the marks say what it lacks is certain for the disk that this Primary lost, and for no other.
void Core::keep_live_label(const Superblock& live) {
    const Uuid carried = sb_.current_uuid;
    const bool is_back = uuid_equal(carried, lost_disk_uuid_) && sb_.extension.present;
    for (unsigned n = 0; n < nodes_max; ++n) {
        PeerMetadata& md = sb_.peers[n];
        if (!is_back) md.flags |= md_peer_flag::full_sync;
        md.bitmap_uuid = live.peers[n].bitmap_uuid;
        md.admitting_uuid = live.peers[n].admitting_uuid;
    }
    if (uuid_identity(carried) == uuid_just_created) sb_.extension.ready_bytes = 0;
    sb_.effective_size_sectors = live.effective_size_sectors;
    sb_.history = live.history;
    push_history(sb_.history, carried);
    mirror_set();  // the register stays this Primary's
    SuperblockExtension& ext = sb_.extension;
    ext.promoted_at_s = live.extension.promoted_at_s;
    ext.volume_id = live.extension.volume_id;
    sb_.flags &= ~(md_flag::consistent | md_flag::was_up_to_date);
}

Status Core::prepare_attach(const Superblock& superblock) {
    if (meta_ != MetaPhase::detached || disk_ == DiskState::failed || disk_io_ > 0) {
        return Error{Errc::busy, 0,
                     "the resource has a disk attached, or I/O on the old one is "
                     "still in the kernel; detach it and wait"};
    }
    if (role_ == Role::primary) {
        // Else it may be the last good disk, or the next best, and would be called Inconsistent.
        if (!has_good_data() || in_sync().has(config_.node_id)) {
            return state_error(
                "the resource is Primary, and no connected peer has its data to bring the disk up "
                "to date: connect one, or demote the resource, then attach the disk");
        }
        const std::uint64_t bytes = superblock.effective_size_sectors * sector_bytes;
        const bool can_grow =
            bytes < volume_bytes_ && superblock.extension.ready_bytes >= volume_bytes_;
        const bool same_size = bytes == volume_bytes_ || can_grow ||
                               uuid_identity(superblock.current_uuid) == uuid_just_created;
        const std::array<std::uint8_t, 16> unset{};
        const auto& volume = superblock.extension.volume_id;
        if (!same_size || (volume != unset && volume != sb_.extension.volume_id)) {
            return state_error(
                "the resource is Primary, and the disk holds another volume, or one of another "
                "size: create its metadata anew, or attach another disk");
        }
    }
    if (superblock.node_id != -1 && superblock.node_id != config_.node_id) {
        return state_error("the metadata belongs to node id " + std::to_string(superblock.node_id) +
                           ", this node is " + std::to_string(config_.node_id) +
                           ": is it another node's disk?");
    }
    if (superblock.bytes_per_bit != block_bytes) {
        return Error{Errc::unsupported, 0,
                     "the bitmap has " + std::to_string(superblock.bytes_per_bit) +
                         " bytes a bit; Replica uses 4096: create the metadata anew"};
    }
    if (uuid_identity(superblock.current_uuid) == uuid_none) {
        return state_error(
            "the metadata names no generation, so nobody can tell what the disk holds; create it "
            "anew, then resync");
    }
    if (superblock.effective_size_sectors == 0) {
        return state_error("the metadata has no volume size; create the resource first");
    }
    TRY_STATUS(check_slots(superblock, config_.peers));
    const Superblock live = sb_;
    sb_ = label_ = superblock;
    content_ = 0;
    ++attachment_;
    if (!sb_.extension.present) rebuild_extension(sb_, config_.node_id);
    sb_.node_id = config_.node_id;
    if (role_ == Role::primary) {
        keep_live_label(live);
    } else {
        const SuperblockExtension& ext = sb_.extension;
        register_.load({sb_.current_uuid,
                        ext.parent_uuid,
                        {ext.generation_seq, ext.set_change},
                        ext.in_sync,
                        ext.primary_node},
                       0);
    }
    assign_slots();
    const std::uint32_t ring = (sb_.al_stripes * sb_.al_stripe_blocks - 1) * al_context_max;
    sb_.al_extents =
        std::clamp<std::uint32_t>(config_.options.al_extents, 1, std::min(ring, 65534U));
    change_volume_size(sb_.effective_size_sectors * sector_bytes);
    return ok_status();
}

bool Core::quiet() const {
    return disk_io_ == 0 && bitmap_in_flight_ == 0 && peer_queue_.empty() && !al_writing_ &&
           !al_preparing_;
}

void Core::load_bitmap_page(std::uint64_t page, std::span<const std::byte, 4096> bytes) {
    bitmap_->load_page(page, bytes);
}

void Core::on_attach(Instant now, AttachInfo info) {
    now_ = now;
    ASSERT(meta_ == MetaPhase::detached && bitmap_);
    data_bytes_max_ = info.data_bytes_max;
    // The disk may have been smaller meanwhile.
    sb_.extension.ready_bytes = std::min(sb_.extension.ready_bytes, data_bytes_max_);
    if (sb_.extension.device_bytes == 0) sb_.extension.device_bytes = info.device_bytes;
    all_zero_ = info.all_zero && uuid_identity(sb_.current_uuid) == uuid_just_created;
    was_primary_ = sb_.extension.primary_node == config_.node_id;
    const bool went_down_hard = (sb_.flags & md_flag::primary_ind) != 0;
    crashed_ = went_down_hard || (sb_.flags & md_flag::crashed_primary) != 0;
    // Within one boot of the machine only the process ended, and the drive kept its cache. What a
    // crash before that one did stays true.
    std::uint32_t kind = sb_.extension.crash_kind;
    // Nor is the cache of a disk that failed believed: a flush that fails may have emptied it.
    disk_failed_ = disk_failed_ || info.cache_suspect;
    const bool same_cache = sb_.extension.boot_id == info.boot_id && !disk_failed_;
    const bool cache_lost = went_down_hard && !same_cache;
    if (went_down_hard) kind = std::max(kind, cache_lost ? 2U : 1U);
    if (cache_lost) ++sb_.extension.cache_losses;
    if (crashed_ && kind == 0) kind = 2;  // DRBD ran here, and does not say
    sb_.extension.crash_kind = crashed_ ? kind : 0;
    crashed_power_ = crashed_ && kind == 2;
    if (went_down_hard && !is(Mutant::log_not_replayed)) {
        for (const std::uint32_t extent : info.hot_extents) {
            const std::uint64_t offset = std::uint64_t{extent} * extent_bytes;
            if (offset >= volume_bytes_) continue;
            bitmap_->set_bytes_all_slots(
                offset, std::min<std::uint64_t>(extent_bytes, volume_bytes_ - offset));
        }
    }
    for_peers([&](Peer& peer, NodeId id) {
        if ((sb_.peers[id].flags & md_peer_flag::full_sync) != 0) {
            bitmap_->set_all(static_cast<unsigned>(peer.slot));
        }
    });
    sb_.extension.boot_id = info.boot_id;
    disk_ = DiskState::attaching;
    meta_ = MetaPhase::attach_bitmap;
    al_->reset();
    flush_bitmap_ = true;
    why_ = "";
    touch();
    end_step();
}

// Bitmap; then al_clean, which says that the bitmap holds all that the log did; then an empty log,
// which a power cut may tear; then the superblock without al_clean, before the first write.
void Core::attach_next() {
    if (meta_ == MetaPhase::attach_bitmap && (sb_.flags & md_flag::al_clean) == 0) {
        meta_ = MetaPhase::attach_mark;
        sb_.flags |= md_flag::al_clean;
        ++sb_version_;
        touch();  // nothing else of this step may have had an effect
        return;
    }
    if (meta_ == MetaPhase::attach_bitmap || meta_ == MetaPhase::attach_mark) {
        meta_ = MetaPhase::attach_al;
        al_initialising_ = true;
        emit(EffectKind::metadata).tag = {IoOrigin::al_init, 0};
        return;
    }
    if (meta_ == MetaPhase::attach_al) {
        meta_ = MetaPhase::attach_superblock;
        sb_.flags &= ~md_flag::al_clean;
        if (crashed_) sb_.flags |= md_flag::crashed_primary;
        ++sb_version_;
        return;
    }
    ASSERT(meta_ == MetaPhase::attach_superblock);
    meta_ = MetaPhase::attached;
    disk_failed_ = false;  // what that may have cost is on the disk now
    DiskState state = DiskState::inconsistent;
    if ((sb_.flags & md_flag::consistent) != 0) {
        state = (sb_.flags & md_flag::was_up_to_date) != 0 ? DiskState::consistent
                                                           : DiskState::outdated;
        // Alone in its generation: nobody can hold newer data.
        const bool alone = members() == self() || is(Mutant::trust_restart);
        if (alone && state == DiskState::consistent) state = DiskState::up_to_date;
    }
    flush_wanted_ = true;  // the caches may hold what an earlier daemon wrote
    notice(6, -1, "disk attached");
    announce_set({});
    set_disk(state);
    sync_flags();
    for_peers([&](Peer&, NodeId id) { want_handshake(id); });
}

// --- Detach and failure
// -----------------------------------------------------------------------------

void Core::start_detach() {
    meta_ = MetaPhase::detach_drain;
    ++attachment_;
    // Writes that wait for the activity log are refused from here on, so nobody waits for it.
    al_preparing_ = false;
    retry_peers_ = true;
    flush_wanted_ = true;
    touch();
}

void Core::detach_next() {
    if (meta_ == MetaPhase::detach_drain) {
        if (flush_wanted_ || disk_io_ > 0 || sb_in_flight_ || al_writing_ || al_preparing_ ||
            !peer_queue_.empty())
            return;
        drop_journal(true);
        meta_ = MetaPhase::detach_bitmap;
        flush_bitmap_ = true;
        touch();
        return;
    }
    if (meta_ == MetaPhase::detach_bitmap) {
        meta_ = MetaPhase::detach_superblock;
        sb_.flags &= ~md_flag::primary_ind;
        sb_.flags |= md_flag::al_clean;
        ++sb_version_;
        touch();
        return;
    }
    if (meta_ == MetaPhase::detach_superblock) {
        if (sb_durable_ != sb_version_) return;
        meta_ = MetaPhase::detach_al;
        al_initialising_ = true;
        emit(EffectKind::metadata).tag = {IoOrigin::al_init, 0};
        touch();
        return;
    }
    if (meta_ == MetaPhase::detach_al) {
        // Once more: a snapshot that was taken while it was attached is then two updates behind
        // the copy in the state directory, one more than a crash explains, and is seen to be old.
        meta_ = MetaPhase::detach_seal;
        ++sb_version_;
        touch();
        return;
    }
    ASSERT(meta_ == MetaPhase::detach_seal);
    if (sb_durable_ != sb_version_) return;
    meta_ = MetaPhase::detached;
    disk_ = DiskState::diskless;
    notice(6, -1, "disk detached");
    touch();
}

// `error`: positive errno. `what`: nullptr for an I/O of data.
void Core::local_io_failed(int error, const char* what) {
    if (error == ENOSPC || error == EDQUOT) {
        return local_disk_failed("no space left on the backing disk: make room, then attach");
    }
    if (what != nullptr) return local_disk_failed(what);
    local_disk_failed(error == EIO ? "the backing disk gave an I/O error"
                                   : "an I/O on the backing disk failed");
}

void Core::on_disk_removed(Instant now) {
    now_ = now;
    local_disk_failed("the backing disk was removed from the machine");
    end_step();
}

// The disk is not believed any more. Nothing is written to it from here on; the I/O that is in the
// kernel returns first, then it is Diskless.
void Core::local_disk_failed(const char* why) {
    if (meta_ == MetaPhase::detached) return;
    const bool was_attached = meta_ == MetaPhase::attached;
    meta_ = MetaPhase::detached;
    disk_ = DiskState::failed;
    disk_failed_ = true;
    ++attachment_;
    end_hold(Errc::io, why);
    recorded_bytes_ = volume_bytes_;  // the peers have it
    lost_disk_uuid_ = sb_.current_uuid;
    why_ = why;
    notice(3, -1, why);
    flush_bitmap_ = flush_wanted_ = false;
    al_preparing_ = false;
    sb_durable_ = sb_version_;
    register_.recorded_here(sb_version_);  // what the label does not say its peers' labels say
    std::erase_if(on_durable_, [&](const OnDurable& next) {
        const bool command = next.what >= OnDurable::What::promoted;
        if (command) reply(static_cast<std::uint32_t>(next.value), Errc::io, why);
        if (next.what == OnDurable::What::promote_reply) agree_to_promotion(next);
        return true;
    });
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        journal_.at(seq).al_held = false;
    }
    for_peers([&](Peer& peer, NodeId id) {
        // A target that has been told that it is complete may be the only copy that is left.
        const bool complete = peer.done_sent && !is(Mutant::interrupt_the_end);
        if (is_resyncing(peer.repl) && !complete) abort_resync(id);
    });
    if (promotion_ != Promotion::none) abandon_promotion(Errc::io, why);
    if (was_attached && role_ == Role::primary && in_sync().has(config_.node_id)) evict(self());
    announce_state();
    retry_al_ = retry_peers_ = retry_held_ = completions_waiting_ = true;
    finish_failed_disk();
}

void Core::finish_failed_disk() {
    if (disk_ != DiskState::failed || disk_io_ > 0 || sb_in_flight_ || al_writing_ ||
        al_initialising_ || bitmap_in_flight_ > 0) {
        return;
    }
    disk_ = DiskState::diskless;
    announce_state();
    touch();
}

// --- Journal and marks
// ------------------------------------------------------------------------------

void Core::release_journal_entry(JournalEntry& entry) {
    if (!entry.al_held) return;
    entry.al_held = false;
    al_->release(extent_of(entry.offset));
    retry_al_ = retry_al_ || al_starving_;
    retry_peers_ = retry_peers_ || peer_al_starving_;
}

// What `nodes` may lack: every journalled write above `after_seq`, and what they did not answer.
void Core::mark_journal(std::uint64_t after_seq, NodeMask nodes) {
    if (!bitmap_) return;
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail(); ++seq) {
        JournalEntry& entry = journal_.at(seq);
        for_peers([&](Peer& peer, NodeId id) {
            if (!nodes.has(id) || peer.slot < 0) return;
            if (entry.length == 0) return;  // did not come here
            const bool lacks = entry.unwritten.has(id);
            if (!lacks && (seq <= after_seq || is(Mutant::no_unstable_marking))) return;
            bitmap_->set_bytes(static_cast<unsigned>(peer.slot), entry.offset, entry.length);
        });
    }
}

// Marks toward the peer what it got and did not flush, so no earlier write needs a flush there any
// more. Only this and an answered flush move stable_seq forward.
void Core::mark_unstable(NodeId id) {
    Peer& peer = peers_[id];
    if (journal_owner_ == config_.node_id && !is(Mutant::false_stability))
        mark_journal(peer.stable_seq, NodeMask::of(id));
    peer.stable_seq = journal_.tail() - 1;
}

// The writes of a primary that is gone: each peer may lack any of them.
void Core::drop_journal(bool mark) {
    if (mark && !journal_.empty() && !is(Mutant::forget_journal)) {
        mark_journal(0, config_.peers);
        for_peers([](Peer& peer, NodeId) { peer.aligned = false; });
        flush_wanted_ = true;
    }
    while (!journal_.empty()) {
        release_journal_entry(journal_.at(journal_.head()));
        journal_.pop();
    }
    for (const std::uint32_t index : peer_queue_)
        peer_requests_[index].journalled = false;
    journal_owner_ = -1;
    trim_asked_ = false;
    sync_flags();
}

void Core::set_slot_full(NodeId peer) {
    bitmap_->set_all(static_cast<unsigned>(peers_[peer].slot));
    sb_.peers[peer].flags |= md_peer_flag::full_sync;
    flush_bitmap_ = true;
    persist();
}

// A crash is reconciled when no peer needs blocks because of it any more.
void Core::maybe_clear_crash_marker() {
    if (!crashed_ || !bitmap_) return;
    bool clean = true;
    for_peers([&](const Peer& peer, NodeId id) {
        if (in_sync().has(id))
            clean = clean && bitmap_->count(static_cast<unsigned>(peer.slot)) == 0;
    });
    if (!clean) return;
    crashed_ = crashed_power_ = false;
    sb_.extension.crash_kind = 0;
    sync_flags();
}

}  // namespace replica
