// SPDX-License-Identifier: Apache-2.0
// See codec.hpp. Options are one table, so that JSON, the command line and the manual can not drift
// apart; the rest is field by field.
#include "control/codec.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace replica::control {
namespace {

[[noreturn]] void refuse(std::string message) { throw Refused(std::move(message)); }

void demand(const Status& status) {
    if (!status) throw Refused(status.error());
}

template <class E, std::size_t N>
std::string spell(const std::array<Spelling<E>, N>& names, E value) {
    const auto* found = std::find_if(names.begin(), names.end(),
                                     [&](const auto& entry) { return entry.first == value; });
    ASSERT(found != names.end());
    return std::string(found->second);
}

template <class E, std::size_t N>
E parse_enum(const std::array<Spelling<E>, N>& names, const Json& value) {
    std::string choices;
    for (const auto& [enumerator, name] : names) {
        if (value.is_string() && value.get_ref<const std::string&>() == name) return enumerator;
        choices += choices.empty() ? "" : ", ";
        choices += name;
    }
    refuse(fmt::format("there is no value {}; it takes {}", dump_line(value), choices));
}

std::uint64_t parse_number(const std::string& what, const Json& value, std::uint64_t min,
                           std::uint64_t max) {
    std::uint64_t number = 0;
    if (value.is_number_integer() && value >= 0) {
        number = value.get<std::uint64_t>();
    } else if (value.is_string()) {
        auto parsed = parse_size(value.get_ref<const std::string&>());
        if (!parsed) refuse(fmt::format("{}: {}", what, parsed.error().message));
        number = parsed.value();
    } else {
        refuse(fmt::format("{} must be a whole number, not {}", what, dump_line(value)));
    }
    if (number < min || number > max) {
        refuse(fmt::format("{} must be {}..{}, not {}", what, min, max, number));
    }
    return number;
}

template <auto Member, std::uint64_t Min, std::uint64_t Max>
constexpr OptionField number_option(const char* key, const char* help) {
    return {key, help, [](const ResourceOptions& options) { return Json(options.*Member); },
            [](ResourceOptions& options, const Json& value) {
                using Number = std::remove_reference_t<decltype(options.*Member)>;
                options.*Member = static_cast<Number>(parse_number("the value", value, Min, Max));
            }};
}

template <auto Member, const auto& Names>
constexpr OptionField enum_option(const char* key, const char* help) {
    return {key, help,
            [](const ResourceOptions& options) { return Json(spell(Names, options.*Member)); },
            [](ResourceOptions& options, const Json& value) {
                options.*Member = parse_enum(Names, value);
            }};
}

using O = ResourceOptions;
constexpr std::uint64_t u64_max = ~std::uint64_t{0};
constexpr OptionField fields[] = {
    enum_option<&O::protocol, protocol_names>(
        "protocol", "when a write is done: A, B or C (C: on every in-sync replica)"),
    enum_option<&O::on_io_error, on_io_error_names>(
        "on-io-error", "after an error of the local disk: detach, pass_on"),
    enum_option<&O::after_sb_0pri, after_sb_0pri_names>(
        "after-sb-0pri",
        "split brain, no primary: disconnect, discard-younger-primary, "
        "discard-older-primary, discard-zero-changes, discard-least-changes, "
        "discard-local, discard-remote"),
    enum_option<&O::after_sb_1pri, after_sb_1pri_names>(
        "after-sb-1pri",
        "split brain, one primary: disconnect, consensus, violently-as0p, discard-secondary"),
    enum_option<&O::after_sb_2pri, after_sb_2pri_names>(
        "after-sb-2pri", "split brain, two primaries: disconnect, violently-as0p"),
    number_option<&O::al_extents, 67, 6433>("al-extents", "activity-log slots of 4 MiB, 67..6433"),
    number_option<&O::resync_rate_max, 0, u64_max>("resync-rate-max",
                                                   "bytes a second (K, M, G), 0: no limit"),
    number_option<&O::ping_interval_ms, 100, 120'000>(
        "ping-interval-ms", "milliseconds between pings on an idle link, 100..120000"),
    number_option<&O::ping_timeout_ms, 50, 30'000>(
        "ping-timeout-ms", "milliseconds for the answer to a ping, 50..30000"),
    number_option<&O::request_timeout_ms, 500, 600'000>(
        "request-timeout-ms", "milliseconds for the answer to a write or flush, 500..600000"),
    number_option<&O::connect_interval_ms, 50, 120'000>(
        "connect-interval-ms", "milliseconds before the first retry of a connection, 50..120000"),
    enum_option<&O::snapshot_before_resync, snapshot_names>(
        "snapshot-before-resync",
        "keep a thin volume of LVM as it is before it becomes the target of a resync: no, yes"),
};

