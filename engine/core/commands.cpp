// SPDX-License-Identifier: Apache-2.0
// What the operator asks for. Each command ends in one reply effect, at once or when what it
// promises is durable.
#include <algorithm>

#include "engine/core/for_peers.hpp"

namespace replica {

void Core::on_io(Instant now, IoTag tag, int result, bool zeroes) {
    now_ = now;
    switch (tag.origin) {
        case IoOrigin::request:
        case IoOrigin::epoch_flush:
            on_request_io(tag.index, result);
            break;
        case IoOrigin::peer_request:
            finish_peer_request(tag.index, result);
            break;
        case IoOrigin::resync:
            on_chunk_read(tag.index, result, zeroes);
            break;
        case IoOrigin::peer_read:
            on_peer_read_io(tag.index, result);
            break;
        case IoOrigin::local_flush:
            on_local_flushed(result);
            break;
        case IoOrigin::superblock:
            on_superblock_written(result);
            break;
        case IoOrigin::al:
            on_al_written(result);
            break;
        case IoOrigin::al_init:
            on_al_initialised(result);
            break;
        case IoOrigin::bitmap_page:
            on_bitmap_page_written(tag.index, result);
            break;
    }
    finish_failed_disk();
    end_step();
}

std::size_t Core::encode_payload(const Effect& effect, std::span<std::byte> out) const {
    ASSERT(effect.peer >= 0 && out.size() >= effect.message.payload_bytes);
    const auto id = static_cast<NodeId>(effect.peer);
    std::byte* p = out.data();
    const MessageType type = effect.message.type;
    if (type == MessageType::hello) {
        encode_hello(hello_for(id, effect.stream),
                     std::span<std::byte, hello_payload_bytes>{p, hello_payload_bytes});
    } else if (type == MessageType::state) {
        encode_state(peers_[id].sent,
                     std::span<std::byte, state_payload_bytes>{p, state_payload_bytes});
    } else if (type == MessageType::generation || type == MessageType::sync_done ||
               type == MessageType::adopt_generation) {
        encode_generation(told_[effect.index], std::span<std::byte, generation_payload_bytes>{
                                                   p, generation_payload_bytes});
    } else {
        ASSERT(type == MessageType::bitmap_page);
        bitmap_->encode_wire_page(static_cast<unsigned>(peers_[id].slot), effect.message.offset,
                                  std::span<std::byte, 4096>{p, 4096});
    }
    return effect.message.payload_bytes;
}

void Core::on_command(Instant now, const Command& c) {
    now_ = now;
    switch (c.kind) {
        case CommandKind::promote:
            command_promote(c);
            break;
        case CommandKind::demote:
            if (role_ != Role::primary) {
                reply(c.token, Errc::ok, "");
            } else if (demote_command_ || promotion_ != Promotion::none) {
                reply(c.token, Errc::busy, "a promotion or demotion is under way");
            } else {
                demote_command_ = c;
            }
            break;
        case CommandKind::connect:
            command_connect(c);
            break;
        case CommandKind::disconnect:
            command_disconnect(c);
            break;
        case CommandKind::detach:
            if (meta_ == MetaPhase::detached) {
                reply(c.token, Errc::ok, "");
            } else if (meta_ != MetaPhase::attached || detach_command_) {
                reply(c.token, Errc::busy, "the disk is being attached or detached");
            } else if (hold_ != MetadataHold::none) {
                reply(c.token, Errc::busy, "its metadata is being moved");
            } else {
                command_detach(c);
            }
            break;
        case CommandKind::invalidate:
        case CommandKind::invalidate_remote:
            command_invalidate(c);
            break;
        case CommandKind::pause_sync:
        case CommandKind::resume_sync:
            command_pause(c);
            break;
        case CommandKind::new_current_uuid:
            command_new_uuid(c);
            break;
        case CommandKind::resize:
            command_resize(c);
            break;
        case CommandKind::hold_metadata:
            command_hold_metadata(c);
            break;
        case CommandKind::release_metadata:
            if (hold_ == MetadataHold::draining || hold_ == MetadataHold::held)
                end_hold(Errc::cancelled, "its metadata is not moved");
            reply(c.token, Errc::ok, "");
            break;
        case CommandKind::down:
            if (role_ == Role::primary) {
                reply(c.token, Errc::state, "the resource is Primary; demote it first");
            } else if (hold_ != MetadataHold::none) {
                reply(c.token, Errc::busy, "its metadata is being moved");
            } else {
                down_command_ = c;
                command_down();
            }
            break;
    }
    end_step();
}

void Core::command_promote(const Command& c) {
    const auto refuse = [&](Errc code, const char* why) { reply(c.token, code, why); };
    if (role_ == Role::primary && promotion_ == Promotion::none) return refuse(Errc::ok, "");
    if (promotion_ != Promotion::none || demote_command_) {
        return refuse(Errc::busy, "a promotion or demotion is under way");
    }
    if (!disk_usable()) return refuse(Errc::state, "the disk is not attached; attach it first");
    if (sees_primary()) return refuse(Errc::state, "a peer is Primary; demote it first");
    if (!c.force) {
        if (disk_ == DiskState::inconsistent) {
            return refuse(Errc::state,
                          "the disk is Inconsistent; wait for its resync, or promote with "
                          "--force if no better data exists anywhere");
        }
        if (disk_ == DiskState::outdated) {
            return refuse(Errc::state,
                          "the disk is Outdated: a peer has newer data; connect it, or "
                          "promote with --force and lose that");
        }
        if (disk_ == DiskState::consistent) {
            return refuse(Errc::state,
                          "the disk is Consistent, but a peer that was not heard since the "
                          "restart may have newer data; connect it, or promote with --force");
        }
    }
    promotion_ = Promotion::asking;
    promote_command_ = c;
    ++promote_attempt_;
    promote_waiting_ = NodeMask{};
    // A peer that does not know this node's state on this link yet is asked after it (evaluate()).
    for_peers([&](const Peer& peer, NodeId id) {
        if (knows_state(peer)) ask_to_agree(id);
    });
    touch();
}

void Core::ask_to_agree(NodeId id) {
    peers_[id].promote_order = expect_answer(id, 0);
    promote_waiting_.add(id);
    Message m;
    m.type = MessageType::promote;
    // Each ask has a number of its own: the peer may not stand by what it answered before.
    m.id = peers_[id].promote_asked = ++promote_attempt_;
    m.flags = promote_command_.force ? 2 : 0;
    send(id, Stream::bulk, m);
}

void Core::command_connect(const Command& c) {
    // The offer is for the handshake that this command begins, and for no later split brain.
    bool begins = false;
    for_peers([&](const Peer& peer, NodeId id) {
        begins = begins || ((c.peer < 0 || c.peer == id) && peer.phase != LinkPhase::up);
    });
    if (c.discard_my_data && role_ == Role::primary) {
        return reply(c.token, Errc::state,
                     "the resource is Primary here: demote it first, its data is not discarded "
                     "under an application");
    }
    if (c.discard_my_data && !begins) {
        return reply(c.token, Errc::state,
                     "the peer is connected: there is nothing to be discarded. To take all data "
                     "from it, use invalidate");
    }
    for_peers([&](Peer& peer, NodeId id) {
        if (c.peer >= 0 && c.peer != id) return;
        peer.discard_my_data = c.discard_my_data && peer.phase != LinkPhase::up;
        offers_ = offers_ || peer.discard_my_data;
        if (peer.wanted) return;
        peer.wanted = true;
        peer.why = "";
        peer.retries = false;
        peer.knocks = true;
        peer.retry_at = now_;
        if (dials(id) && peer.phase == LinkPhase::down) start_dial(id);
    });
    touch();
    reply(c.token, Errc::ok, "");
}

void Core::disconnect_peer(NodeId id) {
    Peer& peer = peers_[id];
    peer.wanted = false;
    if (peer.phase == LinkPhase::up) {
        // A node that leaves a primary is behind from then on, and so is a node that a primary
        // leaves. The only node that has the data, as both have told, is not: such a primary cannot
        // write without it.
        const bool only_copy = in_sync() == self() && peer.repl != ReplicationState::off &&
                               peer.disk <= DiskState::inconsistent;
        const bool follows = role_ != Role::primary && peer.role == Role::primary && !only_copy;
        if (follows && disk_ >= DiskState::consistent) set_disk(DiskState::outdated);
        Message m;
        m.type = MessageType::goodbye;
        // A Primary does not go on without its only copy, so that copy is not outdated.
        const bool goes_on = role_ == Role::primary && !in_sync().without(NodeMask::of(id)).empty();
        m.flags = goes_on ? 1 : 0;
        send(id, Stream::bulk, m);
    }
    if (peer.phase != LinkPhase::down) {
        lose_link(id, "disconnected by the operator", true);
    } else {
        emit(EffectKind::close_link).peer = id;  // a knock may be under way
    }
    peer.why = "disconnected by the operator";
    touch();
}

void Core::command_disconnect(const Command& c) {
    for_peers([&](Peer&, NodeId id) {
        if (c.peer < 0 || c.peer == id) disconnect_peer(id);
    });
    on_durable(OnDurable::What::reply_ok, 0, c.token);
}

void Core::command_detach(const Command& c) {
    if (role_ == Role::primary) {
        if (in_sync().without(self()).empty()) {
            return reply(c.token, Errc::state,
                         "this disk is the only UpToDate one of a Primary; demote "
                         "it or bring a peer up to date first");
        }
        // With protocols A and B this disk may be the only one that has what was acknowledged:
        // the peers catch up first, and new writes wait for them.
        detach_command_ = c;
        detach_seq_ = journal_.tail() - 1;
        return try_detach_primary();
    }
    detach_command_ = c;
    begin_clean_detach();
}

void Core::try_detach_primary() {
    if (!detach_command_ || meta_ != MetaPhase::attached) return;
    if (role_ != Role::primary) return begin_clean_detach();  // demoted while it waited
    const Command c = *detach_command_;
    if (in_sync().without(self()).empty()) {
        detach_command_.reset();
        return reply(c.token, Errc::state, "the last UpToDate peer was lost meanwhile");
    }
    for (std::uint64_t seq = journal_.head(); seq < journal_.tail() && seq <= detach_seq_; ++seq) {
        if (!(journal_.at(seq).unwritten & in_sync()).empty()) return;
    }
    detach_command_.reset();
    // The disk keeps the generation that it has; its blocks are tracked by the peers from here on.
    local_disk_failed("detached by the operator");
    disk_failed_ = false;
    why_ = "";
    reply(c.token, Errc::ok, "");
}

void Core::begin_clean_detach() {
    for_peers([&](Peer& peer, NodeId id) {
        if (is_resyncing(peer.repl)) {
            abort_resync(id);
        }
    });
    Message m;
    m.type = MessageType::state_update;
    m.id = static_cast<std::uint32_t>(role_) | static_cast<std::uint32_t>(DiskState::diskless) << 8;
    for_peers([&](const Peer& peer, NodeId id) {
        if (peer.phase == LinkPhase::up) send(id, Stream::bulk, m);
    });
    start_detach();
}

void Core::invalidate_local(NodeId source) {
    content_ = 0;
    stop_being_source();
    for_peers([&](Peer&, NodeId id) { set_slot_full(id); });
    set_disk(DiskState::inconsistent);
    want_handshake(source);
}

// By its last state, or by the set: members do not compare while they see a Primary.
bool Core::is_of_this_generation(NodeId id) const {
    return in_sync().has(id) || uuid_equal(peers_[id].received.current_uuid, sb_.current_uuid);
}

void Core::on_invalidate(NodeId id) {
    if (role_ == Role::primary || !disk_usable() || peers_[id].disk != DiskState::up_to_date ||
        !is_of_this_generation(id)) {
        notice(4, id, "refused to be invalidated by the peer");
        Message m;
        m.type = MessageType::invalidate;
        m.flags = 1;
        return send(id, Stream::bulk, m);
    }
    invalidate_local(id);
}

// Why a full resync between this disk and that of a peer, in either direction, cannot begin; or
// nullptr.
const char* Core::no_full_resync(NodeId id, bool to_peer) const {
    const Peer& peer = peers_[id];
    if (peer.phase != LinkPhase::up) return "the peer is not connected";
    if (!disk_usable()) return "the disk is not attached";
    if (is_resyncing(peer.repl)) {
        return "a resync with the peer is under way or paused: wait for its end, or resume it";
    }
    if (peer.repl == ReplicationState::off) return "the handshake with the peer is not done";
    if (!to_peer) {
        if (role_ == Role::primary) return "the resource is Primary here; demote it first";
        if (peer.disk != DiskState::up_to_date)
            return "the peer's disk is not UpToDate: it has nothing to send";
        if (!is_of_this_generation(id))
            return "the peer's data is not what this disk holds: it may be older";
        return nullptr;
    }
    if (disk_ != DiskState::up_to_date) return "this disk is not UpToDate: it has nothing to send";
    if (peer.role == Role::primary) return "the peer is Primary; demote it first";
    if (peer.disk < DiskState::inconsistent) return "the peer has no disk attached";
    return nullptr;
}

void Core::command_invalidate(const Command& c) {
    const bool to_peer = c.kind == CommandKind::invalidate_remote;
    int chosen = -1;
    const char* why = "no peer is configured";
    for_peers([&](const Peer& peer, NodeId id) {
        if (c.peer >= 0 && c.peer != id) return;
        const char* hindrance = no_full_resync(id, to_peer);
        if (hindrance != nullptr) {
            why = hindrance;
        } else if (chosen < 0 || peer.role == Role::primary) {
            chosen = id;
        }
    });
    if (chosen < 0) return reply(c.token, Errc::state, why);
    if (to_peer && invalidating_) {
        return reply(c.token, Errc::busy, "a peer is being invalidated");
    }
    const auto id = static_cast<NodeId>(chosen);
    if (!to_peer) {
        invalidate_local(id);
        return on_durable(OnDurable::What::reply_ok, 0, c.token);
    }
    Message m;
    m.type = MessageType::invalidate;
    send(id, Stream::bulk, m);
    invalidating_ = {c.token, id, peers_[id].link};
}

// The command has ended when this node knows that the peer's data counts no more: whoever waits for
// it to be in sync from then on waits for the resync.
void Core::finish_invalidation() {
    if (!invalidating_) return;
    const Peer& peer = peers_[invalidating_->peer];
    Errc code = Errc::ok;
    if (peer.phase != LinkPhase::up || peer.link != invalidating_->link) {
        code = Errc::state;
    } else if (!is_resyncing(peer.repl) && peer.disk != DiskState::inconsistent) {
        return;
    }
    reply(std::exchange(invalidating_, std::nullopt)->token, code,
          code == Errc::ok ? "" : "the peer was lost before it had answered");
}

void Core::on_invalidate_refused(NodeId id) {
    if (!invalidating_ || invalidating_->peer != id) return;
    reply(std::exchange(invalidating_, std::nullopt)->token, Errc::state,
          "the peer refuses: it is Primary, has no disk, or does not take this one for UpToDate");
}

// Opens a generation without a primary: to skip the first resync of disks that are all zeroes, or
// to start tracking (truck-based seeding).
void Core::command_new_uuid(const Command& c) {
    if (role_ == Role::primary || !disk_usable() || promotion_ != Promotion::none) {
        return reply(c.token, Errc::state,
                     "only an attached Secondary can open a generation by hand");
    }
    const bool fresh = uuid_identity(sb_.current_uuid) == uuid_just_created;
    bool equal = fresh && all_zero_;
    for_peers([&](const Peer& peer, NodeId) {
        equal = equal && peer.phase == LinkPhase::up &&
                peer.repl == ReplicationState::established &&
                uuid_identity(peer.received.current_uuid) == uuid_just_created &&
                (peer.received.flags & state_flag::all_zero) != 0 &&
                peer.received.size_bytes == volume_bytes_;
    });
    if (c.force && !equal) {
        return reply(c.token, Errc::state,
                     "the disks are not proven equal: all peers must be connected, "
                     "just created and known to hold nothing but zeroes");
    }
    if (!c.force && (fresh || disk_ != DiskState::up_to_date || sees_primary())) {
        return reply(c.token, Errc::state, "the disk must be UpToDate and no peer Primary");
    }
    const Uuid old = sb_.current_uuid;
    NodeMask members = self();
    for_peers([&](Peer&, NodeId id) {
        PeerMetadata& md = sb_.peers[id];
        if (c.force) {
            members.add(id);
            clear_marks(id, Proof::zeroes);
        } else if (uuid_identity(md.bitmap_uuid) == uuid_none) {
            md.bitmap_uuid = uuid_identity(old);
        }
    });
    push_history(sb_.history, old);
    SuperblockExtension& ext = sb_.extension;
    const std::array<std::uint8_t, 16> unset{};
    if (ext.volume_id == unset) {
        for (std::uint8_t& byte : ext.volume_id)
            byte = static_cast<std::uint8_t>(entropy_.next());
    }
    InSyncSet set = without(register_.value(), {}, new_id(), register_.value().primary);
    set.members = members;
    propose_set(set);
    announce_set({});
    if (c.force) {
        all_zero_ = false;
        flush_bitmap_ = true;  // or the bits of "just created" would come back after a crash
        for_peers([&](const Peer&, NodeId id) {
            Message m;
            m.type = MessageType::adopt_generation;
            send_generation(id, m);
        });
        set_disk(DiskState::up_to_date);
    }
    persist();
    on_durable(OnDurable::What::reply_ok, 0, c.token);
    for_peers([&](Peer&, NodeId id) { want_handshake(id); });
}

// A peer proved that all disks are zeroes and named the first generation.
void Core::on_adopt_generation(NodeId id, const GenerationPayload& g) {
    const bool fresh = uuid_identity(sb_.current_uuid) == uuid_just_created;
    if (!fresh || !all_zero_ || !disk_usable() || role_ == Role::primary) {
        return protocol_error(id, "a first generation for a disk that is in use");
    }
    all_zero_ = false;
    for_peers([&](Peer&, NodeId other) { clear_marks(other, Proof::zeroes); });
    flush_bitmap_ = true;
    sb_.history = g.history;
    sb_.extension.volume_id = g.volume_id;
    InSyncSet set = set_of(g);
    set.primary = register_.value().primary;
    take_set(set);
    peers_[id].told_set = low_number(set.number);
    announce_set({});
    set_disk(DiskState::up_to_date);
    persist();
    want_handshake(id);
}

void Core::command_pause(const Command& c) {
    for_peers([&](Peer& peer, NodeId id) {
        if (c.peer >= 0 && c.peer != id) return;
        peer.paused_here = c.kind == CommandKind::pause_sync;
        update_pause(id);
    });
    reply(c.token, Errc::ok, "");
}

void Core::command_down() {
    for_peers([&](Peer& peer, NodeId id) {
        if (peer.wanted || peer.phase != LinkPhase::down) disconnect_peer(id);
    });
    if (meta_ == MetaPhase::attached) begin_clean_detach();
}

// Commands whose end depends on what the last steps did.
void Core::finish_commands() {
    if (promotion_ == Promotion::recording && settled()) {
        promotion_ = Promotion::none;
        announce_state();
        for_peers([&](Peer&, NodeId id) {
            if (!in_sync().has(id)) want_handshake(id);
        });
        // Two members may still have marks toward each other. From here on they clear these only
        // when this node says that they need none.
        tell_in_sync();
        notice(5, -1, "promoted to Primary");
        reply(promote_command_.token, Errc::ok, "");
    }
    finish_growth();
    finish_hold();
    finish_invalidation();
    if (demote_command_) try_demote();
    if (detach_command_) try_detach_primary();
    if (meta_ == MetaPhase::detach_drain) detach_next();
    const bool gone = meta_ == MetaPhase::detached && disk_ != DiskState::failed;
    if (detach_command_ && gone) {
        reply(detach_command_->token, Errc::ok, "");
        detach_command_.reset();
    }
    if (down_command_ && gone && idle()) {
        reply(down_command_->token, Errc::ok, "");
        down_command_.reset();
    }
}

}  // namespace replica
