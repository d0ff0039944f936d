// SPDX-License-Identifier: Apache-2.0
// The requests of one ublk device, on the reactor that owns the volume. The kernel copies what is
// written into the buffer of the request's tag before we see it, and that buffer is what is
// checksummed, sent and written here: one image of the data, whatever the application does to its
// pages meanwhile.
//
// The device must be served while it is started and while it is stopped: see ublk_device.hpp, which
// gives the commands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/kernel_device.hpp"
#include "engine/frontend/splitter.hpp"
#include "engine/frontend/ublk_abi.hpp"
#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

// Of the devices that are made here. One that an earlier program made may have others.
inline constexpr std::uint16_t ublk_queue_depth = 128;
inline constexpr std::uint32_t ublk_io_bytes_max = 256U << 10;
inline constexpr std::uint16_t ublk_depth_max = 512;

// The character device of a ublk device, with the requests that the kernel shows there and a buffer
// for each.
class UblkChannel {
  public:
    // Any thread. Only memory, for `depth` requests of `io_bytes` at most; what can fail comes
    // before the device depends on it. Errors: no_space.
    static Result<std::unique_ptr<UblkChannel>> create(std::uint16_t depth, std::uint32_t io_bytes);
    // Errors: busy (another process, or the old one's last moments), io. It may be tried again.
    Status open(UblkControl& control, std::uint32_t dev_id);
    ~UblkChannel();
    UblkChannel(const UblkChannel&) = delete;
    UblkChannel& operator=(const UblkChannel&) = delete;

    int fd() const { return fd_; }
    std::uint16_t depth() const { return depth_; }
    std::uint32_t io_bytes() const { return io_bytes_; }
    const ublk::IoDescriptor& descriptor(std::uint32_t tag) const { return descriptors_[tag]; }
    std::byte* buffer(std::uint32_t tag) const { return buffers_ + std::size_t{tag} * io_bytes_; }
    // One more, for what nobody wants to know.
    std::byte* spare() const { return buffer(depth_); }
    // Lets go of the device, but not of the buffers.
    void close();

  private:
    UblkChannel(std::uint16_t depth, std::uint32_t io_bytes) : depth_(depth), io_bytes_(io_bytes) {}
    std::size_t buffers_bytes() const { return std::size_t{depth_ + 1U} * io_bytes_; }
    std::size_t descriptors_bytes() const;

    const std::uint16_t depth_;
    const std::uint32_t io_bytes_;
    int fd_ = -1;
    const ublk::IoDescriptor* descriptors_ = nullptr;
    std::byte* buffers_ = nullptr;
};

// A channel on its way to the reactor.
class UblkService final : public KernelChannel {
  public:
    explicit UblkService(std::unique_ptr<UblkChannel> channel) : channel_(std::move(channel)) {}
    const UblkChannel& channel() const { return *channel_; }
    std::unique_ptr<KernelQueue> serve(const Server& server) override;

  private:
    std::unique_ptr<UblkChannel> channel_;
};

// Reactor thread only.
class UblkQueue final : public KernelQueue {
  public:
    // Asks the kernel for requests at once, without the right that would make it look for a
    // partition table while the device is started (ublk_queue.cpp): until started() was called.
    UblkQueue(Reactor& reactor, Volume& volume, std::unique_ptr<UblkChannel> channel, DeviceLog log,
              std::function<void()> on_answer);
    ~UblkQueue() override;  // only when idle
    UblkQueue(const UblkQueue&) = delete;
    UblkQueue& operator=(const UblkQueue&) = delete;

    void started() override;
    void cut_off() override;
    void when_ended(std::function<void()> done) override;
    void when_idle(std::function<void()> done) override;
    bool lost() const override { return false; }  // the kernel ends it only when it is stopped
    void hold(std::function<void()> held) override;
    void resume() override;
    int abandon() override;
    bool destructible() const override { return armed_ == 0; }

  private:
    struct Tag {
        Op op;
        SplitRequest split;
        ublk::IoCommand command;
        std::uint32_t command_number = 0;
        bool kept = false;  // has a request that waits, as the queue is held
        // The volume has `split`; and the request that it is of was answered before it was done.
        bool busy = false, orphaned = false;
        UblkQueue* queue = nullptr;
    };

    void fetch(Tag& tag, std::uint32_t command);
    void on_request(Tag& tag, std::int32_t result);
    void on_refusal(Tag& tag, std::int32_t result);
    void finish(Tag& tag, int error);
    void answer(Tag& tag, std::int32_t result);
    void on_turn();

    static const SplitHooks hooks_;

    Reactor& reactor_;
    Volume& volume_;
    std::unique_ptr<UblkChannel> channel_;
    DeviceLog log_;
    Splitter splitter_;
    std::vector<Tag> tags_;
    std::uint32_t armed_ = 0;  // tags that the kernel has, or that we answer
    Deferred turn_;
    std::vector<std::function<void()>> ended_;
    bool starting_ = false;
    bool holding_ = false, abandoned_ = false, cut_ = false;
    std::function<void()> held_, idle_, on_answer_;
};

// The errno that says to the block layer what became of a request (docs/doors.md, "Errors").
int ublk_errno(int error);

}  // namespace replica