PeerConfig peer_from_json(const Json& object) {
    Params params("peer", object);
    PeerConfig peer;
    peer.name = params.text("name");
    demand(check_name("peer", peer.name));
    peer.node_id = static_cast<NodeId>(params.number("node-id", 0, nodes_max - 1));
    peer.address = params.text("address");
    demand(check_address("peer address", peer.address));
    params.finish();
    return peer;
}

void check_peers(const ResourceConfig& config) {
    std::set<std::string> names;
    std::set<unsigned> ids{config.node_id};
    for (const auto& peer : config.peers) {
        if (!names.insert(peer.name).second) {
            refuse(fmt::format("peer {} is given twice", peer.name));
        }
        if (!ids.insert(peer.node_id).second) {
            refuse(fmt::format(
                "node id {} of peer {} is taken already; each node of a resource, this one "
                "included, has its own id and keeps it for life",
                peer.node_id, peer.name));
        }
    }
    if (config.peers.size() > nodes_max - 1) {
        refuse(
            fmt::format("{} peers are given; {} are possible", config.peers.size(), nodes_max - 1));
    }
}

double percent(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 100.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

Json peer_device_to_json(const ResourceStatus& status, const PeerStatus& peer) {
    const bool paused = peer.replication.starts_with("Paused");
    // The engine keeps the figures of a resync that has ended; they are told while it runs.
    const bool running = peer.replication != "Established" && peer.replication != "Off";
    const bool syncing = running && peer.resync_total_bytes > 0;
    const std::uint64_t in_sync =
        status.size_bytes - std::min(peer.out_of_sync_bytes, status.size_bytes);
    Json json = {
        {"volume", status.volume},
        {"replication-state", peer.replication},
        {"peer-disk-state", peer.disk},
        {"peer-client", false},
        {"resync-suspended", paused ? "user" : "no"},
        {"received", (peer.received_bytes + peer.resync_received_bytes) / 1024},
        {"sent", (peer.sent_bytes + peer.resync_sent_bytes) / 1024},
        {"out-of-sync", peer.out_of_sync_bytes / 1024},
        {"pending", peer.pending},
        {"unacked", peer.unacked},
        {"has-sync-details", syncing},
        {"has-online-verify-details", false},
        {"percent-in-sync", percent(in_sync, status.size_bytes)},
        {"out-of-sync-bytes", peer.out_of_sync_bytes},
        {"sent-bytes", peer.sent_bytes},
        {"received-bytes", peer.received_bytes},
        {"resync-sent-bytes", peer.resync_sent_bytes},
        {"resync-received-bytes", peer.resync_received_bytes},
    };
    if (!syncing) return json;
    const auto done = std::min(peer.resync_done_bytes, peer.resync_total_bytes);
    json["done"] = percent(done, peer.resync_total_bytes);
    json["percent-resync-done"] = json["done"];
    json["rs-total"] = peer.resync_total_bytes / sector_bytes;
    json["resync-total-bytes"] = peer.resync_total_bytes;
    json["resync-done-bytes"] = done;
    json["resync-bytes-per-s"] = peer.resync_bytes_per_s;
    if (peer.resync_bytes_per_s > 0) {
        json["estimated-seconds-to-finish"] =
            (peer.resync_total_bytes - done) / peer.resync_bytes_per_s;
    }
    return json;
}

Json to_json(const Histogram& histogram) {
    std::size_t used = std::size(histogram.counts);
    while (used > 0 && histogram.counts[used - 1] == 0)
        --used;
    Json counts = Json::array();
    for (std::size_t i = 0; i < used; ++i)
        counts.push_back(histogram.counts[i]);
    return {{"total", histogram.total},
            {"sum-ns", histogram.sum_ns},
            {"max-ns", histogram.max_ns},
            {"counts-log2-ns", std::move(counts)}};
}

}  // namespace

