// SPDX-License-Identifier: Apache-2.0
// See session.hpp. The socket is non-blocking; the only call that may take long is Service::call,
// and while it runs events gather in their bounded queue.
#include "control/session.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <utility>

namespace replica::control {
namespace {

constexpr std::size_t receive_bytes = 64U << 10;

std::string drain(EventQueue& queue, std::size_t bytes_max) {
    std::string lines;
    while (lines.size() < bytes_max) {
        const auto next = queue.pop();
        if (!next) break;
        lines += next->missed > 0 ? notification_line("events.gap", {{"missed", next->missed}})
                                  : notification_line("event", to_json(next->event));
    }
    return lines;
}

}  // namespace

Session::Session(Service& service, const ServerOptions& options, Fd socket, const ucred& peer,
                 int stop_fd)
    : service_(service), options_(options), socket_(std::move(socket)), stop_fd_(stop_fd) {
    caller_.who = fmt::format("uid {} pid {}", peer.uid, peer.pid);
    // A client that only shut down its sending side still wants its answer; one that has closed the
    // socket shows as POLLHUP.
    caller_.gone = [fd = socket_.get(), stop_fd] {
        std::array<pollfd, 2> fds{{{fd, 0, 0}, {stop_fd, POLLIN, 0}}};
        return ::poll(fds.data(), fds.size(), 0) > 0;
    };
}

Session::~Session() { unsubscribe(); }

void Session::run() {
    while (wait()) {
        if (!end_of_input_ && may_answer() && !receive()) return;
        handle_lines();
        if (events_ && may_answer())
            out_ += drain(*events_, options_.output_bytes_max - out_.size());
        if (!flush()) return;
        const bool finished = end_of_input_ && out_.empty() && !more_lines_;
        if (finished && !events_) return;
    }
}

bool Session::wait() {
    const bool can_work = may_answer();
    if (can_work && more_lines_) return true;
    const auto events = static_cast<short>((can_work && !end_of_input_ ? POLLIN : 0) |
                                           (out_.empty() ? 0 : POLLOUT));
    std::array<pollfd, 3> fds{{{socket_.get(), events, 0},
                               {stop_fd_, POLLIN, 0},
                               {events_ && can_work ? events_->fd() : -1, POLLIN, 0}}};
    while (::poll(fds.data(), fds.size(), -1) < 0) {
        if (errno != EINTR) return false;
    }
    if (fds[1].revents != 0) return false;
    // Closed by the client. What it sent before, if anything, is still read: a client may send a
    // command and go.
    return (fds[0].revents & (POLLHUP | POLLERR)) == 0 || (fds[0].revents & POLLIN) != 0;
}

bool Session::receive() {
    std::array<char, receive_bytes> buffer;
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) {
        end_of_input_ = true;  // half a line that was left is nobody's request
        return true;
    }
    in_.append(std::string_view(buffer.data(), static_cast<std::size_t>(got)));
    return true;
}

bool Session::flush() {
    while (!out_.empty()) {
        const ssize_t put =
            ::send(socket_.get(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return errno == EAGAIN;
        out_.erase(0, static_cast<std::size_t>(put));
    }
    return true;
}

void Session::handle_lines() {
    more_lines_ = true;
    while (may_answer()) {
        const auto line = in_.next();
        if (!line) {
            more_lines_ = false;
            break;
        }
        if (!line->empty()) handle(*line);
    }
    if (in_.overflown() && !end_of_input_) {
        out_ += error_line(nullptr, rpc_invalid_request,
                           fmt::format("a request line is longer than {} bytes", line_bytes_max));
        end_of_input_ = true;
        unsubscribe();
    }
}

void Session::handle(const std::string& line) {
    auto parsed = parse_request(line);
    if (const auto* refusal = std::get_if<RpcRefusal>(&parsed)) {
        out_ += refusal->response;
        return;
    }
    const auto& request = std::get<RpcRequest>(parsed);
    const bool own = request.method == "events.subscribe" || request.method == "events.unsubscribe";
    if (!own && !service_.has_method(request.method)) {
        if (request.has_id) {
            out_ += error_line(request.id, rpc_method_not_found,
                               fmt::format("there is no method \"{}\"", request.method));
        }
        return;
    }
    const auto result = dispatch(request);
    if (!request.has_id) return;
    out_ +=
        result ? result_line(request.id, result.value()) : error_line(request.id, result.error());
}

Result<Json> Session::dispatch(const RpcRequest& request) {
    if (request.method == "events.subscribe") return subscribe(request.params);
    if (request.method == "events.unsubscribe") {
        unsubscribe();
        return Json(Json::object());
    }
    return service_.call(request.method, request.params, caller_);
}

// Answers with the status of everything at a moment after the subscription began, so that a client
// that applies events to it misses nothing.
Result<Json> Session::subscribe(const Json& params) {
    const bool named = params.is_object() && params.contains("name") && params["name"].is_string();
    const std::string resource = named ? params["name"].get<std::string>() : "";
    auto queue = std::make_shared<EventQueue>(options_.events_queued_max, resource);
    if (!queue->usable()) return errno_error(errno, "can not make an event queue");
    const auto token =
        service_.node().subscribe([queue](const Event& event) { queue->push(event); });
    auto status = service_.call("status", params, caller_);
    if (!status) {
        service_.node().unsubscribe(token);
        return status;
    }
    unsubscribe();
    events_ = std::move(queue);
    token_ = token;
    return Json{{"status", std::move(status).value()}};
}

void Session::unsubscribe() {
    if (!events_) return;
    service_.node().unsubscribe(token_);
    events_.reset();
}

}  // namespace replica::control
