// SPDX-License-Identifier: Apache-2.0
// See node/local_node.hpp.
#include "engine/node.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <syslog.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "engine/node/accepted_socket.hpp"
#include "engine/node/acceptor.hpp"
#include "engine/node/change_lock.hpp"
#include "engine/node/check_config.hpp"
#include "engine/node/create_disk.hpp"
#include "engine/node/kernel_doors.hpp"
#include "engine/node/local_node.hpp"
#include "engine/node/resource_shell.hpp"
#include "engine/node/restore_disk.hpp"
#include "engine/node/submissions.hpp"
#include "engine/node/volume_mapping.hpp"

namespace replica {

using std::chrono::seconds;

static Status make_directory(const std::string& path) {
    for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
        const std::string part = path.substr(0, at);
        if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) {
            return Error{errno == EACCES ? Errc::permission : Errc::io, errno,
                         text_of("the state directory %s can not be made: %s", part.c_str(),
                                 std::strerror(errno))};
        }
        if (at == std::string::npos) return ok_status();
    }
}

// ---- the node -----------------------------------------------------------------------------------

Status LocalNode::open() {
    TRY_STATUS(check_node_name("node", options_.name));
    if (options_.state_dir.empty() || options_.state_dir.front() != '/') {
        return Error{Errc::invalid, 0, "the state directory has to be an absolute path"};
    }
    if (options_.reactors < 1 || options_.reactors > 64) {
        return Error{Errc::invalid, 0, "a node has 1 to 64 reactors"};
    }
    TRY_STATUS(make_directory(options_.state_dir + "/superblocks"));
    handed_ = handed_devices(options_.handed);
    for (const std::string& warning : prepare_process({options_.lock_memory, options_.lock_memory}))
        options_.log(LOG_WARNING, warning);
    for (unsigned i = 0; i < options_.reactors; ++i) {
        TRY(auto thread, ReactorThread::start(options_.log));
        threads_.push_back(std::move(thread));
    }
    if (options_.listen.empty()) return ok_status();
    return listen();
}

// Who is started again right after he was killed finds his port in use for a moment (open_disk.cpp
// has the reason).
Status LocalNode::listen() {
    for (int attempt = 0;; ++attempt) {
        auto opened = Acceptor::open(
            *threads_.front(), options_.listen,
            [this](int fd, const HelloPayload& hello) { route(fd, hello); }, options_.log);
        if (opened) {
            acceptor_ = std::move(opened).value();
            return ok_status();
        }
        if (opened.error().code != Errc::busy || attempt == busy_attempts) return opened.error();
        std::this_thread::sleep_for(busy_pause);
    }
}

LocalNode::~LocalNode() {
    if (acceptor_) acceptor_->close();
    bool stuck = false;
    for (auto& [name, resource] : resources_) {
        const std::lock_guard changing(resource->changing);
        resource->devices->leave();
        resource->mapping->leave();
        // Whether a block device is in use can not be known for sure; the next node goes on with
        // it. To stop it is for who says unexport or down.
        const bool left = resource->devices->is_open({});
        const Status down = left ? ok_status() : take_down(*resource);
        if (left)
            options_.log(LOG_NOTICE, name + " and its block device are left to the next start");
        if (!down) options_.log(LOG_CRIT, name + " does not come down: " + down.error().message);
        if (!left && down) continue;
        // A disk that never answers, or a block device. Its thread and all that the thread may
        // touch are left behind, because memory that the kernel may still write to can not be given
        // back.
        static_cast<void>(new ResourcePtr(resource));
        stuck = true;
    }
    hub_->stop();  // a listener that hears the last events may call the node
    if (!stuck) return;
    for (auto& thread : threads_) {
        thread->park();
        static_cast<void>(thread.release());
    }
    static_cast<void>(hub_.release());
    static_cast<void>(acceptor_.release());
}

