// SPDX-License-Identifier: Apache-2.0
// Assertions for programmer errors. They stay on in release builds: a mirror that has lost track
// of its own state must stop before it acknowledges anything (docs/architecture.md, "Errors").
// Never used for operating errors (disk, network, peer) nor for bad input.
#pragma once

namespace replica {

// Prints the failed condition with its place to standard error and aborts. Never returns.
[[noreturn]] void assert_failed(const char* condition, const char* file, int line);

}  // namespace replica

#define ASSERT(condition)                              \
    (__builtin_expect(static_cast<bool>(condition), 1) \
         ? static_cast<void>(0)                        \
         : ::replica::assert_failed(#condition, __FILE__, __LINE__))

// For checks whose cost grows with the state. On in debug, sanitizer and simulator builds.
#ifdef REPLICA_EXPENSIVE_ASSERT
#define EXPENSIVE_ASSERT(condition) ASSERT(condition)
#else
#define EXPENSIVE_ASSERT(condition) static_cast<void>(0)
#endif
