// SPDX-License-Identifier: Apache-2.0
// The yardstick: the least that a mirrored write can cost on this machine. An O_DIRECT write here
// and, at the same time, one TCP message over loopback to a second thread with its own ring, which
// does an O_DIRECT write there and acknowledges. No checks, no order, no memory of anything.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "bench/samples.hpp"
#include "engine/base/result.hpp"

namespace replica::bench {

struct LimitOptions {
    std::string directory = "/var/tmp";    // of both files: a disk that knows O_DIRECT
    std::uint64_t file_bytes = 64U << 20;  // of each; written in full before the first round
    std::uint32_t write_bytes = 4096;      // of each write; a multiple of the disk's block
};

// Rounds can be mixed with those of other benchmarks, so that all see the same machine.
class Limit {
  public:
    // Makes and fills the two files; they are gone with the object. Errors: io, no_space.
    static Result<std::unique_ptr<Limit>> create(const LimitOptions& options);
    virtual ~Limit() = default;
    // `depth` (1..256) writes at random places are always under way, for `duration_ns`.
    virtual Result<Samples> round(unsigned depth, std::uint64_t duration_ns) = 0;
};

// One round on fresh files, for a single measurement.
Result<Samples> limit_round(const LimitOptions& options, unsigned depth, std::uint64_t duration_ns);

}  // namespace replica::bench
