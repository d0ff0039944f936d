// SPDX-License-Identifier: Apache-2.0
// A Volume that is nothing but a disk: what the doors are tested with beside the engine. It reads
// and writes with O_DIRECT through the reactor, and can be told to fail, to be slow and to be short
// of buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/block_file.hpp"
#include "engine/io/buffer_pool.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

struct FileVolumeOptions {
    bool writable = true;
    std::uint32_t buffers = 32;  // of 1 MiB each
    std::uint32_t small_buffers = 64;
    // A range on which every request fails with EIO; length 0: none.
    std::uint64_t fail_offset = 0, fail_length = 0;
    // The range that dirty_status() reports.
    std::uint64_t dirty_offset = 0, dirty_length = 0;
    std::uint64_t delay_ns = 0;  // before each request
};

class FileVolume final : public Volume {
  public:
    static Result<std::unique_ptr<FileVolume>> open(Reactor& reactor, const std::string& path,
                                                    const FileVolumeOptions& options);
    VolumeInfo info() const override;
    void submit(IoRequest& request) override;
    std::byte* acquire_buffer() override { return pool_->acquire(io_bytes_max); }
    std::byte* acquire_buffer_for(std::uint32_t bytes) override { return pool_->acquire(bytes); }
    void release_buffer(std::byte* buffer) override { pool_->release(buffer); }
    std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) override {
        return file_->extent_status(offset, length, hole);
    }
    std::uint64_t dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) override;

    std::uint32_t buffers_used() const {
        return pool_->count() - pool_->free_small() - pool_->free_large();
    }
    std::uint32_t requests_in_flight() const { return in_flight_; }
    std::uint64_t requests_of(IoKind kind) const { return counts_[static_cast<unsigned>(kind)]; }

  private:
    struct Slot {
        FileVolume* volume = nullptr;
        IoRequest* request = nullptr;
        DiskOp op;
        Timer timer;
        bool flushing = false;  // zeroes with FUA: the second half
    };
    FileVolume(Reactor& reactor, std::unique_ptr<BlockFile> file, std::unique_ptr<BufferPool> pool,
               const FileVolumeOptions& options);
    void start(Slot& slot, IoRequest& request);
    void issue(Slot& slot);
    void complete(Slot& slot, int error);

    Reactor& reactor_;
    std::unique_ptr<BlockFile> file_;
    std::unique_ptr<BufferPool> pool_;
    const FileVolumeOptions options_;
    std::vector<Slot> slots_;
    std::vector<Slot*> free_slots_;
    IoRequest* waiting_ = nullptr;
    IoRequest** waiting_tail_ = &waiting_;
    std::uint32_t in_flight_ = 0;
    std::uint64_t counts_[5] = {};
};

}  // namespace replica
