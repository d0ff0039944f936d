// SPDX-License-Identifier: Apache-2.0
// A thread for calls of the kernel or of a library that may never end. Who asks for a job waits for
// it, but not for ever: a call that takes too long is interrupted, and if that does not help, it is
// left behind with all that it may still touch. Jobs are done one after the other, so one that is
// asked for later begins when the earlier one has ended after all.
#pragma once

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "engine/base/result.hpp"

namespace replica {

class PatientThread {
  public:
    // `name`: of what is called, for the errors. `grace`: how long a job that was interrupted may
    // take to notice. Errors: limit (no thread).
    static Result<std::unique_ptr<PatientThread>> start(
        const std::string& name, std::chrono::milliseconds grace = std::chrono::seconds(5));
    ~PatientThread();  // after the jobs that were asked for; one that never ends is left behind
    PatientThread(const PatientThread&) = delete;
    PatientThread& operator=(const PatientThread&) = delete;

    // Runs `job` and gives what it gave. It must own all that it refers to. Any thread. Errors:
    // those of the job, which hears EINTR when `limit` is over; timeout (it has not ended after
    // the grace, either; or one before it has not, and then it will not be done).
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

    PatientThread(std::string name, std::chrono::milliseconds grace)
        : name_(std::move(name)), grace_(grace) {}
    static void* work(void* shared);

    const std::string name_;
    const std::chrono::milliseconds grace_;
    std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
    pthread_t thread_{};
};

}  // namespace replica
