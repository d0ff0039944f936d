// SPDX-License-Identifier: Apache-2.0
// The command line of a node: each command is one request on the control socket, except `status
// --watch` and `events`, which stay. Results go to standard output (as text, or with --json as the
// protocol's JSON), errors to standard error with an exit code for each kind: man/replicactl.8.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "control/client.hpp"
#include "control/codec.hpp"
#include "control/protocol.hpp"
#include "control/text.hpp"
#include "netlink/drbd_status.hpp"
#include "tools/command_line.hpp"
#include "tools/replicactl_drbd.hpp"
#include "tools/replicactl_node.hpp"
#include "tools/replicactl_text.hpp"
#include "tools/standard_streams.hpp"

namespace {

using namespace replica;
using control::Client;
using control::Json;
using control::Refused;
using replicactl::absolute_path;
using replicactl::ask;

constexpr int exit_usage = 64;
constexpr int exit_unreachable = 69;
// How late `events` may notice that nobody reads it, when nothing happens.
constexpr int unread_poll_ms = 500;

// What the parsed command line is about; each command uses its part of it.
struct Arguments {
    std::string control = control::default_control_path;
    bool json = false;
    std::string resource;
    std::string peer;
    // create, adopt
    unsigned node_id = 0;
    unsigned volume = 0;
    std::string disk;
    std::string metadata;
    std::vector<std::string> peers;
    std::string size;
    unsigned max_peers = 0;
    bool force = false;
    std::map<std::string, std::string> options;
    // others
    bool discard_my_data = false;
    bool clear_bitmap = false;
    std::vector<std::string> doors;
    std::string door_kind;
    bool mapped = false;
    bool read_only = false;
    std::string program;
    bool watch = false;
    bool verbose = false;
    bool statistics = false;
    double interval_s = 0.5;
    std::string until;
    double timeout_s = 0;
    bool now = false;
};

using Command = std::function<void(const Arguments&)>;

// Nobody reads what is printed any more, as after `| head`: the command is done, not failed.
struct Unread {};

void print(const std::string& text) {
    const int error = tools::write_all(STDOUT_FILENO, text);
    if (error == EPIPE) throw Unread();
    if (error != 0) throw Refused(control::errno_error(error, "can not write to standard output"));
}

std::string json_text(const Json& json) {
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_json(const Json& json) { print(json_text(json)); }

void demand(const Status& status) {
    if (!status) throw Refused(status.error());
}

std::unique_ptr<Client> reach(const Arguments& arguments) {
    return replicactl::reach(arguments.control);
}

// What changes nothing, and is answered at once if the node is well.
Json look(Client& client, const std::string& method, const Json& params) {
    return ask(client, method, params, replicactl::view_limit_ms);
}

Json named(const Arguments& arguments) {
    Json params = Json::object();
    if (!arguments.resource.empty()) params["name"] = arguments.resource;
    if (!arguments.peer.empty()) params["peer"] = arguments.peer;
    return params;
}

// Sends one request; prints its result only for --json.
void simple(const Arguments& arguments, const std::string& method, const Json& params) {
    const auto client = reach(arguments);
    const Json result = ask(*client, method, params);
    if (arguments.json) print_json(result);
}

// NAME,ID,HOST:PORT
Json parse_peer(const std::string& text) {
    const auto first = text.find(',');
    const auto second = first == std::string::npos ? first : text.find(',', first + 1);
    if (second == std::string::npos) {
        throw Refused(fmt::format("--peer {}: write NAME,ID,HOST:PORT", text));
    }
    return {{"name", text.substr(0, first)},
            {"node-id", text.substr(first + 1, second - first - 1)},
            {"address", text.substr(second + 1)}};
}

// PATH or PATH:META, where META begins with a slash or a dot. Names under /dev/disk/by-path hold
// colons, but none that is followed by either.
Json parse_config(const Arguments& arguments) {
    std::string disk = arguments.disk;
    std::string metadata = arguments.metadata;
    const auto split = disk.find(':');
    for (auto at = split; at != std::string::npos; at = disk.find(':', at + 1)) {
        if (at + 1 >= disk.size() || (disk[at + 1] != '/' && disk[at + 1] != '.')) continue;
        if (!metadata.empty())
            throw Refused("give the metadata once: --disk PATH:META or --metadata");
        metadata = disk.substr(at + 1);
        disk.resize(at);
        break;
    }
    Json peers = Json::array();
    for (const auto& peer : arguments.peers)
        peers.push_back(parse_peer(peer));
    Json config = {{"name", arguments.resource}, {"node-id", arguments.node_id},
                   {"volume", arguments.volume}, {"disk", absolute_path(disk)},
                   {"peers", std::move(peers)},  {"options", arguments.options}};
    if (!metadata.empty()) config["metadata"] = absolute_path(metadata);
    control::config_from_json(config);  // refuse here what the node would refuse
    return config;
}

void create(const Arguments& arguments) {
    Json params = {{"config", parse_config(arguments)}, {"force", arguments.force}};
    if (!arguments.size.empty()) params["size-bytes"] = arguments.size;
    if (arguments.max_peers > 0) params["max-peers"] = arguments.max_peers;
    simple(arguments, "resource.create", params);
}

void adopt(const Arguments& arguments) {
    simple(arguments, "resource.add", {{"config", parse_config(arguments)}});
}

void connect(const Arguments& arguments) {
    Json params = named(arguments);
    params["discard-my-data"] = arguments.discard_my_data;
    simple(arguments, "resource.connect", params);
}

void down(const Arguments& arguments) {
    Json params = named(arguments);
    if (arguments.force) params["force"] = true;
    simple(arguments, "resource.down", params);
}

void promote(const Arguments& arguments) {
    Json params = named(arguments);
    params["force"] = arguments.force;
    simple(arguments, "resource.promote", params);
}

// Shows how far the zeroing is, on a terminal, until it is told to stop.
class ZeroingProgress {
  public:
    explicit ZeroingProgress(const Arguments& arguments) {
        if (arguments.json || ::isatty(STDERR_FILENO) == 0) return;
        thread_ = std::thread([this, client = reach(arguments), params = named(arguments)] {
            std::unique_lock lock(mutex_);
            while (!wakes_.wait_for(lock, std::chrono::milliseconds(500), [&] { return stop_; })) {
                const auto list = client->call("status", params, replicactl::view_limit_ms);
                if (!list) return;
                const auto line = replicactl::zeroing_line(list.value());
                if (!line.empty()) tools::complain("\r\033[K" + line);
                shown_ = shown_ || !line.empty();
            }
        });
    }
    ~ZeroingProgress() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
            wakes_.notify_one();
        }
        if (thread_.joinable()) thread_.join();
        if (shown_) tools::complain("\r\033[K");
    }