// On the first reactor's thread.
void LocalNode::route(int fd, const HelloPayload& hello) {
    const std::string name(hello.resource.data());
    const auto found = find(name);
    if (!found) {
        return reject_and_close(
            fd, "node " + options_.name + " has no resource of this name: check it");
    }
    const ResourcePtr resource = found.value();
    const std::uint64_t handle = handle_next_++;
    const std::string down = "the resource is down on " + options_.name;
    resource->thread->reactor().post([resource, fd, hello, handle, down] {
        if (resource->shell) return resource->shell->on_accepted(handle, fd, hello);
        reject_and_close(fd, down);
    });
}

Result<ResourcePtr> LocalNode::find(const std::string& name) {
    const std::lock_guard lock(mutex_);
    const auto found = resources_.find(name);
    if (found != resources_.end()) return found->second;
    return Error{Errc::not_found, 0, "there is no resource " + name + " on node " + options_.name};
}

std::vector<std::string> LocalNode::resources() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, resource] : resources_)
        names.push_back(name);
    return names;
}

void LocalNode::publish(const std::string& resource, const char* action) {
    Event event;
    event.resource = resource;
    event.kind = "resource";
    event.action = action;
    hub_->publish(std::move(event));
}

DiskPaths LocalNode::paths_of(const ResourceConfig& config) const {
    return {config.disk, config.metadata,
            text_of("%s/superblocks/%s.v%u", options_.state_dir.c_str(), config.name.c_str(),
                    config.volume)};
}

// ---- resources come and go ----------------------------------------------------------------------

// With mutex_ held.
ReactorThread& LocalNode::least_loaded() {
    const auto load = [this](const std::unique_ptr<ReactorThread>& thread) {
        return std::count_if(resources_.begin(), resources_.end(), [&](const auto& entry) {
            return entry.second->thread == thread.get();
        });
    };
    return **std::min_element(threads_.begin(), threads_.end(),
                              [&](const auto& a, const auto& b) { return load(a) < load(b); });
}

// With mutex_ held.
std::vector<HandedDevice> LocalNode::take_handed(const std::string& name) {
    std::vector<HandedDevice> taken;
    std::erase_if(handed_, [&](const HandedDevice& device) {
        if (device.resource == name) taken.push_back(device);
        return device.resource == name;
    });
    return taken;
}

Status LocalNode::know(const ResourceConfig& config) {
    const auto resource = std::make_shared<Resource>();
    resource->config = config;
    {
        const std::lock_guard lock(mutex_);
        resource->thread = &least_loaded();
        Resource* const known = resource.get();
        resource->devices = std::make_unique<KernelDoors>(
            DeviceExport::Resource{
                *resource->thread, resource->shell, resource->changing,
                [this, known] {
                    return run(*known, {.kind = CommandKind::promote}, "", adoption_timeout);
                },
                [this, known] { return known->up ? known->devices->look() : bring_up(*known); },
                [known] { known->mapping->doors_changed(); },
                [known] { known->mapping->doors_changed(); }},
            options_.state_dir, config.name, options_.log, take_handed(config.name));
        resource->mapping = make_mapping(*resource);
        if (!resources_.emplace(config.name, resource).second) {
            return Error{Errc::exists, 0, "resource " + config.name + " exists already"};
        }
    }
    publish(config.name, "create");
    const std::lock_guard changing(resource->changing);
    resource->mapping->look();
    return ok_status();
}

std::unique_ptr<VolumeMapping> LocalNode::make_mapping(Resource& resource) {
    const auto volume_bytes = [this, &resource] {
        const auto size =
            ask(resource, [](ResourceShell& shell) { return shell.info().size_bytes; });
        return size ? size.value() : std::uint64_t{0};
    };
    return std::make_unique<VolumeMapping>(
        VolumeMapping::Options{options_.state_dir, resource.config.name, options_.log}, *mapper_,
        doors_to_map(*resource.devices, resource.up, volume_bytes), resource.changing);
}

Status LocalNode::add_resource(const ResourceConfig& config) {
    TRY_STATUS(check_resource_config(config, options_.name));
    return know(config);
}

