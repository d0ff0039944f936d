// SPDX-License-Identifier: Apache-2.0
// See client.hpp. Blocking, with poll for the timeouts of the event stream.
#include "control/client.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace replica::control {
namespace {

Error unreachable(const std::string& path, int os_errno) {
    const char* hint = "";
    if (os_errno == ENOENT) hint = "; is replicad running, and with this --control path?";
    if (os_errno == ECONNREFUSED) hint = "; replicad is not running";
    if (os_errno == EACCES) hint = "; only root and the user that replicad runs as may reach it";
    Error error = errno_error(os_errno, fmt::format("can not reach the node at {}", path));
    error.message += hint;
    return error;
}

Error silent(int limit_ms) {
    return Error{Errc::timeout, 0,
                 fmt::format("the node does not answer in {} s: it is stopped, or hangs; see its "
                             "log",
                             static_cast<double>(limit_ms) / 1000)};
}

// How long connect() may wait for a node that accepts nobody.
void limit_sending(int socket, int limit_ms) {
    const timeval limit{limit_ms / 1000, limit_ms % 1000 * 1000L};
    ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

Error went_away() {
    return Error{Errc::io, ECONNRESET,
                 "the node closed the connection; whether the request was done is not known"};
}

}  // namespace

Result<std::unique_ptr<Client>> Client::connect(const std::string& path, int limit_ms) {
    TRY_STATUS(check_path("control socket", path));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return unreachable(path, ENAMETOOLONG);
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) return errno_error(errno, "can not make a socket");
    if (limit_ms > 0) limit_sending(socket.get(), limit_ms);
    while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
           0) {
        if (errno == EAGAIN) return silent(limit_ms);
        if (errno != EINTR) return unreachable(path, errno);
    }
    limit_sending(socket.get(), 0);
    return std::unique_ptr<Client>(new Client(std::move(socket)));
}

int Client::node_pid() const {
    ucred node{};
    socklen_t length = sizeof node;
    return ::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &node, &length) == 0 ? node.pid : 0;
}

bool Client::idle_and_alive() const {
    pollfd fd{socket_.get(), POLLIN, 0};
    return notifications_.empty() && !in_.has_partial() && ::poll(&fd, 1, 0) == 0;
}

Status Client::send(const std::string& line) {
    std::string_view rest = line;
    while (!rest.empty()) {
        const ssize_t put = ::send(socket_.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return errno_error(errno, "can not send to the node");
        rest.remove_prefix(static_cast<std::size_t>(put));
    }
    return ok_status();
}

Result<bool> Client::receive(int timeout_ms) {
    pollfd fd{socket_.get(), POLLIN, 0};
    const int ready = ::poll(&fd, 1, timeout_ms);
    if (ready == 0 || (ready < 0 && errno == EINTR)) return false;
    std::array<char, 65536> buffer;
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) return false;
    if (got < 0 && errno != ECONNRESET) return errno_error(errno, "can not hear from the node");
    if (got <= 0) return went_away();
    in_.append(std::string_view(buffer.data(), static_cast<std::size_t>(got)));
    return true;
}

Result<std::optional<Json>> Client::next_message() {
    const auto line = in_.next();
    if (!line) {
        if (in_.overflown()) return Error{Errc::limit, 0, "the answer of the node is too long"};
        return std::optional<Json>();
    }
    Json json = nesting_is_sane(*line) ? Json::parse(*line, nullptr, false) : Json();
    if (!json.is_object()) return Error{Errc::corrupt, 0, "the node sent something else than JSON"};
    return std::optional<Json>(std::move(json));
}

Result<Json> Client::call(const std::string& method, const Json& params, int limit_ms) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::milliseconds(limit_ms);
    const std::uint64_t id = ++last_id_;
    std::string line;
    try {
        line = request_line(id, method, params);
    } catch (const std::exception& error) {
        return Error{Errc::invalid, 0, error.what()};
    }
    if (line.size() > line_bytes_max) {
        return Error{Errc::limit, 0,
                     fmt::format("the request is longer than {} bytes", line_bytes_max)};
    }
    // A refusal (no permission, too many clients) is sent before the node closes: hear it even if
    // the request can no longer be sent.
    const auto sent = send(line);
    for (;;) {
        TRY(auto message, next_message());
        if (!message) {
            const auto left =
                std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
            if (limit_ms >= 0 && left <= 0) return silent(limit_ms);
            const auto received = receive(limit_ms < 0 ? -1 : static_cast<int>(left));
            if (!received) return sent ? received.error() : sent.error();
            continue;
        }
        if (message->contains("method")) {
            notifications_.push_back(std::move(*message));
            continue;
        }
        const Json answer_id = message->value("id", Json());
        if (!answer_id.is_null() && answer_id != id) continue;
        if (message->contains("error")) return error_from_json((*message)["error"]);
        if (!message->contains("result")) {
            return Error{Errc::corrupt, 0, "the node sent neither a result nor an error"};
        }
        return std::move((*message)["result"]);
    }
}

Result<std::optional<Json>> Client::next_notification(int timeout_ms) {
    const auto start = std::chrono::steady_clock::now();
    int left_ms = timeout_ms;
    for (;;) {
        if (!notifications_.empty()) {
            Json first = std::move(notifications_.front());
            notifications_.pop_front();
            return std::optional<Json>(std::move(first));
        }
        TRY(auto message, next_message());
        if (message) {
            if (message->contains("method")) return message;
            continue;  // the answer of a call that nobody waits for any more
        }
        TRY(const bool came, receive(left_ms));
        if (came || timeout_ms < 0) continue;
        const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(
            std::chrono::steady_clock::now() - start);
        if (spent.count() >= timeout_ms) return std::optional<Json>();
        left_ms = timeout_ms - static_cast<int>(spent.count());
    }
}

}  // namespace replica::control