  private:
    std::mutex mutex_;
    std::condition_variable wakes_;
    bool stop_ = false, shown_ = false;
    std::thread thread_;
};

void resize(const Arguments& arguments) {
    const auto client = reach(arguments);
    Json params = named(arguments);
    if (!arguments.size.empty()) params["size-bytes"] = arguments.size;
    Json result;
    {
        const ZeroingProgress progress(arguments);
        result = ask(*client, "resource.resize", params);
    }
    arguments.json ? print_json(result) : print(replicactl::resize_text(result));
}

void new_current_uuid(const Arguments& arguments) {
    Json params = named(arguments);
    params["clear-bitmap"] = arguments.clear_bitmap;
    simple(arguments, "resource.new-current-uuid", params);
}

std::string absolute_door(const std::string& door) {
    std::string whole = door.starts_with("unix:") ? "unix:" + absolute_path(door.substr(5)) : door;
    demand(control::check_door(whole));
    return whole;
}

// `why`: why nothing better was opened; empty if it was asked for.
void tell_door(const Arguments& arguments, Json result, const std::string& why) {
    const std::string door = result["door"];
    const bool socket = door.starts_with("unix:");
    if (!why.empty()) result["why"] = why;
    if (!socket) result["link"] = "/dev/replica/by-res/" + arguments.resource;
    if (arguments.json) return print_json(result);
    const std::string reason = why.empty() ? "" : ": " + why;
    if (socket) return print(fmt::format("{}, a socket for NBD clients{}\n", door, reason));
    print(fmt::format("{}, also {}{}\n", door.substr(door.find(':') + 1),
                      result["link"].get<std::string>(), reason));
}

