// SPDX-License-Identifier: Apache-2.0
// See acceptor.hpp.
#include "engine/node/acceptor.hpp"

#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/crc32c.hpp"
#include "engine/base/text.hpp"
#include "engine/node/accepted_socket.hpp"

namespace replica {
namespace {

constexpr std::size_t pending_max = 64;
constexpr std::uint64_t hello_timeout_ns = 5 * ns_per_s;
constexpr std::uint64_t complaint_interval_ns = ns_per_s;
constexpr std::size_t complaints_max = 256;

// The address without the port, which is another one each time.
std::string source_of(int fd) {
    const std::string text = peer_address(fd).text();
    return text.substr(0, text.rfind(':'));
}

}  // namespace

Acceptor::Acceptor(ReactorThread& thread, Route route, Log log)
    : thread_(thread), reactor_(thread.reactor()), route_(std::move(route)), log_(std::move(log)) {}

Acceptor::~Acceptor() { ASSERT(!listener_ && pending_.empty()); }

Result<std::unique_ptr<Acceptor>> Acceptor::open(ReactorThread& thread, const std::string& address,
                                                 Route route, Log log) {
    TRY(const Endpoint endpoint, parse_endpoint(address));
    if (endpoint.is_unix()) {
        return Error{Errc::invalid, 0, address + ": peers are listened for on HOST:PORT only"};
    }
    // A name server is asked here, not on the reactor.
    TRY(const auto addresses, resolve(endpoint, true));
    TRY(const Endpoint numeric, parse_endpoint(addresses.front().text()));
    std::unique_ptr<Acceptor> self(new Acceptor(thread, std::move(route), std::move(log)));
    ListenerOwner& owner = *self;
    auto opened = thread.call([&] { return Listener::open(thread.reactor(), numeric, {}, owner); });
    if (!opened) return opened.error();
    self->listener_ = std::move(opened).value();
    self->address_ = self->listener_->endpoint().text();
    return self;
}

void Acceptor::close() {
    reactor_.post([this] {
        closing_ = true;
        for (auto at = pending_.begin(); at != pending_.end();) {
            Pending& pending = *at++;
            drop(pending, "");
        }
        listener_->close();
    });
    closed_.wait();
    // The listener is destroyed on its thread, and with it what its callbacks touch.
    thread_.call([this] {
        listener_.reset();
        return true;
    });
}

void Acceptor::on_listener_closed() {
    listener_closed_ = true;
    maybe_closed();
}

void Acceptor::maybe_closed() {
    if (!listener_closed_ || !pending_.empty()) return;
    closed_.pass();
}

void Acceptor::on_accept_trouble(int error) {
    if (error == 0) return log_(LOG_NOTICE, "connections of peers are accepted again");
    log_(LOG_ERR, text_of("connections of peers can not be accepted: %s; raise the limit of open "
                          "files (ulimit -n)",
                          std::strerror(error)));
}

void Acceptor::on_accept(int fd) {
    if (closing_ || pending_.size() >= pending_max) {
        if (!closing_) complain(fd, "too many connections wait for their hello");
        ::close(fd);
        return;
    }
    Pending& pending = pending_.emplace_back();
    pending.acceptor = this;
    pending.fd = fd;
    pending.op.context = pending.timer.context = &pending;
    pending.op.callback = [](Op& op, std::int32_t result) {
        auto& ready = *static_cast<Pending*>(op.context);
        ready.acceptor->received(ready, result);
    };
    pending.timer.callback = [](Timer& timer) {
        auto& late = *static_cast<Pending*>(timer.context);
        late.acceptor->drop(late, "no hello came in 5 s");
    };
    reactor_.set_timer(pending.timer, reactor_.now() + hello_timeout_ns);
    receive(pending);
}

// Exactly the bytes of a hello, so that nothing behind it has to be handed on.
void Acceptor::receive(Pending& pending) {
    const std::size_t end =
        pending.have < wire_header_bytes ? wire_header_bytes : pending.frame.size();
    reactor_.recv(pending.op, pending.fd,
                  std::span(pending.frame).subspan(pending.have, end - pending.have), 0);
}

void Acceptor::received(Pending& pending, std::int32_t result) {
    if (pending.dropped) return forget(pending);
    if (result == -EINTR || result == -EAGAIN) return receive(pending);
    if (result <= 0) {
        if (pending.have > 0) complain(pending.fd, "the connection ended in the middle of a hello");
        return drop(pending, "");
    }
    pending.have += static_cast<std::size_t>(result);
    const std::span<const std::byte> frame(pending.frame);
    if (pending.have < wire_header_bytes) return receive(pending);
    const auto header = frame.first<wire_header_bytes>();
    const auto message = decode_header(header);
    if (!message) return drop(pending, message.error().message);
    if (message.value().type != MessageType::hello) {
        return drop(pending, "the first frame is no hello");
    }
    if (pending.have < frame.size()) return receive(pending);
    const auto payload = frame.subspan(wire_header_bytes);
    if (crc32c(payload) != header_payload_crc(header)) {
        return drop(pending, "a hello that fails its checksum");
    }
    const auto hello = decode_hello(payload);
    if (!hello) return drop(pending, hello.error().message);
    const int fd = std::exchange(pending.fd, -1);
    forget(pending);
    route_(fd, hello.value());
}

void Acceptor::drop(Pending& pending, const std::string& why) {
    if (pending.dropped) return;
    pending.dropped = true;
    pending.timer.clear();
    if (!why.empty()) complain(pending.fd, why);
    if (!pending.op.in_flight) return forget(pending);
    ::shutdown(pending.fd, SHUT_RDWR);
    reactor_.cancel(pending.op);
}

void Acceptor::forget(Pending& pending) {
    if (pending.fd >= 0) ::close(pending.fd);
    pending_.remove_if([&](const Pending& p) { return &p == &pending; });
    maybe_closed();
}

// Once for each source and second.
void Acceptor::complain(int fd, const std::string& why) {
    const std::string source = source_of(fd);
    if (complaints_.size() >= complaints_max && !complaints_.contains(source)) complaints_.clear();
    Complaint& complaint = complaints_[source];
    const Instant now = reactor_.now();
    if (complaint.at.ns != 0 && now.ns < complaint.at.ns + complaint_interval_ns) {
        ++complaint.silenced;
        return;
    }
    std::string line = "dropped a connection from " + source + ": " + why;
    if (complaint.silenced > 0) {
        line += text_of(" (and %llu more)", static_cast<unsigned long long>(complaint.silenced));
    }
    complaint = {now, 0};
    log_(LOG_WARNING, line);
}

}  // namespace replica
