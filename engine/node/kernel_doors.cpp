// SPDX-License-Identifier: Apache-2.0
// See kernel_doors.hpp.
#include "engine/node/kernel_doors.hpp"

#include <sys/sysmacros.h>

#include <algorithm>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/frontend/ublk_device.hpp"
#include "engine/node/nbd_block_device.hpp"

namespace replica {
namespace {

std::array<DeviceMaker, device_kinds> makers(const KernelDeviceOptions& options,
                                             const std::vector<HandedDevice>& handed) {
    UblkDeviceOptions ublk;
    NbdBlockDeviceOptions nbd;
    static_cast<KernelDeviceOptions&>(ublk) = options;
    static_cast<KernelDeviceOptions&>(nbd) = options;
    for (const HandedDevice& device : handed) {
        if (device.socket < 0) continue;
        nbd.handed = std::make_shared<std::unique_ptr<NbdChannel>>(
            std::make_unique<NbdChannel>(device.socket));
    }
    return {UblkDevice::maker(ublk), NbdBlockDevice::maker(nbd)};
}

}  // namespace

KernelDoors::KernelDoors(DeviceExport::Resource resource, const std::string& state_dir,
                         const std::string& name, const DeviceLog& log,
                         const std::vector<HandedDevice>& handed)
    : KernelDoors(std::move(resource), {state_dir, name, log},
                  makers({state_dir, name, log}, handed)) {
    for (const HandedDevice& device : handed)
        of(device.kind).handed(device.held_ns);
}

KernelDoors::KernelDoors(DeviceExport::Resource resource, const KernelDeviceOptions& options,
                         std::array<DeviceMaker, device_kinds> makers)
    : name_(options.resource) {
    // A promotion for one device is one before which the others have to be looked at. That may show
    // that there is nothing any more to be promoted for.
    resource.promote = [this, promote = std::move(resource.promote)]() -> Status {
        TRY_STATUS(before_promotion(false));
        const bool wanted = std::any_of(exports_.begin(), exports_.end(), [](const auto& each) {
            return each->waits_for_promotion();
        });
        if (!wanted) return Error{Errc::cancelled, 0, name_ + " has no device that waits any more"};
        return promote();
    };
    resource.closed = [this, told = std::move(resource.closed)] {
        name_what_is_left();
        if (told) told();
    };
    for (DeviceMaker& maker : makers) {
        auto& place = exports_[static_cast<std::size_t>(maker.kind)];
        place = std::make_unique<DeviceExport>(resource, options, std::move(maker));
    }
}

Status KernelDoors::close(Kind kind, bool force) {
    const auto meant = [&](const auto& each) { return !kind || each->kind() == *kind; };
    for (const auto& each : exports_) {
        if (meant(each) && !force) TRY_STATUS(each->check_unused());
    }
    Status all = ok_status();
    for (const auto& each : exports_) {
        Status closed = meant(each) ? each->close(force) : ok_status();
        if (!closed && !force) return closed;
        if (!closed && all) all = std::move(closed);
    }
    return all;
}

Status KernelDoors::close_left(Kind kind, bool force) {
    Status closed = Error{Errc::not_found, 0, "there is no block device"};
    for (const auto& each : exports_) {
        if (kind && each->kind() != *kind) continue;
        Status one = each->close_left(force);
        if (!one && one.error().code != Errc::not_found) return one;
        if (one) closed = std::move(one);
    }
    return closed;
}

bool KernelDoors::is_open(Kind kind) const {
    return std::any_of(exports_.begin(), exports_.end(), [kind](const auto& each) {
        return (!kind || each->kind() == *kind) && each->is_open();
    });
}

bool KernelDoors::any_writes() const {
    return std::any_of(exports_.begin(), exports_.end(), [](const auto& each) {
        return each->is_live() && !each->device()->read_only();
    });
}

Result<BlockDoor> KernelDoors::facts(DeviceKind kind) {
    KernelDevice* const device = of(kind).device();
    if (device == nullptr) {
        return Error{Errc::not_found, 0, text_of("there is no device of %s", name_of(kind))};
    }
    TRY(const BlockFacts facts, device->facts());
    return BlockDoor{kind,        device->door(), device->path(), facts.size_bytes,
                     facts.major, facts.minor};
}

std::vector<std::string> KernelDoors::grow(std::uint64_t size_bytes) {
    std::vector<std::string> remarks;
    for (const auto& each : exports_) {
        const Status grown = each->grow(size_bytes);
        if (!grown) remarks.push_back(grown.error().message);
    }
    return remarks;
}

Status KernelDoors::hold(std::chrono::seconds timeout) {
    for (const auto& each : exports_) {
        const Status held = each->hold(timeout);
        if (held) continue;
        resume();
        return held;
    }
    return ok_status();
}

void KernelDoors::resume() {
    for (const auto& each : exports_)
        each->resume();
}

std::vector<HandedDevice> KernelDoors::hand_over() {
    std::vector<HandedDevice> handed;
    for (const auto& each : exports_) {
        const bool live = each->is_live();
        const std::uint64_t held_ns = each->held_ns();
        const int socket = each->hand_over();
        if (live) handed.push_back({name_, each->kind(), held_ns, socket});
    }
    return handed;
}

std::vector<DoorPause> KernelDoors::pauses() const {
    std::vector<DoorPause> pauses;
    for (const auto& each : exports_) {
        const auto pause = each->pause();
        if (pause) pauses.push_back({name_, each->kind(), pause->adopted_ns, pause->answered_ns});
    }
    return pauses;
}

void KernelDoors::leave() {
    for (const auto& each : exports_)
        each->leave();
}

Status KernelDoors::look() {
    Status all = ok_status();
    for (const auto& each : exports_) {
        Status looked = each->look();
        if (!looked && all) all = std::move(looked);
    }
    return all;
}

bool KernelDoors::may_be_left() const {
    return std::any_of(exports_.begin(), exports_.end(),
                       [](const auto& each) { return each->may_be_left(); });
}

void KernelDoors::keep_trying(bool wanted) {
    for (const auto& each : exports_)
        each->keep_trying(wanted && each->may_be_left());
}

void KernelDoors::keep_looking() {
    for (const auto& each : exports_) {
        if (!each->is_open()) each->keep_trying(each->may_be_left());
    }
}

Status KernelDoors::before_promotion(bool force) {
    for (const auto& each : exports_)
        TRY_STATUS(each->before_promotion(force));
    return ok_status();
}

void KernelDoors::name_what_is_left() {
    for (const auto& each : exports_) {
        if (each && each->is_live()) static_cast<void>(each->device()->link());
    }
}

KernelDoors::Kind KernelDoors::kind_of(const std::string& door) {
    for (const DeviceKind kind : all_device_kinds) {
        const std::string name = name_of(kind);
        if (door == name || door.starts_with(name + ":/dev/")) return kind;
    }
    return {};
}

VolumeMapping::Doors doors_to_map(KernelDoors& doors, const bool& up,
                                  std::function<std::uint64_t()> volume_bytes) {
    const auto facts = [&](const std::string& place) -> Result<BlockTarget> {
        const DeviceKind kind = *KernelDoors::kind_of(place);
        if (!up) return Error{Errc::state, 0, "the resource is down: bring it up first"};
        TRY(const BlockDoor door, doors.facts(kind));
        if (!doors.is_live(kind)) {
            return Error{Errc::state, 0, door.path + " is not served yet"};
        }
        if (doors.is_read_only(kind)) {
            return Error{Errc::state, 0,
                         door.path + " is exported for reading only: unexport it first"};
        }
        return BlockTarget{makedev(door.major, door.minor), door.size_bytes};
    };
    const auto open = [&, facts](const std::string& place) -> Result<BlockTarget> {
        if (!up) return Error{Errc::state, 0, "the resource is down: bring it up first"};
        const DeviceKind kind = *KernelDoors::kind_of(place);
        if (!doors.is_live(kind)) TRY_STATUS(doors.open(kind, false));
        return facts(place);
    };
    const auto close = [&](const std::string& place, bool force) {
        return doors.close(KernelDoors::kind_of(place), force);
    };
    return {open, facts, close, std::move(volume_bytes)};
}

}  // namespace replica