// Asks for a block device of the kind that was named, or of the first that this machine has.
// `why`: why not for the better ones; nothing is returned if there is none.
std::optional<Json> ask_for_device(const Arguments& arguments, control::Client& client,
                                   const char* method, const char* parameter, std::string& why) {
    Json params = named(arguments);
    if (arguments.read_only) params["read-only"] = true;
    const std::string& asked = arguments.door_kind;
    for (const char* kind : {"ublk", "nbd"}) {
        if (!asked.empty() && asked != "block" && asked != kind) continue;
        params[parameter] = kind;
        auto result = client.call(method, params);
        if (result) return result.value();
        const Errc code = result.error().code;
        const bool missing = code == Errc::unsupported || code == Errc::permission;
        if (!missing || asked == kind) throw Refused(result.error());
        // What both need, as device-mapper, is missing once.
        const std::string& message = result.error().message;
        if (why.find(message) == why.npos) why += (why.empty() ? "" : "; ") + message;
    }
    return {};
}

// That of `export`, where there is nothing better.
std::string own_socket(const Arguments& arguments) {
    const std::string control = absolute_path(arguments.control);
    return fmt::format("unix:{}/{}.nbd", control.substr(0, control.rfind('/')), arguments.resource);
}

// A block device where the kernel has ublk or nbd, else a socket beside the one of the node.
void export_best(const Arguments& arguments) {
    const auto client = reach(arguments);
    std::string why;
    if (const auto device = ask_for_device(arguments, *client, "resource.export", "door", why)) {
        return tell_door(arguments, *device, why);
    }
    if (arguments.door_kind == "block") throw Refused(Error{Errc::unsupported, 0, why});
    Json params = named(arguments);
    if (arguments.read_only) params["read-only"] = true;
    params["door"] = own_socket(arguments);
    tell_door(arguments, ask(*client, "resource.export", params), why);
}

// A device that stays when the door below it changes.
void export_mapped(const Arguments& arguments) {
    if (arguments.door_kind == "socket") {
        throw Refused(Error{Errc::invalid, 0, "a socket can not be mapped: --door ublk or nbd"});
    }
    const auto client = reach(arguments);
    std::string why;
    const auto mapped = ask_for_device(arguments, *client, "resource.map", "to", why);
    if (!mapped) throw Refused(Error{Errc::unsupported, 0, why});
    if (arguments.json) return print_json(*mapped);
    print(fmt::format("{}\n", (*mapped)["path"].get<std::string>()));
}

void map_elsewhere(const Arguments& arguments) {
    Json params = named(arguments);
    params["to"] = arguments.doors.front();
    const auto client = reach(arguments);
    const Json mapped = ask(*client, "resource.map", params);
    if (arguments.json) return print_json(mapped);
    print(fmt::format("{}\n", mapped["path"].get<std::string>()));
}

void restore_before_resync(const Arguments& arguments) {
    const auto client = reach(arguments);
    const Json result = ask(*client, "resource.restore-before-resync", named(arguments));
    if (arguments.json) return print_json(result);
    print(result["text"].get<std::string>() +
          ".\nTo use it: up, promote --force. A peer that is connected before fills the disk with "
          "its data.\n");
}

void export_doors(const Arguments& arguments) {
    if (arguments.mapped) return export_mapped(arguments);
    if (arguments.doors.empty()) return export_best(arguments);
    const auto client = reach(arguments);
    Json params = named(arguments);
    if (arguments.read_only) params["read-only"] = true;
    std::string open;
    for (const auto& door : arguments.doors) {
        const std::string wanted = absolute_door(door);
        params["door"] = wanted;
        const auto result = client->call("resource.export", params);
        if (!result) {
            Error error = result.error();
            if (!open.empty()) error.message += "; open by now:" + open;
            throw Refused(error);
        }
        const std::string at = result.value()["door"];
        open += " " + at;
        if (arguments.json) {
            print_json(result.value());
        } else if (at != wanted) {
            print(at + "\n");  // the port that the kernel chose
        }
    }
}

