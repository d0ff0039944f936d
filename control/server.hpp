// SPDX-License-Identifier: Apache-2.0
// The control socket: a Unix stream socket (mode 0600) on which root and the daemon's own user
// speak JSON-RPC (protocol.hpp). One thread waits for clients and one small thread serves each of
// them, so a call that takes long holds up nobody else. Idle clients cost no CPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "control/service.hpp"
#include "engine/base/result.hpp"

namespace replica::control {

struct ServerOptions {
    std::string path;                         // absolute, at most 107 bytes
    unsigned clients_max = 64;                // more are told so and closed
    std::size_t events_queued_max = 1024;     // of one client; then the oldest go and a gap is told
    std::size_t output_bytes_max = 4U << 20;  // unread by one client; then its requests wait
};

class Server {
  public:
    // Makes the socket and starts serving. `service` must outlive the server. A socket file that
    // nobody listens on is replaced. Errors: invalid (path), busy (somebody listens), io and kin.
    static Result<std::unique_ptr<Server>> start(Service& service, const ServerOptions& options);
    // Stops the service (service.stop()), ends every client and removes the socket file.
    virtual ~Server() = default;
};

}  // namespace replica::control
