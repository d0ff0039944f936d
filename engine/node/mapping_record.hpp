// SPDX-License-Identifier: Apache-2.0
// What the state directory knows of a resource's mapped device: STATE/mapped/RESOURCE, written
// before the device is made and before each change of what lies below it, removed after it is gone.
#pragma once

#include <optional>
#include <string>

#include "engine/base/result.hpp"

namespace replica {

// What lies below is named as the doors are: "ublk" or "nbd" of this node, "tcp:HOST:PORT" of
// another; empty: nothing.
struct MappingRecord {
    std::string uuid;  // of the mapped device; nobody else's has it
    std::string over;  // what lies below, or is to
    std::string from;  // during a change: what lay below before
    bool held = false;
    friend bool operator==(const MappingRecord&, const MappingRecord&) = default;
};

class MappingRecordFile {
  public:
    MappingRecordFile(const std::string& state_dir, const std::string& resource);

    bool exists() const;
    // nullopt: there is none. Errors: io; corrupt (to be removed by hand).
    Result<std::optional<MappingRecord>> load() const;
    Status save(const MappingRecord& record) const;  // stable when it returns. Errors: io.
    Status remove() const;                           // fine if there is none. Errors: io.

  private:
    std::string directory_, path_;
};

}  // namespace replica
