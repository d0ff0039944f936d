// SPDX-License-Identifier: Apache-2.0
// The snapshot that is taken of a disk before it becomes the target of a resync, and goes when that
// has ended: the way back to data that is old, but whole. docs/device-mapper.md.
//
// A note beside the superblock's copy says that there is one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/result.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

// What the note says.
struct SnapshotNote {
    std::uint64_t generation = 0;  // of the data
    std::int64_t taken_at = 0;     // seconds since 1970
    bool restoring = false;        // the way back has begun
};
// `copy`: the path of the superblock's copy. Errors: io, corrupt.
Result<std::optional<SnapshotNote>> load_snapshot_note(const std::string& copy);
Status save_snapshot_note(const std::string& copy, const SnapshotNote& note);
void remove_snapshot_note(const std::string& copy);

// Reactor thread only; what blocks is done by a thread of its own, one thing after the other.
class ResyncSnapshot {
  public:
    using Log = std::function<void(int level, const std::string& line)>;
    ResyncSnapshot(Reactor& reactor, const std::string& resource, const Log& log);
    ~ResyncSnapshot();  // not while busy()
    ResyncSnapshot(const ResyncSnapshot&) = delete;
    ResyncSnapshot& operator=(const ResyncSnapshot&) = delete;

    // For the disk that is attached now.
    void attached(const std::string& disk, const std::string& copy);
    // `done` is called later on the reactor's thread, also where no snapshot could be taken: the
    // log says so then.
    void take(std::uint64_t generation, std::function<void()> done);
    void remove(std::function<void()> done);  // the same
    bool kept() const { return kept_; }
    bool busy() const { return busy_; }

  private:
    void start(std::function<bool()> work, std::function<void()> done);

    Reactor& reactor_;
    std::string resource_, disk_, copy_;
    Log log_;
    bool kept_ = false, busy_ = false;
    std::function<void()> next_;  // asked for while busy
    std::thread worker_;
};

}  // namespace replica
