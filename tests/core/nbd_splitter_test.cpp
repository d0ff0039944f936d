// SPDX-License-Identifier: Apache-2.0
// The splitter: pieces that the engine accepts, bounded in number, and one completion with the
// first error, whatever the order in which the pieces complete.
#include "engine/frontend/splitter.hpp"

#include <algorithm>
#include <numeric>

#include "engine/base/prng.hpp"
#include "tests/core/nbd_support.hpp"

namespace replica {
namespace {

constexpr std::uint64_t mib = 1U << 20;

// A door in its simplest form: every piece has a buffer of its own, filled with a pattern.
struct Door {
    Door(Volume& volume_, std::uint32_t pieces, std::uint32_t per_request)
        : volume(volume_), splitter(volume_, pieces, per_request) {}

    struct Call {
        SplitRequest split;
        Door* door = nullptr;
        int done = 0;
        int error = -1;
        std::uint64_t bytes_done = 0;
        std::vector<SplitPiece*> kept;
    };

    static std::byte* buffer(SplitRequest& request, std::uint64_t offset, std::uint32_t length) {
        Call& call = *static_cast<Call*>(request.context);
        std::byte* const bytes = call.door->volume.acquire_buffer();
        if (bytes == nullptr || request.kind != IoKind::write) return bytes;
        for (std::uint32_t i = 0; i < length; i += 512) {
            std::memset(bytes + i, static_cast<int>((offset + i) / 512 % 251), 512);
        }
        return bytes;
    }
    static bool piece_done(SplitRequest& request, SplitPiece& piece, int error) {
        Call& call = *static_cast<Call*>(request.context);
        CHECK(call.done == 0);
        if (error == 0) call.bytes_done += piece.io.length;
        if (call.door->keep && error == 0) {
            call.kept.push_back(&piece);
            return false;
        }
        if (piece.io.buffer != nullptr) call.door->volume.release_buffer(piece.io.buffer);
        return true;
    }
    static void done(SplitRequest& request, int error) {
        Call& call = *static_cast<Call*>(request.context);
        ++call.done;
        call.error = error;
    }
    static constexpr SplitHooks hooks = {buffer, piece_done, done};

    void start(Call& call, IoKind kind, std::uint64_t offset, std::uint64_t length) {
        call.door = this;
        call.split.kind = kind;
        call.split.offset = offset;
        call.split.length = length;
        call.split.hooks = &hooks;
        call.split.context = &call;
        splitter.start(call.split);
    }

    Volume& volume;
    Splitter splitter;
    bool keep = false;
};

}  // namespace

TEST_CASE("A request is cut at extents and at the longest data") {
    CHECK(split_length(IoKind::write, 0, 512) == 512);
    CHECK(split_length(IoKind::write, 0, 100 * mib) == io_bytes_max);
    CHECK(split_length(IoKind::read, 4 * mib - 512, 4096) == 512);
    CHECK(split_length(IoKind::discard, 0, 100 * mib) == extent_bytes);
    CHECK(split_length(IoKind::write_zeroes, 4 * mib + 512, 100 * mib) == extent_bytes - 512);
}

TEST_CASE("Ranges are checked without overflow") {
    VolumeInfo info;
    info.size_bytes = 1 * mib;
    info.logical_block_bytes = 4096;
    CHECK(check_range(info, IoKind::write, 0, 1 * mib) == 0);
    CHECK(check_range(info, IoKind::write, 1 * mib, 0) == 0);
    CHECK(check_range(info, IoKind::write, 1 * mib, 4096) == ENOSPC);
    CHECK(check_range(info, IoKind::read, 4096, 1 * mib) == EINVAL);
    CHECK(check_range(info, IoKind::discard, ~std::uint64_t{4095}, 8192) == ENOSPC);
    CHECK(check_range(info, IoKind::write, 512, 4096) == 0);  // blocks of 4096 are but told
    CHECK(check_range(info, IoKind::write, 256, 4096) == EINVAL);
    CHECK(check_range(info, IoKind::write, 512, 256) == EINVAL);
    CHECK(check_range(info, IoKind::flush, 0, 0) == 0);
}

TEST_CASE("Any order of completion gives one completion and all of the bytes") {
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        Prng prng(seed);
        MemoryVolume volume(24 * mib);
        Door door(volume, 1 + static_cast<std::uint32_t>(prng.below(8)),
                  1 + static_cast<std::uint32_t>(prng.below(5)));
        volume.buffers = 1 + prng.below(4);
        const std::uint64_t offset = prng.below(4 * mib / 512) * 512;
        const std::uint64_t length = 512 * (1 + prng.below(16 * mib / 512));
        Door::Call call;
        door.start(call, IoKind::write, offset, length);
        while (!volume.submitted.empty()) {
            volume.complete(prng.below(volume.submitted.size()));
        }
        REQUIRE(call.done == 1);
        REQUIRE(call.error == 0);
        REQUIRE(call.bytes_done == length);
        REQUIRE(volume.buffers_out == 0);
        for (std::uint64_t at = 0; at < volume.memory.size(); at += 512) {
            const bool inside = at >= offset && at < offset + length;
            const auto expected = static_cast<std::byte>(inside ? at / 512 % 251 : 0);
            REQUIRE(volume.memory[at] == expected);
        }
    }
}

