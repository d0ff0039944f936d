// SPDX-License-Identifier: Apache-2.0
// A seed that fails, made short: of what was decided in it (requests, commands, faults, accidents,
// features of the world) as much is left out as can be while the same invariant is still violated.
#pragma once

#include "tests/sim/world.hpp"

namespace replica::sim {

// Prints what is left and how it comes to the violation. Returns whether the seed fails at all.
bool shrink(Options options, double seconds);
// The id of the invariant in what a Violation says, or its first word.
std::string invariant_of(const std::string& what);

}  // namespace replica::sim
