// SPDX-License-Identifier: Apache-2.0
// A reactor with the thread that runs it and the buffers of everything that lives on it. Other
// threads talk to it by call() and by Reactor::post().
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>

#include "engine/base/result.hpp"
#include "engine/node/kernel_events.hpp"
#include "engine/node/shared_buffers.hpp"

namespace replica {

// One thread waits for what another does.
class Baton {
  public:
    void pass() {
        const std::lock_guard lock(mutex_);
        passed_ = true;
        condition_.notify_one();  // under the lock: the waiter may destroy the baton at once
    }
    void wait() {
        std::unique_lock lock(mutex_);
        condition_.wait(lock, [this] { return passed_; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable condition_;
    bool passed_ = false;
};

class ReactorThread {
  public:
    // Errors: those of Reactor::create(), and limit (no thread). What is not to be had, but not
    // needed either, is logged.
    using Log = std::function<void(int level, const std::string& line)>;
    static Result<std::unique_ptr<ReactorThread>> start(const Log& log);
    ~ReactorThread();  // stops; nothing may live on it any more
    ReactorThread(const ReactorThread&) = delete;
    ReactorThread& operator=(const ReactorThread&) = delete;

    Reactor& reactor() { return *reactor_; }
    KernelEvents& kernel_events() { return *kernel_events_; }
    SharedBuffers& door_buffers() { return *door_buffers_; }
    SharedBuffers& receive_buffers() { return *receive_buffers_; }
    SharedBuffers& send_buffers() { return *send_buffers_; }  // what is read here and then sent

    // Runs f() on the reactor's thread and returns its value. Not from that thread.
    template <class F>
    std::invoke_result_t<F> call(F&& f) {
        ASSERT(!reactor_->on_owner_thread());
        std::optional<std::invoke_result_t<F>> value;
        Baton baton;
        reactor_->post([&] {
            value.emplace(f());
            baton.pass();
        });
        baton.wait();
        return std::move(*value);
    }

    // For what ends later: f(done) runs on the reactor's thread, and `done` is to be called there
    // once. Errors: timeout, and what `done` was given.
    using Done = std::function<void(Status)>;
    Status call_async(std::function<void(Done)> f, std::chrono::seconds timeout);

    // Stops it for good, with all that lives on it as it is: for a process that ends and can not
    // take everything down.
    void park();

  private:
    ReactorThread() = default;

    std::unique_ptr<Reactor> reactor_;
    std::unique_ptr<KernelEvents> kernel_events_;
    std::unique_ptr<SharedBuffers> door_buffers_, receive_buffers_, send_buffers_;
    std::thread thread_;
};

}  // namespace replica
