// SPDX-License-Identifier: Apache-2.0
// Cuts a request of any length into the IoRequests that a Volume takes: at most io_bytes_max for
// data, never across an extent. Each door has its own splitter with its own pool of pieces, so that
// one client that does not collect its replies holds up nobody else. Reactor thread only.
//
// A splitter owns no payload: the door gives each piece its buffer and gets it back with the piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/frontend/volume.hpp"

namespace replica {

class Splitter;
struct SplitRequest;

// One piece of a request, owned by its splitter.
struct SplitPiece {
    IoRequest io;
    SplitRequest* parent = nullptr;
    SplitPiece* next = nullptr;  // free for the door while it keeps the piece
    Splitter* splitter = nullptr;
};

// What a door does for its requests. None of these may be null but where it says so.
struct SplitHooks {
    // The buffer for the piece [offset, offset + length), filled for a write; nullptr: none now,
    // and the door calls Splitter::pump() when it has one. Pieces are asked for in ascending order.
    // Not called for kinds without data; may be null if there are no others. Must not call the
    // splitter.
    std::byte* (*buffer)(SplitRequest& request, std::uint64_t offset, std::uint32_t length);
    // A piece has completed, in any order; `piece.io.buffer` is the door's again. True: the piece
    // is finished with. False: the door keeps it, and owes a release() or a successful reuse().
    // Must not abort the request.
    bool (*piece_done)(SplitRequest& request, SplitPiece& piece, int error);
    // Once: every piece that was issued has completed and none will follow. `error` is that of the
    // first piece that failed, after which no more were issued; 0: the whole range is done.
    void (*done)(SplitRequest& request, int error);
};

// Owned by the door; it stays in place from start() until `done` was called and `out` is 0.
struct SplitRequest {
    IoKind kind = IoKind::read;
    bool fua = false;
    std::uint64_t offset = 0;  // bytes, a multiple of sector_bytes
    std::uint64_t length = 0;  // bytes, a multiple of sector_bytes; 0 for flush, else > 0
    const SplitHooks* hooks = nullptr;
    void* context = nullptr;  // the door's own

    // The splitter's own from start() on.
    std::uint64_t issued_bytes = 0;
    std::uint32_t in_flight = 0;  // pieces in the engine
    std::uint32_t out = 0;        // those, and the completed ones that the door keeps
    int error = 0;
    bool all_issued = false;  // flush has no bytes to count
    bool done_called = false;
    SplitRequest* next = nullptr;
};

// The length of the first piece of [offset, offset + length), length > 0.
std::uint32_t split_length(IoKind kind, std::uint64_t offset, std::uint64_t length);

// 0, or the errno for a range that [0, size) does not hold: writes beyond the end are ENOSPC, all
// else is EINVAL, as is what is no whole sectors.
int check_range(const VolumeInfo& info, IoKind kind, std::uint64_t offset, std::uint64_t length);

class Splitter {
  public:
    // pieces: the pool, >= 1. pieces_per_request: how many one request may have out, >= 1.
    Splitter(Volume& volume, std::uint32_t pieces, std::uint32_t pieces_per_request);
    Splitter(const Splitter&) = delete;
    Splitter& operator=(const Splitter&) = delete;
    ~Splitter();  // every request must be done and every piece returned

    // Requests get pieces first come, first served; one that waits for a buffer lets others pass.
    // Calls no `done` or `piece_done` from inside, like Volume::submit.
    void start(SplitRequest& request);
    // Issues nothing more of it. `done` follows with this error (unless there was one before), at
    // once and from inside if nothing is in flight.
    void abort(SplitRequest& request, int error);
    // Tries again where a buffer was missing.
    void pump();

    // Gives a kept piece back. pump() lets others have it.
    void release(SplitPiece& piece);
    // Sends a kept piece of a read on its way again with its buffer, for the next bytes of its
    // request. False: nothing is left to issue; the piece stays kept. For requests whose later
    // pieces are sure to fit the buffer. A request that holds one piece so never waits for another.
    bool reuse(SplitPiece& piece);

    std::uint32_t requests() const { return requests_; }  // started and not done

  private:
    static void io_done(IoRequest& io, int error);

    bool issue_one(SplitRequest& request);
    void submit(SplitPiece& piece, SplitRequest& request, std::byte* buffer);
    void complete(SplitPiece& piece, int error);
    void maybe_done(SplitRequest& request);
    void unlink(SplitRequest& request);

    Volume& volume_;
    const std::uint32_t pieces_per_request_;
    std::uint32_t requests_ = 0;
    std::uint32_t pieces_out_ = 0;
    bool pumping_ = false;
    std::vector<SplitPiece> pieces_;
    SplitPiece* free_ = nullptr;
    // Requests with something left to issue, in order of arrival.
    SplitRequest* waiting_ = nullptr;
    SplitRequest** waiting_tail_ = &waiting_;
};

}  // namespace replica
