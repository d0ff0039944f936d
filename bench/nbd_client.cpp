// SPDX-License-Identifier: Apache-2.0
// The test client of NBD: handshake, framing and the socket. The numbers are those of the NBD
// protocol document; everything on the wire is big-endian.
#include "bench/nbd_client.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/base/endian.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t handshake_magic = 0x4e42444d41474943;  // NBDMAGIC
constexpr std::uint64_t option_magic = 0x49484156454f5054;     // IHAVEOPT
constexpr std::uint64_t option_reply_magic = 0x3e889045565a9;
constexpr std::uint32_t request_magic = 0x25609513;
constexpr std::uint32_t reply_magic = 0x67446698;
constexpr std::uint32_t client_flags = 3;  // fixed newstyle, no zeroes
constexpr std::uint32_t option_go = 7;
constexpr std::uint32_t reply_ack = 1;
constexpr std::uint32_t reply_info = 3;
constexpr std::uint16_t info_export = 0;
constexpr std::uint32_t option_reply_bytes_max = 4096;

enum Command : std::uint16_t { command_read, command_write, command_disconnect, command_flush };

}  // namespace

NbdClient::~NbdClient() {
    if (fd_ >= 0) ::close(fd_);
}

bool NbdClient::fail(std::string why) {
    if (why_.empty()) why_ = std::move(why);
    return false;
}

bool NbdClient::open(const std::string& socket_path, const std::string& export_name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (socket_path.size() >= sizeof address.sun_path) return fail("the socket's path is too long");
    std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0) return fail(std::string("socket: ") + std::strerror(errno));
    timeval wait{};
    wait.tv_sec = wait_seconds_max_;
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return fail(socket_path + ": " + std::strerror(errno));
    }
    return handshake(export_name);
}

bool NbdClient::handshake(const std::string& export_name) {
    std::array<std::byte, 18> greeting;
    if (!receive_all(greeting)) return fail("no greeting");
    if (load_be<std::uint64_t>(greeting.data()) != handshake_magic ||
        load_be<std::uint64_t>(greeting.data() + 8) != option_magic) {
        return fail("the greeting is not that of an NBD server");
    }
    const auto name_bytes = static_cast<std::uint32_t>(export_name.size());
    std::vector<std::byte> hello(4 + 8 + 4 + 4 + 4 + name_bytes + 2);
    std::byte* p = hello.data();
    store_be(p, client_flags);
    store_be(p + 4, option_magic);
    store_be(p + 12, option_go);
    store_be(p + 16, 4 + name_bytes + 2);
    store_be(p + 20, name_bytes);
    std::memcpy(p + 24, export_name.data(), name_bytes);
    store_be(p + 24 + name_bytes, std::uint16_t{0});  // asks for no extra information
    return send_all(hello) && receive_option_replies();
}

bool NbdClient::receive_option_replies() {
    for (;;) {
        std::array<std::byte, 20> header;
        if (!receive_all(header)) return fail("the connection ended in the handshake");
        const auto type = load_be<std::uint32_t>(header.data() + 12);
        const auto length = load_be<std::uint32_t>(header.data() + 16);
        if (load_be<std::uint64_t>(header.data()) != option_reply_magic ||
            length > option_reply_bytes_max) {
            return fail("a bad option reply");
        }
        std::vector<std::byte> data(length);
        if (!receive_all(data)) return fail("the connection ended in the handshake");
        if (type == reply_ack) return size_bytes_ > 0 || fail("the server told no size");
        if (type == reply_info && length >= 12 &&
            load_be<std::uint16_t>(data.data()) == info_export) {
            size_bytes_ = load_be<std::uint64_t>(data.data() + 2);
        } else if (type != reply_info) {
            return fail("the export was refused: " +
                        std::string(reinterpret_cast<const char*>(data.data()), data.size()));
        }
    }
}

bool NbdClient::send_request(std::uint16_t type, std::uint64_t cookie, std::uint64_t offset,
                             std::uint32_t length) {
    std::array<std::byte, 28> header;
    store_be(header.data(), request_magic);
    store_be(header.data() + 4, std::uint16_t{0});
    store_be(header.data() + 6, type);
    store_be(header.data() + 8, cookie);
    store_be(header.data() + 16, offset);
    store_be(header.data() + 24, length);
    return send_all(header);
}

bool NbdClient::send_write(std::uint64_t cookie, std::uint64_t offset,
                           std::span<const std::byte> data) {
    const auto length = static_cast<std::uint32_t>(data.size());
    return send_request(command_write, cookie, offset, length) && send_all(data);
}

bool NbdClient::send_flush(std::uint64_t cookie) {
    return send_request(command_flush, cookie, 0, 0);
}

bool NbdClient::send_disconnect() { return send_request(command_disconnect, 0, 0, 0); }

std::optional<NbdClient::Reply> NbdClient::receive() {
    std::array<std::byte, 16> header;
    if (!receive_all(header)) return std::nullopt;
    if (load_be<std::uint32_t>(header.data()) != reply_magic) {
        fail("a reply with a bad magic");
        return std::nullopt;
    }
    return Reply{load_be<std::uint64_t>(header.data() + 8),
                 load_be<std::uint32_t>(header.data() + 4)};
}

bool NbdClient::read(std::uint64_t offset, std::span<std::byte> into) {
    const auto length = static_cast<std::uint32_t>(into.size());
    if (!send_request(command_read, 1, offset, length)) return false;
    const auto reply = receive();
    if (!reply) return false;
    if (reply->error != 0) return fail("read failed with error " + std::to_string(reply->error));
    return receive_all(into);
}

bool NbdClient::send_all(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return fail(std::string("send: ") + std::strerror(errno));
        bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
    return true;
}

bool NbdClient::receive_all(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t got = ::recv(fd_, bytes.data(), bytes.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) return fail("the server closed the connection");
        if (got < 0 && errno == EAGAIN) {
            return fail("no answer for " + std::to_string(wait_seconds_max_) + " s");
        }
        if (got < 0) return fail(std::string("recv: ") + std::strerror(errno));
        bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
    return true;
}

}  // namespace replica::test
