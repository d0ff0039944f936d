// SPDX-License-Identifier: Apache-2.0
// Block devices as this machine shows them in /dev, /sys and /proc: who uses one, how large it is,
// and settings of its queue. A device is named without its directory: "ublkb0", "nbd3".
//
// What is virtual is what a test replaces, on machines without such devices.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/result.hpp"

namespace replica {

struct BlockFacts {
    std::uint64_t size_bytes = 0;
    std::uint32_t logical_block_bytes = 0;
    std::uint32_t major = 0, minor = 0;
};

// Any thread but one that serves the device.
class BlockNodes {
  public:
    static std::shared_ptr<BlockNodes> of_this_machine();
    virtual ~BlockNodes() = default;

    // A descriptor of the device that nobody else can mount meanwhile, or -errno. -ETIMEDOUT: it
    // does not open, as nobody answers what is read while it does.
    virtual int claim(const std::string& name) = 0;
    // Writes what the page cache has for a claimed device, until that is stable. 0, or -errno.
    virtual int write_out(int claimed) { return ::fsync(claimed) == 0 ? 0 : -errno; }
    virtual void release(int claimed) { ::close(claimed); }  // the last user waits for the same
    // Who has it open without a claim, as far as /proc shows it: "qemu (pid 7)"; empty: nobody.
    virtual std::string user_of(const std::string& name) = 0;
    // How often its driver looks at requests that take long. 0, or -errno.
    virtual int set_io_timeout(const std::string& name, unsigned milliseconds) = 0;
    // Has udev look at it again, as a name of it has changed.
    virtual void announce(const std::string& name) = 0;
    // Errors: not_found (no such device), io.
    virtual Result<BlockFacts> facts(const std::string& name) = 0;
};

}  // namespace replica
