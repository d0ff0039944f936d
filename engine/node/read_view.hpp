// SPDX-License-Identifier: Apache-2.0
// What a read-only door sees of a resource. On a Primary it is what every door sees. On a Secondary
// it is the node's own disk as it is at that moment, as long as that is UpToDate: the core serves
// nobody there, and need not know, as nothing is changed. Reactor thread only; nothing is allocated
// for a request.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/frontend/volume.hpp"
#include "engine/io/block_file.hpp"
#include "engine/node/backing_disk.hpp"

namespace replica {

class ReadView final : public Volume {
  public:
    enum class Source {
        whole,    // the volume, whose requests are ordered
        disk,     // the disk alone
        nothing,  // it is not there, or holds old data
    };
    ReadView(Reactor& reactor, Volume& whole, std::function<Source()> source);
    ~ReadView() override;  // only when idle

    void attach(BlockFile& file);
    void detach() { disk_.reset(); }  // only when idle
    bool idle() const {
        return done_ == nullptr && waiting_ == nullptr && (!disk_ || disk_->idle());
    }

    VolumeInfo info() const override;
    // Errors of a request: EROFS (it would change something), ENOLINK (no data to read), EINVAL,
    // and those of the disk (told_errno()).
    void submit(IoRequest& request) override;
    std::byte* acquire_buffer() override { return whole_.acquire_buffer(); }
    std::byte* acquire_buffer_for(std::uint32_t bytes) override {
        return whole_.acquire_buffer_for(bytes);
    }
    void release_buffer(std::byte* buffer) override { whole_.release_buffer(buffer); }
    std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) override {
        return whole_.extent_status(offset, length, hole);
    }
    std::uint64_t dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) override {
        return whole_.dirty_status(offset, length, dirty);
    }

  private:
    void wait_for_slot(IoRequest& request);
    void finish_later(IoRequest& request, int error);
    void on_read(std::uint32_t slot, int error);
    void on_turn();

    Reactor& reactor_;
    Volume& whole_;
    const std::function<Source()> source_;
    std::unique_ptr<BackingDisk> disk_;
    std::vector<IoRequest*> slots_;  // by the index of a read's tag; nullptr: free
    std::vector<std::uint32_t> free_;
    IoRequest* waiting_ = nullptr;  // for a slot, in order
    IoRequest** waiting_tail_ = &waiting_;
    IoRequest* done_ = nullptr;  // answered without the disk; `slot` is their error meanwhile
    Deferred turn_;
};

}  // namespace replica
