// SPDX-License-Identifier: Apache-2.0
// One client of the control socket: reads lines, calls the service, writes answers and events. Runs
// on a thread of its own; nothing it does can block another client, and its memory is bounded.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "control/fd.hpp"
#include "control/protocol.hpp"
#include "control/server.hpp"
#include "control/service.hpp"

namespace replica::control {

// Events on their way to one slow or fast reader. The node's threads push, the session's thread
// drains; shared, because a push may still be running when the session has unsubscribed.
class EventQueue {
  public:
    EventQueue(std::size_t events_max, std::string resource);  // resource "": of all
    void push(const Event& event);                             // any thread; never blocks on IO
    // Lines for what is queued, at most about `bytes_max`; with a gap notification where events
    // were dropped.
    std::string drain(std::size_t bytes_max);
    int wake_fd() const { return wake_.get(); }  // readable while something is queued
    bool usable() const { return static_cast<bool>(wake_); }

  private:
    const std::size_t events_max_;
    const std::string resource_;
    Fd wake_;  // eventfd
    std::mutex mutex_;
    std::deque<Event> events_;
    std::uint64_t dropped_ = 0;
};

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
