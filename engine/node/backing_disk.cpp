// SPDX-License-Identifier: Apache-2.0
// Operations on the data of an open disk. Opening it is in open_disk.cpp.
#include "engine/node/backing_disk.hpp"

#include <cstring>
#include <utility>

namespace replica {
namespace {

constexpr std::size_t tasks_at_start = 512;

// Compares the bytes with themselves one block further on: memcmp is as fast as the memory.
bool all_zero(std::span<const std::byte> bytes) {
    constexpr std::size_t first = 16;
    if (bytes.size() < first) return false;
    for (std::size_t i = 0; i < first; ++i) {
        if (bytes[i] != std::byte{0}) return false;
    }
    return std::memcmp(bytes.data(), bytes.data() + first, bytes.size() - first) == 0;
}

}  // namespace

BackingDisk::BackingDisk(BlockFile& file, Done done, void* context)
    : file_(file), done_(done), context_(context) {
    flush_op_.context = this;
    flush_op_.done = [](DiskOp& op, int error) {
        static_cast<BackingDisk*>(op.context)->flushed(error);
    };
    for (std::size_t i = 0; i < tasks_at_start; ++i) {
        Task& task = tasks_.emplace_back();
        task.next = free_;
        free_ = &task;
    }
    if (file_.logical_block_bytes() <= sector_bytes) return;
    const auto told = [](void* disk, int error) {
        static_cast<BackingDisk*>(disk)->part_done(error);
    };
    parts_ = std::make_unique<PartialBlocks>(file_, told, this);
}

BackingDisk::~BackingDisk() { ASSERT(idle()); }

BackingDisk::Task& BackingDisk::take(IoTag tag) {
    if (free_ == nullptr) free_ = &tasks_.emplace_back();
    Task& task = *free_;
    free_ = task.next;
    task.next = nullptr;
    task.disk = this;
    task.tag = tag;
    task.look_at = {};
    task.flush_after = false;
    task.op.context = &task;
    task.op.done = &BackingDisk::op_done;
    ++in_flight_;
    return task;
}

void BackingDisk::read(IoTag tag, std::span<std::byte> into, std::uint64_t offset,
                       bool look_for_zeroes) {
    Task& task = take(tag);
    if (look_for_zeroes) task.look_at = into;
    task.request = {Kind::read, into.data(), offset, into.size(), false, false};
    begin(task);
}

void BackingDisk::write(IoTag tag, std::span<const std::byte> from, std::uint64_t offset,
                        bool durable) {
    Task& task = take(tag);
    // One field for both directions.
    task.request = {Kind::write, const_cast<std::byte*>(from.data()), offset, from.size(), false,
                    durable};
    begin(task);
}

// A resync of a sparse volume zeroes what is a hole already: that needs no more than a flush. The
// core has no other request on these sectors now.
void BackingDisk::zero(IoTag tag, std::uint64_t offset, std::uint64_t length, bool discard,
                       bool durable) {
    Task& task = take(tag);
    bool hole = false;
    if (durable && discard && file_.extent_status(offset, length, hole) == length && hole) {
        return want_flush(task);
    }
    task.flush_after = durable;
    task.request = {Kind::zero, nullptr, offset, length, discard, false};
    begin(task);
}

// No two requests that change something share a sector, which is the core's rule. So one of whole
// blocks shares no block with a part, and parts, which may, go one after the other.
void BackingDisk::begin(Task& task) {
    const PartialBlocks::Request& r = task.request;
    if (parts_ != nullptr) {
        const auto address = reinterpret_cast<std::uintptr_t>(r.data);
        if ((r.offset | r.length | address) % file_.logical_block_bytes() != 0) {
            met_part_ = true;
            *waiting_tail_ = &task;
            waiting_tail_ = &task.next;
            if (at_parts_ == nullptr) start_part();
            return;
        }
    }
    switch (r.kind) {
        case Kind::read:
            return file_.read(task.op, {r.data, r.length}, r.offset);
        case Kind::write:
            return file_.write(task.op, {r.data, r.length}, r.offset, r.durable);
        case Kind::zero:
            return file_.zero(task.op, r.offset, r.length, r.discard);
    }
}

void BackingDisk::start_part() {
    at_parts_ = waiting_;
    if (at_parts_ == nullptr) return;
    waiting_ = std::exchange(at_parts_->next, nullptr);
    if (waiting_ == nullptr) waiting_tail_ = &waiting_;
    parts_->start(at_parts_->request);
}

void BackingDisk::part_done(int error) {
    Task& task = *at_parts_;
    start_part();
    op_done(task.op, error);
}

void BackingDisk::flush(IoTag tag) { want_flush(take(tag)); }

void BackingDisk::want_flush(Task& task) {
    *unflushed_tail_ = &task;
    unflushed_tail_ = &task.next;
    if (!flush_op_.in_flight()) start_flush();
}

void BackingDisk::start_flush() {
    flushing_ = std::exchange(unflushed_, nullptr);
    unflushed_tail_ = &unflushed_;
    file_.flush(flush_op_);
}

void BackingDisk::flushed(int error) {
    Task* task = std::exchange(flushing_, nullptr);
    if (unflushed_ != nullptr) start_flush();
    while (task != nullptr)
        finish(*std::exchange(task, task->next), error);
}

void BackingDisk::op_done(DiskOp& op, int error) {
    Task& task = *static_cast<Task*>(op.context);
    if (task.flush_after && error == 0) return task.disk->want_flush(task);
    task.disk->finish(task, error);
}

void BackingDisk::finish(Task& task, int error) {
    const bool zeroes = error == 0 && !task.look_at.empty() && all_zero(task.look_at);
    const IoTag tag = task.tag;
    task.next = free_;
    free_ = &task;
    --in_flight_;
    done_(context_, tag, error, zeroes);
}

}  // namespace replica
