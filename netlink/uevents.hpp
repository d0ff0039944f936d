// SPDX-License-Identifier: Apache-2.0
// Tells by the kernel's uevents that a disk is gone, has another size or can no longer be written,
// before an I/O fails on it. Where none are to be had (a container), the I/O tells. Needs no
// privilege and no library. docs/netlink.md.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "engine/base/result.hpp"

namespace replica {

class DiskMonitor;

enum class DiskChange : std::uint8_t { removed, resized, read_only };

// A block device that is watched. Owned by the caller, who keeps it in place; it must not outlive
// the monitor. The callback runs inside DiskMonitor::read_messages() and may start and stop any
// watch. A removal is told once.
struct DiskWatch {
    void (*callback)(DiskWatch& watch, DiskChange change) = nullptr;
    void* context = nullptr;  // the caller's own

    DiskMonitor* monitor = nullptr;  // kept by the monitor, as is what follows; nullptr: none
    std::uint64_t device = 0;

    DiskWatch() = default;
    ~DiskWatch();
    DiskWatch(const DiskWatch&) = delete;
    DiskWatch& operator=(const DiskWatch&) = delete;
};

// One thread only.
class DiskMonitor {
  public:
    // Errors: permission, unsupported, io.
    static Result<std::unique_ptr<DiskMonitor>> open();
    virtual ~DiskMonitor() = default;  // when nothing is watched any more

    // `device`: st_rdev of a disk, a partition, or whatever lies on them. Only what happens to this
    // very device counts: what lies below an LVM volume is the volume's business.
    virtual void start(DiskWatch& watch, std::uint64_t device) = 0;
    virtual void stop(DiskWatch& watch) = 0;

    // Readable: there are messages.
    virtual int fd() const = 0;
    // Reads what there is without blocking, some hundred at most, and runs the callbacks. If some
    // were lost it looks which devices are still there. Errors: io (nothing more will come).
    virtual Status read_messages() = 0;
};

// What a message says about a block device.
struct BlockUevent {
    std::uint64_t device = 0;
    DiskChange change = DiskChange::removed;
};
// `message`: as it was received. Empty: it tells of nothing that counts here.
std::optional<BlockUevent> parse_uevent(std::string_view message);

}  // namespace replica
