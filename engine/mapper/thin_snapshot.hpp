// SPDX-License-Identifier: Apache-2.0
// Snapshots of a disk that is a thin volume of LVM, by LVM's own programs: what LVM made only LVM
// may change. One snapshot a volume, named VOLUME-before-resync, with a tag that says whose it is;
// one without that tag is not touched.
//
// Any thread but a reactor's: each call runs programs and waits for them. One that takes longer
// than a minute is asked to end, and waited for.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

struct LvmProgram {
    std::vector<std::string> places = {"/sbin/lvm", "/usr/sbin/lvm"};
    std::chrono::milliseconds limit{60'000};  // of one call, before it is asked to end
};

class ThinSnapshot {
  public:
    // `disk`: a path of the volume. Errors: unsupported (not a thin volume of LVM, or LVM's
    // programs are not there), io.
    static Result<ThinSnapshot> of(const std::string& disk, const std::string& resource,
                                   const LvmProgram& lvm = {});

    const std::string& name() const { return name_; }  // VG/LV
    Result<bool> exists() const;                       // Errors: exists (somebody else's), io.
    // A snapshot as of now: I/O on the volume stands still for a moment and is stable before.
    // Replaces the one before. Errors: no_space, io (what LVM says), exists.
    Status take() const;
    Status remove() const;        // fine if there is none. Errors: io, exists.
    Status check_unused() const;  // Errors: busy (somebody has the volume open), io.
    // The volume gets what the snapshot holds, which is gone then. Nobody may have either open.
    // Errors: not_found (there is none), busy (LVM will do it when the volume is activated next),
    // io.
    Status restore() const;
    Error still_waits() const;  // that it is busy with this

  private:
    ThinSnapshot(std::string volume, std::string tag, LvmProgram lvm)
        : volume_(std::move(volume)),
          name_(volume_ + "-before-resync"),
          tag_(std::move(tag)),
          lvm_(std::move(lvm)) {}

    std::string volume_, name_, tag_;
    LvmProgram lvm_;
};

}  // namespace replica
