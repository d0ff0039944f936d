// SPDX-License-Identifier: Apache-2.0
// A binary heap whose elements know their index, which makes clearing one O(log n).
#include "engine/io/timer.hpp"

#include "engine/base/assert.hpp"

namespace replica {

void Timer::clear() {
    if (heap_ != nullptr) heap_->clear(*this);
}

TimerHeap::~TimerHeap() {
    for (Timer* timer : timers_)
        timer->heap_ = nullptr;
}

bool TimerHeap::before(const Timer& a, const Timer& b) {
    return a.due_ < b.due_ || (a.due_ == b.due_ && a.order_ < b.order_);
}

void TimerHeap::place(std::size_t index, Timer* timer) {
    timers_[index] = timer;
    timer->index_ = index;
}

void TimerHeap::sift_up(std::size_t index) {
    Timer* timer = timers_[index];
    while (index > 0) {
        const std::size_t parent = (index - 1) / 2;
        if (!before(*timer, *timers_[parent])) break;
        place(index, timers_[parent]);
        index = parent;
    }
    place(index, timer);
}

void TimerHeap::sift_down(std::size_t index) {
    Timer* timer = timers_[index];
    for (;;) {
        std::size_t child = 2 * index + 1;
        if (child >= timers_.size()) break;
        if (child + 1 < timers_.size() && before(*timers_[child + 1], *timers_[child])) child += 1;
        if (!before(*timers_[child], *timer)) break;
        place(index, timers_[child]);
        index = child;
    }
    place(index, timer);
}

void TimerHeap::set(Timer& timer, Instant due) {
    ASSERT(timer.callback != nullptr);
    ASSERT(timer.heap_ == nullptr || timer.heap_ == this);
    clear(timer);
    timer.due_ = due;
    timer.order_ = order_next_++;
    timer.heap_ = this;
    timers_.push_back(&timer);
    sift_up(timers_.size() - 1);
}

void TimerHeap::clear(Timer& timer) {
    if (timer.heap_ == nullptr) return;
    ASSERT(timer.heap_ == this && timers_[timer.index_] == &timer);
    const std::size_t index = timer.index_;
    Timer* last = timers_.back();
    timers_.pop_back();
    timer.heap_ = nullptr;
    if (last == &timer) return;
    // The last one fills the gap; it may be out of order in either direction.
    place(index, last);
    sift_up(index);
    sift_down(last->index_);
}

Instant TimerHeap::earliest() const {
    ASSERT(!timers_.empty());
    return timers_.front()->due_;
}

Timer* TimerHeap::take_due(Instant now) {
    if (timers_.empty() || timers_.front()->due_ > now) return nullptr;
    Timer* timer = timers_.front();
    clear(*timer);
    return timer;
}

}  // namespace replica
