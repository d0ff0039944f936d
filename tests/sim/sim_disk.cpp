// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_disk.hpp"

#include <algorithm>

namespace replica::sim {

SimDisk::SimDisk(std::uint64_t sectors, std::uint64_t al_blocks, std::uint64_t bitmap_pages)
    : activity_log(al_blocks), bitmap(bitmap_pages), visible_(sectors), durable_(sectors) {}

const Result<Superblock>& SimDisk::newest() const {
    if (!newest_ || seen_superblock_ != superblock || seen_copy_ != copy) {
        seen_superblock_ = superblock;
        seen_copy_ = copy;
        newest_.emplace(choose_superblock(superblock, copy));
    }
    return *newest_;
}

void SimDisk::write(std::uint64_t sector, const std::vector<Stamp>& stamps, bool durable) {
    for (std::size_t i = 0; i < stamps.size(); ++i) {
        const std::uint64_t at = sector + i;
        visible_[at] = stamps[i];
        if (!unreadable_.empty()) unreadable_.erase(at);
        ++version_;
        if (durable) {
            durable_[at] = stamps[i];
            durable_version_[at] = version_;
            unflushed_.erase(at);
        } else {
            unflushed_[at] = {stamps[i], version_};
            order_.push_back(at);
        }
    }
}

void SimDisk::finish_flush(const Snapshot& snapshot) {
    for (const auto& [sector, pending] : snapshot) {
        std::uint64_t& version = durable_version_[sector];
        if (version >= pending.version) continue;  // something newer is stable already
        version = pending.version;
        durable_[sector] = pending.stamp;
        const auto now = unflushed_.find(sector);
        if (now != unflushed_.end() && now->second.version == pending.version)
            unflushed_.erase(now);
    }
    if (unflushed_.empty()) order_.clear();
}

void SimDisk::tear(std::uint64_t sector, const std::vector<Stamp>& stamps, Prng& random) {
    for (std::size_t i = 0; i < stamps.size(); ++i) {
        if (random.below(2) == 0) continue;
        visible_[sector + i] = stamps[i];
        unflushed_[sector + i] = {stamps[i], ++version_};
        order_.push_back(sector + i);
    }
}

void SimDisk::power_cut(LossMode mode, Prng& random) {
    const std::size_t keep = order_.empty() ? 0 : random.below(order_.size() + 1);
    std::vector<std::uint64_t> kept(order_.begin(),
                                    order_.begin() + static_cast<std::ptrdiff_t>(keep));
    std::sort(kept.begin(), kept.end());
    for (const auto& [sector, pending] : unflushed_) {
        const bool stays = mode == LossMode::subset ? random.below(2) == 0
                           : mode == LossMode::prefix
                               ? std::binary_search(kept.begin(), kept.end(), sector)
                               : false;
        if (stays) {
            durable_[sector] = pending.stamp;
            durable_version_[sector] = pending.version;
        }
        visible_[sector] = durable_[sector];
    }
    unflushed_.clear();
    order_.clear();
}

void SimDisk::tear_bytes(Block& place, const Block& bytes, Prng& random) {
    for (std::size_t at = 0; at < bytes.size(); at += 512) {
        if (random.below(2) == 0) continue;
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), 512,
                    place.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

}  // namespace replica::sim
