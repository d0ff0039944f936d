// SPDX-License-Identifier: Apache-2.0
// What the doors see of a resource: requests in, completions out, buffers, block status. A request
// is given back when the core has completed it and no socket refers to its buffer any more: what
// goes out must be what was checksummed and written here.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "engine/node/resource_shell.hpp"

namespace replica {

void add(Histogram& histogram, Instant from, Instant to) {
    const std::uint64_t ns = to > from ? to.ns - from.ns : 0;
    const unsigned bucket = ns == 0 ? 0 : static_cast<unsigned>(std::bit_width(ns) - 1);
    ++histogram.counts[std::min<std::size_t>(bucket, std::size(histogram.counts) - 1)];
    ++histogram.total;
    histogram.sum_ns += ns;
    histogram.max_ns = std::max(histogram.max_ns, ns);
}

VolumeInfo ResourceShell::info() const {
    VolumeInfo info;
    info.size_bytes = core_->volume_bytes();
    info.logical_block_bytes = logical_block_bytes_;
    info.writable = core_->serves();
    info.fast_zeroes = file_disk_;
    return info;
}

void ResourceShell::submit(IoRequest& request) {
    request.next = nullptr;
    *queue_tail_ = &request;
    queue_tail_ = &request.next;
    pump();
    if (!completions_.empty() && !completing_) reactor_.defer(turn_);
}

// Gives the core what waits, as far as there are slots.
void ResourceShell::pump() {
    while (queue_ != nullptr && !in_step_ && (refusing_ || free_slot_ != nullptr)) {
        IoRequest& request = *queue_;
        queue_ = request.next;
        if (queue_ == nullptr) queue_tail_ = &queue_;
        if (refusing_) {
            completions_.push_back({&request, ESHUTDOWN});
            continue;
        }
        Slot& slot = *std::exchange(free_slot_, free_slot_->next);
        slot.request = &request;
        slot.completed = slot.crc_known = false;
        slot.seq = 0;
        slot.submitted = now();
        slot.disk_started = slot.disk_done = slot.sent = slot.answered = Instant{};
        const auto index = static_cast<std::uint32_t>(&slot - slots_.data());
        request.slot = index;
        step([&](Core& core) {
            core.on_request(now(), index, request.kind, request.offset, request.length,
                            request.fua);
        });
    }
}

void ResourceShell::complete(std::uint32_t index, int error) {
    Slot& slot = slots_[index];
    ASSERT(slot.request != nullptr && !slot.completed);
    slot.completed = true;
    slot.error = error;
    if (slot.sends > 0) return;
    measure(slot);
    completions_.push_back({std::exchange(slot.request, nullptr), error});
    slot.next = free_slot_;
    free_slot_ = &slot;
}

void ResourceShell::on_slot_sent(Slot& slot) {
    ASSERT(slot.sends > 0);
    if (--slot.sends > 0 || !slot.completed) return;
    slot.completed = false;
    complete(static_cast<std::uint32_t>(&slot - slots_.data()), slot.error);
    reactor_.defer(turn_);
}

// Doors may submit from inside; what becomes complete by that is seen by this loop.
void ResourceShell::run_completions() {
    if (completing_) return;
    completing_ = true;
    for (std::size_t i = 0; i < completions_.size(); ++i) {
        const Completion completion = completions_[i];
        completion.request->done(*completion.request, completion.error);
        pump();
    }
    completions_.clear();
    completing_ = false;
}

void ResourceShell::measure(const Slot& slot) {
    const IoKind kind = slot.request->kind;
    if (slot.error != 0) return;
    if (kind == IoKind::read) return add(stats_.read_total, slot.submitted, now());
    if (kind == IoKind::flush) return add(stats_.flush_total, slot.submitted, now());
    add(stats_.write_total, slot.submitted, now());
    if (slot.disk_done.ns != 0) add(stats_.write_local, slot.disk_started, slot.disk_done);
    if (slot.answered.ns != 0) add(stats_.write_remote, slot.sent, slot.answered);
}

std::byte* ResourceShell::acquire_buffer_for(std::uint32_t bytes) {
    return thread_.door_buffers().try_acquire(bytes);
}

void ResourceShell::release_buffer(std::byte* buffer) { thread_.door_buffers().release(buffer); }

std::uint64_t ResourceShell::extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) {
    hole = false;
    if (!disk_ || core_->disk() != DiskState::up_to_date) return length;
    return disk_->data->extent_status(offset, length, hole);
}

// The leading run toward any peer: dirty as long as one slot's run lasts, clean up to the first set
// bit of all.
std::uint64_t ResourceShell::dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) {
    dirty = false;
    const Bitmap* const bitmap = core_->bitmap();
    if (bitmap == nullptr) return length;
    const std::uint64_t first = offset / block_bytes;
    const std::uint64_t bits = (offset + length + block_bytes - 1) / block_bytes - first;
    std::uint64_t clean_run = bits, dirty_run = 0;
    for (NodeId id = 0; id < nodes_max; ++id) {
        const std::int32_t index = core_->superblock().peers[id].bitmap_index;
        if (!peers_[id] || index < 0) continue;
        const auto slot = static_cast<unsigned>(index);
        if (!bitmap->has_slot(slot) || bitmap->count(slot) == 0) continue;
        const std::uint64_t at = bitmap->find_set(slot, first);
        if (at == Bitmap::none) continue;
        clean_run = std::min(clean_run, at - first);
        if (at == first) dirty_run = std::max(dirty_run, bitmap->run_length(slot, first, bits));
    }
    dirty = dirty_run > 0;
    const std::uint64_t run = dirty ? dirty_run : clean_run;
    return std::min(length, (first + run) * block_bytes - offset);
}

}  // namespace replica
