// SPDX-License-Identifier: Apache-2.0
// getaddrinfo() can block for half a minute, so it has a thread that nobody waits for: it shares a
// Lookup with the connector, which is cut loose when the connector does not want the answer any
// more.
#include "engine/io/connector.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {

namespace {

// Threads that hang in a dead name server must not pile up.
constexpr int lookups_max = 16;
std::atomic<int> lookups_running = 0;

// Enough for getaddrinfo and its modules; the default of 8 MiB would count as locked memory.
constexpr std::size_t lookup_stack_bytes = 512U << 10;

bool connected_to_itself(int fd) {
    const SocketAddress local = local_address(fd);
    return local.port() != 0 && local.text() == peer_address(fd).text();
}

}  // namespace

struct Connector::Lookup {
    std::mutex mutex;
    Connector* connector = nullptr;  // guarded by mutex; nullptr: nobody waits
    Endpoint endpoint;

    static void* run(void* argument);
};

void* Connector::Lookup::run(void* argument) {
    const std::unique_ptr<std::shared_ptr<Lookup>> owned(
        static_cast<std::shared_ptr<Lookup>*>(argument));
    const std::shared_ptr<Lookup> lookup = *owned;
    auto addresses =
        std::make_shared<Result<std::vector<SocketAddress>>>(resolve(lookup->endpoint, false));
    lookups_running -= 1;
    // The lock is held while posting: the reactor outlives the connector, and a connector that goes
    // away has to wait for it.
    const std::lock_guard lock(lookup->mutex);
    if (lookup->connector == nullptr) return nullptr;
    lookup->connector->reactor_.post([lookup, addresses] {
        // On the reactor's thread, where connectors live and die: no lock is needed to look.
        Connector* waiting = std::exchange(lookup->connector, nullptr);
        if (waiting != nullptr) waiting->looked_up(std::move(*addresses));
    });
    return nullptr;
}

Connector::Connector(Reactor& reactor) : reactor_(reactor) {
    connect_op_.context = timer_.context = finish_task_.context = this;
    connect_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<Connector*>(op.context)->connected(result);
    };
    timer_.callback = [](Timer& timer) {
        auto* self = static_cast<Connector*>(timer.context);
        self->give_up(
            {Errc::timeout, ETIMEDOUT,
             text_of("no connection to %s in %u ms: is the machine up, and the port open in "
                     "its firewall?",
                     self->endpoint_.text().c_str(),
                     static_cast<unsigned>(self->options_.timeout_ns / ns_per_ms))});
    };
    finish_task_.callback = [](Deferred& task) { static_cast<Connector*>(task.context)->finish(); };
}

Connector::~Connector() {
    ASSERT(!connect_op_.in_flight && !finish_task_.queued);
    forget_lookup();
    if (fd_ >= 0) ::close(fd_);
}

void Connector::forget_lookup() {
    if (!lookup_) return;
    const std::lock_guard lock(lookup_->mutex);
    lookup_->connector = nullptr;
}

void Connector::start(const Endpoint& endpoint, const ConnectOptions& options, Done done,
                      void* context) {
    ASSERT(!busy_ && done != nullptr);
    busy_ = true;
    failed_ = false;
    endpoint_ = endpoint;
    options_ = options;
    done_ = done;
    context_ = context;
    next_ = 0;
    addresses_.clear();
    error_ = {Errc::not_found, 0, {}};
    reactor_.set_timer(timer_, reactor_.now() + options.timeout_ns);
    if (!is_numeric(endpoint)) return begin_lookup();
    looked_up(resolve(endpoint, false));
}

void Connector::begin_lookup() {
    lookup_ = std::make_shared<Lookup>();
    lookup_->connector = this;
    lookup_->endpoint = endpoint_;
    // The thread handles no signals: they are the main thread's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, lookup_stack_bytes);
    auto argument = std::make_unique<std::shared_ptr<Lookup>>(lookup_);
    pthread_t thread;
    int failure = EAGAIN;
    if (lookups_running.fetch_add(1) < lookups_max) {
        failure = pthread_create(&thread, &attributes, Lookup::run, argument.get());
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (failure == 0) {
        [[maybe_unused]] auto* given_to_thread = argument.release();
        return;
    }
    lookups_running -= 1;
    give_up(
        {Errc::limit, failure,
         text_of("too many name servers' answers are awaited to look up %s: use a numeric address",
                 endpoint_.host.c_str())});
}

void Connector::looked_up(Result<std::vector<SocketAddress>> addresses) {
    lookup_.reset();
    if (failed_) return;
    if (!addresses) return give_up(addresses.error());
    addresses_ = std::move(addresses).value();
    try_next();
}

void Connector::try_next() {
    while (next_ < addresses_.size()) {
        const SocketAddress& address = addresses_[next_++];
        fd_ = socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd_ >= 0) {
            configure_tcp(fd_, options_.tcp);
            return reactor_.connect(connect_op_, fd_, address.get(), address.length);
        }
        error_ = {Errc::limit, errno,
                  text_of("no socket to connect to %s: %s", endpoint_.text().c_str(),
                          std::strerror(errno))};
    }
    give_up(std::move(error_));
}

void Connector::connected(std::int32_t result) {
    if (failed_) return finish();  // given up meanwhile
    // A port of the range for outgoing connections, and nobody listens: TCP lets a socket connect
    // to itself.
    if (result == 0 && connected_to_itself(fd_)) result = -ECONNREFUSED;
    if (result == 0) {
        timer_.clear();
        busy_ = false;
        return done_(context_, std::exchange(fd_, -1));
    }
    ::close(std::exchange(fd_, -1));
    error_ = {Errc::io, -result,
              text_of("no connection to %s: %s", endpoint_.text().c_str(), std::strerror(-result))};
    if (result == -ECANCELED) return give_up({Errc::cancelled, ECANCELED, error_.message});
    try_next();
}

void Connector::cancel() {
    if (!busy_) return;
    give_up({Errc::cancelled, ECANCELED,
             text_of("the connection to %s was not wanted any more", endpoint_.text().c_str())});
}

// Ends the attempt with `error`; `done` is called when the kernel and the lookup let go.
void Connector::give_up(Error error) {
    if (failed_) return;
    failed_ = true;
    error_ = std::move(error);
    timer_.clear();
    forget_lookup();
    lookup_.reset();
    if (connect_op_.in_flight) {
        shutdown(fd_, SHUT_RDWR);  // also ends what the cancel request may miss
        reactor_.cancel(connect_op_);
    } else {
        reactor_.defer(finish_task_);
    }
}

void Connector::finish() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    busy_ = false;
    done_(context_, std::move(error_));
}

}  // namespace replica
