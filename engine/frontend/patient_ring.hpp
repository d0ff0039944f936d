// SPDX-License-Identifier: Apache-2.0
// Commands of io_uring that are waited for, but not for ever. One that does not end in time is left
// behind on a ring of its own with the memory that the kernel may still write to, and the next one
// gets another ring. Who gives the same command again goes on waiting for that one.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/result.hpp"

struct io_uring_sqe;

namespace replica {

// One thread at a time.
class PatientRing {
  public:
    struct Command {
        std::uint64_t key = 0;  // equal for commands that are the same
        // What does not end in time is asked to, and mostly does. One that changes nothing when it
        // is interrupted, that is.
        bool heeds_cancel = false;
    };
    using Memory = std::array<std::byte, 128>;
    // Fills an entry of 128 bytes, which is all zeroes but for its user data.
    using Prepare = std::function<void(io_uring_sqe& entry, Memory& memory)>;

    // Errors: io (no io_uring).
    static Result<std::unique_ptr<PatientRing>> create(std::chrono::milliseconds limit,
                                                       std::chrono::milliseconds cancel_limit);
    ~PatientRing();
    PatientRing(const PatientRing&) = delete;
    PatientRing& operator=(const PatientRing&) = delete;

    // What the command gave, or -ETIME: it has not ended, or did so because it was asked to.
    // `memory`: what the kernel reads, and gets what it has written.
    int run(const Command& command, const Prepare& prepare, std::span<std::byte> memory);
    std::size_t left_behind() const { return left_.size(); }

  private:
    struct Ring;
    struct Orphans;
    PatientRing(std::chrono::milliseconds limit, std::chrono::milliseconds cancel_limit);
    static Result<std::unique_ptr<Ring>> make_ring();
    std::unique_ptr<Ring> left_with(std::uint64_t key);
    int wait(Ring& ring);

    const std::chrono::milliseconds limit_, cancel_limit_;
    std::unique_ptr<Ring> ring_;               // of the next command; nullptr: to be made
    std::vector<std::unique_ptr<Ring>> left_;  // with one that has not ended, each
};

}  // namespace replica