void unexport_doors(const Arguments& arguments) {
    Json params = named(arguments);
    if (arguments.force) params["force"] = true;
    std::vector<std::string> doors;
    for (const auto& door : arguments.doors)
        doors.push_back(absolute_door(door));
    const std::string& kind = arguments.door_kind;
    if (!kind.empty()) doors.push_back(kind == "socket" ? own_socket(arguments) : kind);
    if (doors.empty()) return simple(arguments, "resource.unexport", params);
    for (const auto& door : doors) {
        params["door"] = door;
        simple(arguments, "resource.unexport", params);
    }
}

std::uint64_t milliseconds(double seconds) {
    return static_cast<std::uint64_t>(std::llround(std::max(seconds, 0.0) * 1000));
}

void upgrade(const Arguments& arguments) {
    const Json report = replicactl::upgrade(
        {arguments.control, arguments.program, arguments.force, milliseconds(arguments.timeout_s)});
    arguments.json ? print_json(report) : print(replicactl::upgrade_text(report));
}

void options(const Arguments& arguments) {
    const auto client = reach(arguments);
    Json params = named(arguments);
    params["options"] = arguments.options;
    const Json result = ask(*client, "resource.options", params);
    if (arguments.options.contains("protocol")) {
        tools::complain(
            "replicactl: give the peers the same protocol now; a connection that is lost before is "
            "refused\n");
    }
    if (arguments.json) return print_json(result);
    if (arguments.options.empty()) print(replicactl::plain_text(result));
}

void show(const Arguments& arguments) {
    const auto client = reach(arguments);
    const Json result = look(*client, "resource.get", named(arguments));
    arguments.json ? print_json(result) : print(replicactl::plain_text(result));
}

void list(const Arguments& arguments) {
    const auto client = reach(arguments);
    const Json names = look(*client, "node.info", Json::object())["resources"];
    if (arguments.json) return print_json(names);
    for (const auto& name : names)
        print(name.get<std::string>() + "\n");
}

void stats(const Arguments& arguments) {
    const auto client = reach(arguments);
    const Json result = look(*client, "stats", named(arguments));
    arguments.json ? print_json(result) : print(replicactl::stats_text(result));
}

void version(const Arguments& arguments) {
    Json result = {{"replicactl", REPLICA_VERSION_TEXT}, {"protocol", control::protocol_version}};
    auto client = Client::connect(absolute_path(arguments.control), replicactl::view_limit_ms);
    if (client) {
        result["node"] = look(*client.value(), "node.info", Json::object());
    }
    if (arguments.json) return print_json(result);
    print(fmt::format("replicactl {}\n", REPLICA_VERSION_TEXT));
    if (result.contains("node")) {
        print("node\n" + replicactl::plain_text(result["node"], "  "));
    } else {
        print(fmt::format("# no node answers at {}\n", arguments.control));
    }
}

void wait(const Arguments& arguments) {
    Json params = named(arguments);
    params["until"] = arguments.until;
    if (arguments.timeout_s > 0) {
        params["timeout-ms"] = std::max<std::uint64_t>(milliseconds(arguments.timeout_s), 1);
    }
    simple(arguments, "resource.wait", params);
}

// Shows each new text: over the old one on a terminal, below it elsewhere.
class Screen {
  public:
    void show(const std::string& text) {
        if (text == last_) return;
        const std::string shown = terminal_ ? clipped(text) : text;
        if (terminal_ && lines_ > 0) print(fmt::format("\x1b[{}A\x1b[J", lines_));
        print(shown);
        lines_ = static_cast<std::size_t>(std::count(shown.begin(), shown.end(), '\n'));
        last_ = text;
    }

