// SPDX-License-Identifier: Apache-2.0
// Makes a failing seed short: leaves out as many of its decisions (requests, commands, faults,
// accidents, features of the world) as it can while the same invariant is still violated.
#pragma once

#include "tests/sim/world.hpp"

namespace replica::sim {

// Prints what is left and how it comes to the violation. Returns whether the seed fails at all.
bool shrink(Options options, double seconds);
// The id of the invariant in what a Violation says, or its first word.
std::string invariant_of(const std::string& what);

}  // namespace replica::sim
