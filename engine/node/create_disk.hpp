// SPDX-License-Identifier: Apache-2.0
// The first metadata of a resource.
#pragma once

#include "engine/base/result.hpp"
#include "engine/mapper/thin_snapshot.hpp"
#include "engine/node.hpp"
#include "engine/node/backing_disk.hpp"

namespace replica {

// Writes fresh metadata and its copy in the state directory. Blocks. Errors: those of
// Node::create_resource().
Status create_disk(const ResourceConfig& config, const CreateOptions& options,
                   const DiskPaths& paths, const LvmProgram& lvm = {});

// Two paths of one block device or file; false where either path is empty.
bool same_disk(const std::string& one, const std::string& other);

}  // namespace replica
