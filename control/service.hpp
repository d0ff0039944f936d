// SPDX-License-Identifier: Apache-2.0
// The methods of the control protocol, mapped to a Node and to the configuration that it remembers.
// Used by replicad behind a socket and by the embedded node of libreplica behind a call.
// The list of methods with their parameters: docs/control.md.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "control/codec.hpp"
#include "control/config_store.hpp"
#include "engine/node.hpp"

namespace replica::control {

// Who asks. `gone` is polled by calls that wait; true ends them.
struct Caller {
    std::string who;             // for the log: "uid 0 pid 4711"
    std::function<bool()> gone;  // may be empty
};

// Another program takes over in this process (execve).
struct Upgrade {
    std::string id;                    // of the request
    std::string from;                  // version
    std::string error;                 // why it came to nothing; empty: it has happened
    std::vector<std::string> remarks;  // what it took away, sentences
    Errc code = Errc::invalid;         // of the error
};

struct UpgradeRequest {
    std::string program;           // path; empty: the file of the program that runs, as it is now
    std::string id;                // for Upgrade
    bool force = false;            // even if NBD clients lose their connection
    std::uint64_t timeout_ms = 0;  // for a look at the program, 0: its own limit
};

struct ServiceOptions {
    std::string node_name;
    std::string listen;                                           // as NodeOptions
    std::function<void(int level, const std::string& line)> log;  // syslog levels; any thread
    // Looks at the program, returns its version, and makes it take over soon after. Empty: this
    // node is no daemon. Errors: busy (an upgrade is under way), what is wrong with the program.
    std::function<Result<std::string>(const UpgradeRequest& request)> upgrade = {};
    Upgrade upgraded = {};  // what led to this program; no id: nothing did
};

class Service {
  public:
    // Both must outlive the service.
    Service(Node& node, ConfigStore& store, ServiceOptions options);

    // Makes the stored resources known to the node and brings up those that were up, as Secondary.
    // What fails is logged and told by status, and does not stop the others. Once, before call().
    // Errors: the store can not be read at all.
    Status restore();

    // Tries again to bring up what restore() could not, where that may go by: the disk is in use,
    // as by a process that was killed and waits for a slow disk, or is not there yet, or fails.
    // To be called once a second, until it says false: none of it is left. What fails with an I/O
    // error is tried less and less often, up to once a minute. A resource that is being changed is
    // left alone. Blocks while a disk is opened, and goes to the next one only if `go_on` says so.
    bool bring_up_rest(const std::function<bool()>& go_on);

    // One request. Any thread; blocks until it is done. Errors: as Node, and invalid (parameters),
    // unsupported (no such method), cancelled (stop() or caller.gone).
    Result<Json> call(const std::string& method, const Json& params, const Caller& caller);
    bool has_method(const std::string& method) const;

    // Ends calls that wait (resource.wait) with cancelled, and refuses new ones.
    void stop();
    // After stop(), when an upgrade came to nothing.
    void go_on(Upgrade failed);

    Node& node() { return node_; }
    void log(int level, const std::string& line) const;

  private:
    struct Entry {
        std::mutex changing;  // held over node and store by calls that change either
        StoredResource stored;
        std::string problem;     // why the node does not know it; empty: it does
        std::string not_up;      // why it could not be brought up; empty: it could, or nobody asked
        bool try_again = false;  // for one of these two
        unsigned pause = 0, left = 0;  // calls of bring_up_rest() between two tries
        bool removed = false;
    };
    using EntryPtr = std::shared_ptr<Entry>;
    struct Method {
        Json (Service::*handler)(Params& params, const Caller& caller);
        bool changes;  // goes into the log
    };
    static const std::map<std::string, Method, std::less<>>& methods();

    // Handlers: take parameters, params.finish(), act. They throw Refused.
    Json node_info(Params& params, const Caller& caller);
    Json node_upgrade(Params& params, const Caller& caller);
    Json list_status(Params& params, const Caller& caller);
    Json resource_stats(Params& params, const Caller& caller);
    Json resource_get(Params& params, const Caller& caller);
    Json resource_wait(Params& params, const Caller& caller);
    Json resource_create(Params& params, const Caller& caller);
    Json resource_add(Params& params, const Caller& caller);
    Json resource_remove(Params& params, const Caller& caller);
    Json resource_options(Params& params, const Caller& caller);
    Json resource_up(Params& params, const Caller& caller);
    Json resource_down(Params& params, const Caller& caller);
    Json resource_promote(Params& params, const Caller& caller);
    Json resource_invalidate_remote(Params& params, const Caller& caller);
    Json resource_connect(Params& params, const Caller& caller);
    Json resource_resize(Params& params, const Caller& caller);
    Json resource_new_current_uuid(Params& params, const Caller& caller);
    Json resource_export(Params& params, const Caller& caller);
    Json resource_unexport(Params& params, const Caller& caller);
    Json resource_map(Params& params, const Caller& caller);
    Json resource_hold(Params& params, const Caller& caller);
    Json resource_restore_before_resync(Params& params, const Caller& caller);
    template <Status (Node::*Call)(const std::string&)>
    Json plain(Params& params, const Caller& caller);
    template <Status (Node::*Call)(const std::string&, const std::string&)>
    Json with_peer(Params& params, const Caller& caller);

    Json for_peers(const std::string& name, const std::string& peer,
                   const std::function<Status(const std::string&)>& act);
    Json make_resource(const ResourceConfig& config, const std::function<Status()>& make);
    EntryPtr find(const std::string& name);
    std::string take_name(Params& params);
    void check_peer(const std::string& name, const std::string& peer);
    void ensure_known(Entry& entry);
    Status bring_up(Entry& entry);
    Status make_known(Entry& entry);
    void remember_up(Entry& entry, bool up);
    ResourceStatus status_of(const std::string& name);

    Node& node_;
    ConfigStore& store_;
    ServiceOptions options_;

    std::mutex mutex_;  // guards entries_ and problems_
    std::map<std::string, EntryPtr> entries_;
    std::vector<ConfigProblem> problems_;

    std::atomic<bool> stopping_ = false;
};

}  // namespace replica::control
