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
    file_.read(task.op, into, offset);
}

void BackingDisk::write(IoTag tag, std::span<const std::byte> from, std::uint64_t offset,
                        bool durable) {
    file_.write(take(tag).op, from, offset, durable);
}

// A resync of a sparse volume zeroes what is a hole already: that needs no more than a flush. The
// core has no other request on these blocks now.
void BackingDisk::zero(IoTag tag, std::uint64_t offset, std::uint64_t length, bool discard,
                       bool durable) {
    Task& task = take(tag);
    bool hole = false;
    if (durable && discard && file_.extent_status(offset, length, hole) == length && hole) {
        return want_flush(task);
    }
    task.flush_after = durable;
    file_.zero(task.op, offset, length, discard);
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
