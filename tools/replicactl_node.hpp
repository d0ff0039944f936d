// SPDX-License-Identifier: Apache-2.0
// How replicactl reaches its node and asks it, and how it follows an upgrade from one program to
// the next. What goes wrong is thrown: control::Refused, or Unreachable, which has an exit code of
// its own.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "control/client.hpp"
#include "control/codec.hpp"

namespace replica::replicactl {

// No node answers.
struct Unreachable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What only looks is answered at once, or the node hangs.
constexpr int view_limit_ms = 10'000;

// An empty path stays empty, and is refused by who knows what it is for.
std::string absolute_path(const std::string& path);

std::unique_ptr<control::Client> reach(const std::string& control_path);
// limit_ms: -1: as long as it takes.
control::Json ask(control::Client& client, const std::string& method, const control::Json& params,
                  int limit_ms = -1);

struct UpgradeOrder {
    std::string control_path;
    std::string program;  // empty: that of the node
    bool force = false;
    std::uint64_t timeout_ms = 0;  // 0: two minutes
};
// Returns when the next program serves every block device, and each has had a second to be used:
// what node.info says of the upgrade, and the version "to".
control::Json upgrade(const UpgradeOrder& order);

}  // namespace replica::replicactl
