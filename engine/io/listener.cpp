// SPDX-License-Identifier: Apache-2.0
// close() does not end an accept in the kernel: the socket is shut down (which does for TCP and
// Unix), the operation cancelled, and the descriptor closed when it has come back.
#include "engine/io/listener.hpp"

#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/text.hpp"

namespace replica {

namespace {

constexpr std::uint64_t accept_retry_ns = 100 * ns_per_ms;

Error listen_error(const Endpoint& endpoint, int os_errno) {
    const std::string where = endpoint.text();
    const char* w = where.c_str();
    switch (os_errno) {
        case EADDRINUSE:
            return {
                Errc::busy, os_errno,
                text_of("can not listen on %s: another program does; stop it, or choose another "
                        "address",
                        w)};
        case EACCES:
        case EPERM:
            return {
                Errc::permission, os_errno,
                text_of(
                    "can not listen on %s: not allowed; ports below 1024 need root, and a socket "
                    "file a directory that this user may write",
                    w)};
        case EADDRNOTAVAIL:
            return {Errc::not_found, os_errno,
                    text_of("can not listen on %s: this machine has no such address", w)};
        case ENOENT:
        case ENOTDIR:
            return {Errc::not_found, os_errno,
                    text_of("can not listen on %s: its directory does not exist; create it", w)};
        case EMFILE:
        case ENFILE:
            return {Errc::limit, os_errno,
                    text_of("can not listen on %s: out of descriptors; raise the limit (ulimit -n)",
                            w)};
        default:
            return {Errc::io, os_errno,
                    text_of("can not listen on %s: %s", w, std::strerror(os_errno))};
    }
}

// Is a server behind the socket file? A backlog that is full (EAGAIN) means that there is one.
bool somebody_listens(const SocketAddress& address) {
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return true;  // can not tell: leave it alone
    const bool refused =
        connect(probe, address.get(), address.length) != 0 && errno == ECONNREFUSED;
    close(probe);
    return !refused;
}

}  // namespace

Listener::Listener(Reactor& reactor, const ListenerOptions& options, ListenerOwner& owner)
    : reactor_(reactor), options_(options), owner_(owner) {
    accept_op_.context = retry_timer_.context = closed_task_.context = this;
    accept_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<Listener*>(op.context)->accepted(result);
    };
    retry_timer_.callback = [](Timer& t) { static_cast<Listener*>(t.context)->accept_next(); };
    closed_task_.callback = [](Deferred& task) {
        auto* self = static_cast<Listener*>(task.context);
        self->closed_ = true;
        self->owner_.on_listener_closed();
    };
}

Result<std::unique_ptr<Listener>> Listener::open(Reactor& reactor, const Endpoint& endpoint,
                                                 const ListenerOptions& options,
                                                 ListenerOwner& owner) {
    std::unique_ptr<Listener> listener(new Listener(reactor, options, owner));
    if (endpoint.is_unix()) {
        TRY_STATUS(listener->bind_unix(endpoint.unix_path));
    } else {
        TRY_STATUS(listener->bind_tcp(endpoint));
    }
    if (listen(listener->fd_, options.backlog) != 0) return listen_error(endpoint, errno);
    listener->accept_next();
    return listener;
}

Listener::~Listener() {
    ASSERT(!accept_op_.in_flight && !closed_task_.queued);
    if (fd_ >= 0) ::close(fd_);
}

Status Listener::bind_unix(const std::string& path) {
    endpoint_.unix_path = path;
    TRY(const auto addresses, resolve(endpoint_, true));
    const SocketAddress& address = addresses.front();
    fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0) return listen_error(endpoint_, errno);
    // bind() makes the file with the mode of the socket's own inode: no moment with another one.
    fchmod(fd_, 0600);
    int result = bind(fd_, address.get(), address.length);
    if (result != 0 && errno == EADDRINUSE) {
        struct stat st {};
        if (lstat(path.c_str(), &st) == 0 && !S_ISSOCK(st.st_mode)) {
            return Error{
                Errc::exists, EADDRINUSE,
                text_of("can not listen on %s: there is something that is no socket; move it "
                        "away, or choose another path",
                        path.c_str())};
        }
        if (somebody_listens(address)) return listen_error(endpoint_, EADDRINUSE);
        unlink(path.c_str());
        result = bind(fd_, address.get(), address.length);
    }
    if (result != 0) return listen_error(endpoint_, errno);
    struct stat st {};
    if (stat(path.c_str(), &st) == 0) {
        unix_device_ = st.st_dev;
        unix_inode_ = st.st_ino;
    }
    return ok_status();
}

Status Listener::bind_tcp(const Endpoint& endpoint) {
    TRY(const auto addresses, resolve(endpoint, true));
    int failure = EADDRNOTAVAIL;
    for (const SocketAddress& address : addresses) {
        fd_ = socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd_ < 0) {
            failure = errno;  // a kernel without IPv6, for one
            continue;
        }
        const int on = 1, off = 0;
        setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (endpoint.host.empty() && address.family() == AF_INET6) {
            setsockopt(fd_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        }
        if (bind(fd_, address.get(), address.length) == 0) {
            endpoint_ = endpoint;
            endpoint_.port = local_address(fd_).port();
            return ok_status();
        }
        failure = errno;
        ::close(fd_);
        fd_ = -1;
    }
    return listen_error(endpoint, failure);
}

void Listener::accept_next() {
    if (!closing_) reactor_.accept(accept_op_, fd_);
}

void Listener::accepted(std::int32_t result) {
    if (closing_ || result == -ECANCELED) {
        if (result >= 0) ::close(result);
        return maybe_closed();
    }
    if (result >= 0) {
        if (trouble_ != 0) {
            trouble_ = 0;
            owner_.on_accept_trouble(0);
        }
        configure_tcp(result, options_.tcp);
        owner_.on_accept(result);
        if (!closing_) return accept_next();
        return maybe_closed();
    }
    switch (-result) {
        case EINTR:
        case EAGAIN:
        case ECONNABORTED:  // the client was faster
        case EPROTO:
            return accept_next();
        default:
            break;
    }
    // Out of something: come back later rather than at once, or this becomes a busy loop.
    if (trouble_ == 0) owner_.on_accept_trouble(-result);
    trouble_ = -result;
    if (closing_) return maybe_closed();
    reactor_.set_timer(retry_timer_, reactor_.now() + accept_retry_ns);
}

void Listener::close() {
    if (closing_) return;
    closing_ = true;
    retry_timer_.clear();
    struct stat st {};
    if (endpoint_.is_unix() && lstat(endpoint_.unix_path.c_str(), &st) == 0 &&
        st.st_dev == unix_device_ && st.st_ino == unix_inode_) {
        unlink(endpoint_.unix_path.c_str());
    }
    shutdown(fd_, SHUT_RDWR);
    reactor_.cancel(accept_op_);
    maybe_closed();
}

void Listener::maybe_closed() {
    if (!closing_ || accept_op_.in_flight || closed_) return;
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
    reactor_.defer(closed_task_);
}

}  // namespace replica
