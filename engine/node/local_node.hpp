// SPDX-License-Identifier: Apache-2.0
// The node as it is made by Node::create(): its resources, and on which reactor each lives. A call
// that changes a resource holds that resource's `changing`; what blocks (disks, name servers) is
// done on the caller's thread; the rest is posted to the reactor and waited for.
//
// ../node.cpp            life, resources, up and down, commands, views
// local_node_doors.cpp   demotion, doors, and handing them on
// local_node_resize.cpp  disks and volumes that grow
// local_node_io.cpp      the in-process door
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/node.hpp"
#include "engine/node/acceptor.hpp"
#include "engine/node/change_lock.hpp"
#include "engine/node/create_disk.hpp"
#include "engine/node/kernel_doors.hpp"
#include "engine/node/resource_shell.hpp"
#include "engine/node/submissions.hpp"
#include "engine/node/volume_mapping.hpp"

namespace replica {

// Longer than any timeout of the core, which ends what waits for a peer.
inline constexpr std::chrono::seconds command_timeout{120};
inline constexpr std::chrono::seconds quiet_timeout{30};
// Of requests under way, before a planned hand-over.
inline constexpr std::chrono::seconds hold_timeout{10};
// Of an attempt that is repeated, with the resource's `changing` held meanwhile.
inline constexpr std::chrono::seconds adoption_timeout{2};
inline constexpr std::chrono::milliseconds busy_pause{50};
inline constexpr int busy_attempts = 40;

// Sizes of volumes are whole blocks of the bitmap, so that every client can address all of it.
inline constexpr std::uint64_t size_unit = block_bytes;

struct Resource {
    ResourceConfig config;  // all but the options never changes
    ReactorThread* thread = nullptr;
    ChangeLock changing;
    bool removed = false;                  // under `changing`
    bool up = false;                       // under `changing`: there is a shell
    std::unique_ptr<ResourceShell> shell;  // made under `changing`; used on the reactor's thread
    Submissions submissions;
    std::unique_ptr<KernelDoors> devices;    // under `changing`
    std::unique_ptr<VolumeMapping> mapping;  // under `changing`
};
using ResourcePtr = std::shared_ptr<Resource>;

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
    Status down(const std::string& name, bool force) override;
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
    Result<ResizeResult> resize(const std::string& name, std::uint64_t size_bytes,
                                const std::function<bool()>& go_on) override;

    Result<std::string> export_nbd(const std::string& name, const std::string& door,
                                   bool read_only) override;
    Result<BlockDoor> export_device(const std::string& name, DeviceKind kind,
                                    bool read_only) override;
    Result<BlockDoor> block_door(const std::string& name, DeviceKind kind) override;
    Result<std::string> map_volume(const std::string& name, const std::string& place) override;
    Status hold_volume(const std::string& name) override;
    Status unexport(const std::string& name, const std::string& door, bool force) override;

    Status may_hand_over(bool force) override;
    Result<HandOver> hand_over(bool force) override;
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
    Status check_not_taken(const ResourceConfig& config);
    void route(int fd, const HelloPayload& hello);
    DiskPaths paths_of(const ResourceConfig& config) const;
    void publish(const std::string& resource, const char* action);
    ReactorThread& least_loaded();
    std::unique_ptr<VolumeMapping> make_mapping(Resource& resource);
    std::vector<HandedDevice> take_handed(const std::string& name);

    // With `changing` held.
    Status attach_fresh(Resource& resource);
    Status attach_again(Resource& resource);
    Status take_down(Resource& resource, bool force = false);
    Status no_clients(Resource& resource, const std::string& door);
    Status to_next_program(Resource& resource, HandOver& left, std::vector<HandedDevice>& handed);
    Status go_down(Resource& resource);
    Status close_doors(const ResourcePtr& resource, const std::string& door, bool force);
    Status bring_up(Resource& resource);
    Status move_metadata(Resource& resource, AttachedDisk& disk, const GrowthPlan& plan);
    Result<bool> make_room(Resource& resource, std::uint64_t size_bytes,
                           const std::function<bool()>& go_on);
    Result<ResizeResult> grow_volume(Resource& resource, std::uint64_t size_bytes);
    void destroy_shell(Resource& resource);
    Status connect_all(Resource& resource);

    Status run(Resource& resource, const Command& command, const std::string& peer = "",
               std::chrono::seconds timeout = command_timeout);
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
    std::mutex making_;  // held from the look at the disks of others until a new one is known
    std::mutex mutex_;
    std::map<std::string, ResourcePtr> resources_;  // under mutex_
    std::vector<HandedDevice> handed_;              // under mutex_: to this node, and not yet known
};

inline Error is_down(const std::string& name) {
    return {Errc::state, 0, name + " is down: bring it up first"};
}

// Asks the shell on its thread. Errors: state (it is down).
template <class F>
Result<std::invoke_result_t<F, ResourceShell&>> LocalNode::ask(Resource& resource, F&& f) {
    using Answer = Result<std::invoke_result_t<F, ResourceShell&>>;
    return resource.thread->call([&]() -> Answer {
        if (!resource.shell) return is_down(resource.config.name);
        return f(*resource.shell);
    });
}

}  // namespace replica
