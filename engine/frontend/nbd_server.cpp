// SPDX-License-Identifier: Apache-2.0
// See nbd_server.hpp.
#include "engine/frontend/nbd_server.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/assert.hpp"

namespace replica {

namespace {

constexpr int backlog = 64;
constexpr std::uint64_t accept_retry_ns = 200 * ns_per_ms;
constexpr std::uint64_t buffer_retry_ns = ns_per_ms;

Error system_error(const std::string& what, int error) {
    const Errc code = error == EACCES || error == EPERM ? Errc::permission
                      : error == EADDRINUSE             ? Errc::busy
                                                        : Errc::io;
    return Error{code, error, what + ": " + std::strerror(error)};
}

// A socket that nobody listens on any more is left over from a server that was killed.
bool somebody_listens(const sockaddr_un& address) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return true;
    const int failed =
        connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    close(fd);
    return failed != ECONNREFUSED;
}

struct HostAndPort {
    std::string host;
    std::string port;
};

Result<HostAndPort> split_address(const std::string& text) {
    const std::size_t colon = text.rfind(':');
    const bool bracketed = !text.empty() && text.front() == '[';
    const Error wrong{Errc::invalid, 0,
                      "\"tcp:" + text + "\" is not tcp:HOST:PORT with a port of 0..65535"};
    if (colon == std::string::npos) return wrong;
    HostAndPort result{text.substr(0, colon), text.substr(colon + 1)};
    if (bracketed) {
        if (colon < 2 || text[colon - 1] != ']') return wrong;
        result.host = text.substr(1, colon - 2);
    } else if (result.host.find(':') != std::string::npos) {
        return wrong;
    }
    if (result.host.empty() || result.host == "localhost") result.host = "127.0.0.1";
    const bool digits = std::all_of(result.port.begin(), result.port.end(),
                                    [](char c) { return c >= '0' && c <= '9'; });
    if (result.port.empty() || result.port.size() > 5 || !digits ||
        std::stoul(result.port) > 65535) {
        return wrong;
    }
    return result;
}

std::string bound_door(int fd) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    char host[NI_MAXHOST];
    char port[NI_MAXSERV];
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
        getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return "tcp:?";
    }
    const bool v6 = address.ss_family == AF_INET6;
    return std::string("tcp:") + (v6 ? "[" : "") + host + (v6 ? "]:" : ":") + port;
}

}  // namespace

NbdServer::NbdServer(Reactor& reactor, Volume& volume, std::string export_name,
                     NbdServerOptions options)
    : context_{reactor, volume, std::move(options), std::move(export_name), 0, this, {}, {}, {}} {
    context_.on_starved = [](void* server) {
        auto& self = *static_cast<NbdServer*>(server);
        if (self.retry_timer_.is_set()) return;
        Reactor& r = self.context_.reactor;
        r.set_timer(self.retry_timer_, r.now() + buffer_retry_ns);
    };
    // Retried only when a buffer was released: a retry that finds none must not lead to another, or
    // the turn would never end.
    context_.on_released = [](void* server) {
        auto& self = *static_cast<NbdServer*>(server);
        if (self.context_.starved == 0) return;
        self.released_ = true;
        self.context_.reactor.defer(self.turn_);
    };
    context_.on_ended = [](void* server) {
        auto& self = *static_cast<NbdServer*>(server);
        self.context_.reactor.defer(self.turn_);
    };
    accept_op_.context = accept_timer_.context = retry_timer_.context = turn_.context = this;
    accept_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<NbdServer*>(op.context)->on_accepted(result);
    };
    accept_timer_.callback = [](Timer& timer) { static_cast<NbdServer*>(timer.context)->accept(); };
    retry_timer_.callback = [](Timer& timer) {
        static_cast<NbdServer*>(timer.context)->on_retry();
    };
    turn_.callback = [](Deferred& task) { static_cast<NbdServer*>(task.context)->on_turn(); };
    connections_.reserve(context_.options.clients_max);
}

NbdServer::~NbdServer() { ASSERT(fd_ < 0 && clients() == 0 && !turn_.queued); }

Status NbdServer::start(const std::string& door) {
    ASSERT(fd_ < 0 && !stopped_);
    if (door.starts_with("unix:")) {
        TRY_STATUS(listen_unix(door.substr(5)));
    } else if (door.starts_with("tcp:")) {
        TRY_STATUS(listen_tcp(door.substr(4)));
    } else {
        return Error{Errc::invalid, 0,
                     "\"" + door + "\" is no door: use unix:PATH or tcp:HOST:PORT"};
    }
    accept();
    return ok_status();
}

