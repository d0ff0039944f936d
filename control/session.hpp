// SPDX-License-Identifier: Apache-2.0
// One client of the control socket: reads lines, calls the service, writes answers and events. Runs
// on a thread of its own; nothing it does can block another client, and its memory is bounded.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <string>

#include "control/event_queue.hpp"
#include "control/fd.hpp"
#include "control/protocol.hpp"
#include "control/server.hpp"
#include "control/service.hpp"

namespace replica::control {

class Session {
  public:
    // `stop_fd` becomes readable when the session shall end.
    Session(Service& service, const ServerOptions& options, Fd socket, const ucred& peer,
            int stop_fd);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    void run();  // until the client has gone or stop_fd is readable

  private:
    bool wait();  // false: time to end
    bool receive();
    bool flush();
    void handle_lines();
    void handle(const std::string& line);
    Result<Json> dispatch(const RpcRequest& request);
    Result<Json> subscribe(const Json& params);
    void unsubscribe();
    bool may_answer() const { return out_.size() < options_.output_bytes_max; }

    Service& service_;
    const ServerOptions& options_;
    Fd socket_;
    int stop_fd_;
    Caller caller_;
    LineBuffer in_;
    std::string out_;
    bool end_of_input_ = false;           // no more requests; what is in out_ still goes out
    bool more_lines_ = false;             // complete lines wait in in_ until out_ has room
    std::shared_ptr<EventQueue> events_;  // null: not subscribed
    std::uint64_t token_ = 0;
};

}  // namespace replica::control
