// SPDX-License-Identifier: Apache-2.0
// See event_queue.hpp.
#include "control/event_queue.hpp"

#include <sys/eventfd.h>

#include <utility>

namespace replica::control {

EventQueue::EventQueue(std::size_t events_max, std::string resource)
    : events_max_(events_max),
      resource_(std::move(resource)),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

void EventQueue::push(const Event& event) {
    if (!resource_.empty() && event.resource != resource_) return;
    const std::lock_guard lock(mutex_);
    if (events_.size() >= events_max_) {
        events_.pop_front();
        ++dropped_;
    }
    events_.push_back(event);
    ::eventfd_write(wake_.get(), 1);
}

std::optional<EventQueue::Item> EventQueue::pop() {
    const std::lock_guard lock(mutex_);
    if (dropped_ > 0) return Item{std::exchange(dropped_, 0), {}};
    if (events_.empty()) return std::nullopt;
    Item item{0, std::move(events_.front())};
    events_.pop_front();
    eventfd_t count = 0;
    if (events_.empty()) ::eventfd_read(wake_.get(), &count);
    return item;
}

}  // namespace replica::control
