// SPDX-License-Identifier: Apache-2.0
// See volatile_disk.hpp.
#include "tests/vm/volatile_disk.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/assert.hpp"

namespace replica {

Result<std::unique_ptr<VolatileDisk>> VolatileDisk::open(Reactor& reactor, BufferPool& pool,
                                                         const std::string& path,
                                                         std::uint64_t seed) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    struct stat status {};
    if (fd < 0 || ::fstat(fd, &status) != 0) {
        return Error{Errc::io, errno, path + ": " + std::strerror(errno)};
    }
    const auto bytes = static_cast<std::uint64_t>(status.st_size);
    if (bytes == 0 || bytes % sector_bytes != 0) {
        ::close(fd);
        return Error{Errc::invalid, 0, path + ": not a multiple of a sector"};
    }
    void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    if (memory == MAP_FAILED) return Error{Errc::io, errno, path + ": " + std::strerror(errno)};
    return std::unique_ptr<VolatileDisk>(
        new VolatileDisk(reactor, pool, static_cast<std::byte*>(memory), bytes, seed));
}

VolatileDisk::VolatileDisk(Reactor& reactor, BufferPool& pool, std::byte* stable,
                           std::uint64_t bytes, std::uint64_t seed)
    : reactor_(reactor), pool_(pool), stable_(stable), bytes_(bytes), prng_(seed) {}

VolatileDisk::~VolatileDisk() { ::munmap(stable_, bytes_); }

VolumeInfo VolatileDisk::info() const {
    VolumeInfo info;
    info.size_bytes = bytes_;
    info.logical_block_bytes = sector_bytes;
    info.writable = true;
    return info;
}

void VolatileDisk::submit(IoRequest& request) {
    ASSERT((request.offset | request.length) % sector_bytes == 0);
    ASSERT(request.offset + request.length <= bytes_);
    if (dead_) return asked_.push_back(&request);
    if (request.kind == IoKind::read) {
        read(request);
    } else if (request.kind != IoKind::flush) {
        write(request);
    } else {
        ++flushes_;
        if (!lying_) write_back();
    }
    if (asked_.empty()) reactor_.post([this] { answer(); });
    asked_.push_back(&request);
    if (request.kind != IoKind::read && request.kind != IoKind::flush) after_write();
}

void VolatileDisk::answer() {
    if (!dead_) answer_all(0);
}

void VolatileDisk::answer_all(int error) {
    std::vector<IoRequest*> due;
    due.swap(asked_);
    for (IoRequest* request : due)
        request->done(*request, error);
}

void VolatileDisk::read(const IoRequest& request) const {
    for (std::uint32_t at = 0; at < request.length; at += sector_bytes) {
        const auto cached = cache_.find((request.offset + at) / sector_bytes);
        std::memcpy(
            request.buffer + at,
            cached == cache_.end() ? stable_ + request.offset + at : cached->second.bytes.data(),
            sector_bytes);
    }
}

// What is discarded reads as zeroes.
void VolatileDisk::write(const IoRequest& request) {
    ++writes_;
    for (std::uint32_t at = 0; at < request.length; at += sector_bytes) {
        const std::uint64_t sector = (request.offset + at) / sector_bytes;
        Cached& cached = cache_[sector];
        // An older content that was not flushed either may have reached the medium before this.
        if (cached.age != 0 && prng_.below(2) == 0) make_stable(sector, cached);
        cached.age = writes_;
        if (request.buffer != nullptr) {
            std::memcpy(cached.bytes.data(), request.buffer + at, sector_bytes);
        } else {
            cached.bytes.fill(std::byte{0});
        }
        if (request.fua && !lying_) {
            make_stable(sector, cached);
            cache_.erase(sector);
        }
    }
}

void VolatileDisk::make_stable(std::uint64_t sector, const Cached& cached) {
    std::memcpy(stable_ + sector * sector_bytes, cached.bytes.data(), sector_bytes);
}

void VolatileDisk::write_back() {
    for (const auto& [sector, cached] : cache_)
        make_stable(sector, cached);
    cache_.clear();
}

std::string VolatileDisk::power_cut() {
    const std::uint64_t eighths = prng_.below(lying_ ? 8 : 9);     // of the sectors that are kept
    const bool in_order = prng_.below(4) == 0;                     // the oldest ones, or any
    std::vector<std::pair<std::uint64_t, std::uint64_t>> sectors;  // sort key, sector
    sectors.reserve(cache_.size());
    for (const auto& [sector, cached] : cache_)
        sectors.emplace_back(in_order ? cached.age : sector, sector);
    std::sort(sectors.begin(), sectors.end());  // the draws must not depend on the map's order
    const std::uint64_t first_lost = sectors.size() * eighths / 8;
    std::uint64_t kept = 0;
    for (std::uint64_t i = 0; i < sectors.size(); ++i) {
        if (in_order ? i >= first_lost : prng_.below(8) >= eighths) continue;
        make_stable(sectors[i].second, cache_[sectors[i].second]);
        ++kept;
    }
    std::string text =
        fmt::format("{} of {} sectors in the cache kept ({}), {} writes, {} flushes", kept,
                    cache_.size(), in_order ? "the oldest" : "any", writes_, flushes_);
    cache_.clear();
    dead_ = true;
    return text;
}

void VolatileDisk::power_on() {
    if (!dead_) return;
    dead_ = false;
    answer_all(EIO);
}

}  // namespace replica
