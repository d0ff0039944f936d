// SPDX-License-Identifier: Apache-2.0
// Another node's NBD door as a block device of this machine, by the kernel's nbd client: for what
// is mapped here while its volume is served elsewhere. The connection is the kernel's and outlives
// this process; what is asked waits while it is broken.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

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

    // `door`: "tcp:HOST:PORT"; `owner`: a name that only we use, under which the kernel keeps the
    // device. Errors: those of dial_nbd() and NbdControl.
    Result<BlockTarget> connect(const std::string& door, const std::string& export_name,
                                const std::string& owner, std::uint32_t block_bytes);
    // That of an earlier process, too; nullopt: none is connected.
    Result<std::optional<BlockTarget>> find(const std::string& owner);
    // Who uses it gets errors. Fine if there is none.
    Status disconnect(const std::string& owner);
    // The connection is broken, as far as this process can see: not that of an earlier one.
    bool broken() const;
    // Gives the device of `owner` a new connection. Errors: as connect(); invalid (another size).
    Status reconnect(const std::string& door, const std::string& export_name,
                     const std::string& owner);

  private:
    Result<NbdControl*> control();
    Result<int> index_of(const std::string& owner);  // -1: none
    void watch(int fd);

    std::unique_ptr<NbdControl> control_;
    int watched_ = -1;  // our own reference to the socket
};

}  // namespace replica
