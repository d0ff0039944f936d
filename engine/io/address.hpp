// SPDX-License-Identifier: Apache-2.0
// Where to listen and connect: "unix:PATH", "tcp:HOST:PORT" or "HOST:PORT", with IPv6 in brackets.
// Parsing never asks a name server; resolve() does, and blocks.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

struct SocketAddress {
    sockaddr_storage storage{};
    socklen_t length = 0;

    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
    int family() const { return storage.ss_family; }
    std::uint16_t port() const;  // 0 unless IPv4 or IPv6
    std::string text() const;    // as parse_endpoint() takes it
};

struct Endpoint {
    std::string unix_path;  // not empty: a Unix socket, the rest means nothing
    std::string host;       // a name or numeric address without brackets; empty: every address
    std::uint16_t port = 0;

    bool is_unix() const { return !unix_path.empty(); }
    std::string text() const;
};

// Errors: invalid, with what is wrong and an example.
Result<Endpoint> parse_endpoint(std::string_view text);

// Blocks while a name server is asked, unless the host is numeric. `to_listen`: an empty host means
// the wildcard address. At least one address, best first. Errors: not_found, invalid, io.
Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, bool to_listen);
// Does resolve() answer without a name server?
bool is_numeric(const Endpoint& endpoint);

struct TcpOptions {
    bool no_delay = true;
    std::uint32_t keepalive_idle_s = 10;     // quiet time before the first probe; 0: no keepalive
    std::uint32_t keepalive_interval_s = 5;  // between probes
    std::uint32_t keepalive_probes = 3;      // unanswered ones that end the connection
    std::uint32_t user_timeout_ms = 0;  // unacknowledged data ends the connection; 0: the kernel's
    std::uint32_t send_buffer_bytes = 0;  // 0: the kernel tunes it
};

// Sets them on a TCP socket; does nothing for a Unix socket. Errors of options that only tune are
// ignored.
void configure_tcp(int fd, const TcpOptions& options);

SocketAddress local_address(int fd);
SocketAddress peer_address(int fd);

}  // namespace replica
