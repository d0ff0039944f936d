// SPDX-License-Identifier: Apache-2.0
// The block devices of one resource: one of each kind at most, which may be open together. Which
// one has the stable name is decided here: the one that went live last.
//
// Threads: as DeviceExport, which has the life of each.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/node.hpp"
#include "engine/node/device_export.hpp"
#include "engine/node/handover.hpp"
#include "engine/node/volume_mapping.hpp"

namespace replica {

class KernelDoors {
  public:
    using Kind = std::optional<DeviceKind>;  // nullopt: each
    // What the name of a door speaks of: "nbd", "nbd:/dev/nbd3"; nullopt: no block device.
    static Kind kind_of(const std::string& door);

    // resource.promote: told nothing of devices; what they demand is asked for here, before.
    // handed: of this resource, by the program before.
    KernelDoors(DeviceExport::Resource resource, const std::string& state_dir,
                const std::string& name, const DeviceLog& log,
                const std::vector<HandedDevice>& handed);
    // The same, with a maker of each kind.
    KernelDoors(DeviceExport::Resource resource, const KernelDeviceOptions& options,
                std::array<DeviceMaker, device_kinds> makers);

    // Errors: as DeviceExport::open().
    Status open(DeviceKind kind, bool read_only) { return of(kind).open(read_only); }
    // None is closed if one is in use. Errors: as DeviceExport::close().
    Status close(Kind kind, bool force);
    // Of a resource that is down. Errors: not_found (there is none), and as close().
    Status close_left(Kind kind, bool force);
    bool is_open(Kind kind) const;
    // It is served, and not one that waits for its adoption.
    bool is_live(DeviceKind kind) { return of(kind).is_live(); }
    bool is_read_only(DeviceKind kind) { return is_live(kind) && of(kind).device()->read_only(); }
    // One is served that takes writes.
    bool any_writes() const;
    // The volume has grown: the devices follow. Returns a sentence for each that does not.
    std::vector<std::string> grow(std::uint64_t size_bytes);
    // Errors: not_found (it is not open), io.
    Result<BlockDoor> facts(DeviceKind kind);

    // For a hand-over, as in DeviceExport. If one can not be held, none is.
    Status hold(std::chrono::seconds timeout);
    void resume();
    std::vector<HandedDevice> hand_over();
    std::vector<DoorPause> pauses() const;

    // As their namesakes in DeviceExport, for each kind.
    void leave();
    Status look();
    bool may_be_left() const;
    void keep_trying(bool wanted);
    void keep_looking();  // keep_trying() where look() has failed
    Status before_promotion(bool force);

  private:
    DeviceExport& of(DeviceKind kind) { return *exports_[static_cast<std::size_t>(kind)]; }
    void name_what_is_left();

    const std::string name_;  // of the resource
    std::array<std::unique_ptr<DeviceExport>, device_kinds> exports_;
};

// As what lies below a mapped device. `up`: whether the resource is. Both stay where they are.
VolumeMapping::Doors doors_to_map(KernelDoors& doors, const bool& up,
                                  std::function<std::uint64_t()> volume_bytes);

}  // namespace replica