TEST_CASE("The first error stays, ends the issuing, and is told when the last piece is back") {
    std::vector<int> order = {0, 1, 2, 3};
    do {
        MemoryVolume volume(16 * mib);
        Door door(volume, 16, 4);
        Door::Call call;
        door.start(call, IoKind::write, 0, 16 * mib);
        REQUIRE(volume.submitted.size() == 4);
        std::vector<IoRequest*> pieces = volume.submitted;
        int first = 0;
        for (const int piece : order) {
            const int error = piece == 1 ? EIO : piece == 2 ? ENOSPC : 0;
            if (first == 0) first = error;
            const auto at = std::find(volume.submitted.begin(), volume.submitted.end(),
                                      pieces[static_cast<std::size_t>(piece)]);
            volume.complete(static_cast<std::size_t>(at - volume.submitted.begin()), error);
        }
        volume.complete_all();
        CHECK(call.done == 1);
        CHECK(call.error == first);
        CHECK(call.bytes_done < 16 * mib);
        CHECK(volume.buffers_out == 0);
        CHECK(door.splitter.requests() == 0);
    } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("The number in flight is bounded by the pool, by the request and by the buffers") {
    MemoryVolume volume(64 * mib);
    Door door(volume, 6, 4);
    Door::Call a, b;
    door.start(a, IoKind::read, 0, 32 * mib);
    CHECK(volume.submitted.size() == 4);
    door.start(b, IoKind::read, 0, 32 * mib);
    CHECK(volume.submitted.size() == 6);
    volume.complete(0);
    CHECK(volume.submitted.size() == 6);
    volume.complete_all();
    CHECK((a.done == 1 && b.done == 1));
    CHECK(volume.most_out == 6);
}

TEST_CASE("A request that waits for a buffer lets others pass, and goes on when told") {
    MemoryVolume volume(64 * mib);
    volume.buffers = 0;
    Door door(volume, 8, 4);
    Door::Call read, flush;
    door.start(read, IoKind::read, 0, 2 * mib);
    door.start(flush, IoKind::flush, 0, 0);
    REQUIRE(volume.submitted.size() == 1);
    volume.complete_all();
    CHECK(flush.done == 1);
    CHECK(read.done == 0);
    volume.buffers = 1;
    door.splitter.pump();
    volume.complete_all();
    CHECK(read.done == 1);
}

TEST_CASE("A kept piece goes out again with its buffer") {
    MemoryVolume volume(64 * mib);
    volume.buffers = 1;
    Door door(volume, 4, 4);
    door.keep = true;
    Door::Call call;
    door.start(call, IoKind::read, 3 * mib + 512, 3 * mib);
    // An extent ends in between: 1 MiB less a sector, then 1 MiB, then the rest.
    std::vector<std::uint32_t> lengths;
    while (!volume.submitted.empty()) {
        lengths.push_back(volume.submitted[0]->length);
        volume.complete(0);
        REQUIRE(call.kept.size() == 1);
        SplitPiece& piece = *call.kept.back();
        call.kept.clear();
        if (door.splitter.reuse(piece)) continue;
        volume.release_buffer(piece.io.buffer);
        door.splitter.release(piece);
    }
    CHECK(lengths == std::vector<std::uint32_t>{1 * mib - 512, 1 * mib, 1 * mib, 512});
    CHECK(call.done == 1);
    CHECK(call.bytes_done == 3 * mib);
}

TEST_CASE("An aborted request ends with what is in flight, or at once") {
    MemoryVolume volume(64 * mib);
    Door door(volume, 2, 2);
    Door::Call running, waiting;
    door.start(running, IoKind::write, 0, 8 * mib);
    door.start(waiting, IoKind::write, 0, 8 * mib);
    door.splitter.abort(waiting.split, ESHUTDOWN);
    CHECK(waiting.done == 1);
    CHECK(waiting.error == ESHUTDOWN);
    door.splitter.abort(running.split, ESHUTDOWN);
    CHECK(running.done == 0);
    volume.complete_all();
    CHECK(running.done == 1);
    CHECK(running.error == ESHUTDOWN);
    CHECK(running.bytes_done == 2 * mib);
}

TEST_CASE("Discards and zeroes need no buffer and are as long as an extent") {
    MemoryVolume volume(64 * mib);
    volume.buffers = 0;
    volume.memory.assign(volume.memory.size(), std::byte{1});
    Door door(volume, 4, 4);
    Door::Call call;
    door.start(call, IoKind::write_zeroes, 512, 32 * mib);
    CHECK(volume.submitted.size() == 4);
    volume.complete_all();
    CHECK(call.done == 1);
    CHECK(volume.memory[511] == std::byte{1});
    CHECK(volume.memory[512] == std::byte{0});
    CHECK(volume.memory[32 * mib + 511] == std::byte{0});
    CHECK(volume.memory[32 * mib + 512] == std::byte{1});
}

}  // namespace replica
