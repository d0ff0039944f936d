// SPDX-License-Identifier: Apache-2.0
// The in-process door: reads and writes of any length from and to the caller's memory, which is
// copied to and from the engine's registered buffers. Reactor thread only; other threads come
// through Reactor::post().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/splitter.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

class LocalDoor;

// One call. Owned by the caller, who keeps it and its memory in place until `done` was called:
// once, never from inside submit(), with 0 or a positive errno (see IoRequest::done).
struct LocalCall {
    IoKind kind = IoKind::read;
    bool fua = false;
    std::uint64_t offset = 0;     // bytes, a multiple of the logical block
    std::uint64_t length = 0;     // bytes, a multiple of the logical block; 0 is done at once
    std::byte* memory = nullptr;  // read: `length` bytes to fill; write: to take; else unused
    void (*done)(LocalCall& call, int error) = nullptr;
    void* context = nullptr;  // the caller's own

    // The door's own until `done`.
    LocalDoor* door = nullptr;
    SplitRequest split;
    LocalCall* next = nullptr;
    LocalCall* previous = nullptr;
    int error = 0;
};

struct LocalDoorOptions {
    std::uint32_t calls_max = 256;  // of submit() with a plain callback, at a time
    std::uint32_t pieces_max = 64;  // in the engine at a time
    std::uint32_t pieces_per_call = 8;
};

class LocalDoor {
  public:
    LocalDoor(Reactor& reactor, Volume& volume, LocalDoorOptions options = {});
    ~LocalDoor();  // nothing may be in flight
    LocalDoor(const LocalDoor&) = delete;
    LocalDoor& operator=(const LocalDoor&) = delete;

    // Any number of calls; they are served first come, first served, as buffers allow.
    void submit(LocalCall& call);
    // The same with the call in a slot of the door. `bytes` is the memory of a read or a write (its
    // size counts, `length` does not), empty for the others. Errors: limit (calls_max are in
    // flight), and then `done` is not called.
    Status submit(IoKind kind, bool fua, std::uint64_t offset, std::span<std::byte> bytes,
                  std::uint64_t length, void (*done)(void* context, int error), void* context);

    // From now on calls fail with ESHUTDOWN, and so does what was not given to the engine yet.
    // `done` is called later, once, when nothing is in flight; the door may be destroyed in it.
    void stop(std::function<void()> done);
    std::uint32_t in_flight() const { return in_flight_; }

  private:
    struct Slot {
        LocalCall call;
        void (*done)(void* context, int error) = nullptr;
        void* context = nullptr;
        LocalDoor* door = nullptr;
        Slot* next = nullptr;
    };

    std::byte* on_buffer(LocalCall& call, std::uint64_t offset, std::uint32_t length);
    bool on_piece_done(LocalCall& call, SplitPiece& piece, int error);
    void on_split_done(LocalCall& call, int error);
    void end_later(LocalCall& call, int error);
    void on_turn();

    static const SplitHooks hooks_;

    Reactor& reactor_;
    Volume& volume_;
    Splitter splitter_;
    Deferred turn_;
    Timer retry_timer_;  // looks for a buffer while there was none
    std::uint32_t in_flight_ = 0;
    LocalCall* running_ = nullptr;  // the splitter has them; for stop()
    // Calls that are over but for their callback.
    LocalCall* ended_ = nullptr;
    LocalCall** ended_tail_ = &ended_;
    std::function<void()> stopped_;
    bool stopping_ = false;
    std::vector<Slot> slots_;
    Slot* free_ = nullptr;
};

}  // namespace replica
