// SPDX-License-Identifier: Apache-2.0
// The way back from a resync that did not end: the snapshot that was taken before it becomes the
// disk again, with fresh metadata. docs/device-mapper.md says why it has to be fresh.
#pragma once

#include <string>

#include "engine/base/result.hpp"
#include "engine/node/backing_disk.hpp"

namespace replica {

// Nobody has the disk open. Blocks. May be repeated after any death. Returns what the disk holds
// now, for people. Errors: not_found (there is no snapshot), unsupported, busy, io.
Result<std::string> restore_before_resync(const DiskPaths& paths, const std::string& resource);

}  // namespace replica
