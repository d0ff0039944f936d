// SPDX-License-Identifier: Apache-2.0
// An address to listen on that is this process's alone. On 127.0.0.1 a port that is free now may be
// that of another process's connection when a daemon is started again; nobody connects from here.
#pragma once

#include <unistd.h>

#include <string>

namespace replica::test {

// 127.64.0.0 to 127.127.255.255, by the process's id, which has 22 bits.
inline std::string own_address(unsigned port) {
    const auto own = static_cast<unsigned>(::getpid());
    return "127." + std::to_string(64 + (own >> 16)) + "." + std::to_string(own >> 8 & 255) + "." +
           std::to_string(own & 255) + ":" + std::to_string(port);
}

}  // namespace replica::test
