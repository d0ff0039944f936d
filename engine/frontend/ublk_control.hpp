// SPDX-License-Identifier: Apache-2.0
// What a ublk device asks of its driver: commands to /dev/ublk-control (add, start, recover, stop,
// delete), and the character device. Each call blocks until the kernel has answered. So none may be
// made on the thread that serves a device: starting and stopping wait for requests that this thread
// has to answer.
//
// What is virtual is what a test replaces, to try a death at every step without such a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/ublk_abi.hpp"

namespace replica {

class UblkControl {
  public:
    // That of this machine. Loads the module if need be, and asks the kernel what it can do.
    // Errors: unsupported (no ublk in this kernel, or one that can not hand a device over to the
    // next process), permission, io. The message is a sentence for who asked for a device.
    static Result<std::unique_ptr<UblkControl>> open();
    virtual ~UblkControl() = default;
    UblkControl(const UblkControl&) = delete;
    UblkControl& operator=(const UblkControl&) = delete;

    // One thread at a time; any thread but the one that serves the device. The errors of all: io,
    // busy, permission, not_found (no such device), with the kernel's errno in os_errno; timeout:
    // the kernel does not answer, and may yet do it. What is asked for again then is waited for
    // again.
    Result<ublk::DeviceInfo> add(const ublk::DeviceInfo& wanted);
    Result<ublk::DeviceInfo> info(std::uint32_t dev_id);
    Result<ublk::Params> params(std::uint32_t dev_id);
    Status set_params(std::uint32_t dev_id, ublk::Params params);
    // Waits until all tags of the queue were fetched. This process serves the device from now on.
    Status start(std::uint32_t dev_id);
    Status stop(std::uint32_t dev_id);  // waits for requests under way; the block device is gone
    // It is gone when nobody has it open any more, which is not waited for where the kernel can do
    // without (Linux 6.9).
    Status remove(std::uint32_t dev_id);
    // Errors: busy (the kernel has not yet noticed that the old server is gone).
    Status start_recovery(std::uint32_t dev_id);
    Status end_recovery(std::uint32_t dev_id);  // as start()
    // Of a live device. Errors: also unsupported (not in this kernel).
    Status update_size(std::uint32_t dev_id, std::uint64_t bytes);

    // Ids of the devices that there are, of whoever they may be. Errors: io.
    virtual Result<std::vector<std::uint32_t>> devices() = 0;
    // The character device, for one process at a time, and what the kernel shows there of the
    // requests. Each gives -errno in place of what was asked for: a descriptor, or `shown`, set.
    virtual int open_channel(std::uint32_t dev_id) = 0;
    virtual int map_channel(int fd, std::size_t bytes, const ublk::IoDescriptor*& shown) = 0;

  protected:
    UblkControl() = default;
    std::uint64_t features_ = 0;  // ublk::flag_*, as the kernel has told
    // The result or -errno; -ETIME: not in time. `memory`: what the kernel reads, then writes.
    virtual int run(std::uint32_t command, const ublk::ControlCommand& arguments,
                    std::span<std::byte> memory) = 0;

  private:
    Status demand(std::uint32_t command, ublk::ControlCommand arguments, const char* what,
                  std::span<std::byte> memory = {});
};

// Ids of the ublk devices of this machine, for those who do not want the module loaded, as
// `classes` tells them. Errors: io (it can not be told).
Result<std::vector<std::uint32_t>> ublk_devices(const std::string& classes = "/sys/class");

}  // namespace replica
