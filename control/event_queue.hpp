// SPDX-License-Identifier: Apache-2.0
// Events on their way to one reader, fast or slow. The node's threads push and are never held up;
// the reader pops. When it is too slow the oldest events go, and it is told how many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "control/fd.hpp"
#include "engine/node.hpp"

namespace replica::control {

class EventQueue {
  public:
    struct Item {
        std::uint64_t missed = 0;  // > 0: so many events were dropped here, and `event` is empty
        Event event;
    };

    // Keeps events of one resource, or of all for "".
    EventQueue(std::size_t events_max, std::string resource);

    void push(const Event& event);          // any thread; never blocks on IO
    std::optional<Item> pop();              // any thread
    int fd() const { return wake_.get(); }  // readable while pop() would return something
    bool usable() const { return static_cast<bool>(wake_); }

  private:
    const std::size_t events_max_;
    const std::string resource_;
    Fd wake_;  // eventfd
    std::mutex mutex_;
    std::deque<Event> events_;
    std::uint64_t dropped_ = 0;
};

}  // namespace replica::control
