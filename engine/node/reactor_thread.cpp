// SPDX-License-Identifier: Apache-2.0
// See reactor_thread.hpp.
#include "engine/node/reactor_thread.hpp"

#include <pthread.h>
#include <syslog.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace replica {
namespace {

// Small buffers carry the small writes that a mirror mostly sees; a dozen large ones are some
// milliseconds of the fastest disk. Together 42 MiB, which is what a reactor costs.
constexpr std::uint32_t door_small = 320, door_large = 12;
constexpr std::uint32_t receive_small = 320, receive_large = 12;
constexpr std::uint32_t send_small = 32, send_large = 8;

struct Outcome {
    std::mutex mutex;
    std::condition_variable condition;
    std::optional<Status> status;
};

}  // namespace

Result<std::unique_ptr<ReactorThread>> ReactorThread::start(const Log& log) {
    ReactorOptions options;
    options.arena_bytes = BufferPool::arena_bytes(door_small, door_large) +
                          BufferPool::arena_bytes(receive_small, receive_large) +
                          BufferPool::arena_bytes(send_small, send_large);
    std::unique_ptr<ReactorThread> self(new ReactorThread);
    TRY(self->reactor_, Reactor::create(options));
    Reactor& reactor = *self->reactor_;
    if (!reactor.warning().empty()) log(LOG_WARNING, reactor.warning());
    self->kernel_events_ = std::make_unique<KernelEvents>(reactor, log);
    TRY(self->door_buffers_, SharedBuffers::create(reactor, door_small, door_large));
    TRY(self->receive_buffers_, SharedBuffers::create(reactor, receive_small, receive_large));
    TRY(self->send_buffers_, SharedBuffers::create(reactor, send_small, send_large));
    // Signals belong to the threads of whoever embeds the node.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    self->thread_ = std::thread([&reactor] {
        pthread_setname_np(pthread_self(), "replica-reactor");
        reactor.run();
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return self;
}

ReactorThread::~ReactorThread() {
    if (!thread_.joinable()) return;
    reactor_->stop();
    thread_.join();
}

// What a process takes down at its end must have no users.
void ReactorThread::park() {
    const auto parked = std::make_shared<Baton>();
    reactor_->post([parked] {
        parked->pass();
        for (;;)
            ::pause();
    });
    parked->wait();
}

Status ReactorThread::call_async(std::function<void(Done)> f, std::chrono::seconds timeout) {
    ASSERT(!reactor_->on_owner_thread());
    const auto outcome = std::make_shared<Outcome>();
    reactor_->post([f = std::move(f), outcome] {
        f([outcome](Status status) {
            const std::lock_guard lock(outcome->mutex);
            outcome->status.emplace(std::move(status));
            outcome->condition.notify_one();
        });
    });
    std::unique_lock lock(outcome->mutex);
    if (!outcome->condition.wait_for(lock, timeout, [&] { return outcome->status.has_value(); })) {
        return Error{Errc::timeout, 0,
                     "no answer in " + std::to_string(timeout.count()) +
                         " s: a disk or a peer hangs; look at the status"};
    }
    return *outcome->status;
}

}  // namespace replica
