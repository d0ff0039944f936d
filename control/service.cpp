// SPDX-License-Identifier: Apache-2.0
// See service.hpp. Every handler first takes and checks all its parameters and only then acts, so a
// request with a misspelt parameter changes nothing.
#include "control/service.hpp"

#include <fmt/format.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "control/protocol.hpp"

namespace replica::control {
namespace {

// Events wake a waiting call; this bounds how late it notices a vanished caller or a lost event.
constexpr auto wait_poll = std::chrono::milliseconds(100);

[[noreturn]] void refuse(Errc code, std::string message) {
    throw Refused(Error{code, 0, std::move(message)});
}

// With what that means for the user before the error itself.
[[noreturn]] void refuse_as(Error error, const std::string& meaning) {
    error.message = fmt::format("{}: {}", meaning, error.message);
    throw Refused(std::move(error));
}

void demand(const Status& status) {
    if (!status) throw Refused(status.error());
}

template <class T>
T demand(Result<T> result) {
    if (!result) throw Refused(result.error());
    return std::move(result).value();
}

enum class Until { connected, synced, uptodate, primary };

Until parse_until(const std::string& text) {
    if (text == "connected") return Until::connected;
    if (text == "synced") return Until::synced;
    if (text == "uptodate") return Until::uptodate;
    if (text == "primary") return Until::primary;
    refuse(Errc::invalid, fmt::format("resource.wait: \"until\" takes connected, synced, uptodate "
                                      "or primary, not \"{}\"",
                                      text));
}

// Empty when reached, else what is missing, for people.
std::string missing(const ResourceStatus& status, Until until, const std::string& peer_name) {
    const auto with_why = [](std::string text, const std::string& why) {
        return why.empty() ? text : fmt::format("{} ({})", text, why);
    };
    if (!status.up && until != Until::primary) return with_why("the resource is down", status.why);
    switch (until) {
        case Until::primary:
            return status.role == "Primary" ? "" : with_why("this node is Secondary", status.why);
        case Until::uptodate:
            return status.disk == "UpToDate"
                       ? ""
                       : with_why(fmt::format("the disk is {}", status.disk), status.why);
        case Until::connected:
        case Until::synced:
            break;
    }
    for (const auto& peer : status.peers) {
        if (!peer_name.empty() && peer.name != peer_name) continue;
        if (peer.connection != "Connected") {
            return with_why(fmt::format("{} is {}", peer.name, peer.connection), peer.why);
        }
        // The sockets are there, but neither side knows yet what the other one has; a command that
        // depends on it would be refused.
        if (peer.replication == "Off") {
            return with_why(fmt::format("{} is connected, its state not known yet", peer.name),
                            peer.why);
        }
        if (until == Until::connected) continue;
        if (peer.replication != "Established" || peer.disk != "UpToDate" ||
            status.disk != "UpToDate" || peer.out_of_sync_bytes != 0) {
            return with_why(fmt::format("{} is {}, its disk {}, ours {}, {} out of sync", peer.name,
                                        peer.replication, peer.disk, status.disk,
                                        format_size(peer.out_of_sync_bytes)),
                            peer.why);
        }
    }
    return "";
}

// Listens to the node's events of one resource; shared with the listener, which may still be
// running when the waiting call has gone.
struct Wakeup {
    std::mutex mutex;
    std::condition_variable condition;
    bool raised = false;
};

const Json done = Json::object();

// The resource that a request is about, for the log.
std::string subject_of(const Json& params) {
    if (!params.is_object()) return "";
    const Json& holder = params.contains("config") ? params["config"] : params;
    const auto found = holder.is_object() ? holder.find("name") : holder.end();
    return holder.is_object() && found != holder.end() && found->is_string()
               ? found->get<std::string>()
               : "";
}

}  // namespace

Service::Service(Node& node, ConfigStore& store, ServiceOptions options)
    : node_(node), store_(store), options_(std::move(options)) {}

void Service::log(int level, const std::string& line) const {
    if (options_.log) options_.log(level, line);
}

const std::map<std::string, Service::Method, std::less<>>& Service::methods() {
    using S = Service;
    static const std::map<std::string, Method, std::less<>> table{
        {"node.info", {&S::node_info, false}},
        {"node.upgrade", {&S::node_upgrade, true}},
        {"status", {&S::list_status, false}},
        {"stats", {&S::resource_stats, false}},
        {"resource.get", {&S::resource_get, false}},
        {"resource.wait", {&S::resource_wait, false}},
        {"resource.create", {&S::resource_create, true}},
        {"resource.add", {&S::resource_add, true}},
        {"resource.remove", {&S::resource_remove, true}},
        {"resource.options", {&S::resource_options, true}},
        {"resource.up", {&S::resource_up, true}},
        {"resource.down", {&S::resource_down, true}},
        {"resource.attach", {&S::plain<&Node::attach>, true}},
        {"resource.detach", {&S::plain<&Node::detach>, true}},
        {"resource.connect", {&S::resource_connect, true}},
        {"resource.disconnect", {&S::with_peer<&Node::disconnect>, true}},
        {"resource.promote", {&S::resource_promote, true}},
        {"resource.demote", {&S::plain<&Node::demote>, true}},
        {"resource.invalidate", {&S::plain<&Node::invalidate>, true}},
        {"resource.invalidate-remote", {&S::resource_invalidate_remote, true}},
        {"resource.pause-sync", {&S::with_peer<&Node::pause_sync>, true}},
        {"resource.resume-sync", {&S::with_peer<&Node::resume_sync>, true}},
        {"resource.resize", {&S::resource_resize, true}},
        {"resource.new-current-uuid", {&S::resource_new_current_uuid, true}},
        {"resource.export", {&S::resource_export, true}},
        {"resource.unexport", {&S::resource_unexport, true}},
        {"resource.map", {&S::resource_map, true}},
        {"resource.hold", {&S::resource_hold, true}},
        {"resource.restore-before-resync", {&S::resource_restore_before_resync, true}},
    };
    return table;
}

bool Service::has_method(const std::string& method) const { return methods().contains(method); }

Status Service::restore() {
    TRY(auto loaded, store_.load());
    for (const auto& problem : loaded.problems) {
        log(LOG_ERR, fmt::format("configuration {} is not used: {}{}", problem.file, problem.reason,
                                 problem.moved_to.empty() ? std::string()
                                                          : "; moved to " + problem.moved_to));
    }
    for (auto& stored : loaded.resources) {
        const std::string name = stored.config.name;
        auto entry = std::make_shared<Entry>();
        entry->stored = std::move(stored);
        const auto added = make_known(*entry);
        const auto up = added && entry->stored.up ? bring_up(*entry) : ok_status();
        if (!added || !up) {
            log(LOG_ERR, fmt::format("resource {} is not up: {}", name,
                                     (added ? up : added).error().message));
        } else {
            log(LOG_INFO, fmt::format("resource {} is {}", name,
                                      entry->stored.up ? "up" : "known, and down as before"));
        }
        const std::lock_guard lock(mutex_);
        entries_[name] = std::move(entry);
    }
    const std::lock_guard lock(mutex_);
    problems_ = std::move(loaded.problems);
    return ok_status();
}

bool Service::bring_up_rest(const std::function<bool()>& go_on) {
    constexpr unsigned longest_pause = 60;
    std::vector<EntryPtr> left;
    {
        const std::lock_guard lock(mutex_);
        for (const auto& [name, entry] : entries_)
            if (entry->try_again) left.push_back(entry);
    }
    for (const auto& entry : left) {
        const std::unique_lock changing(entry->changing, std::try_to_lock);
        if (!changing.owns_lock() || !go_on()) continue;
        if (entry->left > 0) {
            --entry->left;
            continue;
        }
        std::string reason;
        bool known = false;
        {
            const std::lock_guard lock(mutex_);
            if (entry->removed || !entry->stored.up) entry->try_again = false;
            if (!entry->try_again) continue;
            known = entry->problem.empty();
            reason = known ? entry->not_up : entry->problem;
        }
        auto up = known ? ok_status() : make_known(*entry);
        if (up) up = bring_up(*entry);
        // Each try opens the disk, which others may notice.
        const bool broken = !up && up.error().code == Errc::io;
        entry->left = entry->pause = broken ? std::min(2 * entry->pause + 1, longest_pause) : 0;
        const std::string& name = entry->stored.config.name;
        if (up) {
            log(LOG_INFO, fmt::format("resource {} is up now", name));
        } else if (up.error().message != reason) {
            log(LOG_ERR, fmt::format("resource {} is not up: {}", name, up.error().message));
        }
    }
    const std::lock_guard lock(mutex_);
    return std::any_of(left.begin(), left.end(),
                       [](const auto& entry) { return entry->try_again; });
}

void Service::stop() { stopping_ = true; }

void Service::go_on(Upgrade failed) {
    const std::lock_guard lock(mutex_);
    options_.upgraded = std::move(failed);
    stopping_ = false;
}

Result<Json> Service::call(const std::string& method, const Json& params, const Caller& caller) {
    const auto found = methods().find(method);
    if (found == methods().end()) {
        return Error{Errc::unsupported, 0, fmt::format("there is no method \"{}\"", method)};
    }
    if (stopping_) return Error{Errc::cancelled, 0, "the node is shutting down"};
    Error error;
    std::string subject;
    try {
        Params taken(method, params);
        subject = subject_of(params);
        Json result = (this->*found->second.handler)(taken, caller);
        if (found->second.changes) {
            log(LOG_INFO, fmt::format("{}: {} {}: done", caller.who, method, subject));
        }
        return result;
    } catch (const Refused& refused) {
        error = refused.error();
    } catch (const std::exception& exception) {
        error = Error{Errc::invalid, 0, fmt::format("{}: {}", method, exception.what())};
    }
    if (found->second.changes) {
        // What this machine has not is asked for by who takes the next best then.
        log(error.code == Errc::unsupported ? LOG_INFO : LOG_WARNING,
            fmt::format("{}: {} {}: refused: {}", caller.who, method, dump_line(subject),
                        error.message));
    }
    return error;
}

Service::EntryPtr Service::find(const std::string& name) {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second;
    for (const auto& problem : problems_) {
        if (problem.resource != name) continue;
        if (problem.moved_to.empty()) {
            refuse(problem.code, fmt::format("the configuration of {}, {}, is not used: {}", name,
                                             problem.file, problem.reason));
        }
        refuse(problem.code,
               fmt::format("the configuration of {} could not be read ({}), and is now {}; `adopt` "
                           "with what it was created with makes it anew, and leaves the disk as it "
                           "is",
                           name, problem.reason, problem.moved_to));
    }
    refuse(Errc::not_found, fmt::format("there is no resource {} on node {}; {}", dump_line(name),
                                        options_.node_name,
                                        name == "all" ? "a command is about one, by its name"
                                                      : "`status` lists those that exist"));
}

std::string Service::take_name(Params& params) {
    std::string name = params.text("name");
    demand(check_name("resource", name));
    return name;
}

void Service::check_peer(const std::string& name, const std::string& peer) {
    if (peer.empty()) return;
    const auto entry = find(name);
    const std::lock_guard lock(mutex_);
    const auto& peers = entry->stored.config.peers;
    if (std::any_of(peers.begin(), peers.end(), [&](const auto& p) { return p.name == peer; })) {
        return;
    }
    std::string names;
    for (const auto& p : peers)
        names += (names.empty() ? "" : ", ") + p.name;
    refuse(Errc::not_found, fmt::format("{} has no peer {}; it has {}", name, dump_line(peer),
                                        names.empty() ? "none" : names));
}

// The node does not know a resource whose disk was missing at the start; ask again.
void Service::ensure_known(Entry& entry) {
    {
        const std::lock_guard lock(mutex_);
        if (entry.removed) {
            refuse(Errc::not_found,
                   fmt::format("resource {} was just removed", entry.stored.config.name));
        }
        if (entry.problem.empty()) return;
    }
    demand(make_known(entry));
}

// Of what keeps a resource from being up, what may go by without anybody saying anything.
static bool may_go_by(const Error& error) {
    return error.code == Errc::busy || error.code == Errc::not_found || error.code == Errc::io;
}

Status Service::make_known(Entry& entry) {
    auto added = node_.add_resource(entry.stored.config);
    const std::lock_guard lock(mutex_);
    entry.problem = added ? "" : added.error().message;
    entry.try_again = !added && may_go_by(added.error());
    return added;
}

// The reason of a refusal stays with the resource: `status` tells it to who was not there.
Status Service::bring_up(Entry& entry) {
    auto up = node_.up(entry.stored.config.name);
    const std::lock_guard lock(mutex_);
    entry.not_up = up ? "" : up.error().message;
    entry.try_again = !up && may_go_by(up.error());
    return up;
}

// Stores what the node has done already: brought the resource up, or down.
void Service::remember_up(Entry& entry, bool up) {
    StoredResource next = entry.stored;
    next.up = up;
    if (next == entry.stored) return;
    if (const auto saved = store_.save(next); !saved) {
        refuse_as(saved.error(),
                  fmt::format("{} is {} now, but a restart of the node will bring "
                              "it {}",
                              next.config.name, up ? "up" : "down", up ? "down" : "up"));
    }
    const std::lock_guard lock(mutex_);
    entry.stored.up = up;
}

namespace {

// Who asked for the upgrade looks here for what became of it.
Json upgrade_json(const Upgrade& upgrade, const std::vector<DoorPause>& pauses) {
    constexpr double ns_per_ms = 1e6;
    Json doors = Json::array();
    for (const DoorPause& pause : pauses) {
        doors.push_back({{"resource", pause.resource},
                         {"door", name_of(pause.kind)},
                         {"adopted-ms", static_cast<double>(pause.adopted_ns) / ns_per_ms},
                         {"pause-ms", static_cast<double>(pause.answered_ns) / ns_per_ms}});
    }
    return {{"id", upgrade.id},
            {"from", upgrade.from},
            {"error", upgrade.error},
            {"errc", upgrade.error.empty() ? 0 : static_cast<int>(upgrade.code)},
            {"remarks", upgrade.remarks},
            {"doors", std::move(doors)}};
}

}  // namespace

Json Service::node_upgrade(Params& params, const Caller&) {
    UpgradeRequest request;
    request.program = params.text_or("program", "");
    request.force = params.flag("force");
    request.timeout_ms = params.number_or("timeout-ms", 0, 0, 1'000'000'000);
    params.finish();
    if (!request.program.empty()) demand(check_path("program", request.program));
    if (!options_.upgrade) {
        refuse(Errc::unsupported,
               "this node is part of another program: only replicad is upgraded");
    }
    demand(node_.may_hand_over(request.force));
    request.id = fmt::format("{}-{}", ::getpid(),
                             std::chrono::steady_clock::now().time_since_epoch().count());
    const auto to = demand(options_.upgrade(request));
    return {{"id", request.id}, {"from", REPLICA_VERSION_TEXT}, {"to", to}, {"pid", ::getpid()}};
}

Json Service::node_info(Params& params, const Caller&) {
    params.finish();
    const auto pauses = node_.pauses();
    const std::lock_guard lock(mutex_);
    Json names = Json::array();
    for (const auto& [name, entry] : entries_)
        names.push_back(name);
    Json problems = Json::array();
    for (const auto& problem : problems_) {
        problems.push_back({{"file", problem.file},
                            {"resource", problem.resource},
                            {"reason", problem.reason},
                            {"moved-to", problem.moved_to}});
    }
    Json info = {{"name", options_.node_name},    {"version", REPLICA_VERSION_TEXT},
                 {"protocol", protocol_version},  {"pid", ::getpid()},
                 {"listen", options_.listen},     {"state-dir", store_.state_dir()},
                 {"resources", std::move(names)}, {"problems", std::move(problems)}};
    if (!options_.upgraded.id.empty()) info["upgrade"] = upgrade_json(options_.upgraded, pauses);
    return info;
}

ResourceStatus Service::status_of(const std::string& name) {
    const auto entry = find(name);
    std::string not_up;
    {
        const std::lock_guard lock(mutex_);
        not_up = entry->not_up;
        if (!entry->problem.empty()) {
            const auto& config = entry->stored.config;
            ResourceStatus status;
            status.name = name;
            status.node_id = config.node_id;
            status.volume = config.volume;
            status.role = "Secondary";
            status.disk = "Diskless";
            status.why = entry->problem;
            for (const auto& peer : config.peers) {
                status.peers.push_back({.name = peer.name,
                                        .node_id = peer.node_id,
                                        .connection = "StandAlone",
                                        .role = "Unknown",
                                        .disk = "DUnknown",
                                        .replication = "Off",
                                        .why = ""});
            }
            return status;
        }
    }
    auto status = demand(node_.status(name));
    if (!status.up && status.why.empty()) status.why = not_up;
    return status;
}

Json Service::list_status(Params& params, const Caller&) {
    const bool one = params.has("name");
    std::vector<std::string> names;
    if (one) names.push_back(take_name(params));
    params.finish();
    if (!one) {
        const std::lock_guard lock(mutex_);
        for (const auto& [name, entry] : entries_)
            names.push_back(name);
    }
    Json list = Json::array();
    for (const auto& name : names) {
        try {
            list.push_back(to_json(status_of(name)));
        } catch (const Refused& refused) {
            // Removed since the names were gathered, or still being made.
            if (one || refused.error().code != Errc::not_found) throw;
        }
    }
    return list;
}

Json Service::resource_stats(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    find(name);
    return to_json(demand(node_.stats(name)));
}

Json Service::resource_get(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    const auto entry = find(name);
    const std::lock_guard lock(mutex_);
    Json json = to_json(entry->stored.config);
    json["up"] = entry->stored.up;
    return json;
}

Json Service::resource_wait(Params& params, const Caller& caller) {
    const auto name = take_name(params);
    const auto until = parse_until(params.text("until"));
    const auto peer = params.text_or("peer", "");
    const auto timeout_ms = params.number_or("timeout-ms", 0, 0, 1'000'000'000);
    params.finish();
    check_peer(name, peer);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);

    auto wakeup = std::make_shared<Wakeup>();
    const auto token = node_.subscribe([wakeup, name](const Event& event) {
        if (event.resource != name) return;
        const std::lock_guard lock(wakeup->mutex);
        wakeup->raised = true;
        wakeup->condition.notify_all();
    });
    struct Unsubscribe {
        Node& node;
        std::uint64_t token;
        ~Unsubscribe() { node.unsubscribe(token); }
    } const unsubscribe{node_, token};

    for (;;) {
        const auto status = status_of(name);
        const auto lacking = missing(status, until, peer);
        if (lacking.empty()) return to_json(status);
        if (stopping_ || (caller.gone && caller.gone())) {
            refuse(Errc::cancelled,
                   fmt::format("{}; {} has not got there: {}",
                               stopping_ ? "the node is shutting down" : "the caller has gone",
                               name, lacking));
        }
        const auto now = std::chrono::steady_clock::now();
        if (timeout_ms > 0 && now >= deadline) {
            refuse(Errc::timeout,
                   fmt::format("{} did not get there in {} ms: {}", name, timeout_ms, lacking));
        }
        std::unique_lock lock(wakeup->mutex);
        wakeup->condition.wait_until(
            lock, timeout_ms > 0 ? std::min(deadline, now + wait_poll) : now + wait_poll,
            [&] { return wakeup->raised; });
        wakeup->raised = false;
    }
}

Json Service::make_resource(const ResourceConfig& config, const std::function<Status()>& make) {
    auto entry = std::make_shared<Entry>();
    entry->stored.config = config;
    const std::lock_guard changing(entry->changing);
    {
        const std::lock_guard lock(mutex_);
        if (!entries_.emplace(config.name, entry).second) {
            refuse(Errc::exists, fmt::format("resource {} exists already; remove it first, or "
                                             "choose another name",
                                             config.name));
        }
    }
    auto made = make();
    if (made) {
        made = store_.save(entry->stored);
        if (!made) (void)node_.remove_resource(config.name);
    }
    if (!made) {
        const std::lock_guard lock(mutex_);
        entry->removed = true;
        entries_.erase(config.name);
    }
    demand(made);
    // What was set aside under this name has a successor; its file stays for who wants to look.
    const std::lock_guard lock(mutex_);
    std::erase_if(problems_, [&](const auto& problem) {
        return problem.resource == config.name && !problem.moved_to.empty();
    });
    return to_json(config);
}

Json Service::resource_create(Params& params, const Caller&) {
    const auto config = config_from_json(params.any("config"));
    CreateOptions create;
    create.force = params.flag("force");
    create.max_peers = static_cast<std::uint32_t>(params.number_or("max-peers", 0, 0, 31));
    create.size_bytes = params.size_or("size-bytes", 0);
    params.finish();
    return make_resource(config, [&] { return node_.create_resource(config, create); });
}

Json Service::resource_add(Params& params, const Caller&) {
    const auto config = config_from_json(params.any("config"));
    params.finish();
    return make_resource(config, [&] { return node_.adopt_resource(config); });
}

Json Service::resource_remove(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    const auto entry = find(name);
    const std::lock_guard changing(entry->changing);
    bool known = false;
    {
        const std::lock_guard lock(mutex_);
        if (entry->removed) refuse(Errc::not_found, fmt::format("{} was just removed", name));
        known = entry->problem.empty();
    }
    if (known) demand(node_.remove_resource(name));
    const auto removed = store_.remove(name);
    if (!removed && known) (void)node_.add_resource(entry->stored.config);
    demand(removed);
    const std::lock_guard lock(mutex_);
    entry->removed = true;
    entries_.erase(name);
    return done;
}

Json Service::resource_options(Params& params, const Caller&) {
    const auto name = take_name(params);
    const Json changes = params.any("options");
    params.finish();
    const auto entry = find(name);
    const std::lock_guard changing(entry->changing);
    ensure_known(*entry);
    StoredResource next = entry->stored;
    apply_options(next.config.options, changes);
    if (next != entry->stored) {
        const auto before = entry->stored.config.options;
        demand(node_.change_options(name, next.config.options));
        const auto saved = store_.save(next);
        if (!saved) (void)node_.change_options(name, before);
        demand(saved);
        const std::lock_guard lock(mutex_);
        entry->stored = next;
    }
    return to_json(next.config.options);
}

Json Service::resource_up(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    const auto entry = find(name);
    const std::lock_guard changing(entry->changing);
    ensure_known(*entry);
    demand(bring_up(*entry));
    remember_up(*entry, true);
    return done;
}

Json Service::resource_down(Params& params, const Caller&) {
    const auto name = take_name(params);
    const bool force = params.flag("force");
    params.finish();
    const auto entry = find(name);
    const std::lock_guard changing(entry->changing);
    bool known = false;
    {
        const std::lock_guard lock(mutex_);
        if (entry->removed) refuse(Errc::not_found, fmt::format("{} was just removed", name));
        known = entry->problem.empty();
        entry->not_up.clear();
    }
    if (known) demand(node_.down(name, force));
    remember_up(*entry, false);
    return done;
}

template <Status (Node::*Call)(const std::string&)>
Json Service::plain(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    ensure_known(*find(name));
    demand((node_.*Call)(name));
    return done;
}

// Runs `act` for one peer, or for every peer when none is named; the first error is told when all
// have had their turn.
Json Service::for_peers(const std::string& name, const std::string& peer,
                        const std::function<Status(const std::string&)>& act) {
    const auto entry = find(name);
    ensure_known(*entry);
    check_peer(name, peer);
    std::vector<std::string> peers;
    if (peer.empty()) {
        const std::lock_guard lock(mutex_);
        for (const auto& each : entry->stored.config.peers)
            peers.push_back(each.name);
    } else {
        peers.push_back(peer);
    }
    if (peers.empty()) refuse(Errc::state, fmt::format("{} has no peers", name));
    Status first = ok_status();
    for (const auto& each : peers) {
        const auto acted = act(each);
        if (!acted && first) first = acted;
    }
    demand(first);
    return done;
}

template <Status (Node::*Call)(const std::string&, const std::string&)>
Json Service::with_peer(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto peer = params.text_or("peer", "");
    params.finish();
    return for_peers(name, peer, [&](const auto& each) { return (node_.*Call)(name, each); });
}

// Unlike the others this one throws away good data, so with several peers one must be named.
Json Service::resource_invalidate_remote(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto peer = params.text_or("peer", "");
    params.finish();
    if (const auto entry = find(name); peer.empty()) {
        const std::lock_guard lock(mutex_);
        if (entry->stored.config.peers.size() > 1) {
            refuse(Errc::invalid, fmt::format("{} has several peers; name the one whose data is to "
                                              "be invalidated",
                                              name));
        }
    }
    return for_peers(name, peer,
                     [&](const auto& each) { return node_.invalidate_remote(name, each); });
}

Json Service::resource_connect(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto peer = params.text_or("peer", "");
    const bool discard_my_data = params.flag("discard-my-data");
    params.finish();
    return for_peers(name, peer,
                     [&](const auto& each) { return node_.connect(name, each, discard_my_data); });
}

Json Service::resource_promote(Params& params, const Caller&) {
    const auto name = take_name(params);
    const bool force = params.flag("force");
    params.finish();
    ensure_known(*find(name));
    demand(node_.promote(name, force));
    return done;
}

Json Service::resource_resize(Params& params, const Caller& caller) {
    const auto name = take_name(params);
    const auto size = params.size_or("size-bytes", 0);
    params.finish();
    ensure_known(*find(name));
    return to_json(demand(
        node_.resize(name, size, [&] { return !stopping_ && !(caller.gone && caller.gone()); })));
}

Json Service::resource_new_current_uuid(Params& params, const Caller&) {
    const auto name = take_name(params);
    const bool clear_bitmap = params.flag("clear-bitmap");
    params.finish();
    ensure_known(*find(name));
    demand(node_.new_current_uuid(name, clear_bitmap));
    return done;
}

Json Service::resource_export(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto door = params.text("door");
    demand(check_door(door));
    const bool read_only = params.flag("read-only");
    params.finish();
    ensure_known(*find(name));
    for (const DeviceKind kind : all_device_kinds) {
        if (door != name_of(kind)) continue;
        const BlockDoor opened = demand(node_.export_device(name, kind, read_only));
        return {{"door", opened.door},
                {"size-bytes", opened.size_bytes},
                {"device", fmt::format("{}:{}", opened.major, opened.minor)}};
    }
    return {{"door", demand(node_.export_nbd(name, door, read_only))}};
}

Json Service::resource_map(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto to = params.text("to");
    if (to != "ublk" && to != "nbd" && !to.starts_with("tcp:")) {
        refuse(
            Errc::invalid,
            fmt::format("resource.map: \"to\" takes ublk, nbd or tcp:HOST:PORT, not \"{}\"", to));
    }
    demand(check_door(to));
    params.finish();
    ensure_known(*find(name));
    return {{"path", demand(node_.map_volume(name, to))}};
}

Json Service::resource_hold(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    ensure_known(*find(name));
    demand(node_.hold_volume(name));
    return done;
}

Json Service::resource_restore_before_resync(Params& params, const Caller&) {
    const auto name = take_name(params);
    params.finish();
    ensure_known(*find(name));
    return {{"text", demand(node_.restore_before_resync(name))}};
}

Json Service::resource_unexport(Params& params, const Caller&) {
    const auto name = take_name(params);
    const auto door = params.text_or("door", "");
    const bool force = params.flag("force");
    if (!door.empty()) demand(check_door(door));
    params.finish();
    ensure_known(*find(name));
    demand(node_.unexport(name, door, force));
    return done;
}

}  // namespace replica::control