  private:
    // What fits: a line that wraps, or one that scrolled away, can not be drawn over.
    static std::string clipped(const std::string& text) {
        winsize size{};
        if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return text;
        std::string out;
        std::size_t rows = 1;
        for (std::size_t at = 0; at < text.size() && rows < size.ws_row; ++rows) {
            const auto end = std::min(text.find('\n', at), text.size());
            out += text.substr(at, std::min<std::size_t>(end - at, size.ws_col - 1U)) + "\n";
            at = end + 1;
        }
        return out;
    }

    bool terminal_ = ::isatty(STDOUT_FILENO) == 1;
    std::size_t lines_ = 0;
    std::string last_;
};

// Pauses for an interval; with --until true as soon as that is reached.
bool pause_until(Client& client, const Arguments& arguments) {
    const auto interval_ms = std::max<std::uint64_t>(milliseconds(arguments.interval_s), 20);
    if (arguments.until.empty()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(interval_ms));
        return false;
    }
    Json params = named(arguments);
    params["until"] = arguments.until;
    params["timeout-ms"] = interval_ms;
    const auto reached = client.call("resource.wait", params,
                                     static_cast<int>(interval_ms) + replicactl::view_limit_ms);
    if (!reached && reached.error().code != Errc::timeout) throw Refused(reached.error());
    return static_cast<bool>(reached);
}

void warn_of_problems(Client& client) {
    const Json info = look(client, "node.info", Json::object());
    for (const auto& problem : info.value("problems", Json::array())) {
        tools::complain(fmt::format("replicactl: warning: configuration {} is not used: {}\n",
                                    problem.value("file", ""), problem.value("reason", "")));
    }
}

void status(const Arguments& arguments) {
    if (!arguments.until.empty() && arguments.resource.empty()) {
        throw Refused("--until needs the name of a resource");
    }
    const auto client = reach(arguments);
    replicactl::StatusStyle style;
    style.verbose = arguments.verbose;
    style.statistics = arguments.statistics;
    style.progress = arguments.watch;
    Screen screen;
    if (arguments.resource.empty()) warn_of_problems(*client);
    for (bool last = !arguments.watch;; last = pause_until(*client, arguments)) {
        const Json result = look(*client, "status", named(arguments));
        if (arguments.json && !arguments.watch) return print_json(result);
        screen.show(arguments.json ? control::dump_line(result) + "\n"
                                   : replicactl::status_text(result, style));
        if (last) return;
    }
}

void events(const Arguments& arguments) {
    const auto client = reach(arguments);
    const Json start = look(*client, "events.subscribe", named(arguments))["status"];
    if (arguments.json) {
        print(control::dump_line({{"action", "exists"}, {"status", start}}) + "\n");
    } else {
        print(replicactl::exists_text(start));
    }
    while (!arguments.now) {
        auto next = client->next_notification(unread_poll_ms);
        if (!next) throw Refused(next.error());
        if (!next.value() && tools::output_is_unread()) return;
        if (!next.value()) continue;
        const Json& message = *next.value();
        const Json params = message.value("params", Json::object());
        if (message.value("method", "") == "events.gap") {
            const auto missed = control::dump_line(params.value("missed", Json(0)));
            print(arguments.json
                      ? control::dump_line({{"action", "gap"}, {"params", params}}) + "\n"
                      : "gap missed:" + missed + "\n");
        } else {
            print((arguments.json ? control::dump_line(params) : replicactl::event_text(params)) +
                  "\n");
        }
    }
}

// Not of the node, but of this machine's kernel.
void drbd_status(const Arguments& arguments) {
    const auto resources = read_drbd_status();
    if (!resources) throw Refused(resources.error());
    const Json list = replicactl::drbd_status_json(resources.value());
    if (arguments.json) return print_json(list);
    if (resources.value().empty()) return print("# the kernel's DRBD has no resource\n");
    replicactl::StatusStyle style;
    style.volumes = true;
    style.statistics = arguments.statistics;
    print(replicactl::status_text(list, style));
}

