// SPDX-License-Identifier: Apache-2.0
// See nbd_file_volume.hpp.
#include "tests/integration/nbd_file_volume.hpp"

#include <algorithm>
#include <cerrno>

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
    TRY(auto file, BlockFile::open(reactor, path, {}));
    TRY(auto pool, BufferPool::create(reactor, options.small_buffers, options.buffers));
    return std::unique_ptr<FileVolume>(
        new FileVolume(reactor, std::move(file), std::move(pool), options));
}

FileVolume::FileVolume(Reactor& reactor, std::unique_ptr<BlockFile> file,
                       std::unique_ptr<BufferPool> pool, const FileVolumeOptions& options)
    : reactor_(reactor),
      file_(std::move(file)),
      pool_(std::move(pool)),
      options_(options),
      slots_(slots_max) {
    for (Slot& slot : slots_) {
        slot.volume = this;
        slot.op.context = slot.timer.context = &slot;
        slot.op.done = [](DiskOp& op, int error) {
            Slot& done = *static_cast<Slot*>(op.context);
            done.volume->complete(done, error);
        };
        slot.timer.callback = [](Timer& timer) {
            Slot& due = *static_cast<Slot*>(timer.context);
            due.volume->issue(due);
        };
        free_slots_.push_back(&slot);
    }
}

VolumeInfo FileVolume::info() const {
    VolumeInfo info;
    info.size_bytes = file_->size_bytes();
    info.logical_block_bytes = file_->logical_block_bytes();
    info.writable = options_.writable;
    info.fast_zeroes = true;
    return info;
}

void FileVolume::submit(IoRequest& request) {
    // What a door promises to an engine.
    const bool has_data = request.kind == IoKind::read || request.kind == IoKind::write;
    ASSERT((request.kind == IoKind::flush) == (request.length == 0));
    ASSERT((request.offset | request.length) % sector_bytes == 0);
    ASSERT(request.offset + request.length <= file_->size_bytes());
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
    slot.flushing = false;
    if (options_.delay_ns == 0) return issue(slot);
    reactor_.set_timer(slot.timer, reactor_.now() + options_.delay_ns);
}

void FileVolume::issue(Slot& slot) {
    IoRequest& request = *slot.request;
    const std::span<std::byte> bytes(request.buffer, request.length);
    switch (request.kind) {
        case IoKind::read:
            return file_->read(slot.op, bytes, request.offset);
        case IoKind::write:
            return file_->write(slot.op, bytes, request.offset, request.fua);
        case IoKind::flush:
            return file_->flush(slot.op);
        case IoKind::discard:
        case IoKind::write_zeroes:
            return file_->zero(slot.op, request.offset, request.length, true);
    }
}

void FileVolume::complete(Slot& slot, int error) {
    IoRequest& request = *slot.request;
    if (request.length > 0 &&
        overlaps(request.offset, request.length, options_.fail_offset, options_.fail_length)) {
        error = EIO;
    }
    const bool zeroed = request.kind == IoKind::discard || request.kind == IoKind::write_zeroes;
    if (error == 0 && zeroed && request.fua && !slot.flushing) {
        slot.flushing = true;
        return file_->flush(slot.op);
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

std::uint64_t FileVolume::dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) {
    const std::uint64_t begin = options_.dirty_offset;
    const std::uint64_t end = begin + options_.dirty_length;
    dirty = offset >= begin && offset < end;
    if (dirty) return std::min(length, end - offset);
    return offset < begin ? std::min(length, begin - offset) : length;
}

}  // namespace replica
