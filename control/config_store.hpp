// SPDX-License-Identifier: Apache-2.0
// The configuration that a node remembers: STATE/resources/NAME.json, one file a resource, and the
// lock that keeps a second daemon away from STATE. A file is replaced by write to NAME.json.tmp,
// fsync, rename, fsync of the directory, so after a crash at any byte it is the old or the new one.
// What can not be read is named and set aside, never dropped, and never stops the other resources.
// docs/control.md, "What a node remembers".
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/node.hpp"

namespace replica::control {

struct StoredResource {
    ResourceConfig config;
    bool up = false;  // to be brought up when the daemon starts
    friend bool operator==(const StoredResource&, const StoredResource&) = default;
};

// A file that could not be used.
struct ConfigProblem {
    std::string file;      // its path
    std::string resource;  // the name that the file stands for
    std::string reason;    // for people
    std::string moved_to;  // where it was set aside; empty: left in place (a newer version's file)
    Errc code = Errc::corrupt;  // or unsupported: a newer version's
};

class ConfigStore {
  public:
    struct Loaded {
        std::vector<StoredResource> resources;  // by name
        std::vector<ConfigProblem> problems;
    };

    // Makes STATE and STATE/resources (mode 0700) and locks STATE until destruction. Errors:
    // invalid (not an absolute path), busy (another process holds the lock), or what the system
    // says.
    static Result<std::unique_ptr<ConfigStore>> open(const std::string& state_dir);
    ~ConfigStore();
    ConfigStore(const ConfigStore&) = delete;
    ConfigStore& operator=(const ConfigStore&) = delete;

    // Reads every file; sets broken ones aside; removes what a crash in the middle of save() left.
    // Errors: io and its like, when the directory itself can not be read.
    Result<Loaded> load();

    // Durable when it returns. May run at the same time for different resources, not for one.
    // Errors: invalid (not UTF-8), exists (an unreadable file was kept under that name), no_space,
    // io.
    Status save(const StoredResource& resource);
    // Durable when it returns. Not an error if there is no such file.
    Status remove(const std::string& name);

    const std::string& state_dir() const { return state_dir_; }

  private:
    ConfigStore(std::string state_dir, int lock_fd, int resources_fd)
        : state_dir_(std::move(state_dir)), lock_fd_(lock_fd), resources_fd_(resources_fd) {}

    Result<ConfigProblem> set_aside(const std::string& file, const Error& error);

    std::string state_dir_;
    int lock_fd_;
    int resources_fd_;  // the directory STATE/resources
    std::set<std::string>
        in_place_;  // resources whose unreadable file was left; set by load() only
};

// The text of a file and back, for tests and for people's tools.
Result<std::string> encode_stored(const StoredResource& resource);
// Errors: corrupt (cut short, damaged, not ours), unsupported (from a newer version).
Result<StoredResource> decode_stored(const std::string& text);

}  // namespace replica::control
