// SPDX-License-Identifier: Apache-2.0
// A block device by the kernel's own nbd (kernel_device.hpp): one socket pair, of which the kernel
// has one end and an NbdQueue the other, in the transmission phase from the first byte. The kernel
// keeps the token as the name of the device's backend. docs/netlink.md has what the driver does.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/kernel_device.hpp"
#include "engine/frontend/nbd_queue.hpp"
#include "engine/node/patient_nbd.hpp"
#include "netlink/nbd_device.hpp"

namespace replica {

struct NbdBlockDeviceOptions : KernelDeviceOptions {
    std::function<Result<std::unique_ptr<NbdControl>>()> control = &NbdControl::open;
    std::chrono::milliseconds call_limit = nbd_call_limit;  // for each call of it
    // The socket that the program before this one in the same process served, for one time.
    std::shared_ptr<std::unique_ptr<NbdChannel>> handed;
};

class NbdBlockDevice final : public KernelDevice {
  public:
    static DeviceMaker maker(const NbdBlockDeviceOptions& options);
    // As DeviceMaker says. The kernel is not asked for the device before open_channel(). Errors:
    // those of NbdControl::open(), io.
    static Result<std::unique_ptr<KernelDevice>> create(const NbdBlockDeviceOptions& options,
                                                        const VolumeInfo& info,
                                                        std::uint64_t generation);
    // As DeviceMaker says. Errors: those of NbdControl::open() and status(), and of
    // DeviceRecordFile::load().
    static Result<std::unique_ptr<KernelDevice>> find(const NbdBlockDeviceOptions& options);

    // May be called again when the queue was lost. From then on the device is live.
    Result<std::unique_ptr<KernelChannel>> open_channel(const VolumeInfo& info) override;
    Status grow(std::uint64_t size_bytes) override;

  private:
    NbdBlockDevice(const NbdBlockDeviceOptions& options, std::unique_ptr<NbdControl> control,
                   const DeviceRecord& record);
    Status begin() override { return ok_status(); }
    Status end() override;
    Status erase() override { return ok_status(); }
    unsigned io_timeout_ms() const override;
    void set_index(int index);
    Status connect(int socket, const VolumeInfo& info);
    Status reconnect(int socket);
    Result<int> number() const;

    std::unique_ptr<NbdControl> control_;
    const std::shared_ptr<std::unique_ptr<NbdChannel>> handed_;
    const std::string backend_;
    int index_ = -1;      // N of /dev/nbdN
    bool asked_ = false;  // for one, without an answer
    bool found_ = false;  // left by another process, and not live here yet
};

}  // namespace replica
