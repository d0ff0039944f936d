// SPDX-License-Identifier: Apache-2.0
// The mapped device of a resource, /dev/mapper/replica-RES, which stays when the door below it is
// exchanged for another, of this node or of the one that is Primary next. A dm-linear of one part,
// known by a UUID that is on record; no other is touched. docs/device-mapper.md has the steps and
// what a death leaves.
//
// Threads: every member but view() blocks, is called with the resource's `changing` held, and not
// on its reactor. A thread of its own, the keeper, puts right what an earlier daemon left in the
// middle, as soon as the doors are there, and mends a connection to another node.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/result.hpp"
#include "engine/mapper/mapper.hpp"
#include "engine/node/change_lock.hpp"
#include "engine/node/mapping_record.hpp"
#include "engine/node/remote_volume.hpp"

namespace replica {

// The one mapper of a process, opened when it is needed first. Any thread.
class MapperHost {
  public:
    using Open = std::function<Result<std::unique_ptr<Mapper>>(const Mapper::Log&)>;
    explicit MapperHost(Mapper::Log log, Open open = &Mapper::open)
        : log_(std::move(log)), open_(std::move(open)) {}
    Result<Mapper*> get();

  private:
    const Mapper::Log log_;
    const Open open_;
    std::mutex mutex_;
    std::unique_ptr<Mapper> mapper_;
};

class VolumeMapping {
  public:
    // The block devices of this node; `kind` is "ublk" or "nbd".
    struct Doors {
        std::function<Result<BlockTarget>(const std::string& kind)> open;
        // Errors: not_found (it is not open), state (it waits to be adopted).
        std::function<Result<BlockTarget>(const std::string& kind)> facts;
        std::function<Status(const std::string& kind, bool force)> close;
        std::function<std::uint64_t()> volume_bytes;  // 0: not known, the resource is down
    };
    struct Options {
        std::string state_dir, resource;
        std::function<void(int level, const std::string& line)> log;  // never empty
    };
    struct View {
        std::string path, over;  // empty: not mapped
        std::string trouble;     // what has to be done about it; empty: nothing
        bool held = false;
    };

    VolumeMapping(const Options& options, MapperHost& mapper, Doors doors, ChangeLock& changing);
    ~VolumeMapping();  // leaves the device as it is
    VolumeMapping(const VolumeMapping&) = delete;
    VolumeMapping& operator=(const VolumeMapping&) = delete;

    // Maps the volume over this door of this node ("ublk", "nbd"), which is opened if it is not, or
    // over another node's ("tcp:HOST:PORT"). What is mapped already is swapped under its users, and
    // what was held goes on; the door that lay below before is closed. Errors: exists (it is so),
    // unsupported (no device-mapper), those of the door; timeout (what is under way below does not
    // end), invalid (another size). After an error all is as it was, or said otherwise.
    Status map(const std::string& place);
    // What its users ask waits from now on, and nothing lies below it any more: the doors are
    // closed. Errors: not_found (it is not mapped), state (held already), timeout, io.
    Status hold();
    // Errors: busy (somebody uses it). By force, its users get errors from then on. Leaves doors of
    // this node open.
    Status close(bool force);
    Status check_unused();
    // What is mapped follows a volume that has grown. Errors: as map(); unsupported (the door below
    // did not; the message says what helps).
    Status grow();
    // A door was closed, or should have grown: the keeper looks at what lies below.
    void doors_changed() {
        if (record_) wake();
    }
    bool is_mapped() const { return record_.has_value(); }
    // A door of this node lies below.
    bool uses_doors() const { return record_ && !record_->over.empty() && !leads_elsewhere(); }

    // When the resource becomes known: what an earlier daemon left is put right as soon as that can
    // be.
    void look();
    void leave();       // the keeper ends
    View view() const;  // any thread

  private:
    bool leads_elsewhere() const { return record_->over.starts_with("tcp:"); }
    std::string name() const { return "replica-" + options_.resource; }
    std::string path() const { return "/dev/mapper/" + name(); }
    std::string owner_of(const std::string& place) const { return record_->uuid + "@" + place; }
    MapKey key() const { return MapKey::of_uuid(record_->uuid); }
    MapTable over(const BlockTarget& target) const;

    Result<BlockTarget> open_place(const std::string& place);
    Result<BlockTarget> facts_of(const std::string& place);
    Status close_place(const std::string& place, bool force);
    Status make(const std::string& place);
    Status check_door();
    Status swap(const std::string& place);
    Status check_size(const std::string& place, const BlockTarget& target);
    Status exchange(const BlockTarget& target);
    Status check_state_dir();
    Status note(const MappingRecord& record);
    Status forget();
    Status settle();
    Status settle_held(Mapper& mapper, const MapInfo& info);
    Status settle_swap(Mapper& mapper, const MapInfo& info);
    void show();
    void say(const std::string& trouble);
    void unsettle();
    void wake();
    void keep();
    void keep_connection();
    std::chrono::milliseconds turn();

    const Options options_;
    MapperHost& host_;
    const Doors doors_;
    ChangeLock& changing_;
    const MappingRecordFile file_;
    std::optional<MappingRecord> record_;
    RemoteVolume remote_;
    bool settled_ = true;  // else the keeper looks how the last change has ended
    std::string trouble_;

    mutable std::mutex view_mutex_;  // guards view_
    View view_;

    std::mutex keeper_mutex_;  // guards the rest; nothing is locked while it is held
    std::condition_variable keeper_wakes_;
    bool woken_ = false, stop_ = false;
    std::thread keeper_;
};

}  // namespace replica
