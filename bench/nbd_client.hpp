// SPDX-License-Identifier: Apache-2.0
// A small NBD client for benchmarks and tests: one Unix socket, fixed newstyle, simple replies,
// pipelined requests. Written from the protocol's text and not from our server, so that both can
// not be wrong alike. One thread; blocking, with a limit on every wait.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace replica::test {

class NbdClient {
  public:
    struct Reply {
        std::uint64_t cookie = 0;
        std::uint32_t error = 0;  // 0 or NBD's errno
    };

    // A wait longer than this is a failure of the server.
    explicit NbdClient(unsigned wait_seconds_max) : wait_seconds_max_(wait_seconds_max) {}
    ~NbdClient();
    NbdClient(const NbdClient&) = delete;
    NbdClient& operator=(const NbdClient&) = delete;

    // Connects and opens the export. False: why() says why.
    bool open(const std::string& socket_path, const std::string& export_name);

    std::uint64_t size_bytes() const { return size_bytes_; }
    const std::string& why() const { return why_; }

    // Sends a request. False: the connection is lost.
    bool send_write(std::uint64_t cookie, std::uint64_t offset, std::span<const std::byte> data);
    bool send_flush(std::uint64_t cookie);
    bool send_disconnect();
    // The next reply to a write or flush, in the server's order. Empty: the connection is lost.
    std::optional<Reply> receive();
    // Reads with no other request in flight. False: why() says why.
    bool read(std::uint64_t offset, std::span<std::byte> into);

  private:
    bool send_request(std::uint16_t type, std::uint64_t cookie, std::uint64_t offset,
                      std::uint32_t length);
    bool handshake(const std::string& export_name);
    bool receive_option_replies();
    bool send_all(std::span<const std::byte> bytes);
    bool receive_all(std::span<std::byte> bytes);
    bool fail(std::string why);

    unsigned wait_seconds_max_;
    int fd_ = -1;
    std::uint64_t size_bytes_ = 0;
    std::string why_;
};

}  // namespace replica::test
