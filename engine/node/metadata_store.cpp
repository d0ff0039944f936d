// SPDX-License-Identifier: Apache-2.0
// See metadata_store.hpp.
#include "engine/node/metadata_store.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/format/activity_log.hpp"

namespace replica {
namespace {

constexpr std::size_t block_size = 4096;
constexpr std::size_t blocks_at_a_time = 64;
constexpr std::size_t al_run_max = 256U << 10;
// A flush is a second trip to the disk: not worth it for the few pages that an activity-log
// transaction waits for.
constexpr std::uint32_t batch_pages_min = 8;

std::byte* aligned_memory(std::size_t bytes) {
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(block_size, bytes));
    ASSERT(memory != nullptr);
    return memory;
}

}  // namespace

void MetadataStore::FreeMemory::operator()(std::byte* memory) const { std::free(memory); }

MetadataStore::MetadataStore(Reactor& reactor, BlockFile& file, int copy_fd,
                             const MetadataLayout& layout, Done done, void* context)
    : reactor_(reactor),
      file_(file),
      copy_fd_(copy_fd),
      layout_(layout),
      done_(done),
      context_(context),
      al_run_bytes_(std::min<std::size_t>(layout.al_bytes, al_run_max)) {
    al_run_.reset(aligned_memory(al_run_bytes_));
    pages_task_.context = this;
    pages_task_.callback = [](Deferred& task) {
        static_cast<MetadataStore*>(task.context)->write_pages();
    };
    al_op_.context = this;
    al_op_.done = [](DiskOp& op, int error) {
        auto& self = *static_cast<MetadataStore*>(op.context);
        if (error == 0 && self.al_done_bytes_ < self.layout_.al_bytes) return self.next_al_init();
        --self.in_flight_;
        self.done_(self.context_, {IoOrigin::al_init, 0}, error);
    };
}

MetadataStore::~MetadataStore() { ASSERT(idle() && !pages_task_.queued); }

MetadataStore::Block& MetadataStore::take(IoTag tag) {
    if (free_ == nullptr) {
        memory_.emplace_back(aligned_memory(blocks_at_a_time * block_size));
        for (std::size_t i = 0; i < blocks_at_a_time; ++i) {
            Block& block = blocks_.emplace_back();
            block.store = this;
            block.bytes = memory_.back().get() + i * block_size;
            block.next = free_;
            free_ = &block;
        }
    }
    Block& block = *free_;
    free_ = block.next;
    block.next = nullptr;
    block.batch = nullptr;
    block.copy_last = block.copy_later = false;
    block.tag = tag;
    block.op.context = block.copy_op.context = &block;
    block.op.done = [](DiskOp& op, int error) {
        Block& ended = *static_cast<Block*>(op.context);
        if (ended.copy_later && error == 0) {
            ended.copy_later = false;
            return ended.store->write_copy(ended);
        }
        if (ended.batch != nullptr) return ended.store->page_written(ended, error);
        ended.store->finish(ended, error);
    };
    block.copy_op.callback = [](Op& op, std::int32_t result) {
        Block& copied = *static_cast<Block*>(op.context);
        if (result == -EINTR || result == -EAGAIN) return copied.store->write_copy(copied);
        if (result != static_cast<std::int32_t>(block_size)) {
            return copied.store->finish(copied, result < 0 ? -result : EIO);
        }
        if (copied.copy_last) return copied.store->finish(copied, 0);
        copied.store->file_.write(copied.op, {copied.bytes, block_size}, copied.offset, true);
    };
    ++in_flight_;
    return block;
}

void MetadataStore::finish(Block& block, int error) {
    const IoTag tag = block.tag;
    block.next = free_;
    free_ = &block;
    --in_flight_;
    done_(context_, tag, error);
}

void MetadataStore::move_to(const MetadataLayout& layout) {
    ASSERT(idle());
    moved_ = layout.superblock_offset != layout_.superblock_offset;
    layout_ = layout;
}

void MetadataStore::write_superblock(Block& block) {
    block.copy_last = block.copy_later = std::exchange(moved_, false);
    if (!block.copy_last) return write_copy(block);
    file_.write(block.op, {block.bytes, block_size}, block.offset, true);
}

void MetadataStore::write_copy(Block& block) {
    reactor_.write(block.copy_op, copy_fd_, {block.bytes, block_size}, 0, true);
}

void MetadataStore::release() {
    if (held_ != nullptr) write_superblock(*std::exchange(held_, nullptr));
}

void MetadataStore::write(const Core& core, IoTag tag, bool held) {
    if (tag.origin == IoOrigin::al_init) return write_al_init(core);
    Block& block = take(tag);
    core.encode_metadata(tag, {block.bytes, block_size});
    if (tag.origin == IoOrigin::superblock) {
        block.offset = layout_.superblock_offset;
        ASSERT(held_ == nullptr);
        if (!held) return write_superblock(block);
        held_ = &block;
        return;
    }
    if (tag.origin == IoOrigin::al) {
        block.offset = layout_.al_offset + core.al_block() * std::uint64_t{block_size};
        return file_.write(block.op, {block.bytes, block_size}, block.offset, true);
    }
    block.offset = layout_.bitmap_offset + tag.index * std::uint64_t{block_size};
    block.next = pages_;
    pages_ = &block;
    ++page_count_;
    reactor_.defer(pages_task_);
}

// The pages of this turn.
void MetadataStore::write_pages() {
    Block* block = std::exchange(pages_, nullptr);
    const std::uint32_t count = std::exchange(page_count_, 0);
    Batch* batch = nullptr;
    if (count >= batch_pages_min) {
        if (free_batch_ == nullptr) free_batch_ = &batches_.emplace_back();
        batch = std::exchange(free_batch_, free_batch_->next);
        batch->store = this;
        batch->writing = count;
        batch->blocks = block;
    }
    while (block != nullptr) {
        Block& page = *block;
        block = page.next;
        page.batch = batch;
        file_.write(page.op, {page.bytes, block_size}, page.offset, batch == nullptr);
    }
}

void MetadataStore::page_written(Block& block, int error) {
    Batch& batch = *block.batch;
    block.error = error;
    if (--batch.writing > 0) return;
    batch.flush.context = &batch;
    batch.flush.done = [](DiskOp& op, int flush_error) {
        Batch& flushed = *static_cast<Batch*>(op.context);
        flushed.store->batch_flushed(flushed, flush_error);
    };
    file_.flush(batch.flush);
}

void MetadataStore::batch_flushed(Batch& batch, int error) {
    Block* block = std::exchange(batch.blocks, nullptr);
    batch.next = free_batch_;
    free_batch_ = &batch;
    while (block != nullptr) {
        Block& page = *std::exchange(block, block->next);
        finish(page, page.error != 0 ? page.error : error);
    }
}

void MetadataStore::write_al_init(const Core& core) {
    std::byte* const run = al_run_.get();
    core.encode_metadata({IoOrigin::al_init, 0}, {run, block_size});
    for (std::size_t at = block_size; at < al_run_bytes_; at += block_size) {
        std::memcpy(run + at, run, block_size);
    }
    ++in_flight_;
    al_done_bytes_ = 0;
    next_al_init();
}

void MetadataStore::next_al_init() {
    const auto bytes = static_cast<std::size_t>(
        std::min<std::uint64_t>(al_run_bytes_, layout_.al_bytes - al_done_bytes_));
    const std::uint64_t offset = layout_.al_offset + al_done_bytes_;
    al_done_bytes_ += bytes;
    file_.write(al_op_, {al_run_.get(), bytes}, offset, true);
}

}  // namespace replica
