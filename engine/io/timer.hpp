// SPDX-License-Identifier: Apache-2.0
// Deadlines of one reactor thread: a heap of intrusive timers, so that setting and clearing one is
// a few compares and no system call. The reactor keeps a single kernel timeout for the earliest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/units.hpp"

namespace replica {

class TimerHeap;

// Owned by the caller, who may destroy it at any moment: a timer that is set clears itself.
// Set it with Reactor::set_timer(); `callback` runs once for each time it was set and not cleared.
struct Timer {
    void (*callback)(Timer& timer) = nullptr;
    void* context = nullptr;  // the caller's own

    Timer() = default;
    Timer(void (*callback_)(Timer&), void* context_) : callback(callback_), context(context_) {}
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    ~Timer() { clear(); }

    bool is_set() const { return heap_ != nullptr; }
    Instant due() const { return due_; }
    void clear();  // no effect if it is not set

  private:
    friend class TimerHeap;
    Instant due_;
    std::uint64_t order_ = 0;  // first set, first called, among equals
    std::size_t index_ = 0;
    TimerHeap* heap_ = nullptr;  // while set
};

class TimerHeap {
  public:
    explicit TimerHeap(std::size_t expected) { timers_.reserve(expected); }
    TimerHeap(const TimerHeap&) = delete;
    TimerHeap& operator=(const TimerHeap&) = delete;
    ~TimerHeap();  // clears what is set

    void set(Timer& timer, Instant due);  // moves it if it is set already
    void clear(Timer& timer);
    bool empty() const { return timers_.empty(); }
    Instant earliest() const;  // not when empty
    // Takes out the first timer that is due by `now`, nullptr if there is none.
    Timer* take_due(Instant now);

  private:
    static bool before(const Timer& a, const Timer& b);
    void place(std::size_t index, Timer* timer);
    void sift_up(std::size_t index);
    void sift_down(std::size_t index);

    std::vector<Timer*> timers_;
    std::uint64_t order_next_ = 0;
};

}  // namespace replica
