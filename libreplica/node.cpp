// SPDX-License-Identifier: Apache-2.0
// Nodes and resources of the C interface: each function is one method of the control protocol.
#include <string>

#include "control/protocol.hpp"
#include "libreplica/backend.hpp"
#include "libreplica/edge.hpp"
#include "replica/replica.h"

using namespace replica;
using namespace replica::lib;

namespace {

Json optional_text(const char* text) { return text == nullptr ? Json() : Json(text); }

Json parse_object(const char* text, const char* what) {
    if (text == nullptr) return Json::object();
    if (!control::nesting_is_sane(text))
        throw control::Refused(std::string(what) + " nest too deep");
    Json json = Json::parse(text, nullptr, false);
    if (!json.is_object()) throw control::Refused(std::string(what) + " are not a JSON object");
    return json;
}

// Runs a method and returns its result, or throws what it refused.
Json ask(replica_node* node, const char* method, const Json& params) {
    if (node == nullptr) throw control::Refused("the node handle is NULL");
    auto result = node->backend->call(method, params);
    if (!result) throw control::Refused(result.error());
    return std::move(result).value();
}

int simple(replica_node* node, const char* method, const char* name, const char* key = nullptr,
           const Json& value = Json()) {
    return at_edge([&] {
        Json params = {{"name", optional_text(name)}};
        if (key != nullptr && !value.is_null()) params[key] = value;
        ask(node, method, params);
        return ok_status();
    });
}

int with_peer(replica_node* node, const char* method, const char* name, const char* peer) {
    return at_edge([&] {
        ask(node, method, {{"name", optional_text(name)}, {"peer", optional_text(peer)}});
        return ok_status();
    });
}

Json config_to_json(const replica_resource_config& config) {
    Json peers = Json::array();
    if (config.peer_count > 0 && config.peers == nullptr) {
        throw control::Refused("peer_count is set and peers is NULL");
    }
    for (size_t i = 0; i < config.peer_count; ++i) {
        const auto& peer = config.peers[i];
        peers.push_back({{"name", optional_text(peer.name)},
                         {"node-id", peer.node_id},
                         {"address", optional_text(peer.address)}});
    }
    return {{"name", optional_text(config.name)},
            {"node-id", config.node_id},
            {"volume", config.volume},
            {"disk", optional_text(config.disk)},
            {"metadata", optional_text(config.metadata)},
            {"peers", std::move(peers)},
            {"options", parse_object(config.options, "the options")}};
}

int open_with(replica_node** node, const std::function<Result<std::shared_ptr<Backend>>()>& open) {
    return at_edge([&]() -> Status {
        if (node == nullptr) return invalid_argument("the place for the node handle is NULL");
        TRY(auto backend, open());
        *node = new replica_node{std::move(backend)};
        return ok_status();
    });
}

}  // namespace

int replica_open(const char* url, replica_node** node) {
    return open_with(node, [&]() -> Result<std::shared_ptr<Backend>> {
        const std::string text = url == nullptr ? "" : url;
        if (text == "unix:") return open_unix(control::default_control_path);
        if (text.starts_with("unix:")) return open_unix(text.substr(5));
        if (text.starts_with("embedded:")) return open_embedded(text.substr(9), {});
        return Error{Errc::invalid, 0,
                     "\"" + text + "\" is no node; write unix:PATH or embedded:DIR"};
    });
}

int replica_open_embedded(const char* directory, const replica_embedded_options* options,
                          replica_node** node) {
    return open_with(node, [&]() -> Result<std::shared_ptr<Backend>> {
        if (directory == nullptr) return invalid_argument("the directory is NULL");
        if (options == nullptr) return open_embedded(directory, {});
        TRY(const auto copy, copy_versioned(options, "replica_embedded_options"));
        return open_embedded(directory, copy);
    });
}

void replica_close(replica_node* node) { delete node; }

int replica_create(replica_node* node, const replica_resource_config* config) {
    return at_edge([&]() -> Status {
        TRY(const auto copy, copy_versioned(config, "replica_resource_config"));
        ask(node, "resource.create",
            {{"config", config_to_json(copy)},
             {"force", copy.force},
             {"max-peers", copy.max_peers},
             {"size-bytes", copy.size_bytes}});
        return ok_status();
    });
}

int replica_adopt(replica_node* node, const replica_resource_config* config) {
    return at_edge([&]() -> Status {
        TRY(const auto copy, copy_versioned(config, "replica_resource_config"));
        ask(node, "resource.add", {{"config", config_to_json(copy)}});
        return ok_status();
    });
}

int replica_remove(replica_node* node, const char* name) {
    return simple(node, "resource.remove", name);
}

