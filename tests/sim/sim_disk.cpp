// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_disk.hpp"

#include <algorithm>

namespace replica::sim {

SimDisk::SimDisk(std::uint64_t sectors, std::uint64_t al_blocks, std::uint64_t bitmap_pages)
    : activity_log(al_blocks),
      bitmap(bitmap_pages),
      sectors_(sectors),
      chunks_((sectors + chunk_sectors - 1) / chunk_sectors) {}

SimDisk::SimDisk(const SimDisk& other)
    : activity_log(other.activity_log),
      bitmap(other.bitmap),
      sectors_(other.sectors_),
      superblock_(other.superblock_),
      copy_(other.copy_),
      unreadable_(other.unreadable_),
      chunks_(other.chunks_.size()),
      version_(other.version_),
      unflushed_(other.unflushed_) {
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
        if (other.chunks_[i]) chunks_[i] = std::make_unique<Chunk>(*other.chunks_[i]);
    }
}

const Result<Superblock>& SimDisk::newest() const {
    if (!newest_) newest_.emplace(choose_superblock(superblock_, copy_));
    return *newest_;
}

SimDisk::Chunk& SimDisk::chunk_for(std::uint64_t sector) {
    std::unique_ptr<Chunk>& chunk = chunks_[sector / chunk_sectors];
    if (!chunk) chunk = std::make_unique<Chunk>();
    return *chunk;
}

void SimDisk::write(std::uint64_t sector, const std::vector<Stamp>& stamps, bool durable) {
    for (std::size_t i = 0; i < stamps.size(); ++i) {
        const std::uint64_t at = sector + i;
        if (!unreadable_.empty()) unreadable_.erase(at);
        ++version_;
        if (stamps[i] == 0 && chunk_of(at) == nullptr) continue;  // zeroes on zeroes
        Chunk& chunk = chunk_for(at);
        const std::size_t place = at % chunk_sectors;
        chunk.visible[place] = stamps[i];
        chunk.version[place] = version_;
        if (durable) {
            chunk.durable[place] = stamps[i];
            chunk.durable_version[place] = version_;
        } else {
            unflushed_.push_back({at, stamps[i], version_});
        }
    }
}

std::uint64_t SimDisk::next_used(std::uint64_t from, std::uint64_t until) const {
    while (from < until && chunk_of(from) == nullptr)
        from = std::min(until, (from / chunk_sectors + 1) * chunk_sectors);
    return from;
}

std::uint64_t SimDisk::first_difference(const SimDisk& other, std::uint64_t from,
                                        std::uint64_t until) const {
    for (std::uint64_t s = from; s < until;) {
        const std::uint64_t used = std::min(next_used(s, until), other.next_used(s, until));
        const std::uint64_t end = std::min(until, (used / chunk_sectors + 1) * chunk_sectors);
        for (s = used; s < end; ++s) {
            if (visible(s) != other.visible(s)) return s;
        }
    }
    return until;
}

bool SimDisk::still_unflushed(const Pending& pending) const {
    const Chunk* const chunk = chunk_of(pending.sector);
    const std::size_t place = pending.sector % chunk_sectors;
    return chunk->version[place] == pending.version &&
           chunk->durable_version[place] < pending.version;
}

void SimDisk::forget_stable() {
    std::erase_if(unflushed_, [&](const Pending& pending) { return !still_unflushed(pending); });
}

void SimDisk::finish_flush(const Snapshot& snapshot) {
    for (const Pending& pending : snapshot) {
        Chunk& chunk = chunk_for(pending.sector);
        const std::size_t place = pending.sector % chunk_sectors;
        // Something newer may be stable already.
        if (chunk.durable_version[place] >= pending.version) continue;
        chunk.durable_version[place] = pending.version;
        chunk.durable[place] = pending.stamp;
    }
    forget_stable();
}

void SimDisk::tear(std::uint64_t sector, const std::vector<Stamp>& stamps, Prng& random) {
    for (std::size_t i = 0; i < stamps.size(); ++i) {
        if (random.below(2) == 0) continue;
        Chunk& chunk = chunk_for(sector + i);
        chunk.visible[(sector + i) % chunk_sectors] = stamps[i];
        chunk.version[(sector + i) % chunk_sectors] = ++version_;
        unflushed_.push_back({sector + i, stamps[i], version_});
    }
}

void SimDisk::power_cut(LossMode mode, Prng& random) {
    forget_stable();
    const std::size_t keep = unflushed_.empty() ? 0 : random.below(unflushed_.size() + 1);
    for (std::size_t i = 0; i < unflushed_.size(); ++i) {
        const Pending& pending = unflushed_[i];
        const bool stays = mode == LossMode::subset   ? random.below(2) == 0
                           : mode == LossMode::prefix ? i < keep
                                                      : false;
        Chunk& chunk = chunk_for(pending.sector);
        const std::size_t place = pending.sector % chunk_sectors;
        if (stays) {
            chunk.durable[place] = pending.stamp;
            chunk.durable_version[place] = pending.version;
        }
        chunk.visible[place] = chunk.durable[place];
        chunk.version[place] = chunk.durable_version[place];
    }
    unflushed_.clear();
}

void SimDisk::tear_bytes(Block& place, const Block& bytes, Prng& random) {
    for (std::size_t at = 0; at < bytes.size(); at += 512) {
        if (random.below(2) == 0) continue;
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), 512,
                    place.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

}  // namespace replica::sim
