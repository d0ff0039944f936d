// SPDX-License-Identifier: Apache-2.0
// The in-kernel DRBD resources of this machine as the JSON of our own status, which follows
// drbdsetup's: one text for people serves both.
#pragma once

#include <string>
#include <vector>

#include "control/codec.hpp"
#include "netlink/drbd_status.hpp"

namespace replica::replicactl {

// Sizes are in KiB, as drbdsetup has them, and again in bytes. "doors" holds /dev/drbdN.
control::Json drbd_status_json(const std::vector<DrbdResource>& resources);

// For who types a command of DRBD: "; here it is promote". Empty: no such word.
std::string hint_for_drbd_word(const std::string& word);

}  // namespace replica::replicactl