Status NbdServer::listen_unix(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path) {
        return Error{Errc::invalid, 0,
                     "\"unix:" + path + "\": a socket path has 1 to " +
                         std::to_string(sizeof address.sun_path - 1) + " bytes"};
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    const std::string what = "listening on unix:" + path;
    struct stat found {};
    if (lstat(path.c_str(), &found) == 0) {
        if (!S_ISSOCK(found.st_mode)) {
            return Error{Errc::exists, 0, what + ": the file exists and is no socket"};
        }
        if (somebody_listens(address)) {
            return Error{Errc::busy, EADDRINUSE,
                         what + ": another server listens there; use another path"};
        }
        if (unlink(path.c_str()) != 0) return system_error(what, errno);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return system_error(what, errno);
    // The mode of the file that bind() makes, so that it is never open to others.
    static_cast<void>(fchmod(fd, 0600));
    if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        chmod(path.c_str(), 0600) != 0 || ::listen(fd, backlog) != 0 ||
        lstat(path.c_str(), &found) != 0) {
        const int error = errno;
        close(fd);
        return system_error(what, error);
    }
    fd_ = fd;
    socket_path_ = path;
    socket_device_ = found.st_dev;
    socket_inode_ = found.st_ino;
    door_ = "unix:" + path;
    return ok_status();
}

Status NbdServer::listen_tcp(const std::string& host_and_port) {
    TRY(const HostAndPort where, split_address(host_and_port));
    const std::string what = "listening on tcp:" + host_and_port;
    addrinfo hints{};
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    if (getaddrinfo(where.host.c_str(), where.port.c_str(), &hints, &list) != 0) {
        return Error{Errc::invalid, 0,
                     what + ": HOST must be an address of this machine, in numbers"};
    }
    const int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    const bool listens = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
                         bind(fd, list->ai_addr, list->ai_addrlen) == 0 &&
                         ::listen(fd, backlog) == 0;
    const int error = errno;
    freeaddrinfo(list);
    if (!listens) {
        if (fd >= 0) close(fd);
        return system_error(what, error);
    }
    fd_ = fd;
    door_ = bound_door(fd);
    return ok_status();
}

// Not if another server has taken the path over in the meantime.
void NbdServer::remove_socket_file() {
    struct stat found {};
    if (socket_path_.empty() || lstat(socket_path_.c_str(), &found) != 0) return;
    if (found.st_dev != socket_device_ || found.st_ino != socket_inode_) return;
    static_cast<void>(unlink(socket_path_.c_str()));
}

void NbdServer::stop(std::function<void()> done) {
    ASSERT(done && !stopped_);
    stopped_ = std::move(done);
    accept_timer_.clear();
    remove_socket_file();
    if (fd_ >= 0) static_cast<void>(shutdown(fd_, SHUT_RDWR));
    context_.reactor.cancel(accept_op_);
    for (auto& connection : connections_)
        connection->finish();
    context_.reactor.defer(turn_);
}

std::uint32_t NbdServer::clients() const {
    return static_cast<std::uint32_t>(
        std::count_if(connections_.begin(), connections_.end(),
                      [](const auto& connection) { return !connection->idle(); }));
}

void NbdServer::accept() {
    if (!stopped_) context_.reactor.accept(accept_op_, fd_);
}

void NbdServer::on_accepted(std::int32_t result) {
    if (stopped_ || result == -ECANCELED) {
        if (result >= 0) close(result);
        context_.reactor.defer(turn_);
        return;
    }
    if (result < 0 && result != -ECONNABORTED && result != -EINTR && result != -EAGAIN) {
        // Out of descriptors or memory: clients wait in the backlog until there is some again.
        log(LOG_WARNING, std::string("cannot accept a client now: ") + std::strerror(-result));
        context_.reactor.set_timer(accept_timer_, context_.reactor.now() + accept_retry_ns);
        return;
    }
    if (result >= 0) {
        NbdConnection* const connection = free_connection();
        if (connection == nullptr) {
            log(LOG_WARNING, "a client was turned away: " +
                                 std::to_string(context_.options.clients_max) + " are connected");
            close(result);
        } else {
            connection->open(result, ++clients_seen_);
        }
    }
    accept();
}

NbdConnection* NbdServer::free_connection() {
    for (auto& connection : connections_) {
        if (connection->idle()) return connection.get();
    }
    if (connections_.size() == context_.options.clients_max) return nullptr;
    connections_.push_back(std::make_unique<NbdConnection>(context_));
    return connections_.back().get();
}

// A millisecond after somebody found no buffer: others than our clients take and return them too.
void NbdServer::on_retry() {
    for (auto& connection : connections_)
        connection->maybe_drop_stalled();
    released_ = true;
    context_.reactor.defer(turn_);
}

void NbdServer::on_turn() {
    if (released_) {
        released_ = false;
        ++retry_first_;
        for (std::size_t i = 0; i < connections_.size(); ++i) {
            connections_[(retry_first_ + i) % connections_.size()]->retry();
        }
    }
    if (!stopped_ || accept_op_.in_flight || clients() > 0) return;
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
    door_.clear();
    retry_timer_.clear();
    // The server may be destroyed inside.
    const std::function<void()> done = std::move(stopped_);
    stopped_ = nullptr;
    done();
}

void NbdServer::log(int level, const std::string& text) const {
    if (!context_.options.log) return;
    context_.options.log(level, "nbd " + context_.export_name + ": " + text);
}

}  // namespace replica
