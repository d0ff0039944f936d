// SPDX-License-Identifier: Apache-2.0
// See check_config.hpp.
#include "engine/node/check_config.hpp"

#include <algorithm>
#include <climits>
#include <cstdint>

#include "engine/base/text.hpp"
#include "engine/io/address.hpp"

namespace replica {
namespace {

constexpr std::size_t name_max = 63;

bool is_alnum(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

Error invalid(std::string text) { return {Errc::invalid, 0, std::move(text)}; }

Status check_path(const char* what, const std::string& path) {
    const bool plain =
        std::none_of(path.begin(), path.end(), [](unsigned char c) { return c < 0x20; });
    if (path.size() > 1 && path.front() == '/' && path.size() < PATH_MAX && plain) {
        return ok_status();
    }
    return invalid(text_of("%s \"%s\" is no absolute path", what, path.c_str()));
}

Status check_range(const char* what, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
    if (value >= least && value <= most) return ok_status();
    return invalid(
        text_of("%s is %llu, it may be %llu to %llu", what, static_cast<unsigned long long>(value),
                static_cast<unsigned long long>(least), static_cast<unsigned long long>(most)));
}

Status check_peer(const PeerConfig& peer, const ResourceConfig& config) {
    TRY_STATUS(check_node_name("peer", peer.name));
    TRY_STATUS(
        check_range(("node id of peer " + peer.name).c_str(), peer.node_id, 0, nodes_max - 1));
    if (peer.node_id == config.node_id) {
        return invalid(text_of("peer %s has this node's own id %u: each node needs its own",
                               peer.name.c_str(), peer.node_id));
    }
    const auto same_id = std::count_if(config.peers.begin(), config.peers.end(),
                                       [&](auto& other) { return other.node_id == peer.node_id; });
    if (same_id > 1) return invalid(text_of("two peers have the node id %u", peer.node_id));
    const auto same_name = std::count_if(config.peers.begin(), config.peers.end(),
                                         [&](auto& other) { return other.name == peer.name; });
    if (same_name > 1) return invalid("two peers have the name " + peer.name);
    const auto endpoint = parse_endpoint(peer.address);
    if (!endpoint) return endpoint.error();
    const bool usable =
        !endpoint.value().is_unix() && !endpoint.value().host.empty() && endpoint.value().port != 0;
    if (usable) return ok_status();
    return invalid("peer " + peer.name + " has the address \"" + peer.address +
                   "\": HOST:PORT is needed");
}

}  // namespace

Status check_node_name(std::string_view what, std::string_view name) {
    const bool good = !name.empty() && name.size() <= name_max && is_alnum(name.front()) &&
                      std::all_of(name.begin(), name.end(), [](char c) {
                          return is_alnum(c) || c == '.' || c == '_' || c == '-';
                      });
    if (good) return ok_status();
    return invalid(
        text_of("%s name \"%s\": 1 to %zu letters, digits, \".\", \"_\" and \"-\", the "
                "first a letter or digit",
                std::string(what).c_str(), std::string(name).c_str(), name_max));
}

Status check_resource_options(const ResourceOptions& options) {
    TRY_STATUS(check_range("al-extents", options.al_extents, 67, 6433));
    TRY_STATUS(check_range("ping-interval-ms", options.ping_interval_ms, 100, 120'000));
    TRY_STATUS(check_range("ping-timeout-ms", options.ping_timeout_ms, 50, 30'000));
    TRY_STATUS(check_range("request-timeout-ms", options.request_timeout_ms, 500, 600'000));
    return check_range("connect-interval-ms", options.connect_interval_ms, 50, 120'000);
}

Status check_resource_config(const ResourceConfig& config, const std::string& own_name) {
    TRY_STATUS(check_node_name("resource", config.name));
    TRY_STATUS(check_range("node id", config.node_id, 0, nodes_max - 1));
    TRY_STATUS(check_path("disk", config.disk));
    if (!config.metadata.empty()) TRY_STATUS(check_path("metadata", config.metadata));
    for (const PeerConfig& peer : config.peers) {
        TRY_STATUS(check_peer(peer, config));
        if (peer.name == own_name) {
            return invalid("peer " + peer.name + " has this node's own name");
        }
    }
    return check_resource_options(config.options);
}

}  // namespace replica