Status LocalNode::adopt_resource(const ResourceConfig& config) {
    TRY_STATUS(check_resource_config(config, options_.name));
    const std::lock_guard making(making_);
    TRY_STATUS(check_not_taken(config));
    if (!find(config.name)) TRY_STATUS(forget_other_disk(paths_of(config)));
    return know(config);
}

Status LocalNode::create_resource(const ResourceConfig& config, const CreateOptions& options) {
    TRY_STATUS(check_resource_config(config, options_.name));
    if (find(config.name)) {
        return Error{Errc::exists, 0, "resource " + config.name + " exists already"};
    }
    const std::lock_guard making(making_);
    TRY_STATUS(check_not_taken(config));
    TRY_STATUS(create_disk(config, options, paths_of(config)));
    return know(config);
}

// While another resource is down, nothing but its configuration says that a disk is taken.
Status LocalNode::check_not_taken(const ResourceConfig& config) {
    for (const std::string& name : resources()) {
        const auto found = find(name);
        if (!found || name == config.name) continue;
        const ResourceConfig& other = found.value()->config;
        for (const std::string& theirs : {other.disk, other.metadata}) {
            for (const std::string& wanted : {config.disk, config.metadata}) {
                if (!same_disk(wanted, theirs)) continue;
                return Error{Errc::exists, 0,
                             wanted + " is configured for " + name +
                                 ": remove that first, if it is not to be used any more"};
            }
        }
    }
    return ok_status();
}

Status LocalNode::remove_resource(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    {
        const std::lock_guard changing(resource->changing);
        if (resource->up) return Error{Errc::state, 0, name + " is up: bring it down first"};
        // A device that waits for it, perhaps; nobody would know whose it is.
        TRY_STATUS(resource->mapping->close(false));
        const Status closed = resource->devices->close_left({}, false);
        if (!closed && closed.error().code != Errc::not_found) return closed;
        resource->devices->keep_trying(false);
        resource->removed = true;
        const std::lock_guard lock(mutex_);
        resources_.erase(name);
    }
    publish(name, "destroy");
    return ok_status();
}

Result<std::string> LocalNode::restore_before_resync(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (resource->up) return Error{Errc::state, 0, name + " is up: bring it down first"};
    return replica::restore_before_resync(paths_of(resource->config), name);
}

Status LocalNode::change_options(const std::string& name, const ResourceOptions& options) {
    TRY_STATUS(check_resource_options(options));
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    resource->config.options = options;
    static_cast<void>(ask(*resource, [&](ResourceShell& shell) {
        shell.change_options(options);
        return true;
    }));
    return ok_status();
}

// ---- up and down --------------------------------------------------------------------------------

// The shell is new and nobody else knows it, so the bitmap goes to its core right here.
Status LocalNode::attach_fresh(Resource& resource) {
    TRY(OpenDisk disk, open_disk(resource.thread->reactor(), paths_of(resource.config)));
    auto shell = std::make_unique<ResourceShell>(
        ResourceShell::Context{*resource.thread, *hub_, options_.log}, resource.config);
    TRY_STATUS(shell->load(disk));
    resource.up = true;
    const auto handed = std::make_shared<OpenDisk>(std::move(disk));
    const auto made = std::make_shared<std::unique_ptr<ResourceShell>>(std::move(shell));
    return resource.thread->call_async(
        [&resource, handed, made](ResourceShell::Done done) {
            resource.shell = std::move(*made);
            resource.shell->start();
            resource.shell->attach(std::move(*handed), std::move(done));
        },
        command_timeout);
}

