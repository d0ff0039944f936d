// SPDX-License-Identifier: Apache-2.0
// What a door (NBD, ublk, in-process) sees of a resource: a size, and requests in, completions out.
// Everything here runs on the reactor thread that owns the resource.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/units.hpp"
#include "engine/core/io_kind.hpp"

namespace replica {

// One request of at most io_bytes_max that does not cross an activity-log extent (extent_bytes);
// discard and write_zeroes may be as long as one extent. frontend/splitter cuts longer ones. Owned
// by the door; it must stay where it is until `done` was called. `done` is called exactly once,
// never from inside submit().
struct IoRequest {
    IoKind kind = IoKind::read;
    bool fua = false;             // write, discard, write_zeroes: stable on every in-sync replica
    std::uint64_t offset = 0;     // bytes, a multiple of sector_bytes
    std::uint32_t length = 0;     // bytes, a multiple of sector_bytes; 0 for flush
    std::byte* buffer = nullptr;  // read: filled; write: sent from; locked memory
    // error: 0, or a positive errno: EROFS (not primary), ENOSPC or EINVAL (beyond the end),
    // ESHUTDOWN (the resource goes down), ENOLINK (no replica with good data can be reached); the
    // kind of the local disk's error, if it has one (ENOSPC, ENODATA, EILSEQ, ENOLINK, ETIMEDOUT);
    // EIO, for all else that a disk or a peer's disk may say.
    void (*done)(IoRequest& request, int error) = nullptr;
    void* context = nullptr;  // the door's own

    IoRequest* next = nullptr;  // the engine's own while submitted: a queue link
    std::uint32_t slot = 0;     // the engine's own while submitted
};

struct VolumeInfo {
    std::uint64_t size_bytes = 0;
    // What suits the disk: 512 or 4096. Doors tell their users, but take requests of whole sectors.
    std::uint32_t logical_block_bytes = sector_bytes;
    bool writable = false;  // this node is primary
    // write_zeroes moves no data, here and on the peers: as fast as a discard. What an NBD client
    // learns when it asks for zeroes that are fast or fail.
    bool fast_zeroes = false;
};

class Volume {
  public:
    virtual ~Volume() = default;
    virtual VolumeInfo info() const = 0;
    // Never blocks. More requests than the engine has slots for wait in order.
    virtual void submit(IoRequest& request) = 0;
    // A page-aligned buffer of io_bytes_max bytes from registered, locked memory, or nullptr when
    // all are in use: the door then stops reading its socket until one is released.
    virtual std::byte* acquire_buffer() = 0;
    // The same for a payload of at most `bytes`, 1..io_bytes_max: from a smaller size class where
    // the engine has one.
    virtual std::byte* acquire_buffer_for(std::uint32_t bytes) {
        static_cast<void>(bytes);
        return acquire_buffer();
    }
    virtual void release_buffer(std::byte* buffer) = 0;
    // For NBD's block status: is [offset, offset+length) allocated below? Returns the length of the
    // leading run with one answer, 1..length, and sets `hole` (reads as zeroes, no space used). A
    // door answers reads from it: "hole" only where a read now would give zeroes, so never while
    // the local disk is not UpToDate. Quick: no scan of more than one run.
    virtual std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) = 0;
    // The same for the out-of-sync bitmap toward any peer: `dirty` says whether a bit is set.
    virtual std::uint64_t dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) = 0;
};

}  // namespace replica
