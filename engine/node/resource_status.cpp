// SPDX-License-Identifier: Apache-2.0
// What a resource tells people: its status, and an event whenever a word of it changes.
#include <cinttypes>

#include "engine/base/text.hpp"
#include "engine/node/resource_shell.hpp"

namespace replica {
namespace {

constexpr std::uint64_t progress_interval_ns = ns_per_s;
constexpr std::uint64_t disk_silence_ns = 5 * ns_per_s;  // is worth a word

}  // namespace

void ResourceShell::publish(const char* kind, const char* action, const std::string& peer,
                            const std::string& detail) {
    Event event;
    event.resource = config_.name;
    event.kind = kind;
    event.action = action;
    event.peer = peer;
    event.detail = detail;
    events_.publish(std::move(event));
}

void ResourceShell::publish_changes() {
    version_seen_ = core_->state_version();
    const Role role = core_->role();
    const DiskState disk = core_->disk();
    if (role != role_seen_ || core_->suspended() != suspended_seen_) {
        role_seen_ = role;
        suspended_seen_ = core_->suspended();
        publish("resource", "change", "",
                text_of("role:%s suspended:%s", name_of(role), suspended_seen_ ? "yes" : "no"));
    }
    if (disk != disk_seen_) {
        disk_seen_ = disk;
        publish("device", "change", "", text_of("disk:%s", name_of(disk)));
    }
    const bool progress = now().ns >= progress_at_.ns + progress_interval_ns;
    if (progress) {
        progress_at_ = now();
        sample_rates();
    }
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id]) publish_peer(*peers_[id], core_->view(id), progress);
    }
}

void ResourceShell::publish_peer(PeerState& state, const PeerView& view, bool progress) {
    SeenPeer& seen = state.seen;
    if (view.connection == ConnectionState::connected && !state.logged.empty()) {
        state.logged.clear();
        state.link->forget_trouble();
    }
    if (view.connection != seen.connection || view.role != seen.role) {
        seen.connection = view.connection;
        seen.role = view.role;
        publish("connection", "change", state.name,
                text_of("connection:%s role:%s", name_of(view.connection), name_of(view.role)));
    }
    const bool moved = progress && view.resync_done_bits != seen.done_bits;
    if (view.disk == seen.disk && view.replication == seen.replication && !moved) return;
    seen.disk = view.disk;
    seen.replication = view.replication;
    seen.done_bits = view.resync_done_bits;
    std::string detail =
        text_of("disk:%s replication:%s", name_of(view.disk), name_of(view.replication));
    if (view.resync_total_bits > 0 && view.replication != ReplicationState::established) {
        detail += text_of(" done:%.2f", 100.0 * static_cast<double>(view.resync_done_bits) /
                                            static_cast<double>(view.resync_total_bits));
    }
    publish("peer-device", "change", state.name, detail);
}

void ResourceShell::sample_rates() {
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (!peers_[id]) continue;
        PeerState& state = *peers_[id];
        const PeerView view = core_->view(id);
        state.rate[state.rate_next] = {now(), view.resync_sent_bytes + view.resync_received_bytes};
        state.rate_next = (state.rate_next + 1) % state.rate.size();
    }
}

// Over the last seconds, from the oldest sample that is not too old.
std::uint64_t ResourceShell::rate_of(const PeerState& state, const PeerView& view) const {
    const bool resyncing = view.replication != ReplicationState::off &&
                           view.replication != ReplicationState::established;
    if (!resyncing) return 0;
    const std::uint64_t bytes = view.resync_sent_bytes + view.resync_received_bytes;
    const RateSample* oldest = nullptr;
    for (const RateSample& sample : state.rate) {
        const bool fresh = sample.at.ns != 0 && now().ns - sample.at.ns <= 8 * ns_per_s;
        if (fresh && (oldest == nullptr || sample.at < oldest->at)) oldest = &sample;
    }
    if (oldest == nullptr || now().ns <= oldest->at.ns || bytes < oldest->bytes) return 0;
    const double seconds = static_cast<double>(now().ns - oldest->at.ns) / ns_per_s;
    return static_cast<std::uint64_t>(static_cast<double>(bytes - oldest->bytes) / seconds);
}

