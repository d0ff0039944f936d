// SPDX-License-Identifier: Apache-2.0
// The life of a ublk device: /dev/ublkbN with a stable name below /dev/replica/by-res. Every call
// blocks; none may be made on the reactor that serves the device (ublk_control.hpp).
//
// The device outlives its daemon: when that dies, the kernel keeps the requests, and the next
// daemon takes the device over and gets them again. It knows its own devices by 64 bits that the
// kernel keeps for the server (a magic number and a hash of state directory and resource), and
// touches no others. docs/ublk.md has the order of events.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/ublk_queue.hpp"
#include "engine/frontend/volume.hpp"

namespace replica {

struct UblkDeviceOptions {
    std::string state_dir;  // absolute; the record is STATE/ublk/RESOURCE
    std::string resource;
    std::function<void(int level, const std::string& line)> log;  // never empty
};

class UblkDevice {
  public:
    // A new device, with a record that it is ours, and not yet live. Errors: those of
    // UblkControl::open(), no_space, io.
    static Result<std::unique_ptr<UblkDevice>> create(const UblkDeviceOptions& options,
                                                      const VolumeInfo& info);
    // The device that an earlier daemon left; nullptr: none. Removes what was never started.
    // Errors: io (a device is there, and can not be examined).
    static Result<std::unique_ptr<UblkDevice>> find(const UblkDeviceOptions& options);

    // "/dev/ublkb3"
    const std::string& path() const { return path_; }
    // As status and unexport name the door: "ublk:/dev/ublkb3"
    std::string door() const { return "ublk:" + path_; }

    // The generation of the disk when a device was found that an earlier daemon left; empty: none
    // noted. It survives this daemon: requests that the kernel kept may be repeated only while the
    // disk is still of that generation.
    const std::string& generation() const { return generation_; }
    Status note_generation(const std::string& generation);

    // The channel for the queue that will serve the device. Of a found device: takes it over first,
    // which waits until the kernel has noticed that the old daemon is gone. Errors: state (the size
    // of the volume is another one), timeout, no_space, io.
    Result<std::unique_ptr<UblkChannel>> open_channel(const VolumeInfo& info);
    // Goes live. A queue on the channel has to run.
    Status start();

    // Errors: busy (mounted, or held by another exclusive user).
    Status check_unused() const;
    // Stops it, and fails what waits if nobody serves it. The queue ends by that. Errors: busy,
    // unless forced.
    Status stop(bool force);
    // Deletes a stopped device, its name and its record.
    Status remove();

  private:
    UblkDevice(UblkDeviceOptions options, std::unique_ptr<UblkControl> control,
               std::uint32_t dev_id);
    Result<int> claim() const;
    Status take_over(const VolumeInfo& info);
    Status write_record();
    void read_record();
    Status link();
    std::string record_path() const { return options_.state_dir + "/ublk/" + options_.resource; }

    UblkDeviceOptions options_;
    std::unique_ptr<UblkControl> control_;
    std::uint32_t dev_id_;
    std::string path_;
    std::string generation_;
    bool found_ = false;  // and not taken over yet
};

}  // namespace replica
