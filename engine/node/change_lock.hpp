// SPDX-License-Identifier: Apache-2.0
// Who changes a resource holds its lock. What takes hours looks whether somebody wants it, and lets
// go for a moment. Lockable; any thread.
#pragma once

#include <atomic>
#include <mutex>

namespace replica {

class ChangeLock {
  public:
    void lock() {
        ++waiting_;
        mutex_.lock();
        --waiting_;
    }
    bool try_lock() {
        if (mutex_.try_lock()) return true;
        tried_ = true;
        return false;
    }
    void unlock() {
        tried_ = false;
        mutex_.unlock();
    }
    bool is_wanted() const { return waiting_ > 0 || tried_; }

  private:
    std::mutex mutex_;
    std::atomic<int> waiting_{0};
    std::atomic<bool> tried_{false};  // in vain, since it was taken
};

}  // namespace replica
