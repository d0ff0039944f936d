// SPDX-License-Identifier: Apache-2.0
// A block device by ublk (kernel_device.hpp). Its requests are served by a UblkQueue on the channel
// from open_channel(). docs/doors.md has what is special about this driver.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/kernel_device.hpp"
#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/ublk_queue.hpp"
#include "engine/frontend/volume.hpp"

namespace replica {

struct UblkDeviceOptions : KernelDeviceOptions {
    std::function<Result<std::unique_ptr<UblkControl>>()> control = &UblkControl::open;
    // The channel of a process that was killed while it took a device over is closed by then, or
    // never.
    std::chrono::milliseconds patience{5000};
};

class UblkDevice final : public KernelDevice {
  public:
    static DeviceMaker maker(const UblkDeviceOptions& options);
    // As DeviceMaker says. Errors: those of UblkControl::open(), no_space, io.
    static Result<std::unique_ptr<KernelDevice>> create(const UblkDeviceOptions& options,
                                                        const VolumeInfo& info,
                                                        std::uint64_t generation);
    // As DeviceMaker says. Errors: those of UblkControl::open() and of DeviceRecordFile::load(),
    // io.
    static Result<std::unique_ptr<KernelDevice>> find(const UblkDeviceOptions& options);

    Result<std::unique_ptr<KernelChannel>> open_channel(const VolumeInfo& info) override;
    Status grow(std::uint64_t size_bytes) override;

  private:
    UblkDevice(const UblkDeviceOptions& options, std::unique_ptr<UblkControl> control,
               const ublk::DeviceInfo& info, const DeviceRecord& record);
    Status begin() override;
    Status end() override;
    Status erase() override;
    unsigned io_timeout_ms() const override;
    Status check_sizes(const VolumeInfo& info);
    Status take_over();
    Status open_taken();
    Error lost() const;

    const std::chrono::milliseconds patience_;
    std::unique_ptr<UblkControl> control_;
    ublk::DeviceInfo info_;
    std::unique_ptr<UblkChannel> channel_;  // until open_channel() gives it out
    bool found_ = false;                    // left by another process, and not live here yet
    bool taken_ = false;                    // found, and the kernel expects its new server
    bool interrupted_ = false;              // another process had taken it, and died
    std::chrono::steady_clock::time_point deadline_;  // how long an interrupted one is tried
};

}  // namespace replica
