// SPDX-License-Identifier: Apache-2.0
// A disk with a volatile cache that is really lost: what was written and not flushed lives in this
// process's memory, and power_cut() keeps a part of it, drawn from a seed, sector by sector, so
// that writes are torn, too. The file below is what is stable. One thread, that of the reactor.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/base/result.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/buffer_pool.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

class VolatileDisk final : public Volume {
  public:
    // Errors: io, invalid (a size that is no multiple of sector_bytes). The pool outlives it.
    static Result<std::unique_ptr<VolatileDisk>> open(Reactor& reactor, BufferPool& pool,
                                                      const std::string& path, std::uint64_t seed);
    ~VolatileDisk() override;
    VolatileDisk(const VolatileDisk&) = delete;
    VolatileDisk& operator=(const VolatileDisk&) = delete;

    VolumeInfo info() const override;
    void submit(IoRequest& request) override;
    std::byte* acquire_buffer() override { return pool_.acquire(io_bytes_max); }
    std::byte* acquire_buffer_for(std::uint32_t bytes) override { return pool_.acquire(bytes); }
    void release_buffer(std::byte* buffer) override { pool_.release(buffer); }
    std::uint64_t extent_status(std::uint64_t, std::uint64_t length, bool& hole) override {
        hole = false;
        return length;
    }
    std::uint64_t dirty_status(std::uint64_t, std::uint64_t length, bool& dirty) override {
        dirty = false;
        return length;
    }

    // From now on a flush, or FUA, is answered and nothing becomes stable by it.
    void lie() { lying_ = true; }
    // Loses the cache, or a part of it, and says in words what was kept. From then on nothing is
    // answered, until power_on(): what was asked for meanwhile has failed.
    std::string power_cut();
    void power_on();
    // Called after each write, which is in the cache and not answered yet.
    std::function<void()> after_write;
    // As at an orderly end: what is in the cache becomes stable, lies or not.
    void write_back();

  private:
    using Sector = std::array<std::byte, sector_bytes>;
    struct Cached {
        std::uint64_t age = 0;  // when it was written; counts writes
        Sector bytes{};
    };
    VolatileDisk(Reactor& reactor, BufferPool& pool, std::byte* stable, std::uint64_t bytes,
                 std::uint64_t seed);
    void write(const IoRequest& request);
    void read(const IoRequest& request) const;
    void make_stable(std::uint64_t sector, const Cached& cached);
    void answer();
    void answer_all(int error);

    Reactor& reactor_;
    BufferPool& pool_;
    std::byte* const stable_;  // the file, mapped
    const std::uint64_t bytes_;
    Prng prng_;
    bool lying_ = false, dead_ = false;
    std::unordered_map<std::uint64_t, Cached> cache_;  // by sector
    std::uint64_t writes_ = 0, flushes_ = 0;
    std::vector<IoRequest*> asked_;  // to be answered in the next turn, or when power is back
};

}  // namespace replica
