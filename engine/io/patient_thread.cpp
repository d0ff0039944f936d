// SPDX-License-Identifier: Apache-2.0
// See patient_thread.hpp.
#include "engine/io/patient_thread.hpp"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/text.hpp"

namespace replica {
namespace {

using Clock = std::chrono::steady_clock;
// How often a call is interrupted: the first signal may come just before it begins to wait.
constexpr std::chrono::milliseconds again{100};
// All of it may be locked memory, and there is a thread for each device.
constexpr std::size_t stack_bytes = 512U << 10;

// Ends a wait of the kernel, and nothing else: its handler does nothing.
int interrupt_signal() { return SIGRTMIN + 9; }

void install_handler() {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ::sigaction(interrupt_signal(), &action, nullptr);  // no SA_RESTART: that is the point
}

}  // namespace

Result<std::unique_ptr<PatientThread>> PatientThread::start(const std::string& name,
                                                            std::chrono::milliseconds grace) {
    install_handler();
    std::unique_ptr<PatientThread> self(new PatientThread(name, grace));
    auto* const shared = new std::shared_ptr<Shared>(self->shared_);
    // Signals of the process are for its other threads.
    sigset_t all, before;
    ::sigfillset(&all);
    ::sigdelset(&all, interrupt_signal());
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, stack_bytes);
    const int error = ::pthread_create(&self->thread_, &attributes, work, shared);
    ::pthread_attr_destroy(&attributes);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error == 0) return self;
    delete shared;
    self->shared_->gone = true;
    return Error{Errc::limit, error,
                 text_of("no thread for %s: %s", name.c_str(), std::strerror(error))};
}

PatientThread::~PatientThread() {
    std::unique_lock lock(shared_->mutex);
    if (shared_->gone) return;  // never begun
    shared_->stop = true;
    shared_->changed.notify_all();
    const bool gone = shared_->changed.wait_for(lock, grace_, [this] { return shared_->gone; });
    lock.unlock();
    if (gone) ::pthread_join(thread_, nullptr);
    if (!gone) ::pthread_detach(thread_);
}

void* PatientThread::work(void* handed_over) {
    const std::unique_ptr<std::shared_ptr<Shared>> own(
        static_cast<std::shared_ptr<Shared>*>(handed_over));
    Shared& shared = **own;
    std::unique_lock lock(shared.mutex);
    for (;;) {
        shared.changed.wait(lock, [&] { return shared.stop || !shared.jobs.empty(); });
        if (shared.jobs.empty()) break;
        const std::shared_ptr<Job> job = shared.jobs.front();
        job->begun = true;
        lock.unlock();
        Status result = job->work();
        job->work = nullptr;  // what it owns may take as long to let go
        lock.lock();
        job->result = std::move(result);
        job->ended = true;
        shared.jobs.pop_front();
        shared.changed.notify_all();
    }
    shared.gone = true;
    shared.changed.notify_all();
    return nullptr;
}

Status PatientThread::run(std::function<Status()> work, std::chrono::milliseconds limit) {
    const auto job = std::make_shared<Job>();
    job->work = std::move(work);
    const auto ended = [&] { return job->ended; };
    std::unique_lock lock(shared_->mutex);
    shared_->jobs.push_back(job);
    shared_->changed.notify_all();
    if (shared_->changed.wait_for(lock, limit, ended)) return job->result;
    const Clock::time_point last = Clock::now() + grace_;
    while (Clock::now() < last && !job->ended) {
        if (!job->begun) {
            auto& jobs = shared_->jobs;
            jobs.erase(std::find(jobs.begin(), jobs.end(), job));
            return Error{Errc::timeout, ETIMEDOUT,
                         name_ + " is busy with something that does not end"};
        }
        ::pthread_kill(thread_, interrupt_signal());
        shared_->changed.wait_for(lock, again, ended);
    }
    if (job->ended) return job->result;
    return Error{Errc::timeout, ETIMEDOUT, name_ + " does not answer"};
}

}  // namespace replica
