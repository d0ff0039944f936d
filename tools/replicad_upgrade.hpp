// SPDX-License-Identifier: Apache-2.0
// How one replicad becomes another in the same process: the next program is tried out, and takes
// over by execve() with the same arguments. What it has to know travels in the environment.
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "control/service.hpp"
#include "engine/base/result.hpp"

namespace replica::tools {

class Upgrader {
  public:
    // Before other threads are started: takes what the program before has left in the environment.
    explicit Upgrader(char** arguments);

    // What Node and Service of this program are to be told.
    const std::string& handed() const { return handed_; }
    const control::Upgrade& upgraded() const { return upgraded_; }

    // Any thread. Runs `program --version` and remembers it for the exec. Returns its version.
    // Errors: busy (one was chosen already, or is looked at), not_found, permission, invalid (it is
    // not replicad, or does not run), timeout.
    Result<std::string> choose(const control::UpgradeRequest& request);
    // What choose() has accepted. From then on it stays, until dismiss().
    std::optional<control::UpgradeRequest> chosen();
    void dismiss();

    // After chosen(). Does not return, unless neither the chosen program nor this one can be
    // started.
    void become(const HandOver& left);

  private:
    enum class State { idle, looking, chosen };
    Result<std::string> look_at(const control::UpgradeRequest& request);
    void leave(const HandOver& left, const std::string& error);

    char** const arguments_;
    std::string own_;  // the file of this program
    std::string handed_;
    control::Upgrade upgraded_;

    std::mutex mutex_;  // guards the rest
    State state_ = State::idle;
    control::UpgradeRequest request_;  // with the program's file
};

}  // namespace replica::tools
