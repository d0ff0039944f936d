// SPDX-License-Identifier: Apache-2.0
// The client's half of an NBD handshake, after which the socket is the kernel's business: who lets
// a device of this machine lead to another node's door.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "engine/base/result.hpp"

namespace replica {

struct DialledExport {
    int fd = -1;  // connected, in the transmission phase; the caller's
    std::uint64_t size_bytes = 0;
    std::uint16_t transmission_flags = 0;
};

// `door`: "tcp:HOST:PORT" or "unix:PATH". Blocks, `limit` at most for each step. Errors: not_found,
// invalid (the address; no NBD server; it refuses the export, and why), timeout, io.
Result<DialledExport> dial_nbd(const std::string& door, const std::string& export_name,
                               std::chrono::milliseconds limit);

}  // namespace replica
