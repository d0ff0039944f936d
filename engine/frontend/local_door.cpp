// SPDX-License-Identifier: Apache-2.0
// See local_door.hpp.
#include "engine/frontend/local_door.hpp"

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "engine/base/assert.hpp"

namespace replica {

namespace {

constexpr std::uint64_t buffer_retry_ns = ns_per_ms;

LocalCall& call_of(SplitRequest& request) { return *static_cast<LocalCall*>(request.context); }

}  // namespace

const SplitHooks LocalDoor::hooks_ = {
    .buffer =
        [](SplitRequest& request, std::uint64_t offset, std::uint32_t length) {
            LocalCall& call = call_of(request);
            return call.door->on_buffer(call, offset, length);
        },
    .piece_done =
        [](SplitRequest& request, SplitPiece& piece, int error) {
            LocalCall& call = call_of(request);
            return call.door->on_piece_done(call, piece, error);
        },
    .done =
        [](SplitRequest& request, int error) {
            LocalCall& call = call_of(request);
            call.door->on_split_done(call, error);
        },
};

LocalDoor::LocalDoor(Reactor& reactor, Volume& volume, LocalDoorOptions options)
    : reactor_(reactor),
      volume_(volume),
      splitter_(volume, options.pieces_max, options.pieces_per_call),
      slots_(options.calls_max) {
    for (Slot& slot : slots_) {
        slot.door = this;
        slot.next = free_;
        free_ = &slot;
    }
    turn_.context = retry_timer_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<LocalDoor*>(task.context)->on_turn(); };
    retry_timer_.callback = [](Timer& timer) {
        static_cast<LocalDoor*>(timer.context)->splitter_.pump();
    };
}

LocalDoor::~LocalDoor() { ASSERT(in_flight_ == 0 && !turn_.queued); }

void LocalDoor::submit(LocalCall& call) {
    ASSERT(call.done != nullptr);
    call.door = this;
    call.error = 0;
    ++in_flight_;
    const bool has_data = call.kind == IoKind::read || call.kind == IoKind::write;
    const VolumeInfo info = volume_.info();
    int error = check_range(info, call.kind, call.offset, call.length);
    if (error == ENOSPC) error = EINVAL;  // which it says of writes; here it means a full disk
    const bool changes = call.kind != IoKind::read && call.kind != IoKind::flush;
    if (error == 0 && changes && !info.writable) error = EROFS;
    if (error == 0 && has_data && call.length > 0 && call.memory == nullptr) error = EINVAL;
    if (stopping_) error = ESHUTDOWN;
    if (error != 0 || (call.length == 0 && call.kind != IoKind::flush)) {
        return end_later(call, error);
    }
    call.previous = nullptr;
    call.next = running_;
    if (running_ != nullptr) running_->previous = &call;
    running_ = &call;
    call.split.kind = call.kind;
    call.split.fua = call.fua && call.kind != IoKind::read && call.kind != IoKind::flush;
    call.split.offset = call.offset;
    call.split.length = call.length;
    call.split.hooks = &hooks_;
    call.split.context = &call;
    splitter_.start(call.split);
}

Status LocalDoor::submit(IoKind kind, bool fua, std::uint64_t offset, std::span<std::byte> bytes,
                         std::uint64_t length, void (*done)(void* context, int error),
                         void* context) {
    if (free_ == nullptr) {
        return Error{Errc::limit, 0,
                     std::to_string(slots_.size()) +
                         " calls are in flight: submit more when one of them is done"};
    }
    Slot& slot = *free_;
    free_ = slot.next;
    slot.done = done;
    slot.context = context;
    slot.call.kind = kind;
    slot.call.fua = fua;
    slot.call.offset = offset;
    slot.call.length = kind == IoKind::read || kind == IoKind::write ? bytes.size() : length;
    slot.call.memory = bytes.data();
    slot.call.context = &slot;
    slot.call.done = [](LocalCall& call, int error) {
        Slot& ended = *static_cast<Slot*>(call.context);
        ended.next = ended.door->free_;
        ended.door->free_ = &ended;
        ended.done(ended.context, error);
    };
    submit(slot.call);
    return ok_status();
}

std::byte* LocalDoor::on_buffer(LocalCall& call, std::uint64_t offset, std::uint32_t length) {
    std::byte* const buffer = volume_.acquire_buffer_for(length);
    if (buffer == nullptr) {
        if (!retry_timer_.is_set()) {
            reactor_.set_timer(retry_timer_, reactor_.now() + buffer_retry_ns);
        }
    } else if (call.kind == IoKind::write) {
        std::memcpy(buffer, call.memory + (offset - call.offset), length);
    }
    return buffer;
}

bool LocalDoor::on_piece_done(LocalCall& call, SplitPiece& piece, int error) {
    const IoRequest& io = piece.io;
    if (call.kind == IoKind::read && error == 0) {
        std::memcpy(call.memory + (io.offset - call.offset), io.buffer, io.length);
    }
    // The splitter looks for what can be issued next by itself.
    if (io.buffer != nullptr) volume_.release_buffer(io.buffer);
    return true;
}

void LocalDoor::on_split_done(LocalCall& call, int error) {
    if (call.next != nullptr) call.next->previous = call.previous;
    (call.previous != nullptr ? call.previous->next : running_) = call.next;
    end_later(call, error);
}

void LocalDoor::end_later(LocalCall& call, int error) {
    call.error = error;
    call.next = nullptr;
    *ended_tail_ = &call;
    ended_tail_ = &call.next;
    reactor_.defer(turn_);
}

void LocalDoor::on_turn() {
    LocalCall* call = std::exchange(ended_, nullptr);
    ended_tail_ = &ended_;
    while (call != nullptr) {
        LocalCall* const next = call->next;  // the call is its owner's again inside `done`
        --in_flight_;
        call->done(*call, call->error);
        call = next;
    }
    if (!stopping_ || in_flight_ > 0 || !stopped_) return;
    retry_timer_.clear();
    const std::function<void()> stopped = std::exchange(stopped_, nullptr);
    stopped();
}

void LocalDoor::stop(std::function<void()> done) {
    ASSERT(done && !stopping_);
    stopping_ = true;
    stopped_ = std::move(done);
    for (LocalCall* call = running_; call != nullptr;) {
        LocalCall* const next = call->next;
        splitter_.abort(call->split, ESHUTDOWN);
        call = next;
    }
    reactor_.defer(turn_);
}

}  // namespace replica
