// SPDX-License-Identifier: Apache-2.0
// A disk with a volatile cache, as the fault model has it (docs/testing.md): a completed write sits
// in the cache until a flush that was submitted later completes; at a power cut every sector that
// was not flushed, or was in flight, is kept or lost on its own. Data sectors hold the id of the
// write that made them (0: zeroes); metadata is real bytes.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/format/superblock.hpp"

namespace replica::sim {

using Stamp = std::uint64_t;

class SimDisk {
  public:
    enum class LossMode : std::uint8_t { subset, prefix, everything };

    SimDisk(std::uint64_t sectors, std::uint64_t al_blocks, std::uint64_t bitmap_pages);

    // Data. A write or zero takes effect when it completes.
    Stamp visible(std::uint64_t sector) const { return visible_[sector]; }
    Stamp durable(std::uint64_t sector) const { return durable_[sector]; }
    std::uint64_t sectors() const { return visible_.size(); }
    void write(std::uint64_t sector, const std::vector<Stamp>& stamps, bool durable);
    // A latent error: reads of this sector fail until it is written.
    void spoil(std::uint64_t sector) { unreadable_.insert(sector); }
    void mend() { unreadable_.clear(); }
    bool unreadable(std::uint64_t sector, std::uint64_t count) const {
        const auto at = unreadable_.lower_bound(sector);
        return at != unreadable_.end() && *at < sector + count;
    }
    // A flush covers what is complete now; take the snapshot at submission, apply it at completion.
    struct Pending {
        Stamp stamp = 0;
        std::uint64_t version = 0;  // a slow flush never takes a sector back
    };
    using Snapshot = std::map<std::uint64_t, Pending>;
    Snapshot begin_flush() const { return unflushed_; }
    void finish_flush(const Snapshot& snapshot);
    // An in-flight write at a power cut: each sector on its own.
    void tear(std::uint64_t sector, const std::vector<Stamp>& stamps, Prng& random);
    void power_cut(LossMode mode, Prng& random);

    // Metadata: durable when written. `tear_bytes` leaves a mix of 512-byte sectors.
    using Block = std::array<std::byte, 4096>;
    Block superblock{};
    Block copy{};
    // What a node that starts now would find; decoded once for each change.
    const Result<Superblock>& newest() const;
    std::vector<Block> activity_log;
    std::vector<Block> bitmap;
    static void tear_bytes(Block& place, const Block& bytes, Prng& random);

  private:
    mutable Block seen_superblock_{}, seen_copy_{};
    mutable std::optional<Result<Superblock>> newest_;
    std::set<std::uint64_t> unreadable_;
    std::vector<Stamp> visible_;
    std::vector<Stamp> durable_;
    std::map<std::uint64_t, std::uint64_t> durable_version_;
    std::uint64_t version_ = 0;
    Snapshot unflushed_;                // visible and not durable, by sector
    std::vector<std::uint64_t> order_;  // sectors in the order in which they became unflushed
};

}  // namespace replica::sim