Status LocalNode::attach_again(Resource& resource) {
    TRY(const bool open, ask(resource, [](ResourceShell& shell) { return shell.disk_open(); }));
    if (open) {
        return Error{Errc::busy, 0, resource.config.name + " has its disk attached already"};
    }
    const auto disk = std::make_shared<OpenDisk>();
    TRY(*disk, open_disk(resource.thread->reactor(), paths_of(resource.config)));
    const auto pages = std::make_shared<std::vector<ResourceShell::Page>>();
    TRY_STATUS(read_bitmap(*disk, [&](std::uint64_t index, std::span<const std::byte, 4096> from) {
        pages->emplace_back().index = index;
        std::copy(from.begin(), from.end(), pages->back().bytes.begin());
    }));
    return resource.thread->call_async(
        [&resource, disk, pages](ResourceShell::Done done) {
            const Status loaded = resource.shell->load(*disk, *pages);
            if (!loaded) return done(loaded);
            resource.shell->attach(std::move(*disk), std::move(done));
        },
        command_timeout);
}

Status LocalNode::connect_all(Resource& resource) {
    Command connect;
    connect.kind = CommandKind::connect;
    return run(resource, connect);
}

Status LocalNode::up(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (resource->removed) return Error{Errc::not_found, 0, name + " was just removed"};
    const Status up = bring_up(*resource);
    // A file system may hang on a device that waits for this resource.
    if (!up) resource->devices->keep_trying(true);
    return up;
}

// A peer may be connected before it is known whether a device waits: what it writes shows in the
// lineage. No promotion may be.
Status LocalNode::bring_up(Resource& resource) {
    if (!resource.up) {
        const Status attached = attach_fresh(resource);
        if (!attached) {  // what an earlier daemon left above it is not touched
            static_cast<void>(go_down(resource));
            return attached;
        }
    } else {
        TRY(const bool open, ask(resource, [](ResourceShell& shell) { return shell.disk_open(); }));
        if (!open) TRY_STATUS(attach_again(resource));
    }
    const Status looked = resource.devices->look();
    if (!looked) {
        options_.log(LOG_ERR, resource.config.name + ": " + looked.error().message);
        resource.devices->keep_looking();
    }
    return connect_all(resource);
}

Status LocalNode::attach(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (resource->removed) return Error{Errc::not_found, 0, name + " was just removed"};
    const bool fresh = !resource->up;
    const Status attached = fresh ? attach_fresh(*resource) : attach_again(*resource);
    if (!attached && fresh) static_cast<void>(go_down(*resource));
    TRY_STATUS(attached);
    const Status looked = resource->devices->look();
    if (!looked) {
        options_.log(LOG_ERR, name + ": " + looked.error().message);
        resource->devices->keep_looking();
    }
    return ok_status();
}

Status LocalNode::down(const std::string& name, bool force) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (resource->up && !force) TRY_STATUS(no_clients(*resource, ""));
    TRY_STATUS(take_down(*resource, force));
    resource->devices->keep_trying(false);
    return ok_status();
}

// force: also under the users of a block device.
Status LocalNode::take_down(Resource& resource, bool force) {
    if (!resource.up) return ok_status();
    if (resource.mapping->uses_doors()) TRY_STATUS(resource.mapping->close(force));
    TRY_STATUS(resource.devices->close({}, force));
    return go_down(resource);
}

// Its block devices are closed, or handed on.
Status LocalNode::go_down(Resource& resource) {
    if (!resource.up) return ok_status();
    ReactorThread& thread = *resource.thread;
    const auto each = [&](void (ResourceShell::*what)(ResourceShell::Done), seconds timeout) {
        return thread.call_async(
            [&resource, what](ResourceShell::Done done) {
                (resource.shell.get()->*what)(std::move(done));
            },
            timeout);
    };
    TRY_STATUS(each(&ResourceShell::stop_doors, command_timeout));
    TRY(const bool primary, ask(resource, [](ResourceShell& shell) { return shell.primary(); }));
    Command command;
    command.kind = CommandKind::demote;
    if (primary) {
        const Status demoted = run(resource, command);
        // A disk that fails meanwhile fails the command, but not the change of the role.
        TRY(const bool still, ask(resource, [](ResourceShell& shell) { return shell.primary(); }));
        if (still) return demoted;
    }
    command.kind = CommandKind::down;
    TRY_STATUS(run(resource, command));
    TRY_STATUS(each(&ResourceShell::wait_quiet, quiet_timeout));
    destroy_shell(resource);
    resource.up = false;
    return ok_status();
}

