// SPDX-License-Identifier: Apache-2.0
// The life of one ublk device: made, gone live, taken over by the next process, stopped, deleted.
// Its requests are served by a UblkQueue on the channel from open_channel(); none of the calls here
// may be made on the reactor that serves the device (ublk_control.hpp).
//
// The device outlives its daemon: when that dies, the kernel keeps the requests, and the next
// daemon takes the device over and gets them again. It knows its own device by a random number that
// the kernel keeps with it and that stands in the record (ublk_record.hpp), and touches no others.
// docs/ublk.md has the order of events.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/ublk_queue.hpp"
#include "engine/frontend/ublk_record.hpp"
#include "engine/frontend/volume.hpp"

namespace replica {

struct UblkDeviceOptions {
    std::string state_dir;  // absolute; the record is STATE/ublk/RESOURCE
    std::string resource;
    std::function<void(int level, const std::string& line)> log;  // never empty
    std::string names = "/dev/replica/by-res";                    // where a stable name is made
    std::function<Result<std::unique_ptr<UblkControl>>()> control = &UblkControl::open;
    // The channel of a process that was killed while it took a device over is closed by then, or
    // never.
    std::chrono::milliseconds patience{5000};
};

class UblkDevice {
  public:
    // A new device that is on record with the data's generation, and not yet live. Errors: those of
    // UblkControl::open(), no_space, io.
    static Result<std::unique_ptr<UblkDevice>> create(const UblkDeviceOptions& options,
                                                      const VolumeInfo& info,
                                                      std::uint64_t generation);
    // The device that an earlier daemon left; nullptr: there is none. Removes what was never
    // started or is stopped, and a record without its device. Errors: those of UblkControl::open()
    // and of UblkRecordFile::load(), io: whether there is one is not known.
    static Result<std::unique_ptr<UblkDevice>> find(const UblkDeviceOptions& options);

    // "/dev/ublkb3"
    const std::string& path() const { return path_; }
    // As status and unexport name the door: "ublk:/dev/ublkb3"
    std::string door() const { return "ublk:" + path_; }

    // The generation on record. What the kernel kept may be repeated only on this data, or on what
    // this node alone made of it.
    std::uint64_t generation() const { return record_.generation; }
    Status note_generation(std::uint64_t generation);

    // The channel for the queue that will serve the device. Of a found device: takes it over first.
    // Errors: busy (the old daemon is not gone yet, in the kernel's eyes: try again), state (it
    // does not fit the volume), corrupt (a daemon died while it took the device over, and this
    // kernel hands it on no more: only stop() helps), no_space, io.
    Result<std::unique_ptr<UblkChannel>> open_channel(const VolumeInfo& info);
    // Goes live. A queue on the channel has to run.
    Status start();

    // Errors: busy (mounted, held by another exclusive user, or open in a process), io.
    Status check_unused();
    // Stops it; what waits fails if nobody serves it. The queue ends by that. What the page cache
    // holds is written before, unless forced. Errors: those of check_unused(), unless forced.
    Status stop(bool force);
    // Deletes a stopped device, its name and its record.
    Status remove();

  private:
    UblkDevice(const UblkDeviceOptions& options, std::unique_ptr<UblkControl> control,
               const ublk::DeviceInfo& info, const UblkRecord& record);
    Result<int> claim();
    Result<int> claim_unused();
    Status check_fit(const VolumeInfo& info);
    Status take_over();
    Status open_taken();
    Status link();
    Error lost() const;

    UblkDeviceOptions options_;
    UblkRecordFile file_;
    UblkRecord record_;
    std::unique_ptr<UblkControl> control_;
    ublk::DeviceInfo info_;
    std::string path_;
    std::unique_ptr<UblkChannel> channel_;  // until open_channel() gives it out
    bool found_ = false;                    // left by another process, and not live here yet
    bool served_ = false;                   // by this process
    bool taken_ = false;                    // found, and the kernel expects its new server
    bool interrupted_ = false;              // another process had taken it, and died
    std::chrono::steady_clock::time_point patience_;  // how long an interrupted one is tried
};

}  // namespace replica
