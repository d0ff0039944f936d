// SPDX-License-Identifier: Apache-2.0
// The kernel's device-mapper, by libdevmapper: makes mapped devices, swaps what lies below them
// while they are in use, and tells what there is. It knows nothing of resources.
//
// A mapped device has a live table and room for the next one. load() prepares that, I/O goes on;
// suspend() waits for what is under way and holds what comes; resume() makes the loaded table the
// live one and lets the held I/O go. Number and users of the device stay.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

// Names one mapped device, in one of three ways.
struct MapKey {
    std::string uuid;
    std::string name;
    dev_t device = 0;
    static MapKey of_uuid(std::string text) { return {std::move(text), "", 0}; }
    static MapKey of_name(std::string text) { return {"", std::move(text), 0}; }
    static MapKey of_device(dev_t number) { return {"", "", number}; }
};

// One part of a table; parts follow each other without gaps.
struct MapTarget {
    std::uint64_t sectors = 0;  // of 512 bytes
    std::string type;           // "linear", "thin", ...
    std::string parameters;     // or, in a status, what the target says
    friend bool operator==(const MapTarget&, const MapTarget&) = default;
};
using MapTable = std::vector<MapTarget>;

// For a "linear" or "thin" target that begins at `first_sector` of `device`: "259:3 0".
std::string map_parameters(dev_t device, std::uint64_t first_sector);

struct MapInfo {
    std::string name, uuid;
    dev_t device = 0;
    bool suspended = false;
    bool live = false;    // it has a table; without one it fails what is asked of it
    bool loaded = false;  // another table waits for resume()
    bool read_only = false;
    int open_count = 0;
};

struct MapOptions {
    bool read_only = false;
    // No one else looks into it (udev's blkid, LVM): for what lies below something else of ours.
    bool hidden = false;
};

struct MapSuspend {
    // The file system above writes out what it has and stands still. Else it is not told.
    bool freeze = false;
    // Targets that can keep requests need not wait for them (thin-pool, multipath). The others
    // wait all the same: for a device below that does not answer, see `limit`.
    bool no_flush = false;
    // How long what is under way may take. When it is over all goes on as before.
    std::chrono::milliseconds limit{30'000};
};

// Every call blocks until the kernel and udev, where one runs, have done it; none may be made on a
// thread that serves a device below. Any thread: the library is called on one of its own only. A
// process has one Mapper at a time.
//
// The errors of all: not_found (no such device), busy, permission, invalid (what the kernel or the
// library has to say about it), timeout, io; os_errno is the kernel's.
class Mapper {
  public:
    // What goes wrong without failing a call is a line for `log`, with syslog's level; it is called
    // on the thread of the library.
    using Log = std::function<void(int level, const std::string& line)>;
    // Loads the module if need be. Errors: unsupported (no device-mapper here, or a build without
    // the library), permission.
    static Result<std::unique_ptr<Mapper>> open(const Log& log);
    virtual ~Mapper() = default;
    Mapper(const Mapper&) = delete;
    Mapper& operator=(const Mapper&) = delete;

    virtual Result<std::optional<MapInfo>> info(const MapKey& key) = 0;
    // All whose UUID begins so, in the order of their names.
    virtual Result<std::vector<MapInfo>> list(const std::string& uuid_prefix) = 0;
    virtual Result<MapTable> table(const MapKey& key) = 0;                   // the live one
    virtual Result<MapTable> status(const MapKey& key) = 0;                  // what its targets say
    virtual Result<std::vector<dev_t>> dependencies(const MapKey& key) = 0;  // of the live table

    // Live at once, at /dev/mapper/NAME. A process that dies meanwhile may leave one without a
    // table. Errors: exists (name or UUID are in use).
    virtual Result<MapInfo> create(const std::string& name, const std::string& uuid,
                                   const MapTable& table, const MapOptions& options = {}) = 0;
    virtual Status load(const MapKey& key, const MapTable& table, bool read_only = false) = 0;
    virtual Status drop_loaded(const MapKey& key) = 0;
    // One that is suspended already stays so. Errors: timeout (I/O below does not end; it is not
    // suspended).
    virtual Status suspend(const MapKey& key, const MapSuspend& how = {}) = 0;
    virtual Status resume(const MapKey& key) = 0;
    // Errors: busy (in use).
    virtual Status remove(const MapKey& key) = 0;
    // At once, or when its last user lets go of it.
    virtual Status remove_when_unused(const MapKey& key) = 0;
    // To the target at this sector; returns its answer, most have none.
    virtual Result<std::string> message(const MapKey& key, std::uint64_t sector,
                                        const std::string& text) = 0;

  protected:
    Mapper() = default;
};

}  // namespace replica
