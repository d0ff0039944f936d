// SPDX-License-Identifier: Apache-2.0
// A disk with a volatile cache, as the fault model has it (docs/testing.md): a completed write sits
// in the cache until a flush that was submitted later completes; at a power cut every sector that
// was not flushed, or was in flight, is kept or lost on its own. Data sectors hold the id of the
// write that made them (0: zeroes); metadata is real bytes. Only what was ever written takes
// memory, so a volume may have gigabytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
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
    SimDisk(const SimDisk& other);  // an old copy of a disk, with its metadata
    SimDisk& operator=(const SimDisk&) = delete;

    // Data. A write or zero takes effect when it completes.
    Stamp visible(std::uint64_t sector) const {
        const Chunk* const chunk = chunk_of(sector);
        return chunk == nullptr ? 0 : chunk->visible[sector % chunk_sectors];
    }
    Stamp durable(std::uint64_t sector) const {
        const Chunk* const chunk = chunk_of(sector);
        return chunk == nullptr ? 0 : chunk->durable[sector % chunk_sectors];
    }
    std::uint64_t sectors() const { return sectors_; }
    void write(std::uint64_t sector, const std::vector<Stamp>& stamps, bool durable);
    // The first sector from `from` on, below `until`, that reads other than on `other`.
    std::uint64_t first_difference(const SimDisk& other, std::uint64_t from,
                                   std::uint64_t until) const;
    // The first sector from `from` on, below `until`, that is in a part that was ever written.
    std::uint64_t next_used(std::uint64_t from, std::uint64_t until) const;
    // A latent error: reads of this sector fail until it is written.
    void spoil(std::uint64_t sector) { unreadable_.insert(sector); }
    void mend() { unreadable_.clear(); }
    bool unreadable(std::uint64_t sector, std::uint64_t count) const {
        if (unreadable_.empty()) return false;
        const auto at = unreadable_.lower_bound(sector);
        return at != unreadable_.end() && *at < sector + count;
    }
    // A flush covers what is complete now; take the snapshot at submission, apply it at completion.
    struct Pending {
        std::uint64_t sector = 0;
        Stamp stamp = 0;
        std::uint64_t version = 0;  // a slow flush never takes a sector back
    };
    using Snapshot = std::vector<Pending>;
    Snapshot begin_flush() const { return unflushed_; }
    void finish_flush(const Snapshot& snapshot);
    // An in-flight write at a power cut: each sector on its own.
    void tear(std::uint64_t sector, const std::vector<Stamp>& stamps, Prng& random);
    void power_cut(LossMode mode, Prng& random);

    // Metadata: durable when written. `tear_bytes` leaves a mix of 512-byte sectors.
    using Block = std::array<std::byte, 4096>;
    const Block& superblock() const { return superblock_; }
    const Block& copy() const { return copy_; }
    Block& edit_superblock() { return newest_.reset(), superblock_; }
    Block& edit_copy() { return newest_.reset(), copy_; }
    // What a node that starts now would find; decoded once for each change.
    const Result<Superblock>& newest() const;
    std::vector<Block> activity_log;
    std::vector<Block> bitmap;
    static void tear_bytes(Block& place, const Block& bytes, Prng& random);

  private:
    static constexpr std::uint64_t chunk_sectors = 512;
    struct Chunk {
        std::array<Stamp, chunk_sectors> visible{}, durable{};
        // The stamps of what is visible, and of what is stable.
        std::array<std::uint64_t, chunk_sectors> version{}, durable_version{};
    };
    const Chunk* chunk_of(std::uint64_t sector) const {
        return chunks_[sector / chunk_sectors].get();
    }
    Chunk& chunk_for(std::uint64_t sector);
    bool still_unflushed(const Pending& pending) const;
    void forget_stable();

    std::uint64_t sectors_ = 0;
    Block superblock_{}, copy_{};
    mutable std::optional<Result<Superblock>> newest_;
    std::set<std::uint64_t> unreadable_;
    std::vector<std::unique_ptr<Chunk>> chunks_;  // none: zeroes, and stable
    std::uint64_t version_ = 0;
    // Visible and not durable, in the order in which they were written; some are durable by now.
    Snapshot unflushed_;
};

}  // namespace replica::sim
