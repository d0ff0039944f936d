// SPDX-License-Identifier: Apache-2.0
// The calling end of the control socket: one connection, one call at a time. For replicactl and for
// libreplica, which keeps a connection for each call that is under way.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "control/fd.hpp"
#include "control/protocol.hpp"
#include "engine/base/result.hpp"

namespace replica::control {

class Client {
  public:
    // Errors: io and its like with a message that says what to look at (is replicad running, may
    // this user reach it); invalid (path); timeout. limit_ms: -1: no limit.
    static Result<std::unique_ptr<Client>> connect(const std::string& path, int limit_ms = -1);

    // Sends one request and waits for its answer, limit_ms at most (-1: however long it takes).
    // Errors: what the node refused; io with os_errno EPIPE or ECONNRESET when it went away in the
    // middle, and timeout: then the request may or may not have been done.
    Result<Json> call(const std::string& method, const Json& params, int limit_ms = -1);

    // After events.subscribe: the next notification ({"method", "params"}), nothing if there was
    // none within `timeout_ms` (-1: no limit, 0: do not wait). Errors: io when the node went away.
    Result<std::optional<Json>> next_notification(int timeout_ms);

    // Readable when next_notification(0) may have something; drain it until it has nothing.
    int fd() const { return socket_.get(); }
    // The process that listens; 0: it can not be seen from here.
    int node_pid() const;
    // Nothing is under way and the node has not closed the connection.
    bool idle_and_alive() const;

  private:
    explicit Client(Fd socket) : socket_(std::move(socket)), in_(answer_bytes_max) {}

    Status send(const std::string& line);
    // Reads what is there; waits at most until `deadline_ms` from now. False: nothing came.
    Result<bool> receive(int timeout_ms);
    Result<std::optional<Json>> next_message();

    static constexpr std::size_t answer_bytes_max = 256U << 20;

    Fd socket_;
    LineBuffer in_;
    std::deque<Json> notifications_;
    std::uint64_t last_id_ = 0;
};

}  // namespace replica::control
