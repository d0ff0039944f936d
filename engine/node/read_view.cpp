// SPDX-License-Identifier: Apache-2.0
// See read_view.hpp.
#include "engine/node/read_view.hpp"

#include <cerrno>
#include <utility>

#include "engine/core/disk_errno.hpp"

namespace replica {
namespace {

// Reads of the disk at a time; as many as a BackingDisk has room for from the start.
constexpr std::uint32_t reads_max = 512;

}  // namespace

ReadView::ReadView(Reactor& reactor, Volume& whole, std::function<Source()> source)
    : reactor_(reactor), whole_(whole), source_(std::move(source)), slots_(reads_max) {
    for (std::uint32_t slot = reads_max; slot > 0; --slot)
        free_.push_back(slot - 1);
    turn_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<ReadView*>(task.context)->on_turn(); };
}

ReadView::~ReadView() { ASSERT(idle() && !turn_.queued); }

void ReadView::attach(BlockFile& file) {
    disk_ = std::make_unique<BackingDisk>(
        file,
        [](void* context, IoTag tag, int error, bool) {
            static_cast<ReadView*>(context)->on_read(tag.index, error);
        },
        this);
}

VolumeInfo ReadView::info() const {
    VolumeInfo info = whole_.info();
    info.writable = false;
    return info;
}

void ReadView::submit(IoRequest& request) {
    if (request.kind == IoKind::flush) return finish_later(request, 0);
    if (request.kind != IoKind::read) return finish_later(request, EROFS);
    const Source source = source_();
    if (source == Source::whole) return whole_.submit(request);
    const std::uint64_t size = whole_.info().size_bytes;
    if (request.offset > size || request.length > size - request.offset) {
        return finish_later(request, EINVAL);
    }
    if (source == Source::nothing || !disk_) return finish_later(request, ENOLINK);
    if (free_.empty()) return wait_for_slot(request);
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = &request;
    disk_->read({.index = slot}, {request.buffer, request.length}, request.offset, false);
}

// A disk that has lost its place meanwhile may have given what it lost its place for.
void ReadView::on_read(std::uint32_t slot, int error) {
    IoRequest& request = *std::exchange(slots_[slot], nullptr);
    free_.push_back(slot);
    while (waiting_ != nullptr && !free_.empty()) {
        IoRequest& next = *std::exchange(waiting_, waiting_->next);
        if (waiting_ == nullptr) waiting_tail_ = &waiting_;
        submit(next);
    }
    if (error == 0 && source_() == Source::nothing) error = ENOLINK;
    request.done(request, told_errno(error));
}

void ReadView::wait_for_slot(IoRequest& request) {
    request.next = nullptr;
    *waiting_tail_ = &request;
    waiting_tail_ = &request.next;
}

void ReadView::finish_later(IoRequest& request, int error) {
    request.slot = static_cast<std::uint32_t>(error);
    request.next = done_;
    done_ = &request;
    reactor_.defer(turn_);
}

void ReadView::on_turn() {
    while (done_ != nullptr) {
        IoRequest& request = *std::exchange(done_, done_->next);
        request.done(request, static_cast<int>(request.slot));
    }
}

}  // namespace replica
