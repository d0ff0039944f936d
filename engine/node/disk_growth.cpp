// SPDX-License-Identifier: Apache-2.0
// See disk_growth.hpp.
#include "engine/node/disk_growth.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr std::size_t copy_bytes = 1U << 20;
constexpr std::uint64_t zero_bytes = 64U << 20;

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte, FreeMemory>;

AlignedMemory blank_memory() {
    AlignedMemory memory(static_cast<std::byte*>(std::aligned_alloc(block_bytes, copy_bytes)));
    ASSERT(memory != nullptr);
    std::memset(memory.get(), 0, copy_bytes);
    return memory;
}

Error failed(const AttachedDisk& disk, const char* what, int os_errno) {
    return {os_errno == ENOSPC || os_errno == EDQUOT ? Errc::no_space : Errc::io, os_errno,
            text_of("disk %s: %s failed: %s", disk.path.c_str(), what, std::strerror(os_errno))};
}

Result<std::uint64_t> size_now(const AttachedDisk& disk, int fd) {
    const off_t end = ::lseek(fd, 0, SEEK_END);  // nobody uses the position
    if (end < 0) return failed(disk, "asking for its size", errno);
    return static_cast<std::uint64_t>(end);
}

Status write_all(const AttachedDisk& disk, int fd, std::uint64_t offset, const std::byte* from,
                 std::size_t bytes) {
    const ssize_t written = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (written == static_cast<ssize_t>(bytes)) return ok_status();
    return failed(disk, "writing", written < 0 ? errno : EIO);
}

// By whichever way the disk knows; `modes` are tried in order, then zeroes are written.
Status zero_range(const AttachedDisk& disk, int fd, std::uint64_t offset, std::uint64_t length,
                  std::initializer_list<int> modes) {
    if (length == 0) return ok_status();
    for (const int mode : modes) {
        if (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0) {
            return ok_status();
        }
        if (errno == ENOSPC || errno == EIO) return failed(disk, "zeroing", errno);
    }
    const AlignedMemory zeroes = blank_memory();
    for (std::uint64_t at = offset, end = offset + length; at < end;) {
        const auto bytes = static_cast<std::size_t>(std::min<std::uint64_t>(end - at, copy_bytes));
        TRY_STATUS(write_all(disk, fd, at, zeroes.get(), bytes));
        at += bytes;
    }
    return ok_status();
}

// Metadata must not run out of space later: nothing is punched.
Status blank(const AttachedDisk& disk, std::uint64_t offset, std::uint64_t length) {
    return zero_range(disk, disk.metadata(), offset, length, {FALLOC_FL_ZERO_RANGE});
}

Status flush(const AttachedDisk& disk, int fd) {
    return ::fdatasync(fd) == 0 ? ok_status() : Status(failed(disk, "flushing", errno));
}

// What is zero already in both places is left alone.
Status copy_range(const AttachedDisk& disk, std::uint64_t from, std::uint64_t to,
                  std::uint64_t length, bool blank_there) {
    const AlignedMemory memory = blank_memory();
    const AlignedMemory zeroes = blank_memory();
    const int fd = disk.metadata();
    for (std::uint64_t at = 0; at < length;) {
        const auto bytes =
            static_cast<std::size_t>(std::min<std::uint64_t>(length - at, copy_bytes));
        const ssize_t got = ::pread(fd, memory.get(), bytes, static_cast<off_t>(from + at));
        if (got != static_cast<ssize_t>(bytes)) {
            return failed(disk, "reading metadata", got < 0 ? errno : EIO);
        }
        if (!blank_there || std::memcmp(memory.get(), zeroes.get(), bytes) != 0) {
            TRY_STATUS(write_all(disk, fd, to + at, memory.get(), bytes));
        }
        at += bytes;
    }
    return ok_status();
}

}  // namespace

Result<GrowthPlan> plan_growth(const AttachedDisk& disk) {
    const MetadataLayout& now = disk.layout;
    GrowthPlan plan;
    plan.placed = disk.superblock;
    TRY(const std::uint64_t data_bytes, size_now(disk, disk.data.get()));
    TRY(const std::uint64_t metadata_bytes, size_now(disk, disk.metadata()));
    TRY(plan.layout, plan_layout(now.place, data_bytes, metadata_bytes, plan.placed));
    const bool internal = now.place == MetadataPlace::internal;
    if (internal) plan.placed.extension.device_bytes = data_bytes;
    plan.changes = plan.layout.data_bytes_max != now.data_bytes_max ||
                   plan.layout.superblock_offset != now.superblock_offset ||
                   plan.placed.md_size_sectors != disk.superblock.md_size_sectors;
    if (plan.layout.data_bytes_max < now.data_bytes_max) {
        return Error{
            Errc::no_space, 0,
            text_of("disk %s has shrunk below what its metadata was made for: give it back "
                    "its size",
                    disk.path.c_str())};
    }
    const std::uint64_t end = now.superblock_offset + superblock_bytes;
    if (internal && plan.changes && plan.layout.bitmap_offset < end) {
        return Error{
            Errc::no_space, 0,
            text_of("disk %s has grown by less than its metadata takes, so that this can "
                    "not be moved behind itself: make it larger by another %" PRIu64 " bytes",
                    disk.path.c_str(), end - plan.layout.bitmap_offset)};
    }
    return plan;
}

Status prepare_move(const AttachedDisk& disk, const GrowthPlan& plan) {
    const MetadataLayout& to = plan.layout;
    if (to.place == MetadataPlace::external) {
        // Whether the disk grew before or after it was attached: what no volume used may be litter.
        const std::uint64_t known = bitmap_bytes_for(
            disk.zeroed_bytes, disk.superblock.bytes_per_bit, disk.superblock.max_peers);
        TRY_STATUS(blank(disk, to.bitmap_offset + known, to.bitmap_bytes - known));
    } else if (to.superblock_offset != disk.layout.superblock_offset) {
        TRY_STATUS(blank(disk, to.bitmap_offset,
                         to.superblock_offset + superblock_bytes - to.bitmap_offset));
    }
    return flush(disk, disk.metadata());
}

Status copy_metadata(const AttachedDisk& disk, const GrowthPlan& plan) {
    const MetadataLayout& from = disk.layout;
    const MetadataLayout& to = plan.layout;
    if (to.superblock_offset == from.superblock_offset) return ok_status();
    const std::uint64_t used = bitmap_bytes_for(disk.zeroed_bytes, disk.superblock.bytes_per_bit,
                                                disk.superblock.max_peers);
    TRY_STATUS(copy_range(disk, from.bitmap_offset, to.bitmap_offset, used, true));
    TRY_STATUS(copy_range(disk, from.al_offset, to.al_offset, from.al_bytes, false));
    return flush(disk, disk.metadata());
}

Status zero_room(const AttachedDisk& disk, std::uint64_t from, std::uint64_t until,
                 const std::function<bool(std::uint64_t done)>& progress) {
    constexpr int keep = FALLOC_FL_KEEP_SIZE;
    for (std::uint64_t at = from; at < until;) {
        if (!progress(at - from)) {
            TRY_STATUS(flush(disk, disk.data.get()));  // what is done may be put on record
            return Error{Errc::cancelled, 0, "disk " + disk.path + " was lost, or is going down"};
        }
        const std::uint64_t bytes = std::min(until - at, zero_bytes);
        TRY_STATUS(zero_range(disk, disk.data.get(), at, bytes,
                              {FALLOC_FL_PUNCH_HOLE | keep, FALLOC_FL_ZERO_RANGE | keep}));
        at += bytes;
    }
    return flush(disk, disk.data.get());
}

}  // namespace replica
