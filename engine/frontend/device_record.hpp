// SPDX-License-Identifier: Apache-2.0
// What the state directory knows of a resource's block device: a file that is written before the
// kernel is asked for the device, and removed after it is gone. So there is no device without its
// record, whenever the daemon dies; and no record, no device, so that nobody has to look.
//
// The file is text, replaced as a whole (write, fsync, rename, fsync of the directory).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/device_kind.hpp"

namespace replica {

struct DeviceRecord {
    // Kept by the kernel with the device; random, so that nobody else's device has it.
    std::uint64_t token = 0;
    // Of the data when the device was last known to be served. It is 0 in no record.
    std::uint64_t generation = 0;
    bool read_only = false;

    friend bool operator==(const DeviceRecord&, const DeviceRecord&) = default;
};

// A token that no other device has.
std::uint64_t new_device_token();

class DeviceRecordFile {
  public:
    // STATE/KIND/RESOURCE
    DeviceRecordFile(const std::string& state_dir, DeviceKind kind, const std::string& resource);

    const std::string& path() const { return path_; }
    bool exists() const;
    // nullopt: there is none. Errors: io; corrupt (its bytes are not those of a record: whose
    // device it speaks of is unknown, and it has to be removed by hand).
    Result<std::optional<DeviceRecord>> load() const;
    Status save(const DeviceRecord& record) const;  // stable when it returns. Errors: io.
    Status remove() const;                          // fine if there is none. Errors: io.

  private:
    DeviceKind kind_;
    std::string directory_, path_;
};

}  // namespace replica
