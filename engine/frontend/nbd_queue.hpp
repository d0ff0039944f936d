// SPDX-License-Identifier: Apache-2.0
// The requests of a block device of the kernel's own nbd: a socket in the transmission phase whose
// other end the kernel has. The device itself is engine/node/nbd_block_device.hpp.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/frontend/kernel_device.hpp"
#include "engine/frontend/nbd_server.hpp"

namespace replica {

// What the kernel is told of the server (NBD's transmission flags).
std::uint16_t nbd_device_flags(const VolumeInfo& info);

// Our end of the socket.
class NbdChannel final : public KernelChannel {
  public:
    explicit NbdChannel(int fd) : fd_(fd) {}  // takes it over
    ~NbdChannel() override;
    NbdChannel(const NbdChannel&) = delete;
    NbdChannel& operator=(const NbdChannel&) = delete;

    int fd() const { return fd_; }
    // The kernel has let go of its end: nothing will ever come.
    bool hung_up() const;
    std::unique_ptr<KernelQueue> serve(const Server& server) override;

  private:
    int fd_;
};

// Reactor thread only.
class NbdQueue final : public KernelQueue {
  public:
    NbdQueue(const KernelChannel::Server& server, int fd);

    void started() override {}
    // By the connection: the kernel, which is told to stop the device, waits for no other then.
    void cut_off() override;
    // The kernel closes its end when the device is stopped; if it does not, we do.
    void when_ended(std::function<void()> done) override;
    void when_idle(std::function<void()> done) override;
    // A socket that broke, which nobody has asked for: the kernel waits for another one.
    bool lost() const override { return lost_; }
    void hold(std::function<void()> held) override { server_.hold(std::move(held)); }
    void resume() override { server_.resume(); }
    int abandon() override { return server_.give(); }
    bool destructible() const override { return true; }

  private:
    Reactor& reactor_;
    NbdServer server_;
    bool lost_ = false, cut_ = false;
};

}  // namespace replica
