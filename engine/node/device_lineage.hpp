// SPDX-License-Identifier: Apache-2.0
// Whether what waits in a block device may be repeated: writes that an earlier daemon was asked for
// and did not acknowledge. Repeated over what another node has written since, they would bring old
// data back; repeated on data that has lost what came before them, they would tear a file system.
//
// The rule needs no memory of what happened in between, because the disk tells: every generation
// names the node that was Primary in it last, and whoever follows another Primary records that
// before the first write of it arrives. The name becomes this node's again only by a promotion
// here; and before that, a device that may not go on is given up (DeviceExport::before_promotion).
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/format/superblock.hpp"

namespace replica {

enum class Lineage : std::uint8_t {
    good,    // nobody else has written, and nothing is missing
    behind,  // this disk lacks something; a peer may bring it, or bring what another node wrote
    stale,   // another node has written, or may have: never again
};

// noted: the generation of the data when the device was served last. received: a peer has sent
// writes to this process. up_to_date: this disk is.
inline Lineage judge_lineage(std::uint64_t noted, const Superblock& now, bool received,
                             bool up_to_date) {
    const bool ours = now.extension.primary_node == now.node_id;
    if (!ours || received || noted == 0) return Lineage::stale;
    if (uuid_identity(now.current_uuid) == noted) return Lineage::good;
    const bool descends = uuid_identity(now.extension.parent_uuid) == noted ||
                          std::any_of(now.history.begin(), now.history.end(),
                                      [noted](Uuid uuid) { return uuid_identity(uuid) == noted; });
    if (descends) return Lineage::good;  // what came since was opened here
    return up_to_date ? Lineage::stale : Lineage::behind;
}

}  // namespace replica
