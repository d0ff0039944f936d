// SPDX-License-Identifier: Apache-2.0
// The state of a resource as a C structure, made from the JSON of the control protocol. One
// allocation owns all: the structure, its peers and every string it points to.
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "libreplica/backend.hpp"
#include "libreplica/edge.hpp"
#include "replica/replica.h"

using namespace replica;
using namespace replica::lib;

namespace {

struct OwnedStatus : replica_status {
    std::deque<std::string> strings;  // a deque: elements never move
    std::deque<replica_peer_status> peers;
    std::vector<const replica_peer_status*> peer_pointers;

    const char* text(const Json& object, const char* key) {
        const auto found = object.find(key);
        const bool good = found != object.end() && found->is_string();
        return strings.emplace_back(good ? found->get<std::string>() : "").c_str();
    }
};

template <class T>
T number(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_integer() ? found->get<T>() : T{};
}

bool flag(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && *found == true;
}

const Json& first(const Json& object, const char* key) {
    static const Json empty = Json::object();
    const auto found = object.find(key);
    const bool good = found != object.end() && found->is_array() && !found->empty();
    return good && found->front().is_object() ? found->front() : empty;
}

void add_peer(OwnedStatus& owned, const Json& connection) {
    const Json& device = first(connection, "peer_devices");
    auto& peer = owned.peers.emplace_back();
    peer.name = owned.text(connection, "name");
    peer.node_id = number<uint32_t>(connection, "peer-node-id");
    peer.connection = owned.text(connection, "connection-state");
    peer.role = owned.text(connection, "peer-role");
    peer.why = owned.text(connection, "why");
    peer.disk = owned.text(device, "peer-disk-state");
    peer.replication = owned.text(device, "replication-state");
    peer.out_of_sync_bytes = number<uint64_t>(device, "out-of-sync-bytes");
    peer.resync_total_bytes = number<uint64_t>(device, "resync-total-bytes");
    peer.resync_done_bytes = number<uint64_t>(device, "resync-done-bytes");
    peer.resync_bytes_per_s = number<uint64_t>(device, "resync-bytes-per-s");
    owned.peer_pointers.push_back(&peer);
}

std::unique_ptr<OwnedStatus> make_status(const Json& resource) {
    auto owned = std::make_unique<OwnedStatus>();
    const Json& device = first(resource, "devices");
    replica_status& view = *owned;
    view.name = owned->text(resource, "name");
    view.node_id = number<uint32_t>(resource, "node-id");
    view.up = flag(resource, "up");
    view.suspended = flag(resource, "suspended");
    view.role = owned->text(resource, "role");
    view.why = owned->text(resource, "why");
    view.volume = number<uint32_t>(device, "volume");
    view.disk = owned->text(device, "disk-state");
    view.size_bytes = number<uint64_t>(device, "size-bytes");
    view.read_bytes = number<uint64_t>(device, "read-bytes");
    view.written_bytes = number<uint64_t>(device, "written-bytes");
    view.current_uuid = owned->text(device, "current-uuid");
    if (const auto found = resource.find("connections");
        found != resource.end() && found->is_array()) {
        for (const auto& connection : *found) {
            if (connection.is_object()) add_peer(*owned, connection);
        }
    }
    view.peer_count = owned->peer_pointers.size();
    view.peers = owned->peer_pointers.data();
    return owned;
}

}  // namespace

int replica_status_get(replica_node* node, const char* name, replica_status** status) {
    return at_edge([&]() -> Status {
        if (node == nullptr || name == nullptr || status == nullptr) {
            return invalid_argument("the node, the name or the place for the status is NULL");
        }
        TRY(const Json list, node->backend->call("status", {{"name", name}}));
        if (!list.is_array() || list.size() != 1 || !list.front().is_object()) {
            return Error{Errc::corrupt, 0, "the node sent a status that is not one"};
        }
        *status = make_status(list.front()).release();
        return ok_status();
    });
}

void replica_status_free(replica_status* status) { delete static_cast<OwnedStatus*>(status); }
