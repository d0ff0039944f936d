// SPDX-License-Identifier: Apache-2.0
// The core's state as text, for people who look at a failed simulation or a stuck daemon.
#include <cstdio>

#include "engine/core/for_peers.hpp"

namespace replica {

std::string Core::describe() const {
    std::string out;
    const auto line = [&](const char* format, auto... values) {
        char text[384];
        std::snprintf(text, sizeof text, format, values...);
        out += text;
        out += '\n';
    };
    using ull = unsigned long long;
    line("role %s disk %s meta %d promotion %d settled %d awaiting %x barrier %llu", name_of(role_),
         name_of(disk_), static_cast<int>(meta_), static_cast<int>(promotion_), settled() ? 1 : 0,
         register_.awaited().bits, static_cast<ull>(barrier_version_));
    line("current %016llx members %x sb version %llu durable %llu in flight %d crashed %d/%d",
         static_cast<ull>(sb_.current_uuid), in_sync().bits, static_cast<ull>(sb_version_),
         static_cast<ull>(sb_durable_), sb_in_flight_ ? 1 : 0, crashed_ ? 1 : 0,
         crashed_power_ ? 1 : 0);
    line("set %llu.%llu recorded %d content %016llx rests %d",
         static_cast<ull>(register_.number().generation),
         static_cast<ull>(register_.number().change), register_.is_recorded_here() ? 1 : 0,
         static_cast<ull>(content_), rests() ? 1 : 0);
    line("journal [%llu,%llu) limit %llu owner %d local stable %llu epoch flush %d wanted %d",
         static_cast<ull>(journal_.head()), static_cast<ull>(journal_.tail()),
         static_cast<ull>(journal_limit()), journal_owner_, static_cast<ull>(local_stable_seq_),
         epoch_flush_ ? 1 : 0, want_epoch_flush_ ? 1 : 0);
    line(
        "held %zu al-waiting %zu starving %d/%d peer queue %zu disk io %u al preparing %d writing "
        "%d "
        "bitmap in flight %u dirty %llu",
        held_.size(), al_waiting_.size(), al_starving_ ? 1 : 0, peer_al_starving_ ? 1 : 0,
        peer_queue_.size(), disk_io_, al_preparing_ ? 1 : 0, al_writing_ ? 1 : 0, bitmap_in_flight_,
        static_cast<ull>(bitmap_ ? bitmap_->dirty_pages() : 0));
    for (std::size_t slot = 0; slot < requests_.size(); ++slot) {
        const Request& r = requests_[slot];
        if (r.phase == Phase::free) continue;
        line(
            "  request %zu phase %d kind %d offset %llu length %u seq %llu local %d waiting %x "
            "order %llu",
            slot, static_cast<int>(r.phase), static_cast<int>(r.kind), static_cast<ull>(r.offset),
            r.length, static_cast<ull>(r.seq), r.local_pending ? 1 : 0, r.waiting.bits,
            static_cast<ull>(r.order));
    }
    for (const std::uint32_t index : peer_queue_) {
        const PeerRequest& p = peer_requests_[index];
        line("  from node %d phase %d kind %d offset %llu length %u seq %llu id %u link %u", p.peer,
             static_cast<int>(p.phase), static_cast<int>(p.kind), static_cast<ull>(p.offset),
             p.length, static_cast<ull>(p.seq), p.id, p.link);
    }
    for_peers([&](const Peer& peer, NodeId id) {
        line(
            "  peer %d phase %d link %u wanted %d role %s disk %s repl %s pending %u stable %llu "
            "bits %llu "
            "aligned %d said %016llx/%016llx state %d%d%d paused %d%d%d finishing %d bitmap %d%d "
            "chunks %u uuid %016llx/%016llx %s",
            id, static_cast<int>(peer.phase), peer.link, peer.wanted ? 1 : 0, name_of(peer.role),
            name_of(peer.disk), name_of(peer.repl), peer.pending, static_cast<ull>(peer.stable_seq),
            static_cast<ull>(
                bitmap_ && peer.slot >= 0 ? bitmap_->count(static_cast<unsigned>(peer.slot)) : 0),
            peer.aligned ? 1 : 0, static_cast<ull>(peer.sent.content),
            static_cast<ull>(peer.received.content), peer.want_state ? 1 : 0,
            peer.state_sent ? 1 : 0, peer.state_received ? 1 : 0, peer.paused_here ? 1 : 0,
            peer.paused_there ? 1 : 0, peer.paused_for_other ? 1 : 0, peer.finishing ? 1 : 0,
            peer.bitmap_sent ? 1 : 0, peer.bitmap_received ? 1 : 0, peer.chunks,
            static_cast<ull>(sb_.peers[id].bitmap_uuid),
            static_cast<ull>(sb_.peers[id].admitting_uuid), peer.why);
    });
    return out;
}

}  // namespace replica
