// SPDX-License-Identifier: Apache-2.0
// See nbd_server.hpp.
#include "engine/frontend/nbd_server.hpp"

#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/assert.hpp"

namespace replica {

namespace {

constexpr std::uint64_t buffer_retry_ns = ns_per_ms;

Result<Endpoint> parse_door(const std::string& door) {
    if (!door.starts_with("unix:") && !door.starts_with("tcp:")) {
        return Error{Errc::invalid, 0,
                     "\"" + door + "\" is no door: use unix:PATH or tcp:HOST:PORT"};
    }
    TRY(Endpoint endpoint, parse_endpoint(door));
    if (door.starts_with("tcp::") || endpoint.host == "localhost") endpoint.host = "127.0.0.1";
    if (!is_numeric(endpoint)) {
        return Error{Errc::invalid, 0,
                     "\"" + door + "\": HOST must be an address of this machine, in numbers"};
    }
    return endpoint;
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
        self.left_ = true;
        self.context_.reactor.defer(self.turn_);
    };
    retry_timer_.context = turn_.context = this;
    retry_timer_.callback = [](Timer& timer) {
        static_cast<NbdServer*>(timer.context)->on_retry();
    };
    turn_.callback = [](Deferred& task) { static_cast<NbdServer*>(task.context)->on_turn(); };
    connections_.reserve(context_.options.clients_max);
}

NbdServer::~NbdServer() { ASSERT(clients() == 0 && !turn_.queued); }

Status NbdServer::start(const std::string& door) {
    ASSERT(!listener_ && !stopped_);
    TRY(const Endpoint endpoint, parse_door(door));
    ListenerOptions options;
    options.tcp.user_timeout_ms = 60'000;  // a host that has vanished holds nothing for longer
    TRY(listener_, Listener::open(context_.reactor, endpoint, options, *this));
    door_ = (endpoint.is_unix() ? "" : "tcp:") + listener_->endpoint().text();
    return ok_status();
}

void NbdServer::stop(std::function<void()> done) {
    ASSERT(done && !stopped_);
    stopped_ = std::move(done);
    if (listener_) listener_->close();
    for (auto& connection : connections_)
        connection->finish();
    context_.reactor.defer(turn_);
}

std::uint32_t NbdServer::clients() const {
    return static_cast<std::uint32_t>(
        std::count_if(connections_.begin(), connections_.end(),
                      [](const auto& connection) { return !connection->idle(); }));
}

void NbdServer::on_accept(int fd) {
    if (turns_away_) {
        log(LOG_NOTICE, "a client was turned away: this program ends");
        close(fd);
        return;
    }
    NbdConnection* const connection = free_connection();
    if (connection != nullptr) return connection->open(fd, ++clients_seen_);
    log(LOG_WARNING, "a client was turned away: " + std::to_string(context_.options.clients_max) +
                         " are connected");
    close(fd);
}

void NbdServer::on_accept_trouble(int error) {
    if (error == 0) return log(LOG_NOTICE, "clients are accepted again");
    log(LOG_WARNING, std::string("no client can be accepted now: ") + std::strerror(error));
}

void NbdServer::on_listener_closed() {
    listener_.reset();
    context_.reactor.defer(turn_);
}

void NbdServer::take(int fd) {
    NbdConnection* const connection = free_connection();
    ASSERT(connection != nullptr);
    connection->open(fd, ++clients_seen_, true);
}

void NbdServer::hold(std::function<void()> held) {
    ASSERT(connections_.size() == 1);
    connections_.front()->hold(std::move(held));
}

void NbdServer::resume() { connections_.front()->resume(); }

int NbdServer::give() {
    retry_timer_.clear();
    return connections_.front()->give();
}

void NbdServer::cut_off() {
    for (auto& connection : connections_)
        connection->cut_off();
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
    if (clients() > 0) return;
    const bool left = std::exchange(left_, false);
    if (!stopped_ && left && context_.options.deserted) {
        retry_timer_.clear();  // the server may go after this
        context_.options.deserted();
    }
    if (!stopped_ || listener_) return;
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
