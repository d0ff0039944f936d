// SPDX-License-Identifier: Apache-2.0
// Commands to /dev/ublk-control: add, start, recover, stop and delete ublk devices. Each call
// blocks until the kernel has answered. So none may be made on the thread that serves a device:
// starting and stopping wait for requests that this thread has to answer.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/ublk_abi.hpp"

namespace replica {

class UblkControl {
  public:
    // Loads the module if need be, and asks the kernel what it can do.
    // Errors: unsupported (no ublk in this kernel, or one that can not hand a device over to the
    // next process), permission, io. The message is a sentence for who asked for a device.
    static Result<std::unique_ptr<UblkControl>> open();
    ~UblkControl();
    UblkControl(const UblkControl&) = delete;
    UblkControl& operator=(const UblkControl&) = delete;

    // One thread at a time; any thread but the one that serves the device. The errors of all: io,
    // with the kernel's errno in os_errno; timeout.
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

    // Ids of the devices that there are, of whoever they may be.
    static std::vector<std::uint32_t> devices();

  private:
    UblkControl() = default;
    Status open_ring();
    int run(std::uint32_t command, const ublk::ControlCommand& arguments);
    Status demand(std::uint32_t command, const ublk::ControlCommand& arguments, const char* what);

    io_uring ring_{};
    bool ring_open_ = false;
    int fd_ = -1;
};

}  // namespace replica
