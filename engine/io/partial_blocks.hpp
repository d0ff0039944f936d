// SPDX-License-Identifier: Apache-2.0
// Requests that are no whole blocks of the disk, as those of 512 bytes on a disk that takes only
// 4096: the blocks at their ends are read, changed and written back. One request at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "engine/io/block_file.hpp"

namespace replica {

// Reactor thread only.
class PartialBlocks {
  public:
    enum class Kind : std::uint8_t { read, write, zero };
    struct Request {
        Kind kind = Kind::read;
        std::byte* data = nullptr;  // of reads and writes: in place until it is done; any alignment
        std::uint64_t offset = 0;   // of a byte, like length
        std::uint64_t length = 0;
        bool discard = false;  // of zero
        bool durable = false;  // of write: stable when done. A zero is not, before a flush.
    };
    // error: 0 or a positive errno, after which any part of it may be done, but nothing else is
    // changed. Never inside start(). It may start the next one.
    using Done = void (*)(void* context, int error);

    PartialBlocks(BlockFile& file, Done done, void* context);
    ~PartialBlocks();  // not while busy

    bool busy() const { return busy_; }
    // Not while busy. Nobody else may change a block of which the request is a part until it is
    // done: what the neighbours wrote meanwhile would be lost.
    void start(const Request& request);

  private:
    struct FreeMemory {
        void operator()(std::byte* p) const { std::free(p); }
    };
    void step();
    void on_io(int error);

    BlockFile& file_;
    const Done done_;
    void* const context_;
    const std::uint64_t block_;
    const std::uint64_t bounce_bytes_;
    const std::unique_ptr<std::byte, FreeMemory> bounce_;
    DiskOp op_;
    Request request_;
    std::uint64_t at_ = 0;     // so much of it is done
    std::uint64_t piece_ = 0;  // and this is under way
    bool merging_ = false;     // the piece's block is being read to be changed
    bool busy_ = false;
};

}  // namespace replica