PeerStatus ResourceShell::status_of(NodeId id, const PeerState& state) const {
    const PeerView view = core_->view(id);
    PeerStatus status;
    status.name = state.name;
    status.node_id = id;
    status.connection = name_of(view.connection);
    status.role = name_of(view.role);
    status.disk = name_of(view.disk);
    status.replication = name_of(view.replication);
    const bool trying = view.connection == ConnectionState::unconnected ||
                        view.connection == ConnectionState::connecting;
    status.why = trying && !state.link->trouble().empty() ? state.link->trouble() : view.why;
    status.out_of_sync_bytes = view.out_of_sync_bits * block_bytes;
    status.resync_total_bytes = view.resync_total_bits * block_bytes;
    status.resync_done_bytes = view.resync_done_bits * block_bytes;
    status.resync_bytes_per_s = rate_of(state, view);
    status.sent_bytes = view.sent_bytes;
    status.received_bytes = view.received_bytes;
    status.resync_sent_bytes = view.resync_sent_bytes;
    status.resync_received_bytes = view.resync_received_bytes;
    status.pending = view.pending;
    status.unacked = view.unacked;
    return status;
}

// Empty: the disk answers.
std::string ResourceShell::silent_disk() const {
    if (!disk_) return "";
    for (const BlockFile* file : {disk_->data.get(), disk_->external.get()}) {
        if (file == nullptr || file->silent_ns() < disk_silence_ns) continue;
        return text_of("%s has not answered for %" PRIu64 " s", file->path().c_str(),
                       file->silent_ns() / ns_per_s);
    }
    return "";
}

std::string ResourceShell::why() const {
    if (std::string silent = silent_disk(); !silent.empty()) return silent;
    if (core_->why()[0] != '\0') return core_->why();
    if (core_->suspended()) return "writes wait until the new generation is recorded";
    for (const Device& device : devices_) {
        if (!device.why.empty()) return device.why;
    }
    return "";
}

ResourceStatus status_when_down(const ResourceConfig& config) {
    ResourceStatus status;
    status.name = config.name;
    status.node_id = config.node_id;
    status.volume = config.volume;
    status.role = "Secondary";
    status.disk = "Diskless";
    for (const PeerConfig& peer : config.peers) {
        PeerStatus& down = status.peers.emplace_back();
        down.name = peer.name;
        down.node_id = peer.node_id;
        down.connection = "StandAlone";
        down.role = "Unknown";
        down.disk = "DUnknown";
        down.replication = "Off";
    }
    return status;
}

ResourceStatus ResourceShell::status() const {
    ResourceStatus status;
    status.name = config_.name;
    status.node_id = config_.node_id;
    status.volume = config_.volume;
    status.up = true;
    status.role = name_of(core_->role());
    status.disk = name_of(core_->disk());
    status.suspended = core_->suspended();
    status.why = why();
    status.size_bytes = core_->volume_bytes();
    status.zeroing_total_bytes = zeroing_.total;
    status.zeroing_done_bytes = zeroing_.done;
    const Core::Counters& counters = core_->counters();
    status.read_bytes = counters.read_bytes;
    status.written_bytes = counters.written_bytes;
    status.al_writes = counters.al_writes;
    status.bm_writes = counters.bm_writes;
    status.md_writes = counters.md_writes;
    if (core_->al() != nullptr) status.al_used = core_->al()->used();
    status.current_uuid = text_of("%016" PRIX64, core_->superblock().current_uuid);
    status.generation_seq = core_->superblock().extension.generation_seq;
    for (const Door& door : doors_) {
        if (!door.stopping) status.doors.push_back(door.server->door());
    }
    for (const Device& device : devices_) {
        if (device.queue) status.doors.push_back(device.door);
    }
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id]) status.peers.push_back(status_of(id, *peers_[id]));
    }
    return status;
}

}  // namespace replica
