// SPDX-License-Identifier: Apache-2.0
// The size of the volume: agreed between disks that are new, grown on all nodes or on none. And the
// hold of the metadata writes while a shell moves the metadata to the end of a disk that has grown.
//
// A volume grows into what reads as zeroes on every disk, so nothing has to be resynced: each node
// first makes room (on_room()). A Secondary that is told of a larger size, by its operator or by a
// peer's state, records it and says so in a state. A Primary names the size that it wants, and
// takes it when all that are connected have said so: no write beyond the old end meets a smaller
// disk.
#include <algorithm>
#include <utility>

#include "engine/core/for_peers.hpp"

namespace replica {

void Core::change_volume_size(std::uint64_t bytes) {
    volume_bytes_ = recorded_bytes_ = bytes;
    growing_to_ = 0;
    sb_.effective_size_sectors = bytes / sector_bytes;
    std::uint32_t slots = 0;
    for_peers([&](const Peer& peer, NodeId) { slots |= 1U << peer.slot; });
    bitmap_.emplace(bytes, sb_.max_peers, slots);
    page_in_flight_.assign(bitmap_->pages(), 0);
    bitmap_cursor_ = 0;
    al_.emplace(sb_.al_extents, extents_of(bytes), sb_.al_stripes * sb_.al_stripe_blocks);
    evicted_.reserve(al_updates_max);
    al_pages_.reserve(std::size_t{al_updates_max} * 34);
}

// How large the volume could be here.
std::uint64_t Core::room() const {
    if (uuid_identity(sb_.current_uuid) == uuid_just_created) return data_bytes_max_;
    return std::max(volume_bytes_, std::min(sb_.extension.ready_bytes, data_bytes_max_));
}

// True if a connected peer has data: that peer decides the size.
bool Core::sees_data() const {
    bool seen = false;
    for_peers([&](const Peer& peer, NodeId) {
        const bool told = peer.phase == LinkPhase::up && peer.repl != ReplicationState::off &&
                          peer.received.size_bytes != 0;
        seen = seen || (told && uuid_identity(peer.received.current_uuid) != uuid_just_created);
    });
    return seen && !is(Mutant::follow_the_empty);
}

// Both disks must hold the same volume size. A side that never held data changes its own; of two
// that do, the smaller one grows if it has room.
bool Core::agree_on_size(NodeId id) {
    const StatePayload& mine = peers_[id].sent;
    const StatePayload& theirs = peers_[id].received;
    if (mine.size_bytes == 0 || theirs.size_bytes == 0) return true;
    if (mine.size_bytes == theirs.size_bytes) {
        // Bitmaps of one length are needed for all else; and the verdicts are to be the same.
        const bool as_sent = !disk_usable() || mine.size_bytes == volume_bytes_;
        return as_sent && ((mine.flags | theirs.flags) & state_flag::growing) == 0;
    }
    const bool i_am_new = uuid_identity(mine.current_uuid) == uuid_just_created;
    const bool peer_is_new = uuid_identity(theirs.current_uuid) == uuid_just_created;
    if (!i_am_new && !peer_is_new) return agree_to_grow(id), false;
    if (i_am_new && peer_is_new && sees_data()) return true;
    // The side with data decides; of two new ones the smaller.
    const std::uint64_t wanted = i_am_new && peer_is_new
                                     ? std::min(mine.size_bytes, theirs.size_bytes)
                                     : (i_am_new ? theirs.size_bytes : mine.size_bytes);
    if ((i_am_new && wanted > mine.size_max_bytes) ||
        (peer_is_new && wanted > theirs.size_max_bytes)) {
        go_standalone(id, wanted > mine.size_max_bytes
                              ? "this node's disk is too small for the peer's volume"
                              : "the peer's disk is too small for the volume");
        return false;
    }
    if (!i_am_new || wanted == mine.size_bytes) return true;
    const bool as_sent = disk_usable() && volume_bytes_ == mine.size_bytes &&
                         uuid_identity(sb_.current_uuid) == uuid_just_created;
    if (!as_sent || !quiet()) {
        want_handshake(id);  // another peer came first; once more, with what is true then
        return false;
    }
    drop_journal(false);  // everything is marked below
    ASSERT(al_->held() == 0);
    change_volume_size(wanted);
    sb_.extension.ready_bytes = 0;  // the end of the volume is another one
    al_->reset();
    for_peers([&](Peer&, NodeId other) {
        set_slot_full(other);
        want_handshake(other);
    });
    persist();
    return true;
}

void Core::agree_to_grow(NodeId id) {
    const StatePayload& mine = peers_[id].sent;
    const StatePayload& theirs = peers_[id].received;
    if (mine.size_bytes > theirs.size_bytes) {
        if (mine.size_bytes <= theirs.size_max_bytes) return;  // it does, and says so then
        return go_standalone(id,
                             "the volume has grown, and the peer's disk has no room for it: "
                             "give it a larger one, and say resize there");
    }
    if (theirs.size_bytes > mine.size_max_bytes) {
        return go_standalone(id,
                             "the volume has grown, and this node's disk has no room for it: "
                             "give it a larger one, and say resize");
    }
    if (!disk_usable() || theirs.size_bytes <= volume_bytes_) return want_handshake(id);
    begin_growth(theirs.size_bytes);
}

// A node that may write waits until the others have it on record.
void Core::begin_growth(std::uint64_t bytes) {
    const bool may_write = role_ == Role::primary || promotion_ != Promotion::none;
    if (!may_write && !ends_any_resync()) return grow(bytes);
    if (bytes <= growing_to_) return;
    growing_to_ = bytes;
    for_peers([&](Peer&, NodeId id) { want_handshake(id); });
    touch();
}

// From here on it is the volume's size; what lies beyond the old end waits until that is on record.
void Core::grow(std::uint64_t bytes) {
    ASSERT(bytes > volume_bytes_ && bytes <= room());
    for_peers([&](Peer& peer, NodeId id) {
        if (is_resyncing(peer.repl)) abort_resync(id);
        want_handshake(id);
    });
    content_ = 0;
    volume_bytes_ = bytes;
    sb_.effective_size_sectors = bytes / sector_bytes;
    bitmap_->grow(bytes);
    page_in_flight_.resize(bitmap_->pages());
    al_->grow(extents_of(bytes));
    persist();
    size_version_ = sb_version_;
    if (is(Mutant::grow_unrecorded)) recorded_bytes_ = bytes, size_version_ = 0;
    notice(5, -1, "the volume has grown");
}

// The end of a growth that began here, and the record of any.
void Core::finish_growth() {
    if (recorded_bytes_ < volume_bytes_ && (sb_durable_ >= size_version_ || !metadata_usable())) {
        recorded_bytes_ = volume_bytes_;
        retry_held_ = true;
        touch();
    }
    const auto peers_have = [this](std::uint64_t bytes) {
        bool all = true;
        for_peers([&](const Peer& peer, NodeId) {
            const bool counts = peer.phase == LinkPhase::up && peer.disk >= DiskState::inconsistent;
            all = all && (!counts || peer.size_bytes >= bytes);
        });
        return all || is(Mutant::grow_alone);
    };
    if (growing_to_ != 0 && disk_usable()) {
        const bool writer = role_ == Role::primary || promotion_ != Promotion::none;
        if ((writer && !peers_have(growing_to_)) || ends_any_resync()) return;
        const std::uint64_t bytes = std::exchange(growing_to_, 0);
        if (bytes > volume_bytes_) grow(bytes);
    }
    if (growing_to_ != 0) {
        growing_to_ = 0;
        touch();
        if (!resize_command_) return;
        reply(resize_command_->token, Errc::state, "the disk was lost before the volume has grown");
        resize_command_.reset();
    }
    if (!resize_command_ || recorded_bytes_ < volume_bytes_) return;
    if (volume_bytes_ == resize_to_) {
        if (!peers_have(resize_to_)) return;
        reply(std::exchange(resize_command_, std::nullopt)->token, Errc::ok, "");
    } else {
        begin_resize();
    }
}

// A peer whose record does not reach so far is on its way to a larger one.
bool Core::out_of_reach(const Request& r) const {
    const std::uint64_t end = r.offset + r.length;
    bool out = end > recorded_bytes_;
    if (is(Mutant::grow_alone)) return out;
    for_peers([&](const Peer& peer, NodeId id) {
        out = out || (peer.size_bytes != 0 && peer.size_bytes < end && replicates_to(peer, id));
    });
    return out;
}

void Core::on_room(Instant now, std::uint64_t bytes) {
    now_ = now;
    ASSERT(bytes <= data_bytes_max_);
    if (disk_usable() && bytes != sb_.extension.ready_bytes) {
        sb_.extension.ready_bytes = bytes;
        persist();
        size_version_ = sb_version_;  // told when it is on record
        for_peers([&](Peer&, NodeId id) { want_handshake(id); });
        touch();
    }
    end_step();
}

// It begins when what is being exchanged with the peers has come to its end.
void Core::command_resize(const Command& c) {
    if (resize_command_ || growing_to_ != 0) {
        return reply(c.token, Errc::busy, "it is being resized");
    }
    resize_command_ = c;
    resize_to_ = 0;
    touch();
}

void Core::begin_resize() {
    const auto refuse = [&](Errc code, const char* why) {
        reply(std::exchange(resize_command_, std::nullopt)->token, code, why);
    };
    if (!disk_usable()) return refuse(Errc::state, "the disk is not attached");
    if (uuid_identity(sb_.current_uuid) == uuid_just_created) {
        return refuse(Errc::state,
                      "the volume holds nothing yet: create it anew with the size that it shall "
                      "have, or promote it first");
    }
    std::uint64_t most = room();
    bool all = true, busy = false;
    for_peers([&](const Peer& peer, NodeId) {
        const bool up = peer.phase == LinkPhase::up;
        const bool round = peer.in_round() && !ends_resync(peer);
        busy = busy || (up && (round || peer.repl == ReplicationState::off));
        all = all && up && peer.size_bytes != 0 && peer.disk >= DiskState::inconsistent;
        most = std::min(most, std::max(peer.room_bytes, peer.size_bytes));
    });
    if (busy) return;
    most = std::max(most / block_bytes * block_bytes, volume_bytes_);
    const std::uint64_t wanted =
        resize_command_->size_bytes != 0 ? resize_command_->size_bytes : most;
    if (wanted < volume_bytes_) return refuse(Errc::unsupported, "a volume can not shrink");
    if (wanted == volume_bytes_) return refuse(Errc::ok, "");
    if (!all) {
        return refuse(Errc::no_space,
                      "a volume grows on all nodes or on none, and not all are "
                      "connected with their disks");
    }
    if (wanted > most) return refuse(Errc::no_space, "not all nodes have made room for that size");
    resize_to_ = wanted;
    begin_growth(wanted);
}

// ---- the move of the metadata -------------------------------------------------------------------

void Core::command_hold_metadata(const Command& c) {
    if (!metadata_usable()) return reply(c.token, Errc::state, "the disk is not attached");
    if (hold_ != MetadataHold::none) {
        return reply(c.token, Errc::busy, "its metadata is being moved");
    }
    hold_ = MetadataHold::draining;
    hold_token_ = c.token;
    touch();
}

void Core::finish_hold() {
    if (hold_ != MetadataHold::draining || sb_in_flight_ || al_writing_ || bitmap_in_flight_ > 0) {
        return;
    }
    hold_ = MetadataHold::held;
    reply(*std::exchange(hold_token_, std::nullopt), Errc::ok, "");
}

void Core::end_hold(Errc code, const char* why) {
    hold_ = MetadataHold::none;
    touch();
    if (hold_token_) reply(*std::exchange(hold_token_, std::nullopt), code, why);
}

// The superblock goes to the new place next, and makes it the place; all else waits for that.
void Core::on_metadata_moved(Instant now, std::uint32_t token, const Superblock& placed,
                             std::uint64_t data_bytes_max) {
    now_ = now;
    if (hold_ == MetadataHold::held) {
        hold_token_ = token;
        hold_ = MetadataHold::recording;
        sb_.md_size_sectors = placed.md_size_sectors;
        sb_.al_offset_sectors = placed.al_offset_sectors;
        sb_.bm_offset_sectors = placed.bm_offset_sectors;
        sb_.extension.device_bytes = placed.extension.device_bytes;
        data_bytes_max_ = data_bytes_max;
        persist();
        touch();
    } else {
        reply(token, Errc::state, "the disk was lost while its metadata was moved");
    }
    end_step();
}

}  // namespace replica
