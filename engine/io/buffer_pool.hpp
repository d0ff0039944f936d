// SPDX-License-Identifier: Apache-2.0
// Payload buffers of two sizes, carved from the reactor's registered arena at start: large ones for
// the longest request, small ones so that a 4 KiB write does not touch the memory of a large one.
// Buffers have an index, by which the core names them. One thread, no allocation after create().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

inline constexpr std::size_t small_buffer_bytes = 16U << 10;
inline constexpr std::size_t large_buffer_bytes = io_bytes_max;

class BufferPool {
  public:
    using Index = std::uint32_t;  // 0..count()-1: the small ones, then the large ones

    // Errors: no_space (the arena is too small; the message says how large it has to be).
    static Result<std::unique_ptr<BufferPool>> create(Reactor& reactor, std::uint32_t small,
                                                      std::uint32_t large);
    static constexpr std::size_t arena_bytes(std::uint32_t small, std::uint32_t large) {
        return small * small_buffer_bytes + large * large_buffer_bytes;
    }

    // A page-aligned buffer of at least `bytes` (1..io_bytes_max), a large one if the small ones
    // are used up; nullptr when none is free. Its content is what was left there.
    std::byte* acquire(std::size_t bytes);
    // `buffer`: as acquire() gave it; twice is an error (asserted).
    void release(std::byte* buffer);

    Index index_of(const std::byte* buffer) const;  // any address inside a buffer
    std::byte* buffer(Index index) const;
    std::size_t capacity(Index index) const {
        return index < small_ ? small_buffer_bytes : large_buffer_bytes;
    }
    bool owns(const std::byte* address) const;
    std::uint32_t count() const { return small_ + large_; }
    std::uint32_t free_small() const { return static_cast<std::uint32_t>(free_small_.size()); }
    std::uint32_t free_large() const { return static_cast<std::uint32_t>(free_large_.size()); }

  private:
    BufferPool(std::span<std::byte> memory, std::uint32_t small, std::uint32_t large);

    std::byte* memory_;
    std::uint32_t small_, large_;
    std::vector<Index> free_small_, free_large_;  // last released, first used: it is in the cache
    std::vector<bool> used_;
};

}  // namespace replica
