// SPDX-License-Identifier: Apache-2.0
// A small deterministic generator (SplitMix64) whose sequence is the same on every compiler and
// standard library. For the simulator, tests and jitter; never for generation ids in production,
// which the shell draws from getrandom(2).
#pragma once

#include <cstdint>

#include "engine/base/assert.hpp"

namespace replica {

class Prng {
  public:
    explicit constexpr Prng(std::uint64_t seed) : state_(seed) {}

    constexpr std::uint64_t next() {
        state_ += 0x9e3779b97f4a7c15U;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        return z ^ (z >> 31);
    }
    // Uniform in [0, bound); bound > 0. The bias is below 2^-32 for the bounds used here.
    constexpr std::uint64_t below(std::uint64_t bound) {
        ASSERT(bound > 0);
        return next() % bound;
    }
    constexpr bool chance(std::uint32_t per_million) { return below(1'000'000) < per_million; }

  private:
    std::uint64_t state_;
};

}  // namespace replica
