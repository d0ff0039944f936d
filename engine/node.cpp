// SPDX-License-Identifier: Apache-2.0
// The node: which resources there are, on which reactor each lives, and the calls that other
// threads make. A call that changes a resource holds that resource's `changing`; what blocks
// (disks, name servers) is done on the caller's thread; the rest is posted to the reactor and
// waited for.
#include "engine/node.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "engine/node/accepted_socket.hpp"
#include "engine/node/acceptor.hpp"
#include "engine/node/check_config.hpp"
#include "engine/node/create_disk.hpp"
#include "engine/node/kernel_doors.hpp"
#include "engine/node/resource_shell.hpp"
#include "engine/node/restore_disk.hpp"
#include "engine/node/submissions.hpp"
#include "engine/node/volume_mapping.hpp"

namespace replica {
namespace {

using std::chrono::seconds;
// Longer than any timeout of the core, which ends what waits for a peer.
constexpr seconds command_timeout{120};
constexpr seconds quiet_timeout{30};
// Of requests under way, before a planned hand-over.
constexpr seconds hold_timeout{10};
// Of an attempt that is repeated, with the resource's `changing` held meanwhile.
constexpr seconds adoption_timeout{2};
constexpr std::chrono::milliseconds busy_pause{50};
constexpr int busy_attempts = 40;

// Sizes of volumes are whole blocks of the bitmap, so that every client can address all of it.
constexpr std::uint64_t size_unit = block_bytes;

struct Resource {
    ResourceConfig config;  // all but the options never changes
    ReactorThread* thread = nullptr;
    std::mutex changing;
    bool removed = false;                  // under `changing`
    bool up = false;                       // under `changing`: there is a shell
    std::unique_ptr<ResourceShell> shell;  // made under `changing`; used on the reactor's thread
    Submissions submissions;
    std::unique_ptr<KernelDoors> devices;    // under `changing`
    std::unique_ptr<VolumeMapping> mapping;  // under `changing`
};
using ResourcePtr = std::shared_ptr<Resource>;

Status make_directory(const std::string& path) {
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

class LocalNode final : public Node {
  public:
    explicit LocalNode(const NodeOptions& options)
        : options_(options), hub_(std::make_unique<EventHub>()) {
        if (!options_.log) options_.log = [](int, const std::string&) {};
        mapper_ = std::make_unique<MapperHost>(options_.log);
    }
    ~LocalNode() override;
    Status open();
    Status listen();

    Status create_resource(const ResourceConfig& config, const CreateOptions& options) override;
    Status add_resource(const ResourceConfig& config) override;
    Status adopt_resource(const ResourceConfig& config) override;
    Status remove_resource(const std::string& name) override;
    Status change_options(const std::string& name, const ResourceOptions& options) override;
    Result<std::string> restore_before_resync(const std::string& name) override;

    Status up(const std::string& name) override;
    Status down(const std::string& name) override;
    Status attach(const std::string& name) override;
    Status detach(const std::string& name) override;
    Status connect(const std::string& name, const std::string& peer, bool discard) override;
    Status disconnect(const std::string& name, const std::string& peer) override;
    Status promote(const std::string& name, bool force) override;
    Status demote(const std::string& name) override;
    Status invalidate(const std::string& name) override;
    Status invalidate_remote(const std::string& name, const std::string& peer) override;
    Status pause_sync(const std::string& name, const std::string& peer) override;
    Status resume_sync(const std::string& name, const std::string& peer) override;
    Status new_current_uuid(const std::string& name, bool clear_bitmap) override;
    Result<ResizeResult> resize(const std::string& name, std::uint64_t size_bytes) override;

    Status export_nbd(const std::string& name, const std::string& door, bool read_only) override;
    Result<BlockDoor> export_device(const std::string& name, DeviceKind kind,
                                    bool read_only) override;
    Result<BlockDoor> block_door(const std::string& name, DeviceKind kind) override;
    Result<std::string> map_volume(const std::string& name, const std::string& place) override;
    Status hold_volume(const std::string& name) override;
    Status unexport(const std::string& name, const std::string& door, bool force) override;

    Status may_hand_over(bool force) override;
    Result<std::string> hand_over() override;
    std::vector<DoorPause> pauses() override;

    std::vector<std::string> resources() override;
    Result<ResourceStatus> status(const std::string& name) override;
    Result<ResourceStats> stats(const std::string& name) override;
    std::uint64_t subscribe(std::function<void(const Event&)> listener) override {
        return hub_->subscribe(std::move(listener));
    }
    void unsubscribe(std::uint64_t token) override { hub_->unsubscribe(token); }

    Status read(const std::string& name, std::uint64_t offset, std::span<std::byte> into) override;
    Status write(const std::string& name, std::uint64_t offset, std::span<const std::byte> from,
                 bool fua) override;
    Status flush(const std::string& name) override;
    Status discard(const std::string& name, std::uint64_t offset, std::uint64_t length) override;
    Status write_zeroes(const std::string& name, std::uint64_t offset,
                        std::uint64_t length) override;
    Status submit(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                  std::span<std::byte> bytes, std::uint64_t length,
                  void (*done)(void* context, int error), void* context) override;

  private:
    Result<ResourcePtr> find(const std::string& name);
    Status know(const ResourceConfig& config);
    void route(int fd, const HelloPayload& hello);
    DiskPaths paths_of(const ResourceConfig& config) const;
    void publish(const std::string& resource, const char* action);
    ReactorThread& least_loaded();
    std::unique_ptr<VolumeMapping> make_mapping(Resource& resource);
    std::vector<HandedDevice> take_handed(const std::string& name);

    // With `changing` held.
    Status attach_fresh(Resource& resource);
    Status attach_again(Resource& resource);
    Status take_down(Resource& resource);
    Status go_down(Resource& resource);
    Status close_doors(const ResourcePtr& resource, const std::string& door, bool force);
    Status bring_up(Resource& resource);
    Status move_metadata(Resource& resource, AttachedDisk& disk, const GrowthPlan& plan);
    Status make_room(Resource& resource);
    void destroy_shell(Resource& resource);
    Status connect_all(Resource& resource);

    Status run(Resource& resource, const Command& command, const std::string& peer = "",
               seconds timeout = command_timeout);
    Status call(const std::string& name, const Command& command, const std::string& peer = "");
    template <class F>
    Result<std::invoke_result_t<F, ResourceShell&>> ask(Resource& resource, F&& f);
    Status io(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
              std::byte* memory, std::uint64_t length);

    NodeOptions options_;
    std::unique_ptr<EventHub> hub_;
    std::unique_ptr<MapperHost> mapper_;
    std::vector<std::unique_ptr<ReactorThread>> threads_;
    std::unique_ptr<Acceptor> acceptor_;
    std::atomic<std::uint64_t> handle_next_{1};
    std::mutex mutex_;
    std::map<std::string, ResourcePtr> resources_;  // under mutex_
    std::vector<HandedDevice> handed_;              // under mutex_: to this node, and not yet known
};

Error is_down(const std::string& name) {
    return {Errc::state, 0, name + " is down: bring it up first"};
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
    if (!found) return reject_and_close(fd, "there is no such resource here: check its name");
    const ResourcePtr resource = found.value();
    const std::uint64_t handle = handle_next_++;
    resource->thread->reactor().post([resource, fd, hello, handle] {
        if (resource->shell) return resource->shell->on_accepted(handle, fd, hello);
        reject_and_close(fd, "the resource is down here");
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
                nullptr},
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
    return std::make_unique<VolumeMapping>(
        VolumeMapping::Options{options_.state_dir, resource.config.name, options_.log}, *mapper_,
        doors_to_map(*resource.devices, resource.up), resource.changing);
}

Status LocalNode::add_resource(const ResourceConfig& config) {
    TRY_STATUS(check_resource_config(config, options_.name));
    return know(config);
}

Status LocalNode::adopt_resource(const ResourceConfig& config) {
    TRY_STATUS(check_resource_config(config, options_.name));
    if (!find(config.name)) TRY_STATUS(forget_other_disk(paths_of(config)));
    return know(config);
}

Status LocalNode::create_resource(const ResourceConfig& config, const CreateOptions& options) {
    TRY_STATUS(check_resource_config(config, options_.name));
    if (find(config.name)) {
        return Error{Errc::exists, 0, "resource " + config.name + " exists already"};
    }
    TRY_STATUS(create_disk(config, options, paths_of(config)));
    return know(config);
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

// Asks the shell on its thread. Errors: state (it is down).
template <class F>
Result<std::invoke_result_t<F, ResourceShell&>> LocalNode::ask(Resource& resource, F&& f) {
    using Answer = Result<std::invoke_result_t<F, ResourceShell&>>;
    return resource.thread->call([&]() -> Answer {
        if (!resource.shell) return is_down(resource.config.name);
        return f(*resource.shell);
    });
}

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
        if (!attached) {
            static_cast<void>(take_down(resource));
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
    if (!attached && fresh) static_cast<void>(take_down(*resource));
    TRY_STATUS(attached);
    const Status looked = resource->devices->look();
    if (!looked) {
        options_.log(LOG_ERR, name + ": " + looked.error().message);
        resource->devices->keep_looking();
    }
    return ok_status();
}

Status LocalNode::down(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY_STATUS(take_down(*resource));
    resource->devices->keep_trying(false);
    return ok_status();
}

Status LocalNode::take_down(Resource& resource) {
    if (!resource.up) return ok_status();
    if (resource.mapping->uses_doors()) TRY_STATUS(resource.mapping->close(false));
    TRY_STATUS(resource.devices->close({}, false));
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

// ---- a disk that grows --------------------------------------------------------------------------

// Only the copying is done while no metadata is written, which new extents and changes of the set
// wait for.
Status LocalNode::move_metadata(Resource& resource, AttachedDisk& disk, const GrowthPlan& plan) {
    TRY_STATUS(prepare_move(disk, plan));
    TRY_STATUS(run(resource, {.kind = CommandKind::hold_metadata}));
    const Status copied = copy_metadata(disk, plan);
    if (!copied) {
        static_cast<void>(run(resource, {.kind = CommandKind::release_metadata}));
        return copied;
    }
    TRY_STATUS(resource.thread->call_async(
        [&resource, plan](ResourceShell::Done done) {
            resource.shell->metadata_moved(plan, std::move(done));
        },
        command_timeout));
    disk.layout = plan.layout;
    return ok_status();
}

Status LocalNode::make_room(Resource& resource) {
    const auto look = [](ResourceShell& shell) { return shell.attached_disk(); };
    TRY(auto found, ask(resource, look));
    TRY(AttachedDisk disk, std::move(found));
    TRY(const GrowthPlan plan, plan_growth(disk));
    if (plan.changes) TRY_STATUS(move_metadata(resource, disk, plan));
    const std::uint64_t from = disk.zeroed_bytes;
    const std::uint64_t until = disk.layout.data_bytes_max / size_unit * size_unit;
    if (until <= from) return ok_status();
    const auto told = [&](std::uint64_t done, std::uint64_t total) {
        return ask(resource,
                   [&](ResourceShell& shell) {
                       shell.zeroing(done, total);
                       return shell.disk_open();
                   })
            .value();
    };
    const Status zeroed =
        zero_room(disk, from, until, [&](std::uint64_t done) { return told(done, until - from); });
    static_cast<void>(told(0, 0));
    TRY_STATUS(zeroed);
    static_cast<void>(ask(resource, [&](ResourceShell& shell) {
        if (shell.disk_open()) shell.room_made(until);
        return true;
    }));
    return ok_status();
}

Result<ResizeResult> LocalNode::resize(const std::string& name, std::uint64_t size_bytes) {
    if (size_bytes % size_unit != 0) {
        return Error{Errc::invalid, 0,
                     text_of("a volume of %llu bytes: its size is a multiple of %llu",
                             static_cast<unsigned long long>(size_bytes),
                             static_cast<unsigned long long>(size_unit))};
    }
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY_STATUS(make_room(*resource));
    const auto look = [](ResourceShell& shell) { return shell.sizes(); };
    TRY(ResizeResult sizes, ask(*resource, look));
    const std::uint64_t before = sizes.size_bytes;
    if (size_bytes > sizes.room_bytes) {
        return Error{Errc::no_space, 0,
                     text_of("%s: the disk here takes a volume of %llu bytes at most", name.c_str(),
                             static_cast<unsigned long long>(sizes.room_bytes))};
    }
    const Status grown = run(*resource, {.kind = CommandKind::resize, .size_bytes = size_bytes});
    TRY(sizes, ask(*resource, look));
    std::erase_if(sizes.waits_for, [&](const ResizeResult::Peer& peer) {
        return peer.connected && size_bytes != 0 && peer.room_bytes >= size_bytes;
    });
    const bool waits = !grown && !sizes.waits_for.empty() &&
                       (grown.error().code == Errc::state || grown.error().code == Errc::no_space);
    if (!grown && !waits) return grown.error();
    if (sizes.size_bytes == before) return sizes;
    TRY(sizes.remarks,
        ask(*resource, [](ResourceShell& shell) { return shell.clients_of_old_size(); }));
    for (std::string& remark : resource->devices->grow(sizes.size_bytes))
        sizes.remarks.push_back(std::move(remark));
    const Status mapped = resource->mapping->grow();
    if (!mapped) sizes.remarks.push_back(mapped.error().message);
    return sizes;
}

Status LocalNode::demote(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY(const Status unused, ask(*resource, [](ResourceShell& shell) -> Status {
            if (!shell.primary()) return ok_status();
            return shell.doors_unused();
        }));
    TRY_STATUS(unused);
    if (resource->mapping->uses_doors()) TRY_STATUS(resource->mapping->close(false));
    TRY_STATUS(close_doors(resource, "", false));
    return run(*resource, {.kind = CommandKind::demote});
}

Status LocalNode::export_nbd(const std::string& name, const std::string& door, bool read_only) {
    TRY(const ResourcePtr resource, find(name));
    TRY(const Status exported,
        ask(*resource, [&](ResourceShell& shell) { return shell.export_nbd(door, read_only); }));
    return exported;
}

Result<BlockDoor> LocalNode::export_device(const std::string& name, DeviceKind kind,
                                           bool read_only) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (!resource->up) return is_down(name);
    TRY_STATUS(resource->devices->open(kind, read_only));
    return resource->devices->facts(kind);
}

Result<BlockDoor> LocalNode::block_door(const std::string& name, DeviceKind kind) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    return resource->devices->facts(kind);
}

Result<std::string> LocalNode::map_volume(const std::string& name, const std::string& place) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (!KernelDoors::kind_of(
            place)) {  // another node's door: it must be that of the data as it is now
        TRY(const bool follows, ask(*resource, [](ResourceShell& shell) {
                return !shell.primary() && shell.follows_primary();
            }));
        if (!follows) {
            return Error{Errc::state, 0,
                         name +
                             " has to be Secondary here, and a connected peer Primary: only "
                             "that one's door can take its place"};
        }
    }
    TRY_STATUS(resource->mapping->map(place));
    return resource->mapping->view().path;
}

Status LocalNode::hold_volume(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    return resource->mapping->hold();
}

Status LocalNode::unexport(const std::string& name, const std::string& door, bool force) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    const auto kind = KernelDoors::kind_of(door);
    const bool mapped = door.starts_with("mapped");
    if (mapped || door.empty()) {
        if (mapped && !resource->mapping->is_mapped()) {
            return Error{Errc::not_found, 0, name + " is not mapped here"};
        }
        TRY_STATUS(resource->mapping->close(force));
        if (mapped) return ok_status();
    }
    if (resource->up || (!kind && !door.empty())) return close_doors(resource, door, force);
    // Of a resource that can not be brought up a device may wait all the same.
    const Status closed = resource->devices->close_left(kind, force);
    if (closed) resource->devices->keep_trying(false);
    if (!closed && closed.error().code == Errc::not_found) return is_down(name);
    return closed;
}

Status LocalNode::close_doors(const ResourcePtr& resource, const std::string& door, bool force) {
    if (!resource->up) return is_down(resource->config.name);
    const auto kind = KernelDoors::kind_of(door);
    if (kind && !resource->devices->is_open(kind)) {
        return Error{Errc::not_found, 0,
                     resource->config.name + " has no device of " + name_of(*kind)};
    }
    if (kind || door.empty()) TRY_STATUS(resource->devices->close(kind, force));
    if (kind) return ok_status();
    return resource->thread->call_async(
        [resource, door](ResourceShell::Done done) {
            if (!resource->shell) return done(is_down(resource->config.name));
            resource->shell->unexport(door, std::move(done));
        },
        command_timeout);
}

// ---- to the next program ------------------------------------------------------------------------

Status LocalNode::may_hand_over(bool force) {
    for (const std::string& name : resources()) {
        const auto found = find(name);
        if (!found || force) continue;
        const auto unused =
            ask(*found.value(), [](ResourceShell& shell) { return shell.doors_unused(); });
        if (unused && !unused.value()) return unused.value();
    }
    return ok_status();
}

Result<std::string> LocalNode::hand_over() {
    std::vector<ResourcePtr> all;
    for (const std::string& name : resources()) {
        if (const auto found = find(name)) all.push_back(found.value());
    }
    std::vector<std::unique_lock<std::mutex>> changing;
    for (const ResourcePtr& resource : all)
        changing.emplace_back(resource->changing);
    for (std::size_t i = 0; i < all.size(); ++i) {
        const Status held = all[i]->up ? all[i]->devices->hold(hold_timeout) : ok_status();
        if (held) continue;
        for (std::size_t j = 0; j < i; ++j)
            all[j]->devices->resume();
        return held.error();
    }
    std::vector<HandedDevice> handed;
    for (const ResourcePtr& resource : all) {
        resource->mapping->leave();
        for (HandedDevice& device : resource->devices->hand_over())
            handed.push_back(std::move(device));
        // If it fails, the next start is one after a crash, which loses nothing either.
        const Status down = go_down(*resource);
        if (!down) options_.log(LOG_ERR, resource->config.name + ": " + down.error().message);
    }
    if (acceptor_) acceptor_->close();
    for (const HandedDevice& device : handed) {
        if (device.socket >= 0) ::fcntl(device.socket, F_SETFD, 0);
    }
    return to_text(handed);
}

std::vector<DoorPause> LocalNode::pauses() {
    std::vector<DoorPause> all;
    for (const std::string& name : resources()) {
        const auto found = find(name);
        if (!found) continue;
        for (DoorPause& pause : found.value()->devices->pauses())
            all.push_back(std::move(pause));
    }
    return all;
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

// ---- the in-process door ------------------------------------------------------------------------

// On the reactor's thread.
void start(Resource& resource, Submission& submission) {
    LocalDoor* const door = resource.shell ? resource.shell->local_door() : nullptr;
    const bool reads = submission.call.kind == IoKind::read;
    const bool may = door != nullptr && (reads || !resource.shell->any_device_waits());
    if (may) return door->submit(submission.call);
    submission.call.done(submission.call, door != nullptr ? EBUSY : ESHUTDOWN);
}

void submit_to(const ResourcePtr& resource, Submission& submission) {
    Reactor& reactor = resource->thread->reactor();
    if (reactor.on_owner_thread()) return start(*resource, submission);
    if (!resource->submissions.push(submission, resource)) return;
    reactor.post([waiting = resource.get()] {
        std::shared_ptr<void> alive;
        Submission* next = waiting->submissions.pop_all(alive);
        while (next != nullptr)
            start(*waiting, *std::exchange(next, next->next));
    });
}

struct Waiter {
    Submission submission;
    Baton baton;
    int error = 0;
};

Status LocalNode::io(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                     std::byte* memory, std::uint64_t length) {
    TRY(const ResourcePtr resource, find(name));
    ASSERT(!resource->thread->reactor().on_owner_thread());
    Waiter waiter;
    LocalCall& call = waiter.submission.call;
    call.kind = kind;
    call.fua = fua;
    call.offset = offset;
    call.length = length;
    call.memory = memory;
    call.context = &waiter;
    call.done = [](LocalCall& ended, int error) {
        auto& waiting = *static_cast<Waiter*>(ended.context);
        waiting.error = error;
        waiting.baton.pass();
    };
    submit_to(resource, waiter.submission);
    waiter.baton.wait();
    if (waiter.error == 0) return ok_status();
    return io_error(name, waiter.error);
}

Status LocalNode::read(const std::string& name, std::uint64_t offset, std::span<std::byte> into) {
    return io(name, IoKind::read, false, offset, into.data(), into.size());
}
Status LocalNode::write(const std::string& name, std::uint64_t offset,
                        std::span<const std::byte> from, bool fua) {
    // One field of a call serves both directions; a write does not touch it.
    return io(name, IoKind::write, fua, offset, const_cast<std::byte*>(from.data()), from.size());
}
Status LocalNode::flush(const std::string& name) {
    return io(name, IoKind::flush, false, 0, nullptr, 0);
}
Status LocalNode::discard(const std::string& name, std::uint64_t offset, std::uint64_t length) {
    return io(name, IoKind::discard, false, offset, nullptr, length);
}
Status LocalNode::write_zeroes(const std::string& name, std::uint64_t offset,
                               std::uint64_t length) {
    return io(name, IoKind::write_zeroes, false, offset, nullptr, length);
}

Status LocalNode::submit(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                         std::span<std::byte> bytes, std::uint64_t length,
                         void (*done)(void* context, int error), void* context) {
    TRY(const ResourcePtr resource, find(name));
    const bool data = kind == IoKind::read || kind == IoKind::write;
    Submission& submission = resource->submissions.take();
    submission.done = done;
    submission.context = context;
    LocalCall& call = submission.call;
    call.kind = kind;
    call.fua = fua;
    call.offset = offset;
    call.length = data ? bytes.size() : length;
    call.memory = bytes.data();
    submit_to(resource, submission);
    return ok_status();
}

}  // namespace

Result<std::unique_ptr<Node>> Node::create(const NodeOptions& options) {
    auto node = std::make_unique<LocalNode>(options);
    TRY_STATUS(node->open());
    return std::unique_ptr<Node>(std::move(node));
}

}  // namespace replica
