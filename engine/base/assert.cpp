// SPDX-License-Identifier: Apache-2.0
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
