// SPDX-License-Identifier: Apache-2.0
// Writes a resource's metadata while it is attached: superblock (copy first, then the disk),
// activity log, bitmap pages. Each write is on stable storage when it is reported. The bytes are
// taken from the core at the moment of the call, so that later changes do not tear them. Bitmap
// pages of one turn that are many are written without DSYNC and flushed once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "engine/core/core.hpp"
#include "engine/format/layout.hpp"
#include "engine/io/block_file.hpp"

namespace replica {

// Reactor thread only. Must stay in place while something is in flight.
class MetadataStore {
  public:
    using Done = void (*)(void* context, IoTag tag, int error);

    // `copy_fd`: the superblock's copy, 4096 bytes; the caller keeps it open.
    MetadataStore(Reactor& reactor, BlockFile& file, int copy_fd, const MetadataLayout& layout,
                  Done done, void* context);
    ~MetadataStore();  // nothing may be in flight
    MetadataStore(const MetadataStore&) = delete;
    MetadataStore& operator=(const MetadataStore&) = delete;

    // Performs a metadata effect: tag is superblock, al, al_init or bitmap_page.
    // `held`: a superblock, as it is now, that is not written before release().
    void write(const Core& core, IoTag tag, bool held = false);
    void release();
    // From here on the metadata is where `layout` has it. Nothing may be in flight. A superblock
    // that has got another place goes there first and to the copy after that: until it is whole
    // there, the copy names the old one (docs/on-disk.md, "A disk that grows").
    void move_to(const MetadataLayout& layout);
    bool idle() const { return in_flight_ == 0; }

  private:
    struct Batch;
    struct Block {
        MetadataStore* store = nullptr;
        std::byte* bytes = nullptr;
        DiskOp op;
        Op copy_op;
        IoTag tag;
        std::uint64_t offset = 0;
        int error = 0;
        bool copy_last = false, copy_later = false;  // a superblock's, after the disk; still to do
        Batch* batch = nullptr;
        Block* next = nullptr;
    };
    // Pages that are written together, then flushed.
    struct Batch {
        MetadataStore* store = nullptr;
        DiskOp flush;
        std::uint32_t writing = 0;
        Block* blocks = nullptr;
        Batch* next = nullptr;
    };
    Block& take(IoTag tag);
    void finish(Block& block, int error);
    void write_superblock(Block& block);
    void write_copy(Block& block);
    void write_pages();
    void page_written(Block& block, int error);
    void batch_flushed(Batch& batch, int error);
    void write_al_init(const Core& core);
    void next_al_init();

    Reactor& reactor_;
    BlockFile& file_;
    int copy_fd_;
    MetadataLayout layout_;
    bool moved_ = false;  // the next superblock is the first one at its place
    Done done_;
    void* context_;
    std::uint32_t in_flight_ = 0;

    struct FreeMemory {
        void operator()(std::byte* memory) const;
    };
    std::deque<std::unique_ptr<std::byte, FreeMemory>> memory_;
    std::deque<Block> blocks_;
    Block* free_ = nullptr;
    Block* held_ = nullptr;
    Block* pages_ = nullptr;  // of this turn
    std::uint32_t page_count_ = 0;
    Deferred pages_task_;
    std::deque<Batch> batches_;
    Batch* free_batch_ = nullptr;

    // Initialising the log: the same block over and over, a run of it at a time.
    std::unique_ptr<std::byte, FreeMemory> al_run_;
    std::size_t al_run_bytes_ = 0;
    std::uint64_t al_done_bytes_ = 0;
    DiskOp al_op_;
};

}  // namespace replica