Params::Params(std::string where, const Json& object) : where_(std::move(where)), object_(object) {
    if (!object.is_null() && !object.is_object()) {
        refuse(fmt::format("{}: the parameters must be a JSON object", where_));
    }
}

const Json* Params::find(const char* key) {
    taken_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Params::has(const char* key) { return find(key) != nullptr; }

std::string Params::text(const char* key) {
    const Json* value = find(key);
    if (value == nullptr) refuse(fmt::format("{}: \"{}\" is missing", where_, key));
    if (!value->is_string()) refuse(fmt::format("{}: \"{}\" must be a string", where_, key));
    const auto& text = value->get_ref<const std::string&>();
    if (text.find('\0') != std::string::npos) {
        refuse(fmt::format("{}: \"{}\" holds a NUL character", where_, key));
    }
    return text;
}

std::string Params::text_or(const char* key, std::string fallback) {
    return find(key) == nullptr ? std::move(fallback) : text(key);
}

bool Params::flag(const char* key) {
    const Json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
        refuse(fmt::format("{}: \"{}\" must be true or false", where_, key));
    }
    return value->get<bool>();
}

std::uint64_t Params::number(const char* key, std::uint64_t min, std::uint64_t max) {
    const Json* value = find(key);
    if (value == nullptr) refuse(fmt::format("{}: \"{}\" is missing", where_, key));
    return parse_number(fmt::format("{}: \"{}\"", where_, key), *value, min, max);
}

std::uint64_t Params::number_or(const char* key, std::uint64_t fallback, std::uint64_t min,
                                std::uint64_t max) {
    return find(key) == nullptr ? fallback : number(key, min, max);
}

std::uint64_t Params::size_or(const char* key, std::uint64_t fallback) {
    return number_or(key, fallback, 0, u64_max);
}

const Json& Params::any(const char* key) {
    static const Json null;
    const Json* value = find(key);
    return value == nullptr ? null : *value;
}

void Params::finish() const {
    if (!object_.is_object()) return;
    for (const auto& item : object_.items()) {
        if (taken_.contains(item.key())) continue;
        refuse(fmt::format("{}: there is no parameter {}", where_, dump_line(item.key())));
    }
}

std::span<const OptionField> option_fields() { return fields; }

void apply_options(ResourceOptions& options, const Json& changes) {
    if (changes.is_null()) return;
    if (!changes.is_object()) refuse("options must be a JSON object");
    for (const auto& item : changes.items()) {
        const auto* field = std::find_if(std::begin(fields), std::end(fields),
                                         [&](const auto& f) { return item.key() == f.key; });
        if (field == std::end(fields)) {
            refuse(fmt::format("there is no option {}", dump_line(item.key())));
        }
        try {
            field->set(options, item.value());
        } catch (const Refused& refused) {
            refuse(fmt::format("option {}: {}", field->key, refused.error().message));
        }
    }
}

Json to_json(const ResourceOptions& options) {
    Json json = Json::object();
    for (const auto& field : fields)
        json[field.key] = field.get(options);
    return json;
}

ResourceConfig config_from_json(const Json& object) {
    Params params("resource", object);
    ResourceConfig config;
    config.name = params.text("name");
    demand(check_name("resource", config.name));
    config.node_id = static_cast<NodeId>(params.number("node-id", 0, nodes_max - 1));
    config.volume = static_cast<std::uint16_t>(params.number_or("volume", 0, 0, 65534));
    config.disk = params.text("disk");
    demand(check_path("disk", config.disk));
    config.metadata = params.text_or("metadata", "");
    if (!config.metadata.empty()) demand(check_path("metadata", config.metadata));
    if (config.metadata == config.disk) {
        refuse("disk and metadata are the same path; leave the metadata out for internal metadata");
    }
    const Json& peers = params.any("peers");
    if (!peers.is_null() && !peers.is_array()) refuse("resource: \"peers\" must be an array");
    for (const auto& peer : peers)
        config.peers.push_back(peer_from_json(peer));
    check_peers(config);
    apply_options(config.options, params.any("options"));
    params.finish();
    return config;
}

