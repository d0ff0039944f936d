// SPDX-License-Identifier: Apache-2.0
// Opens a resource's disk: all the blocking work of an attach, done on the caller's thread so that
// no reactor waits for a disk.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "engine/node/backing_disk.hpp"
#include "engine/node/resync_snapshot.hpp"

namespace replica {
namespace {

using Block = MetadataFile::Block;
constexpr std::size_t page_bytes = 4096;
constexpr std::size_t bitmap_read_bytes = 1U << 20;
constexpr std::chrono::milliseconds busy_pause{50};
constexpr int busy_attempts = 40;

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte, FreeMemory>;

// For O_DIRECT. `bytes`: a multiple of 4096.
AlignedMemory aligned_memory(std::size_t bytes) {
    AlignedMemory memory(static_cast<std::byte*>(std::aligned_alloc(page_bytes, bytes)));
    ASSERT(memory != nullptr);
    return memory;
}

Error disk_error(const BlockFile& file, const char* what, int os_errno) {
    return {Errc::io, os_errno,
            text_of("disk %s: %s failed: %s", file.path().c_str(), what, std::strerror(os_errno))};
}

// Writes one block in place, stable when it returns.
Status put_block(const BlockFile& file, std::uint64_t offset, const Block& block) {
    const AlignedMemory memory = aligned_memory(block.size());
    std::memcpy(memory.get(), block.data(), block.size());
    const ssize_t written =
        ::pwrite(file.fd(), memory.get(), block.size(), static_cast<off_t>(offset));
    if (written != static_cast<ssize_t>(block.size())) {
        return disk_error(file, "writing the superblock", written < 0 ? errno : EIO);
    }
    if (::fdatasync(file.fd()) != 0) return disk_error(file, "flushing the superblock", errno);
    return ok_status();
}

// A process that was killed keeps its disks until the kernel has dismantled its rings, which it
// does after the process is gone: who is started again at once finds them in use for a moment.
Result<std::unique_ptr<BlockFile>> open_patiently(Reactor& reactor, const std::string& path) {
    for (int attempt = 0;; ++attempt) {
        auto file = BlockFile::open(reactor, path, {});
        const bool busy = !file && file.error().code == Errc::busy;
        if (!busy || attempt == busy_attempts) return file;
        std::this_thread::sleep_for(busy_pause);
    }
}

Block encoded(const Superblock& superblock) {
    Block block;
    encode_superblock(superblock, block);
    return block;
}

Status open_copy(OpenDisk& disk, bool exists) {
    const std::string& path = disk.paths.copy;
    if (!exists) TRY_STATUS(write_superblock_copy(path, encoded(disk.superblock)));
    disk.copy = OwnedFd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (disk.copy.get() >= 0) return ok_status();
    return Error{Errc::io, errno,
                 text_of("the superblock's copy %s can not be opened: %s", path.c_str(),
                         std::strerror(errno))};
}

// Whose disk it is, by the other copies in the state directory; "" if nobody's here.
std::string user_of(std::uint64_t device_uuid, const std::string& copy_path) {
    std::error_code ignored;
    const auto folder = std::filesystem::path(copy_path).parent_path();
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
        if (entry.path() == copy_path) continue;
        const auto copy = read_superblock_copy(entry.path().string());
        if (!copy || copy.value().size() != superblock_bytes) continue;
        const std::span<const std::byte> bytes(copy.value());
        const auto other = decode_superblock(bytes.first<superblock_bytes>());
        if (other && other.value().device_uuid == device_uuid) {
            return entry.path().stem().string();
        }
    }
    return "";
}

Error with_reason(Error error, const OpenDisk& disk, const Block& on_disk) {
    error.message = disk.metadata().path() + ": " + error.message;
    if (error.code != Errc::state) return error;
    const auto found = decode_superblock(on_disk);
    const std::string user =
        found ? user_of(found.value().device_uuid, disk.paths.copy) : std::string();
    if (!user.empty()) error.message += "; it looks like the disk of resource " + user;
    return error;
}

// The choice between disk and copy. If it is not what lies on the disk, it is put there before the
// copy is touched again: a torn disk and a torn copy together would be lost.
Status settle_superblock(OpenDisk& disk, MetadataFile& file) {
    TRY(const auto copy, read_superblock_copy(disk.paths.copy));
    auto chosen = find_superblock(file, copy);
    TRY(const Block on_disk, file.read_superblock());
    if (!chosen) return with_reason(chosen.error(), disk, on_disk);
    disk.superblock = std::move(chosen).value();
    const Block block = encoded(disk.superblock);
    if (block != on_disk) {
        TRY_STATUS(put_block(disk.metadata(), file.superblock_offset(), block));
        disk.warnings.push_back(disk.metadata().path() +
                                ": the superblock was damaged or older than its copy in the state "
                                "directory, and was restored from it");
    }
    return open_copy(disk, !copy.empty());
}

Status replay_log(OpenDisk& disk, const MetadataFile& file) {
    const Superblock& sb = disk.superblock;
    if ((sb.flags & md_flag::al_clean) != 0) return ok_status();  // the bitmap holds all of it
    TRY(const auto log, file.read_activity_log(disk.layout));
    auto replay = replay_activity_log(log, sb.al_stripes, sb.al_stripe_blocks);
    const bool matters = (sb.flags & md_flag::primary_ind) != 0;
    if (replay) {
        disk.info.hot_extents = std::move(replay.value().extents);
        return ok_status();
    }
    const std::string text = disk.metadata().path() + ": " + replay.error().message;
    if (matters) return Error{Errc::corrupt, 0, text};
    disk.warnings.push_back(text + " (ignored: the volume was not in use)");
    return ok_status();
}

// Between the old data and the fresh label the disk, its label and the peers' marks do not agree.
Status check_not_restoring(const DiskPaths& paths) {
    const auto note = load_snapshot_note(paths.copy);
    if (!note || !note.value() || !note.value()->restoring) return ok_status();
    return Error{Errc::state, 0,
                 paths.disk +
                     ": restore-before-resync has begun with it and not ended: say that again "
                     "first, or make a new volume of it with create --force"};
}

bool reads_as_zeroes(const OpenDisk& disk) {
    if (disk.data->is_block_device()) return false;
    const std::uint64_t bytes = disk.volume_bytes;
    bool hole = false;
    return disk.data->extent_status(0, bytes, hole) == bytes && hole;
}

bool is_zero(const std::byte* page) {
    static constexpr std::byte zeroes[page_bytes]{};
    return std::memcmp(page, zeroes, page_bytes) == 0;
}

}  // namespace

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}
OwnedFd::~OwnedFd() {
    if (fd_ >= 0) ::close(fd_);
}
int OwnedFd::release() { return std::exchange(fd_, -1); }

