// SPDX-License-Identifier: Apache-2.0
// In-process requests on their way from any thread to a resource's reactor: a queue that wakes the
// reactor once for all that gathers, and records that are used again, so that a write costs no
// allocation.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/local_door.hpp"

namespace replica {

class Submissions;

struct Submission {
    LocalCall call;
    void (*done)(void* context, int error) = nullptr;  // of those that take() gave
    void* context = nullptr;

    Submissions* owner = nullptr;
    Submission* next = nullptr;
};

// Any thread.
class Submissions {
  public:
    // A record whose `call` reports to `done` and then goes back by itself.
    Submission& take();

    // Queues it. True: nothing was queued before, so the reactor has to be told to pop_all().
    // `owner` stays alive until then.
    bool push(Submission& submission, const std::shared_ptr<void>& owner);
    // All that is queued, linked by `next` in order of arrival.
    Submission* pop_all(std::shared_ptr<void>& owner);

  private:
    void give_back(Submission& submission);

    std::mutex mutex_;
    Submission* first_ = nullptr;
    Submission** tail_ = &first_;
    std::shared_ptr<void> owner_;
    std::deque<Submission> records_;
    Submission* free_ = nullptr;
};

// What an errno that a caller of this process gets means, for people.
Error io_error(const std::string& name, int error);

}  // namespace replica