Json to_json(const ResourceConfig& config) {
    Json peers = Json::array();
    for (const auto& peer : config.peers) {
        peers.push_back(
            {{"name", peer.name}, {"node-id", peer.node_id}, {"address", peer.address}});
    }
    return {{"name", config.name},
            {"node-id", config.node_id},
            {"volume", config.volume},
            {"disk", config.disk},
            {"metadata", config.metadata},
            {"peers", std::move(peers)},
            {"options", to_json(config.options)}};
}

Json to_json(const ResizeResult& result) {
    Json waits_for = Json::array();
    for (const auto& peer : result.waits_for) {
        waits_for.push_back(
            {{"name", peer.name}, {"connected", peer.connected}, {"room-bytes", peer.room_bytes}});
    }
    return {{"size-bytes", result.size_bytes},
            {"room-bytes", result.room_bytes},
            {"waits-for", std::move(waits_for)},
            {"remarks", result.remarks}};
}

Json to_json(const ResourceStatus& status) {
    Json device = {
        {"volume", status.volume},
        {"minor", -1},  // no block device of the kernel's own stands for it
        {"disk-state", status.disk},
        {"client", false},
        {"quorum", true},
        {"size", status.size_bytes / 1024},
        {"read", status.read_bytes / 1024},
        {"written", status.written_bytes / 1024},
        {"al-writes", status.al_writes},
        {"bm-writes", status.bm_writes},
        {"md-writes", status.md_writes},
        {"al-used", status.al_used},
        {"size-bytes", status.size_bytes},
        {"read-bytes", status.read_bytes},
        {"written-bytes", status.written_bytes},
        {"current-uuid", status.current_uuid},
        {"generation-seq", status.generation_seq},
        {"doors", status.doors},
        {"zeroing-total-bytes", status.zeroing_total_bytes},
        {"zeroing-done-bytes", status.zeroing_done_bytes},
    };
    Json connections = Json::array();
    for (const auto& peer : status.peers) {
        connections.push_back({{"peer-node-id", peer.node_id},
                               {"name", peer.name},
                               {"connection-state", peer.connection},
                               {"congested", false},
                               {"peer-role", peer.role},
                               {"why", peer.why},
                               {"peer_devices", Json::array({peer_device_to_json(status, peer)})}});
    }
    return {{"name", status.name},
            {"node-id", status.node_id},
            {"role", status.role},
            {"suspended", status.suspended},
            {"up", status.up},
            {"why", status.why},
            {"devices", Json::array({std::move(device)})},
            {"connections", std::move(connections)}};
}

Json to_json(const ResourceStats& stats) {
    return {{"write-total", to_json(stats.write_total)},
            {"write-local", to_json(stats.write_local)},
            {"write-remote", to_json(stats.write_remote)},
            {"read-total", to_json(stats.read_total)},
            {"flush-total", to_json(stats.flush_total)}};
}

Json to_json(const Event& event) {
    return {{"seq", event.seq},       {"resource", event.resource}, {"kind", event.kind},
            {"action", event.action}, {"peer", event.peer},         {"detail", event.detail}};
}

Event event_from_json(const Json& object) {
    Params params("event", object);
    Event event;
    event.seq = params.number("seq", 0, u64_max);
    event.resource = params.text("resource");
    event.kind = params.text("kind");
    event.action = params.text("action");
    event.peer = params.text_or("peer", "");
    event.detail = params.text_or("detail", "");
    return event;
}

bool nesting_is_sane(std::string_view text) {
    constexpr int depth_max = 32;
    int depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c == '\\') ++i;
            if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > depth_max) return false;
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
    return true;
}

std::string dump_line(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace replica::control
