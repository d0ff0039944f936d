// SPDX-License-Identifier: Apache-2.0
// The in-kernel DRBD resources of this machine, by the generic netlink family "drbd" as 8.4 (Linux'
// own driver, family version 1) and 9 (the driver of its makers, version 2) speak it. Reads only,
// and loads no module.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

// State words are DRBD's own, as drbdsetup prints them. What the driver does not tell is empty or
// 0.
struct DrbdPeerDevice {
    std::uint32_t volume = 0;
    std::string replication;  // "Off", "Established", "SyncSource"...
    std::string disk;         // the peer's
    bool resync_suspended = false;
    std::uint64_t received_bytes = 0, sent_bytes = 0, out_of_sync_bytes = 0;
    std::uint32_t pending = 0, unacked = 0;
};

struct DrbdConnection {
    std::string name;         // 9 only
    int peer_node_id = -1;    // 9 only
    std::string local, peer;  // addresses, "192.0.2.1:7789"; 8.4 only
    std::string state;        // "StandAlone", "Connecting", "Connected"...
    std::string role;         // the peer's: "Primary", "Secondary", "Unknown"
    std::vector<DrbdPeerDevice> devices;
};

struct DrbdDevice {
    std::uint32_t volume = 0;
    std::uint32_t minor = 0;  // of /dev/drbdMINOR
    std::string disk;         // "UpToDate", "Diskless"...
    std::string backing;      // 9 only
    std::uint64_t size_bytes = 0, read_bytes = 0, written_bytes = 0;
    std::uint64_t al_writes = 0, bm_writes = 0;
    std::uint64_t current_uuid = 0;
};

struct DrbdResource {
    std::string name;
    std::string role;
    bool suspended = false;
    std::vector<DrbdDevice> devices;
    std::vector<DrbdConnection> connections;
};

// Blocks for as long as the kernel takes. Errors: not_found (the kernel has no DRBD, or it is not
// loaded), unsupported (a driver of another kind; built without libnl), io.
Result<std::vector<DrbdResource>> read_drbd_status();

// One message of the family, from its netlink header on, is added to `resources`. `version` is the
// family's. False: the message is none that tells of a resource, and nothing was changed.
bool add_drbd_message(std::span<const std::byte> message, unsigned version,
                      std::vector<DrbdResource>& resources);

}  // namespace replica
