// SPDX-License-Identifier: Apache-2.0
// Another program, started and waited for.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

struct Program {
    std::vector<std::string> places;       // absolute; the first one that is there
    std::vector<std::string> words;        // its arguments, beginning with its own name
    std::vector<std::string> environment;  // all of it, "NAME=VALUE"
    // When this is over it is asked to end (SIGTERM), and waited for: it ends where it leaves
    // nothing half done, or not at all.
    std::chrono::milliseconds limit{60'000};
};

struct ProgramEnd {
    int status = 0;      // of its exit
    std::string output;  // of both streams
};

// Any thread but a reactor's. It has nothing to read, and hears all signals. Errors: unsupported
// (it is not there), timeout (it was ended by a signal), limit, io.
Result<ProgramEnd> run_program(const Program& program);

}  // namespace replica
