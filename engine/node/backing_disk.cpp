// SPDX-License-Identifier: Apache-2.0
// Operations on the data of an open disk. Opening it is in open_disk.cpp.
#include "engine/node/backing_disk.hpp"

#include <cstring>

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

void BackingDisk::zero(IoTag tag, std::uint64_t offset, std::uint64_t length, bool discard,
                       bool durable) {
    Task& task = take(tag);
    task.flush_after = durable;
    file_.zero(task.op, offset, length, discard);
}

void BackingDisk::flush(IoTag tag) { file_.flush(take(tag).op); }

void BackingDisk::op_done(DiskOp& op, int error) {
    Task& task = *static_cast<Task*>(op.context);
    BackingDisk& disk = *task.disk;
    if (task.flush_after && error == 0) {
        task.flush_after = false;
        return disk.file_.flush(op);
    }
    const bool zeroes = error == 0 && !task.look_at.empty() && all_zero(task.look_at);
    const IoTag tag = task.tag;
    task.next = disk.free_;
    disk.free_ = &task;
    --disk.in_flight_;
    disk.done_(disk.context_, tag, error, zeroes);
}

}  // namespace replica
