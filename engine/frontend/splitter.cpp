// SPDX-License-Identifier: Apache-2.0
// See splitter.hpp. The two rules that matter: a request is done when its last piece is, and the
// first error stays, whatever completes after it.
#include "engine/frontend/splitter.hpp"

#include <algorithm>
#include <cerrno>

#include "engine/base/assert.hpp"

namespace replica {

namespace {

bool has_data(IoKind kind) { return kind == IoKind::read || kind == IoKind::write; }

}  // namespace

std::uint32_t split_length(IoKind kind, std::uint64_t offset, std::uint64_t length) {
    ASSERT(length > 0 && kind != IoKind::flush);
    const std::uint64_t to_extent_end = extent_bytes - offset % extent_bytes;
    const std::uint64_t limit = has_data(kind) ? io_bytes_max : extent_bytes;
    return static_cast<std::uint32_t>(std::min({length, to_extent_end, limit}));
}

int check_range(const VolumeInfo& info, IoKind kind, std::uint64_t offset, std::uint64_t length) {
    if (kind == IoKind::flush) return offset == 0 && length == 0 ? 0 : EINVAL;
    if ((offset | length) % sector_bytes != 0) return EINVAL;
    if (offset > info.size_bytes || length > info.size_bytes - offset) {
        return kind == IoKind::read ? EINVAL : ENOSPC;
    }
    return 0;
}

Splitter::Splitter(Volume& volume, std::uint32_t pieces, std::uint32_t pieces_per_request)
    : volume_(volume), pieces_per_request_(pieces_per_request), pieces_(pieces) {
    ASSERT(pieces > 0 && pieces_per_request > 0);
    for (SplitPiece& piece : pieces_) {
        piece.splitter = this;
        piece.next = free_;
        free_ = &piece;
    }
}

Splitter::~Splitter() { ASSERT(requests_ == 0 && pieces_out_ == 0); }

void Splitter::start(SplitRequest& request) {
    ASSERT(request.hooks != nullptr);
    ASSERT((request.kind == IoKind::flush) == (request.length == 0));
    ASSERT(request.offset % sector_bytes == 0 && request.length % sector_bytes == 0);
    request.issued_bytes = 0;
    request.in_flight = 0;
    request.out = 0;
    request.error = 0;
    request.all_issued = false;
    request.done_called = false;
    request.next = nullptr;
    *waiting_tail_ = &request;
    waiting_tail_ = &request.next;
    ++requests_;
    pump();
}

void Splitter::abort(SplitRequest& request, int error) {
    ASSERT(error > 0);
    if (request.done_called) return;
    if (request.error == 0) request.error = error;
    unlink(request);
    maybe_done(request);
}

// Volume::submit() never completes a request from inside, so nothing below here runs a hook other
// than `buffer`, and the list is not changed under the loop.
void Splitter::pump() {
    ASSERT(!pumping_);
    pumping_ = true;
    SplitRequest** link = &waiting_;
    while (*link != nullptr && free_ != nullptr) {
        SplitRequest& request = **link;
        while (!request.all_issued && issue_one(request))
            continue;
        if (!request.all_issued) {
            link = &request.next;
            continue;
        }
        *link = request.next;
        if (waiting_tail_ == &request.next) waiting_tail_ = link;
        request.next = nullptr;
    }
    pumping_ = false;
}

bool Splitter::issue_one(SplitRequest& request) {
    if (free_ == nullptr || request.out >= pieces_per_request_) return false;
    std::byte* buffer = nullptr;
    if (has_data(request.kind)) {
        const std::uint64_t offset = request.offset + request.issued_bytes;
        const std::uint32_t length =
            split_length(request.kind, offset, request.length - request.issued_bytes);
        buffer = request.hooks->buffer(request, offset, length);
        if (buffer == nullptr) return false;
    }
    SplitPiece& piece = *free_;
    free_ = piece.next;
    ++pieces_out_;
    ++request.out;
    submit(piece, request, buffer);
    return true;
}

void Splitter::submit(SplitPiece& piece, SplitRequest& request, std::byte* buffer) {
    const std::uint64_t left = request.length - request.issued_bytes;
    piece.parent = &request;
    piece.next = nullptr;
    piece.io.kind = request.kind;
    piece.io.fua = request.fua;
    piece.io.offset = request.offset + request.issued_bytes;
    piece.io.length = left == 0 ? 0 : split_length(request.kind, piece.io.offset, left);
    piece.io.buffer = buffer;
    piece.io.done = &Splitter::io_done;
    piece.io.context = &piece;
    request.issued_bytes += piece.io.length;
    request.all_issued = request.issued_bytes == request.length;
    ++request.in_flight;
    volume_.submit(piece.io);
}

void Splitter::io_done(IoRequest& io, int error) {
    auto& piece = *static_cast<SplitPiece*>(io.context);
    piece.splitter->complete(piece, error);
}

void Splitter::complete(SplitPiece& piece, int error) {
    SplitRequest& request = *piece.parent;
    ASSERT(error >= 0 && request.in_flight > 0 && !request.done_called);
    --request.in_flight;
    if (error != 0 && request.error == 0) {
        request.error = error;
        unlink(request);
    }
    if (request.hooks->piece_done(request, piece, error)) release(piece);
    maybe_done(request);
    pump();
}

void Splitter::maybe_done(SplitRequest& request) {
    if (request.in_flight > 0 || request.done_called) return;
    if (!request.all_issued && request.error == 0) return;
    request.done_called = true;
    --requests_;
    request.hooks->done(request, request.error);
}

void Splitter::release(SplitPiece& piece) {
    ASSERT(piece.parent != nullptr && piece.parent->out > 0 && pieces_out_ > 0);
    --piece.parent->out;
    --pieces_out_;
    piece.parent = nullptr;
    piece.io.buffer = nullptr;
    piece.next = free_;
    free_ = &piece;
}

bool Splitter::reuse(SplitPiece& piece) {
    ASSERT(piece.parent != nullptr);
    SplitRequest& request = *piece.parent;
    if (request.done_called || request.all_issued || request.error != 0) return false;
    submit(piece, request, piece.io.buffer);
    if (request.all_issued) unlink(request);
    return true;
}

void Splitter::unlink(SplitRequest& request) {
    for (SplitRequest** link = &waiting_; *link != nullptr; link = &(*link)->next) {
        if (*link != &request) continue;
        *link = request.next;
        if (waiting_tail_ == &request.next) waiting_tail_ = link;
        request.next = nullptr;
        return;
    }
}

}  // namespace replica
