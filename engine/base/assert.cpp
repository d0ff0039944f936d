// SPDX-License-Identifier: Apache-2.0
// The failing half of ASSERT: one line on standard error, then SIGABRT, so that a core is left and
// the kernel completes nothing on the daemon's behalf.
#include "engine/base/assert.hpp"

#include <cstdio>
#include <cstdlib>

namespace replica {

void assert_failed(const char* condition, const char* file, int line) {
    std::fprintf(stderr, "replica: assertion failed: %s (%s:%d)\n", condition, file, line);
    std::fflush(stderr);
    std::abort();
}

}  // namespace replica
