// SPDX-License-Identifier: Apache-2.0
// See replicactl_drbd.hpp.
#include "tools/replicactl_drbd.hpp"

#include <fmt/format.h>

namespace replica::replicactl {

using control::Json;

namespace {

Json peer_device_json(const DrbdPeerDevice& device) {
    return {{"volume", device.volume},
            {"replication-state", device.replication},
            {"peer-disk-state", device.disk},
            {"resync-suspended", device.resync_suspended ? "yes" : "no"},
            {"received", device.received_bytes / 1024},
            {"sent", device.sent_bytes / 1024},
            {"out-of-sync", device.out_of_sync_bytes / 1024},
            {"out-of-sync-bytes", device.out_of_sync_bytes},
            {"pending", device.pending},
            {"unacked", device.unacked}};
}

Json connection_json(const DrbdConnection& connection) {
    Json devices = Json::array();
    for (const DrbdPeerDevice& device : connection.devices)
        devices.push_back(peer_device_json(device));
    // 8.4 knows no names.
    const std::string name = connection.name.empty() ? connection.peer : connection.name;
    Json json = {{"name", name},
                 {"connection-state", connection.state},
                 {"peer-role", connection.role},
                 {"peer_devices", std::move(devices)}};
    if (connection.peer_node_id >= 0) json["peer-node-id"] = connection.peer_node_id;
    if (!connection.local.empty()) json["local-address"] = connection.local;
    if (!connection.peer.empty()) json["peer-address"] = connection.peer;
    return json;
}

Json device_json(const DrbdDevice& device) {
    Json json = {{"volume", device.volume},
                 {"minor", device.minor},
                 {"disk-state", device.disk},
                 {"size", device.size_bytes / 1024},
                 {"size-bytes", device.size_bytes},
                 {"read", device.read_bytes / 1024},
                 {"written", device.written_bytes / 1024},
                 {"al-writes", device.al_writes},
                 {"bm-writes", device.bm_writes},
                 {"current-uuid", fmt::format("{:016X}", device.current_uuid)},
                 {"doors", {fmt::format("/dev/drbd{}", device.minor)}}};
    if (!device.backing.empty()) json["backing-dev"] = device.backing;
    return json;
}

}  // namespace

Json drbd_status_json(const std::vector<DrbdResource>& resources) {
    Json list = Json::array();
    for (const DrbdResource& resource : resources) {
        Json devices = Json::array(), connections = Json::array();
        for (const DrbdDevice& device : resource.devices)
            devices.push_back(device_json(device));
        for (const DrbdConnection& connection : resource.connections)
            connections.push_back(connection_json(connection));
        list.push_back({{"name", resource.name},
                        {"role", resource.role},
                        {"suspended", resource.suspended},
                        {"up", true},
                        {"devices", std::move(devices)},
                        {"connections", std::move(connections)}});
    }
    return list;
}

std::string hint_for_drbd_word(const std::string& word) {
    struct Pair {
        const char* theirs;
        const char* ours;
    };
    static constexpr Pair words[] = {
        {"primary", "promote"},
        {"secondary", "demote"},
        {"role", "status"},
        {"cstate", "status"},
        {"dstate", "status"},
        {"show-gi", "status --verbose"},
        {"get-gi", "status --verbose"},
        {"events2", "events"},
        {"dump", "show"},
        {"create-md", "create, or adopt for metadata that is there"},
        {"adjust", "options; for disk and peers: down, remove, adopt"},
        {"disk-options", "options"},
        {"net-options", "options"},
        {"peer-device-options", "options"},
        {"resource-options", "options"},
        {"wipe-md", "replicameta wipe"},
        {"dump-md", "replicameta dump"},
        {"apply-al", "replicameta apply-al"},
    };
    for (const Pair& pair : words) {
        if (word == pair.theirs) return std::string("; here it is ") + pair.ours;
    }
    for (const char* missing : {"verify", "forget-peer", "outdate", "suspend-io", "resume-io"}) {
        if (word == missing) return "; this version has nothing like it";
    }
    return "";
}

}  // namespace replica::replicactl