Result<OpenDisk> open_disk(Reactor& reactor, const DiskPaths& paths) {
    TRY_STATUS(check_not_restoring(paths));
    OpenDisk disk;
    disk.paths = paths;
    TRY(disk.data, open_patiently(reactor, paths.disk));
    if (!paths.metadata.empty()) {
        TRY(disk.external, open_patiently(reactor, paths.metadata));
    }
    TRY(MetadataFile file,
        MetadataFile::open({paths.disk, paths.metadata}, DiskAccess::shared_read));
    TRY_STATUS(settle_superblock(disk, file));
    TRY(disk.layout, file.layout_of(disk.superblock));
    disk.volume_bytes = disk.superblock.effective_size_sectors * sector_bytes;
    if (disk.volume_bytes == 0) {
        disk.volume_bytes = disk.layout.data_bytes_max / block_bytes * block_bytes;
    }
    TRY_STATUS(replay_log(disk, file));
    TRY(const auto boot_id, read_boot_id());
    std::transform(boot_id.begin(), boot_id.end(), disk.info.boot_id.begin(),
                   [](std::byte b) { return std::to_integer<std::uint8_t>(b); });
    disk.info.data_bytes_max = disk.layout.data_bytes_max;
    if (paths.metadata.empty()) disk.info.device_bytes = disk.data->size_bytes();
    disk.info.all_zero = reads_as_zeroes(disk);
    disk.info.cache_suspect = ::access(failure_note(paths).c_str(), F_OK) == 0;
    for (const BlockFile* device : {disk.data.get(), disk.external.get()}) {
        if (device != nullptr && !device->warning().empty()) {
            disk.warnings.push_back(device->warning());
        }
    }
    return disk;
}

Status forget_other_disk(const DiskPaths& paths) {
    auto file = MetadataFile::open({paths.disk, paths.metadata}, DiskAccess::shared_read);
    const auto copy = read_superblock_copy(paths.copy);
    if (!file || !copy) return ok_status();
    const auto chosen = find_superblock(file.value(), copy.value());
    if (chosen || chosen.error().code != Errc::state || ::unlink(paths.copy.c_str()) == 0) {
        return ok_status();
    }
    return Error{Errc::io, errno,
                 text_of("the superblock's copy %s can not be removed: %s", paths.copy.c_str(),
                         std::strerror(errno))};
}

Status read_bitmap(const OpenDisk& disk, const PageSink& sink) {
    const Superblock& sb = disk.superblock;
    const std::uint64_t end =
        disk.layout.bitmap_offset +
        bitmap_bytes_for(sb.effective_size_sectors * sector_bytes, sb.bytes_per_bit, sb.max_peers);
    const BlockFile& file = disk.metadata();
    const AlignedMemory memory = aligned_memory(bitmap_read_bytes);
    for (std::uint64_t at = disk.layout.bitmap_offset; at < end;) {
        bool hole = false;
        const std::uint64_t run = file.extent_status(at, end - at, hole);
        // The edge of a hole may lie inside a page.
        const std::uint64_t whole = run / page_bytes * page_bytes;
        if (hole && whole > 0) {
            at += whole;
            continue;
        }
        const auto bytes = static_cast<std::size_t>(
            std::min<std::uint64_t>({bitmap_read_bytes, end - at, std::max(whole, page_bytes)}));
        const ssize_t got = ::pread(file.fd(), memory.get(), bytes, static_cast<off_t>(at));
        if (got < 0 && errno == EINTR) continue;
        if (got != static_cast<ssize_t>(bytes)) {
            return disk_error(file, "reading the bitmap", got < 0 ? errno : EIO);
        }
        for (std::size_t i = 0; i < bytes; i += page_bytes) {
            const std::byte* const page = memory.get() + i;
            if (is_zero(page)) continue;
            sink((at + i - disk.layout.bitmap_offset) / page_bytes,
                 std::span<const std::byte, page_bytes>{page, page_bytes});
        }
        at += bytes;
    }
    return ok_status();
}

Status seal_extension(OpenDisk& disk, const Core& core) {
    if (disk.superblock.extension.present) return ok_status();
    disk.superblock.extension = core.superblock().extension;
    const Block block = encoded(disk.superblock);
    TRY_STATUS(write_superblock_copy(disk.paths.copy, block));
    TRY_STATUS(open_copy(disk, true));
    return put_block(disk.metadata(), disk.layout.superblock_offset, block);
}

}  // namespace replica
