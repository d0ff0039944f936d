// SPDX-License-Identifier: Apache-2.0
// The one thread that calls libdevmapper, which keeps state of its own and is not thread-safe. Who
// asks for a job waits for it, but not for ever: a call of the kernel that takes too long is
// interrupted, and if that does not help, it is left behind with all that it may still touch.
#pragma once

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "engine/base/result.hpp"

namespace replica {

class LibraryThread {
  public:
    // Errors: limit (no thread).
    static Result<std::unique_ptr<LibraryThread>> start();
    ~LibraryThread();  // after the jobs that were asked for; one that never ends is left behind
    LibraryThread(const LibraryThread&) = delete;
    LibraryThread& operator=(const LibraryThread&) = delete;

    // Runs `job` and gives what it gave. It must own all that it refers to. Errors: those of the
    // job, which hears EINTR when `limit` is over; timeout (it does not end; or one before it
    // does not).
    Status run(std::function<Status()> job, std::chrono::milliseconds limit);

  private:
    struct Job {
        std::function<Status()> work;
        Status result = ok_status();
        bool begun = false, ended = false;
    };
    // Shared with the thread, which may outlive its owner.
    struct Shared {
        std::mutex mutex;
        std::condition_variable changed;
        std::deque<std::shared_ptr<Job>> jobs;
        bool stop = false, gone = false;
    };

    LibraryThread() = default;
    static void* work(void* shared);

    std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
    pthread_t thread_{};
};

}  // namespace replica