// Deferred calls of the present turn may still refer to it.
void LocalNode::destroy_shell(Resource& resource) {
    const auto gone = [&resource] {
        if (!resource.shell->removable()) return false;
        resource.shell.reset();
        return true;
    };
    while (!resource.thread->call(gone))
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// ---- commands -----------------------------------------------------------------------------------

Status LocalNode::run(Resource& resource, const Command& command, const std::string& peer,
                      seconds timeout) {
    return resource.thread->call_async(
        [&resource, command, peer](ResourceShell::Done done) {
            if (!resource.shell) return done(is_down(resource.config.name));
            Command addressed = command;
            if (!peer.empty()) {
                addressed.peer = resource.shell->peer_id(peer);
                if (addressed.peer < 0) {
                    return done(
                        Error{Errc::not_found, 0, resource.config.name + " has no peer " + peer});
                }
            }
            resource.shell->command(addressed, std::move(done));
        },
        timeout);
}

Status LocalNode::call(const std::string& name, const Command& command, const std::string& peer) {
    TRY(const ResourcePtr resource, find(name));
    return run(*resource, command, peer);
}

Status LocalNode::detach(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY_STATUS(run(*resource, {.kind = CommandKind::detach}));
    // A primary lets go of its disk at once, but what is in the kernel has to return first.
    return resource->thread->call_async(
        [resource](ResourceShell::Done done) { resource->shell->wait_detached(std::move(done)); },
        command_timeout);
}

Status LocalNode::connect(const std::string& name, const std::string& peer, bool discard) {
    return call(name, {.kind = CommandKind::connect, .discard_my_data = discard}, peer);
}
Status LocalNode::disconnect(const std::string& name, const std::string& peer) {
    return call(name, {.kind = CommandKind::disconnect}, peer);
}
Status LocalNode::promote(const std::string& name, bool force) {
    TRY(const ResourcePtr resource, find(name));
    {
        const std::lock_guard changing(resource->changing);
        if (!resource->up) return is_down(name);
        TRY_STATUS(resource->devices->before_promotion(force));
    }
    return call(name, {.kind = CommandKind::promote, .force = force});
}
Status LocalNode::invalidate(const std::string& name) {
    return call(name, {.kind = CommandKind::invalidate});
}
Status LocalNode::invalidate_remote(const std::string& name, const std::string& peer) {
    return call(name, {.kind = CommandKind::invalidate_remote}, peer);
}
Status LocalNode::pause_sync(const std::string& name, const std::string& peer) {
    return call(name, {.kind = CommandKind::pause_sync}, peer);
}
Status LocalNode::resume_sync(const std::string& name, const std::string& peer) {
    return call(name, {.kind = CommandKind::resume_sync}, peer);
}
Status LocalNode::new_current_uuid(const std::string& name, bool clear_bitmap) {
    return call(name, {.kind = CommandKind::new_current_uuid, .force = clear_bitmap});
}

// ---- views --------------------------------------------------------------------------------------

Result<ResourceStatus> LocalNode::status(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    ResourceStatus status = resource->thread->call([&] {
        return resource->shell ? resource->shell->status() : status_when_down(resource->config);
    });
    const VolumeMapping::View mapped = resource->mapping->view();
    if (mapped.path.empty()) return status;
    const std::string below = mapped.held ? ", held" : " over " + mapped.over;
    status.doors.push_back("mapped:" + mapped.path + below);
    if (!mapped.trouble.empty()) status.why = mapped.trouble;
    return status;
}

Result<ResourceStats> LocalNode::stats(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    return resource->thread->call(
        [&] { return resource->shell ? resource->shell->stats() : ResourceStats{}; });
}

Result<std::unique_ptr<Node>> Node::create(const NodeOptions& options) {
    auto node = std::make_unique<LocalNode>(options);
    TRY_STATUS(node->open());
    return std::unique_ptr<Node>(std::move(node));
}

}  // namespace replica
