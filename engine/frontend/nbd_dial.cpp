// SPDX-License-Identifier: Apache-2.0
// See nbd_dial.hpp.
#include "engine/frontend/nbd_dial.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/base/text.hpp"
#include "engine/frontend/nbd_wire.hpp"
#include "engine/io/address.hpp"

namespace replica {
namespace {

constexpr std::uint32_t reply_bytes_max = 4096;
// The kernel alone would try for a quarter of an hour to bring something to a machine that is gone,
// and for ever to a server that does not read.
constexpr std::uint32_t silence_ms = 15'000;

class Dialler {
  public:
    Dialler(const std::string& door, std::chrono::milliseconds limit)
        : door_(door), limit_(limit) {}
    ~Dialler() {
        if (fd_ >= 0) ::close(fd_);
    }
    Dialler(const Dialler&) = delete;
    Dialler& operator=(const Dialler&) = delete;

    Status connect();
    Result<DialledExport> shake_hands(const std::string& export_name);

  private:
    Error failed(const char* what) const {
        const bool late = errno == EAGAIN || errno == EINPROGRESS || errno == ETIMEDOUT;
        return {late ? Errc::timeout : Errc::io, errno,
                text_of("%s: %s: %s", door_.c_str(), what, std::strerror(errno))};
    }
    void set_limit(std::chrono::milliseconds limit) const {
        timeval wait{};
        wait.tv_sec = limit.count() / 1000;
        wait.tv_usec = limit.count() % 1000 * 1000;
        ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    }
    Status try_address(int family, const sockaddr* address, socklen_t length);
    Status send_all(std::span<const std::byte> bytes) const;
    Status receive_all(std::span<std::byte> bytes) const;
    Status send_go(const std::string& export_name) const;

    const std::string door_;
    const std::chrono::milliseconds limit_;
    int fd_ = -1;
};

// Both limits hold for connect(2), too.
Status Dialler::try_address(int family, const sockaddr* address, socklen_t length) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0) return failed("no socket");
    set_limit(limit_);
    if (::connect(fd_, address, length) != 0) return failed("no connection");
    TcpOptions options;
    options.user_timeout_ms = silence_ms;
    configure_tcp(fd_, options);
    return ok_status();
}

Status Dialler::connect() {
    TRY(const Endpoint endpoint, parse_endpoint(door_));
    if (endpoint.is_unix()) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (endpoint.unix_path.size() >= sizeof address.sun_path) {
            return Error{Errc::invalid, 0, door_ + ": the path is too long for a socket"};
        }
        std::memcpy(address.sun_path, endpoint.unix_path.data(), endpoint.unix_path.size());
        return try_address(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address);
    }
    TRY(const auto addresses, resolve(endpoint, false));
    Status last = ok_status();
    for (const SocketAddress& address : addresses) {
        last = try_address(address.family(), address.get(), address.length);
        if (last) break;
    }
    return last;
}

Status Dialler::send_all(std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return failed("the handshake");
        bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
    return ok_status();
}

Status Dialler::receive_all(std::span<std::byte> bytes) const {
    while (!bytes.empty()) {
        const ssize_t got = ::recv(fd_, bytes.data(), bytes.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return failed("the handshake");
        if (got == 0) return Error{Errc::io, 0, door_ + " ends the connection in the handshake"};
        bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
    return ok_status();
}

Status Dialler::send_go(const std::string& export_name) const {
    const auto name_bytes = static_cast<std::uint32_t>(export_name.size());
    std::vector<std::byte> hello(nbd::client_flags_bytes + nbd::option_header_bytes + 4 +
                                 name_bytes + 2);
    std::byte* p = hello.data();
    store_be(p, std::uint32_t{nbd::flag_fixed_newstyle | nbd::flag_no_zeroes});
    store_be(p + 4, nbd::option_magic);
    store_be(p + 12, static_cast<std::uint32_t>(nbd::Option::go));
    store_be(p + 16, 4 + name_bytes + 2);
    store_be(p + 20, name_bytes);
    std::memcpy(p + 24, export_name.data(), name_bytes);
    store_be(p + 24 + name_bytes, std::uint16_t{0});  // no more than must be told
    return send_all(hello);
}

Result<DialledExport> Dialler::shake_hands(const std::string& export_name) {
    std::array<std::byte, nbd::greeting_bytes> greeting;
    TRY_STATUS(receive_all(greeting));
    const auto flags = load_be<std::uint16_t>(greeting.data() + 16);
    if (load_be<std::uint64_t>(greeting.data()) != nbd::greeting_magic ||
        load_be<std::uint64_t>(greeting.data() + 8) != nbd::option_magic ||
        (flags & nbd::flag_fixed_newstyle) == 0) {
        return Error{Errc::invalid, 0, door_ + " is no NBD server that we know how to talk to"};
    }
    TRY_STATUS(send_go(export_name));
    DialledExport found;
    for (;;) {
        std::array<std::byte, nbd::option_reply_header_bytes> header;
        TRY_STATUS(receive_all(header));
        const auto type = static_cast<nbd::OptionReply>(load_be<std::uint32_t>(header.data() + 12));
        const auto length = load_be<std::uint32_t>(header.data() + 16);
        if (load_be<std::uint64_t>(header.data()) != nbd::option_reply_magic ||
            length > reply_bytes_max) {
            return Error{Errc::invalid, 0, door_ + " answers nonsense"};
        }
        std::vector<std::byte> data(length);
        TRY_STATUS(receive_all(data));
        if (type == nbd::OptionReply::ack) break;
        if (type != nbd::OptionReply::info) {
            return Error{
                Errc::invalid, 0,
                text_of("%s does not serve %s: %.*s", door_.c_str(), export_name.c_str(),
                        static_cast<int>(length), reinterpret_cast<const char*>(data.data()))};
        }
        if (length < 12 || load_be<std::uint16_t>(data.data()) != 0) continue;
        found.size_bytes = load_be<std::uint64_t>(data.data() + 2);
        found.transmission_flags = load_be<std::uint16_t>(data.data() + 10);
    }
    if (found.size_bytes == 0) return Error{Errc::invalid, 0, door_ + " tells no size"};
    set_limit(std::chrono::milliseconds(0));  // none: a request may take long
    found.fd = std::exchange(fd_, -1);
    return found;
}

}  // namespace

Result<DialledExport> dial_nbd(const std::string& door, const std::string& export_name,
                               std::chrono::milliseconds limit) {
    Dialler dialler(door, limit);
    TRY_STATUS(dialler.connect());
    return dialler.shake_hands(export_name);
}

}  // namespace replica
