// SPDX-License-Identifier: Apache-2.0
// How one replicad becomes another in the same process: the next program is tried out, and takes
// over by execve() with the same arguments. What it has to know travels in the environment.
#pragma once

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

    // Any thread, one at a time. Runs `program --version` ("": this program's file) and remembers
    // it for the exec. Returns its version. Errors: not_found, invalid (it is not replicad, or does
    // not run), timeout.
    Result<std::string> choose(const std::string& program, const std::string& id);
    const std::string& id() const { return id_; }

    // Does not return, unless neither the chosen program nor this one can be started.
    void become(const std::string& handed);

  private:
    char** const arguments_;
    std::string own_;  // the file of this program
    std::string handed_;
    control::Upgrade upgraded_;
    std::string next_, id_;
};

}  // namespace replica::tools
