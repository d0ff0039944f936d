// SPDX-License-Identifier: Apache-2.0
// See nbd_file_volume.hpp.
#include "tests/integration/nbd_file_volume.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/assert.hpp"

namespace replica {

namespace {

constexpr std::size_t slots_max = 64;

bool overlaps(std::uint64_t a, std::uint64_t a_length, std::uint64_t b, std::uint64_t b_length) {
    return a < b + b_length && b < a + a_length;
}

}  // namespace

Result<std::unique_ptr<FileVolume>> FileVolume::open(Reactor& reactor, const std::string& path,
                                                     const FileVolumeOptions& options) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return Error{Errc::io, errno, path + ": " + std::strerror(errno)};
    struct stat status {};
    if (fstat(fd, &status) != 0) {
        const int error = errno;
        close(fd);
        return Error{Errc::io, error, path + ": " + std::strerror(error)};
    }
    const auto size = static_cast<std::uint64_t>(status.st_size);
    std::unique_ptr<FileVolume> volume(new FileVolume(reactor, fd, size, options));
    for (std::uint32_t i = 0; i < options.buffers; ++i) {
        const auto buffer = reactor.carve(io_bytes_max);
        if (buffer.empty()) return Error{Errc::no_space, 0, "the arena is too small"};
        volume->free_buffers_.push_back(buffer.data());
    }
    return volume;
}

FileVolume::FileVolume(Reactor& reactor, int fd, std::uint64_t size_bytes,
                       const FileVolumeOptions& options)
    : reactor_(reactor), fd_(fd), size_bytes_(size_bytes), options_(options), slots_(slots_max) {
    for (Slot& slot : slots_) {
        slot.volume = this;
        slot.op.context = slot.timer.context = &slot;
        slot.op.callback = [](Op& op, std::int32_t result) {
            Slot& done = *static_cast<Slot*>(op.context);
            done.volume->complete(done, result);
        };
        slot.timer.callback = [](Timer& timer) {
            Slot& due = *static_cast<Slot*>(timer.context);
            due.volume->issue(due);
        };
        free_slots_.push_back(&slot);
    }
}

FileVolume::~FileVolume() { close(fd_); }

VolumeInfo FileVolume::info() const {
    VolumeInfo info;
    info.size_bytes = size_bytes_;
    info.logical_block_bytes = options_.logical_block_bytes;
    info.writable = options_.writable;
    info.fast_zeroes = true;
    return info;
}

void FileVolume::submit(IoRequest& request) {
    // What a door promises to an engine.
    const bool has_data = request.kind == IoKind::read || request.kind == IoKind::write;
    ASSERT((request.kind == IoKind::flush) == (request.length == 0));
    ASSERT(request.offset % options_.logical_block_bytes == 0);
    ASSERT(request.length % options_.logical_block_bytes == 0);
    ASSERT(request.offset + request.length <= size_bytes_);
    ASSERT(request.length <= (has_data ? io_bytes_max : extent_bytes));
    ASSERT(has_data == (request.buffer != nullptr));
    if (request.length > 0) {
        ASSERT(request.offset / extent_bytes ==
               (request.offset + request.length - 1) / extent_bytes);
    }
    ASSERT(options_.writable || request.kind == IoKind::read || request.kind == IoKind::flush);
    ++counts_[static_cast<unsigned>(request.kind)];
    ++in_flight_;
    request.next = nullptr;
    if (free_slots_.empty()) {
        *waiting_tail_ = &request;
        waiting_tail_ = &request.next;
        return;
    }
    Slot& slot = *free_slots_.back();
    free_slots_.pop_back();
    start(slot, request);
}

void FileVolume::start(Slot& slot, IoRequest& request) {
    slot.request = &request;
    if (options_.delay_ns == 0) return issue(slot);
    reactor_.set_timer(slot.timer, reactor_.now() + options_.delay_ns);
}

void FileVolume::issue(Slot& slot) {
    IoRequest& request = *slot.request;
    const std::span<std::byte> bytes(request.buffer, request.length);
    switch (request.kind) {
        case IoKind::read:
            return reactor_.read(slot.op, fd_, bytes, request.offset);
        case IoKind::write:
            return reactor_.write(slot.op, fd_, bytes, request.offset, request.fua);
        case IoKind::flush:
            return reactor_.fdatasync(slot.op, fd_);
        case IoKind::discard:
        case IoKind::write_zeroes:
            return reactor_.fallocate(slot.op, fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                      request.offset, request.length);
    }
}

void FileVolume::complete(Slot& slot, std::int32_t result) {
    IoRequest& request = *slot.request;
    const bool has_data = request.kind == IoKind::read || request.kind == IoKind::write;
    int error = result < 0 ? -result : 0;
    if (has_data && result >= 0 && static_cast<std::uint32_t>(result) != request.length) {
        error = EIO;
    }
    if (request.length > 0 &&
        overlaps(request.offset, request.length, options_.fail_offset, options_.fail_length)) {
        error = EIO;
    }
    --in_flight_;
    if (waiting_ != nullptr) {
        IoRequest& next = *waiting_;
        waiting_ = next.next;
        if (waiting_ == nullptr) waiting_tail_ = &waiting_;
        start(slot, next);
    } else {
        slot.request = nullptr;
        free_slots_.push_back(&slot);
    }
    request.done(request, error);
}

std::byte* FileVolume::acquire_buffer() {
    if (free_buffers_.empty()) return nullptr;
    std::byte* const buffer = free_buffers_.back();
    free_buffers_.pop_back();
    return buffer;
}

void FileVolume::release_buffer(std::byte* buffer) {
    ASSERT(buffer != nullptr && free_buffers_.size() < options_.buffers);
    ASSERT(std::find(free_buffers_.begin(), free_buffers_.end(), buffer) == free_buffers_.end());
    free_buffers_.push_back(buffer);
}

std::uint64_t FileVolume::extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) {
    hole = false;
    const off_t at = static_cast<off_t>(offset);
    const off_t data = lseek(fd_, at, SEEK_DATA);
    if (data < 0) {
        hole = errno == ENXIO;
        return length;
    }
    hole = data > at;
    const off_t end = hole ? data : lseek(fd_, at, SEEK_HOLE);
    if (end <= at) return length;
    return std::min(length, static_cast<std::uint64_t>(end - at));
}

std::uint64_t FileVolume::dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) {
    const std::uint64_t begin = options_.dirty_offset;
    const std::uint64_t end = begin + options_.dirty_length;
    dirty = offset >= begin && offset < end;
    if (dirty) return std::min(length, end - offset);
    return offset < begin ? std::min(length, begin - offset) : length;
}

}  // namespace replica