int replica_set_options(replica_node* node, const char* name, const char* options) {
    return at_edge([&] {
        ask(node, "resource.options",
            {{"name", optional_text(name)}, {"options", parse_object(options, "the options")}});
        return ok_status();
    });
}

int replica_up(replica_node* node, const char* name) { return simple(node, "resource.up", name); }

int replica_down(replica_node* node, const char* name) {
    return simple(node, "resource.down", name);
}

int replica_attach(replica_node* node, const char* name) {
    return simple(node, "resource.attach", name);
}

int replica_detach(replica_node* node, const char* name) {
    return simple(node, "resource.detach", name);
}

int replica_connect(replica_node* node, const char* name, const char* peer, bool discard_my_data) {
    return at_edge([&] {
        ask(node, "resource.connect",
            {{"name", optional_text(name)},
             {"peer", optional_text(peer)},
             {"discard-my-data", discard_my_data}});
        return ok_status();
    });
}

int replica_disconnect(replica_node* node, const char* name, const char* peer) {
    return with_peer(node, "resource.disconnect", name, peer);
}

int replica_promote(replica_node* node, const char* name, bool force) {
    return simple(node, "resource.promote", name, "force", force);
}

int replica_demote(replica_node* node, const char* name) {
    return simple(node, "resource.demote", name);
}

int replica_invalidate(replica_node* node, const char* name) {
    return simple(node, "resource.invalidate", name);
}

int replica_invalidate_remote(replica_node* node, const char* name, const char* peer) {
    return with_peer(node, "resource.invalidate-remote", name, peer);
}

int replica_pause_sync(replica_node* node, const char* name, const char* peer) {
    return with_peer(node, "resource.pause-sync", name, peer);
}

int replica_resume_sync(replica_node* node, const char* name, const char* peer) {
    return with_peer(node, "resource.resume-sync", name, peer);
}

int replica_new_current_uuid(replica_node* node, const char* name, bool clear_bitmap) {
    return simple(node, "resource.new-current-uuid", name, "clear-bitmap", clear_bitmap);
}

int replica_resize(replica_node* node, const char* name, uint64_t size_bytes,
                   uint64_t* new_size_bytes) {
    return at_edge([&] {
        const Json result = ask(node, "resource.resize",
                                {{"name", optional_text(name)}, {"size-bytes", size_bytes}});
        if (new_size_bytes != nullptr) *new_size_bytes = result.at("size-bytes").get<uint64_t>();
        return ok_status();
    });
}

int replica_export(replica_node* node, const char* name, const char* door) {
    return simple(node, "resource.export", name, "door", optional_text(door));
}

int replica_unexport(replica_node* node, const char* name, const char* door) {
    return simple(node, "resource.unexport", name, "door", optional_text(door));
}

int replica_wait(replica_node* node, const char* name, replica_until until, const char* peer,
                 uint64_t timeout_ms) {
    return at_edge([&]() -> Status {
        const char* text = nullptr;
        switch (until) {
            case REPLICA_UNTIL_CONNECTED:
                text = "connected";
                break;
            case REPLICA_UNTIL_SYNCED:
                text = "synced";
                break;
            case REPLICA_UNTIL_UPTODATE:
                text = "uptodate";
                break;
            case REPLICA_UNTIL_PRIMARY:
                text = "primary";
                break;
        }
        if (text == nullptr) return invalid_argument("there is no such state to wait for");
        ask(node, "resource.wait",
            {{"name", optional_text(name)},
             {"until", text},
             {"peer", optional_text(peer)},
             {"timeout-ms", timeout_ms}});
        return ok_status();
    });
}

int replica_status_json(replica_node* node, const char* name, char** json) {
    return at_edge([&]() -> Status {
        if (json == nullptr) return invalid_argument("the place for the JSON is NULL");
        *json = hand_out(control::dump_line(ask(node, "status", {{"name", optional_text(name)}})));
        return ok_status();
    });
}

int replica_stats_json(replica_node* node, const char* name, char** json) {
    return at_edge([&]() -> Status {
        if (json == nullptr) return invalid_argument("the place for the JSON is NULL");
        *json = hand_out(control::dump_line(ask(node, "stats", {{"name", optional_text(name)}})));
        return ok_status();
    });
}

int replica_call(replica_node* node, const char* method, const char* params, char** result) {
    return at_edge([&]() -> Status {
        if (method == nullptr) return invalid_argument("the method is NULL");
        const Json answer = ask(node, method, parse_object(params, "the parameters"));
        if (result != nullptr) *result = hand_out(control::dump_line(answer));
        return ok_status();
    });
}
