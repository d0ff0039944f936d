// SPDX-License-Identifier: Apache-2.0
// Carries a node's events to those who subscribed, on a thread of its own: a listener that is slow
// or calls the node must not hold up a reactor.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "engine/node.hpp"

namespace replica {

class EventHub {
  public:
    EventHub();
    ~EventHub();
    EventHub(const EventHub&) = delete;
    EventHub& operator=(const EventHub&) = delete;

    // Delivers what was published and ends the thread. Not from a listener.
    void stop();

    // Any thread; never blocks for long. Numbers the event. When listeners are too slow the oldest
    // ones are dropped, which leaves a gap in the numbers.
    void publish(Event event);

    using Listener = std::function<void(const Event&)>;
    std::uint64_t subscribe(Listener listener);
    // When it returns the listener is not running and will not be called again (from inside the
    // listener itself: not again).
    void unsubscribe(std::uint64_t token);

  private:
    void run();

    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable idle_;  // no listener is running
    std::deque<Event> queue_;
    std::map<std::uint64_t, Listener> listeners_;
    std::uint64_t token_next_ = 1, seq_next_ = 1;
    std::uint64_t running_ = 0;  // token of the listener that is being called, 0: none
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace replica
