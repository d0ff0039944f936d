// SPDX-License-Identifier: Apache-2.0
// Another node's NBD door as a block device of this machine, by the kernel's nbd client: for what
// is mapped here while its volume is served elsewhere. The connection is the kernel's and outlives
// this process; what is asked waits while it is broken.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "netlink/nbd_device.hpp"

namespace replica {

// A block device that something can be mapped to.
struct BlockTarget {
    dev_t device = 0;
    std::uint64_t size_bytes = 0;
};

// One thread at a time; every call blocks.
class RemoteVolume {
  public:
    ~RemoteVolume();

    // In place of the one there is, if there is one. `door`: "tcp:HOST:PORT"; `owner`: a name that
    // only we use, under which the kernel keeps the device. Errors: those of dial_nbd() and
    // NbdControl; state (the door only reads).
    Result<BlockTarget> connect(const std::string& door, const std::string& export_name,
                                const std::string& owner, std::uint32_t block_bytes);
    // That of an earlier process, too; nullopt: none is connected.
    Result<std::optional<BlockTarget>> find(const std::string& owner);
    // Who uses it gets errors. Fine if there is none.
    Status disconnect(const std::string& owner);
    // To be asked again and again. Broken: the connection is, or what was asked has not been
    // answered for some seconds, which is all that shows of one that an earlier process made.
    enum class Health { answers, unknown, broken };
    Health health(const std::string& owner);
    // Gives the device of `owner` a new connection if the kernel has none that works. Errors: as
    // connect(); invalid (it is smaller).
    Status reconnect(const std::string& door, const std::string& export_name,
                     const std::string& owner);

  private:
    Result<NbdControl*> control();
    Result<std::vector<int>> devices_of(const std::string& owner);
    Result<int> index_of(const std::string& owner);  // -1: none
    void watch(int fd);
    bool hung_up() const;

    std::unique_ptr<NbdControl> control_;
    int watched_ = -1;  // our own reference to the socket; none to that of an earlier process
    std::uint64_t answered_ = 0;  // requests, when that was last seen to change
    std::chrono::steady_clock::time_point answered_at_{};
};

}  // namespace replica
