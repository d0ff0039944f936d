// SPDX-License-Identifier: Apache-2.0
// What an application can ask of a volume.
#pragma once

#include <cstdint>

namespace replica {

enum class IoKind : std::uint8_t { read, write, flush, discard, write_zeroes };

}  // namespace replica