class CommandLine {
  public:
    CommandLine() {
        app_.set_version_flag("--version", std::string("replicactl ") + REPLICA_VERSION_TEXT);
        app_.add_option("--control", arguments_.control, "control socket of the node")
            ->envname("REPLICA_CONTROL")
            ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)  // over that of an alias
            ->capture_default_str();
        app_.add_flag("--json", arguments_.json, "print JSON");
        app_.require_subcommand(1);
        app_.fallthrough();
        app_.get_formatter()->column_width(34);
        add_creation();
        add_resource_commands();
        add_peer_commands();
        add_upgrade();
        add_views();
    }

    int run(int argc, char** argv) {
        try {
            app_.parse(argc, argv);
        } catch (const CLI::ParseError& error) {
            if (error.get_exit_code() == 0) return app_.exit(error);  // --help, --version
            return fail(Error{Errc::invalid, 0, usage_error(error)}, exit_usage);
        }
        if (const auto hole = tools::empty_argument(argc, argv); !hole.empty()) {
            return fail(Error{Errc::invalid, 0, hole}, exit_usage);
        }
        try {
            for (const auto* chosen : app_.get_subcommands())
                commands_.at(chosen->get_name())(arguments_);
            return 0;
        } catch (const Unread&) {
            return 0;
        } catch (const replicactl::Unreachable& error) {
            return fail(Error{Errc::io, 0, error.what()}, exit_unreachable);
        } catch (const Refused& refused) {
            return fail(refused.error(), static_cast<int>(refused.error().code));
        } catch (const std::exception& error) {
            return fail(Error{Errc::invalid, 0, error.what()}, static_cast<int>(Errc::invalid));
        }
    }

  private:
    // Says it in words, and for --json on standard output too; whether that can be written or not,
    // the exit code stands.
    int fail(const Error& error, int code) const {
        if (arguments_.json) {
            const Json json = {{"error",
                                {{"kind", control::errc_name(error.code)},
                                 {"message", error.message},
                                 {"errno", error.os_errno}}}};
            (void)tools::write_all(STDOUT_FILENO, json_text(json));
        }
        tools::complain(fmt::format("replicactl: {}\n", error.message));
        return code;
    }

    // One line that says what is wrong and where to read what is right.
    std::string usage_error(const CLI::ParseError& error) const {
        const auto chosen = app_.get_subcommands();
        const auto strangers = app_.remaining(true);
        const std::string command = chosen.empty() ? "" : " " + chosen.front()->get_name();
        std::string what = error.what();
        if (chosen.empty() && !strangers.empty()) {
            what = fmt::format("there is no {} {}{}",
                               strangers.front().starts_with('-') ? "option" : "command",
                               control::quoted(strangers.front()),
                               replicactl::hint_for_drbd_word(strangers.front()));
        } else if (chosen.empty()) {
            what = "which command?";
        }
        return fmt::format("{}; see replicactl{} --help", what, command);
    }

    CLI::App* add(const char* name, const char* help, Command command) {
        commands_[name] = std::move(command);
        return app_.add_subcommand(name, help);
    }
    CLI::App* add_for_resource(const char* name, const char* help, Command command) {
        auto* const sub = add(name, help, std::move(command));
        sub->add_option("RES", arguments_.resource, "resource")->required();
        return sub;
    }
    void add_option_fields(CLI::App& sub) {
        for (const auto& field : control::option_fields()) {
            const std::string key = field.key;
            sub.add_option_function<std::string>(
                   "--" + key, [this, key](const auto& text) { arguments_.options[key] = text; },
                   field.help)
                ->group("Resource options");
        }
    }
    void add_config(CLI::App& sub) {
        sub.add_option("--node-id", arguments_.node_id, "id of this node in the resource, 0..31")
            ->required()
            ->transform(tools::decimal())
            ->check(CLI::Range(0U, nodes_max - 1));
        sub.add_option("--disk", arguments_.disk, "PATH[:META], file or block device")->required();
        sub.add_option("--metadata", arguments_.metadata, "external metadata; default: internal");
        sub.add_option("--volume", arguments_.volume, "volume number")
            ->transform(tools::decimal())
            ->check(CLI::Range(0, 65534));
        sub.add_option("--peer", arguments_.peers, "NAME,ID,HOST:PORT; once for each peer")
            ->allow_extra_args(false);
        add_option_fields(sub);
    }

    void add_creation() {
        auto* sub = add_for_resource(
            "create", "write metadata and configuration; the resource is then down", create);
        add_config(*sub);
        sub->add_option("--size", arguments_.size, "size of the volume (K, M, G, T); default: all")
            ->transform(tools::size_in_bytes());
        sub->add_option("--max-peers", arguments_.max_peers, "room for so many peers, 1..31")
            ->transform(tools::decimal())
            ->check(CLI::Range(1, 31));
        sub->add_flag("--force", arguments_.force, "overwrite data or metadata on the disk");
        sub = add_for_resource("adopt",
                               "configure a resource whose metadata is on its disk already", adopt);
        add_config(*sub);
        sub = add_for_resource("options", "show or change the options of a resource", options);
        add_option_fields(*sub);
    }

    void add_resource_commands() {
        struct Simple {
            const char* name;
            const char* help;
        };
        static constexpr Simple simples[] = {
            {"up", "attach the disk and connect to the peers, now and after a restart"},
            {"attach", "attach the disk"},
            {"detach", "detach the disk; a primary goes on with its peers' data"},
            {"demote", "become Secondary"},
            {"invalidate", "throw the local data away and resync all of it from a peer"},
            {"remove", "forget a resource that is down; the disk is not touched"},
            {"hold", "let what the users of the mapped device ask wait"},
        };
        for (const auto& each : simples) {
            add_for_resource(each.name, each.help, [name = each.name](const Arguments& arguments) {
                simple(arguments, fmt::format("resource.{}", name), named(arguments));
            });
        }
        auto* sub =
            add_for_resource("down", "close the doors, demote, disconnect and detach", down);
        sub->add_flag("--force", arguments_.force, "cut off who uses a door");
        sub = add_for_resource("promote", "become Primary", promote);
        sub->add_flag("--force", arguments_.force,
                      "even if the data may be old; peers then resync");
        sub = add_for_resource("resize", "grow the volume into larger disks", resize);
        sub->add_option("--size", arguments_.size, "K, M, G, T, P; default: all there is room for")
            ->transform(tools::size_in_bytes());
        sub = add_for_resource("new-current-uuid", "open a new generation", new_current_uuid);
        sub->add_flag("--clear-bitmap", arguments_.clear_bitmap,
                      "skip the initial sync of disks that are provably equal");
        sub = add_for_resource("export", "open a door on a primary", export_doors);
        auto* const nbd = sub->add_option("--nbd", arguments_.doors, "unix:PATH or tcp:HOST:PORT")
                              ->allow_extra_args(false);
        sub->add_option("--door", arguments_.door_kind,
                        "ublk, nbd (/dev/nbdN), block (one of these) or socket; default: the first "
                        "that there is")
            ->check(CLI::IsMember({"ublk", "nbd", "block", "socket"}))
            ->excludes(nbd);
        auto* const reads = sub->add_flag("--read-only", arguments_.read_only,
                                          "also on a Secondary; writes are refused");
        sub->add_flag(
               "--mapped", arguments_.mapped,
               "as /dev/mapper/replica-RES, below which the door may change while it is used")
            ->excludes(nbd)
            ->excludes(reads);
        sub = add_for_resource("map", "lead what is mapped here to the node that is Primary",
                               map_elsewhere);
        sub->add_option("--to", arguments_.doors, "its NBD door: tcp:HOST:PORT")
            ->required()
            ->expected(1);
        add_for_resource("restore-before-resync", "give the disk back what it held before a resync",
                         restore_before_resync);
        sub = add_for_resource("unexport", "close the doors", unexport_doors);
        auto* const only = sub->add_option("--nbd", arguments_.doors, "only this one; unix:PATH...")
                               ->allow_extra_args(false);
        sub->add_option("--door", arguments_.door_kind,
                        "only ublk, nbd, mapped, or socket, the one that export has chosen")
            ->check(CLI::IsMember({"ublk", "nbd", "mapped", "socket"}))
            ->excludes(only);
        sub->add_flag("--force", arguments_.force,
                      "even if it is in use: users get I/O errors, clients are cut off");
    }

    void add_upgrade() {
        auto* const sub =
            add("upgrade", "put another replicad in place of the running one", upgrade);
        sub->add_option("--binary", arguments_.program, "default: its file, as it is now");
        sub->add_flag("--force", arguments_.force, "even if NBD clients lose their connection");
        sub->add_option("--timeout", arguments_.timeout_s, "seconds")
            ->check(CLI::Range(1.0, 1e6))
            ->default_str("120");
    }

    void add_peer_commands() {
        struct Simple {
            const char* name;
            const char* help;
        };
        static constexpr Simple simples[] = {
            {"disconnect", "end the connection and stay StandAlone"},
            {"invalidate-remote", "throw the peer's data away and resync all of it from here"},
            {"pause-sync", "pause the resync"},
            {"resume-sync", "resume the resync"},
        };
        const auto add_peer = [this](CLI::App* sub) {
            const bool one = sub->get_name() == "invalidate-remote";
            sub->add_option("PEER", arguments_.peer,
                            one ? "node name; needed if there are several peers"
                                : "node name; default: every peer");
        };
        for (const auto& each : simples) {
            add_peer(add_for_resource(
                each.name, each.help, [name = each.name](const Arguments& arguments) {
                    simple(arguments, fmt::format("resource.{}", name), named(arguments));
                }));
        }
        auto* const sub = add_for_resource("connect", "connect to the peer", connect);
        add_peer(sub);
        sub->add_flag("--discard-my-data", arguments_.discard_my_data,
                      "after a split brain: take over the peer's data");
    }

    void add_until(CLI::App& sub) {
        sub.add_option("--until", arguments_.until, "connected, synced, uptodate or primary")
            ->check(CLI::IsMember({"connected", "synced", "uptodate", "primary"}));
    }

    // What CLI::Range lets through because it compares as neither too small nor too large.
    static std::string a_number(const std::string& text) {
        return std::isnan(std::strtod(text.c_str(), nullptr)) ? text + " is no number" : "";
    }

    void add_views() {
        auto* sub = add("status", "state of one or all resources", status);
        sub->add_option("RES", arguments_.resource, "resource");
        sub->add_flag("-w,--watch", arguments_.watch, "redraw, with progress and time left");
        sub->add_flag("-v,--verbose", arguments_.verbose, "every field");
        sub->add_flag("-s,--statistics", arguments_.statistics, "counters");
        sub->add_option("--interval", arguments_.interval_s, "seconds between two looks")
            ->check(CLI::Range(0.02, 3600.0))
            ->check(a_number)
            ->capture_default_str();
        add_until(*sub);
        for (const char* option : {"--interval", "--until"})
            sub->get_option(option)->needs(sub->get_option("--watch"));
        sub = add_for_resource("wait", "wait for a state", wait);
        add_until(*sub);
        sub->get_option("--until")->required();
        sub->add_option("--peer", arguments_.peer, "look at this peer only");
        sub->add_option("--timeout", arguments_.timeout_s, "seconds; 0, the default: no limit")
            ->check(CLI::Range(0.0, 1e6))
            ->check(a_number);
        sub = add("events", "print what there is and then each change", events);
        sub->add_option("RES", arguments_.resource, "resource");
        sub->add_flag("--now", arguments_.now, "only what there is");
        add_for_resource("stats", "latency of each part of a write", stats);
        add_for_resource("show", "the configuration of a resource", show);
        sub = add("drbd-status", "resources of the kernel's own DRBD on this machine", drbd_status);
        sub->add_flag("-s,--statistics", arguments_.statistics, "counters");
        add("list", "names of the resources", list);
        add("version", "versions of this program and of the node", version);
    }

    Arguments arguments_;
    CLI::App app_{"replicactl: controls a node of Replica"};
    std::map<std::string, Command> commands_;
};

}  // namespace

int main(int argc, char** argv) {
    tools::hold_standard_streams();
    std::signal(SIGPIPE, SIG_IGN);
    CommandLine command_line;
    return command_line.run(argc, argv);
}
