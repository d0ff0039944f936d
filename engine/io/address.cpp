// SPDX-License-Identifier: Apache-2.0
#include "engine/io/address.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <memory>

#include "engine/base/text.hpp"

namespace replica {

namespace {

std::string host_port(const std::string& host, unsigned port) {
    const bool brackets = host.find(':') != std::string::npos;
    return text_of(brackets ? "[%s]:%u" : "%s:%u", host.c_str(), port);
}

Error bad_endpoint(std::string_view text, const char* why) {
    return {
        Errc::invalid, 0,
        text_of("address \"%.*s\" %s: write HOST:PORT, [IPV6]:PORT, tcp:HOST:PORT or unix:/PATH",
                static_cast<int>(std::min<std::size_t>(text.size(), 256)), text.data(), why)};
}

Result<SocketAddress> unix_address(const std::string& path) {
    SocketAddress address;
    auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
    if (path.size() >= sizeof un->sun_path) {
        return Error{
            Errc::invalid, ENAMETOOLONG,
            text_of("socket path %s is longer than %zu bytes, which is the most that the kernel "
                    "takes: use a shorter one",
                    path.c_str(), sizeof un->sun_path - 1)};
    }
    un->sun_family = AF_UNIX;
    std::memcpy(un->sun_path, path.c_str(), path.size() + 1);
    address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
    return address;
}

}  // namespace

std::uint16_t SocketAddress::port() const {
    if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
    if (family() == AF_INET6) {
        return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
    }
    return 0;
}

std::string SocketAddress::text() const {
    if (family() == AF_UNIX) {
        const auto* un = reinterpret_cast<const sockaddr_un*>(&storage);
        const bool named = length > offsetof(sockaddr_un, sun_path) && un->sun_path[0] != '\0';
        return named ? text_of("unix:%s", un->sun_path) : "unix:";
    }
    char host[NI_MAXHOST];
    if (getnameinfo(get(), length, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) return "?";
    return host_port(host, port());
}

std::string Endpoint::text() const {
    return is_unix() ? "unix:" + unix_path : host_port(host, port);
}

Result<Endpoint> parse_endpoint(std::string_view text) {
    Endpoint endpoint;
    if (text.find('\0') != text.npos) return bad_endpoint(text, "holds a zero byte");
    if (text.starts_with("unix:")) {
        endpoint.unix_path = text.substr(5);
        if (endpoint.unix_path.empty()) return bad_endpoint(text, "has no path");
        TRY([[maybe_unused]] const auto checked, unix_address(endpoint.unix_path));
        return endpoint;
    }
    const std::string_view rest = text.starts_with("tcp:") ? text.substr(4) : text;
    const std::size_t colon = rest.rfind(':');
    if (colon == rest.npos) return bad_endpoint(text, "has no port");
    std::string_view host = rest.substr(0, colon);
    const std::string_view port = rest.substr(colon + 1);
    if (host.starts_with('[') && host.ends_with(']')) {
        host = host.substr(1, host.size() - 2);
    } else if (host.find_first_of(":[]") != host.npos) {
        return bad_endpoint(text, "has an IPv6 address without brackets");
    }
    const auto parsed = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
    if (port.empty() || parsed.ec != std::errc{} || parsed.ptr != port.data() + port.size()) {
        return bad_endpoint(text, "has a port that is no number from 0 to 65535");
    }
    if (host != "*") endpoint.host = host;
    if (endpoint.host.size() > 255)
        return bad_endpoint(text, "has a host name longer than 255 bytes");
    return endpoint;
}

bool is_numeric(const Endpoint& endpoint) {
    if (endpoint.is_unix() || endpoint.host.empty()) return true;
    addrinfo hints{};
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    addrinfo* list = nullptr;
    if (getaddrinfo(endpoint.host.c_str(), nullptr, &hints, &list) != 0) return false;
    freeaddrinfo(list);
    return true;
}

Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, bool to_listen) {
    if (endpoint.is_unix()) {
        TRY(const auto address, unix_address(endpoint.unix_path));
        return std::vector<SocketAddress>{address};
    }
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV | (to_listen ? AI_PASSIVE : 0);
    addrinfo* list = nullptr;
    const char* host = endpoint.host.empty() ? nullptr : endpoint.host.c_str();
    const int failure = getaddrinfo(host, std::to_string(endpoint.port).c_str(), &hints, &list);
    if (failure != 0) {
        const int os_errno = failure == EAI_SYSTEM ? errno : 0;
        return Error{
            failure == EAI_AGAIN || failure == EAI_SYSTEM ? Errc::io : Errc::not_found, os_errno,
            text_of("host %s is not known (%s): correct the name, or use a numeric address",
                    host == nullptr ? "*" : host, gai_strerror(failure))};
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(list, freeaddrinfo);
    std::vector<SocketAddress> addresses;
    for (const addrinfo* info = list; info != nullptr; info = info->ai_next) {
        if (info->ai_family != AF_INET && info->ai_family != AF_INET6) continue;
        SocketAddress address;
        std::memcpy(&address.storage, info->ai_addr, info->ai_addrlen);
        address.length = info->ai_addrlen;
        addresses.push_back(address);
    }
    // The wildcard of IPv6 takes IPv4 too, so it is the better one to listen on.
    if (to_listen && host == nullptr) {
        std::stable_partition(addresses.begin(), addresses.end(),
                              [](const SocketAddress& a) { return a.family() == AF_INET6; });
    }
    if (addresses.empty()) {
        return Error{Errc::not_found, 0, text_of("host %s has no IPv4 or IPv6 address", host)};
    }
    return addresses;
}

void configure_tcp(int fd, const TcpOptions& options) {
    const int family = local_address(fd).family();
    if (family != AF_INET && family != AF_INET6) return;
    const auto set = [fd](int level, int name, std::uint32_t value) {
        const int v = static_cast<int>(value);
        setsockopt(fd, level, name, &v, sizeof v);
    };
    set(IPPROTO_TCP, TCP_NODELAY, options.no_delay ? 1 : 0);
    set(SOL_SOCKET, SO_KEEPALIVE, options.keepalive_idle_s != 0 ? 1 : 0);
    if (options.keepalive_idle_s != 0) {
        set(IPPROTO_TCP, TCP_KEEPIDLE, options.keepalive_idle_s);
        set(IPPROTO_TCP, TCP_KEEPINTVL, options.keepalive_interval_s);
        set(IPPROTO_TCP, TCP_KEEPCNT, options.keepalive_probes);
    }
    if (options.user_timeout_ms != 0) set(IPPROTO_TCP, TCP_USER_TIMEOUT, options.user_timeout_ms);
    if (options.send_buffer_bytes != 0) set(SOL_SOCKET, SO_SNDBUF, options.send_buffer_bytes);
}

SocketAddress local_address(int fd) {
    SocketAddress address;
    address.length = sizeof address.storage;
    if (getsockname(fd, address.get(), &address.length) != 0) return SocketAddress{};
    return address;
}

SocketAddress peer_address(int fd) {
    SocketAddress address;
    address.length = sizeof address.storage;
    if (getpeername(fd, address.get(), &address.length) != 0) return SocketAddress{};
    return address;
}

}  // namespace replica
