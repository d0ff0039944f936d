// SPDX-License-Identifier: Apache-2.0
// printf into a std::string, for the messages of errors: the engine is built without exceptions,
// so it does without fmt. Not for the write path, it allocates.
#pragma once

#include <string>

namespace replica {

// Thread-safe. Empty if the format itself is broken, which the compiler reports beforehand.
std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace replica
