// SPDX-License-Identifier: Apache-2.0
// See server.hpp. The accepting thread also joins the threads of sessions that have ended. Threads
// have small stacks, because the daemon locks its memory and a locked stack is paid in full.
#include "control/server.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <list>

#include "control/fd.hpp"
#include "control/session.hpp"

namespace replica::control {
namespace {

constexpr std::size_t stack_bytes = 512U << 10;
constexpr int accept_backoff_ms = 100;

Result<Fd> listen_on(const std::string& path) {
    TRY_STATUS(check_path("control socket", path));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        return Error{Errc::invalid, 0,
                     fmt::format("the control socket path {} has {} bytes, at most {} are possible",
                                 path, path.size(), sizeof address.sun_path - 1)};
    }
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    const std::string what = fmt::format("can not listen on the control socket {}", path);

    const std::string directory = path.substr(0, path.rfind('/'));
    if (!directory.empty() && ::mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
        return errno_error(errno, fmt::format("{}: its directory {} can not be made; create it, or "
                                              "choose another path",
                                              what, directory));
    }
    Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!probe) return errno_error(errno, what);
    if (::connect(probe.get(), generic, sizeof address) == 0) {
        return Error{Errc::busy, EADDRINUSE,
                     fmt::format("another process serves the control socket {}; stop it, or choose "
                                 "another path",
                                 path)};
    }
    const bool refused = errno == ECONNREFUSED;
    struct stat found {};
    if (::lstat(path.c_str(), &found) == 0) {
        if (!S_ISSOCK(found.st_mode)) {
            return Error{Errc::exists, EEXIST,
                         fmt::format("{}: there is something that is no socket; move it away, or "
                                     "choose another path",
                                     what)};
        }
        if (refused) ::unlink(path.c_str());  // left by a process that was killed
    }
    Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!listener) return errno_error(errno, what);
    // The mode of the socket inode is what bind() gives the file: never open to others, not even
    // for a moment, and without touching the umask of the process.
    if (::fchmod(listener.get(), 0600) != 0) return errno_error(errno, what);
    if (::bind(listener.get(), generic, sizeof address) != 0) return errno_error(errno, what);
    if (::chmod(path.c_str(), 0600) != 0 || ::listen(listener.get(), 64) != 0) {
        return errno_error(errno, what);
    }
    return listener;
}

void send_and_forget(int fd, const std::string& line) {
    (void)!::send(fd, line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

// Starts `body(context)` on a thread with a small stack and all signals blocked: signals belong to
// the thread that waits for them.
int start_thread(pthread_t& thread, void* (*body)(void*), void* context) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_bytes);
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&thread, &attributes, body, context);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return error;
}

class SocketServer final : public Server {
  public:
    SocketServer(Service& service, const ServerOptions& options, Fd listener)
        : service_(service), options_(options), listener_(std::move(listener)) {}

    ~SocketServer() override {
        service_.stop();
        if (started_) {
            ::eventfd_write(stop_.get(), 1);
            pthread_join(acceptor_, nullptr);
        }
        ::unlink(options_.path.c_str());
    }

    Status start() {
        stop_ = Fd(::eventfd(0, EFD_CLOEXEC));
        ended_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!stop_ || !ended_) return errno_error(errno, "can not make an eventfd");
        const auto body = [](void* self) -> void* {
            static_cast<SocketServer*>(self)->accept_clients();
            return nullptr;
        };
        if (const int error = start_thread(acceptor_, body, this); error != 0) {
            return errno_error(error, "can not start a thread");
        }
        started_ = true;
        return ok_status();
    }

  private:
    struct Client {
        SocketServer* server = nullptr;
        std::unique_ptr<Session> session;
        pthread_t thread{};
        std::atomic<bool> ended = false;
    };

    void accept_clients() {
        for (;;) {
            std::array<pollfd, 3> fds{{{listener_.get(), POLLIN, 0},
                                       {stop_.get(), POLLIN, 0},
                                       {ended_.get(), POLLIN, 0}}};
            if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) break;
            if (fds[1].revents != 0) break;
            reap();
            if (fds[0].revents != 0) accept_one();
        }
        for (auto& client : clients_)
            pthread_join(client.thread, nullptr);
        clients_.clear();
    }

    void reap() {
        eventfd_t count = 0;
        ::eventfd_read(ended_.get(), &count);
        clients_.remove_if([](Client& client) {
            if (!client.ended) return false;
            pthread_join(client.thread, nullptr);
            return true;
        });
    }

    void accept_one() {
        Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!socket) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                // The client stays in the backlog; look again when something may be free.
                service_.log(LOG_WARNING,
                             errno_error(errno, "can not accept a control client").message);
                pollfd stop{stop_.get(), POLLIN, 0};
                ::poll(&stop, 1, accept_backoff_ms);
            }
            return;
        }
        ucred peer{};
        socklen_t length = sizeof peer;
        if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
        if (peer.uid != 0 && peer.uid != ::geteuid()) {
            const auto why = fmt::format(
                "uid {} may not control this node; root and uid {}, which it runs as, may",
                peer.uid, ::geteuid());
            send_and_forget(socket.get(), error_line(nullptr, Error{Errc::permission, 0, why}));
            service_.log(LOG_WARNING, fmt::format("control: refused: {}", why));
            return;
        }
        if (clients_.size() >= options_.clients_max) {
            const auto why =
                fmt::format("the node serves {} control clients already", options_.clients_max);
            send_and_forget(socket.get(), error_line(nullptr, Error{Errc::limit, 0, why}));
            service_.log(LOG_WARNING, fmt::format("control: refused: {}", why));
            return;
        }
        serve(std::move(socket), peer);
    }

    void serve(Fd socket, const ucred& peer) {
        auto& client = clients_.emplace_back();
        client.server = this;
        client.session =
            std::make_unique<Session>(service_, options_, std::move(socket), peer, stop_.get());
        const auto body = [](void* context) -> void* {
            auto* const self = static_cast<Client*>(context);
            self->session->run();
            self->session.reset();  // closes the socket now and not when it is joined
            const int wake = self->server->ended_.get();
            self->ended = true;
            ::eventfd_write(wake, 1);
            return nullptr;
        };
        if (const int error = start_thread(client.thread, body, &client); error != 0) {
            service_.log(LOG_WARNING, errno_error(error, "can not serve a control client").message);
            clients_.pop_back();
        }
    }

    Service& service_;
    const ServerOptions options_;
    Fd listener_;
    Fd stop_;   // readable: everything ends
    Fd ended_;  // readable: some session has ended
    bool started_ = false;
    pthread_t acceptor_{};
    std::list<Client> clients_;  // the accepting thread's own
};

}  // namespace

Result<std::unique_ptr<Server>> Server::start(Service& service, const ServerOptions& options) {
    TRY(auto listener, listen_on(options.path));
    auto server = std::make_unique<SocketServer>(service, options, std::move(listener));
    TRY_STATUS(server->start());
    return std::unique_ptr<Server>(std::move(server));
}

}  // namespace replica::control
