// SPDX-License-Identifier: Apache-2.0
// What regressions.cpp runs, in several files.
#pragma once

#include <span>

#include "tests/sim/scenario.hpp"

namespace replica::sim {

inline constexpr std::uint64_t extent_blocks = extent_bytes / block_bytes;

struct Regression {
    const char* name;
    const char* found;
    void (*run)(const Options&);
};
std::span<const Regression> diskless_regressions();
std::span<const Regression> claims_regressions();
std::span<const Regression> data_regressions();
std::span<const Regression> operator_regressions();

}  // namespace replica::sim
