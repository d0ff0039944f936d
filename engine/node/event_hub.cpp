// SPDX-License-Identifier: Apache-2.0
// See event_hub.hpp.
#include "engine/node/event_hub.hpp"

#include <pthread.h>

#include <csignal>
#include <utility>

namespace replica {
namespace {

constexpr std::size_t queued_max = 4096;

}  // namespace

EventHub::EventHub() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] {
        pthread_setname_np(pthread_self(), "replica-events");
        run();
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

EventHub::~EventHub() {
    if (thread_.joinable()) stop();
}

void EventHub::stop() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        wake_.notify_one();
    }
    thread_.join();
}

void EventHub::publish(Event event) {
    const std::lock_guard lock(mutex_);
    event.seq = seq_next_++;
    if (listeners_.empty()) return;
    if (queue_.size() == queued_max) queue_.pop_front();
    queue_.push_back(std::move(event));
    wake_.notify_one();
}

std::uint64_t EventHub::subscribe(Listener listener) {
    const std::lock_guard lock(mutex_);
    listeners_.emplace(token_next_, std::move(listener));
    return token_next_++;
}

void EventHub::unsubscribe(std::uint64_t token) {
    std::unique_lock lock(mutex_);
    listeners_.erase(token);
    if (std::this_thread::get_id() == thread_.get_id()) return;
    idle_.wait(lock, [&] { return running_ != token; });
}

void EventHub::run() {
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        const Event event = std::move(queue_.front());
        queue_.pop_front();
        // By token: listeners come and go while one of them runs.
        for (auto at = listeners_.begin(); at != listeners_.end();) {
            running_ = at->first;
            const Listener listener = at->second;
            lock.unlock();
            listener(event);
            lock.lock();
            at = listeners_.upper_bound(std::exchange(running_, 0));
            idle_.notify_all();
        }
    }
}

}  // namespace replica
