// SPDX-License-Identifier: Apache-2.0
// See submissions.hpp.
#include "engine/node/submissions.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

namespace replica {

Submission& Submissions::take() {
    const std::lock_guard lock(mutex_);
    if (free_ == nullptr) {
        free_ = &records_.emplace_back();
        free_->owner = this;
    }
    Submission& submission = *std::exchange(free_, free_->next);
    submission.call = LocalCall{};
    submission.call.context = &submission;
    submission.call.done = [](LocalCall& call, int error) {
        Submission& ended = *static_cast<Submission*>(call.context);
        const auto done = ended.done;
        void* const context = ended.context;
        ended.owner->give_back(ended);
        done(context, error);
    };
    return submission;
}

void Submissions::give_back(Submission& submission) {
    const std::lock_guard lock(mutex_);
    submission.next = free_;
    free_ = &submission;
}

bool Submissions::push(Submission& submission, const std::shared_ptr<void>& owner) {
    const std::lock_guard lock(mutex_);
    const bool first = first_ == nullptr;
    if (first) owner_ = owner;
    submission.next = nullptr;
    *tail_ = &submission;
    tail_ = &submission.next;
    return first;
}

Submission* Submissions::pop_all(std::shared_ptr<void>& owner) {
    const std::lock_guard lock(mutex_);
    owner = std::move(owner_);
    tail_ = &first_;
    return std::exchange(first_, nullptr);
}

Error io_error(const std::string& name, int error) {
    switch (error) {
        case EROFS:
            return {Errc::state, error, name + " is Secondary here: promote it first"};
        case ENOSPC:
            return {Errc::no_space, error, name + ": a backing disk is full"};
        case EINVAL:
            return {Errc::invalid, error,
                    name + ": the range lies beyond the end, or is not a whole number of sectors"};
        case ESHUTDOWN:
            return {Errc::cancelled, error, name + " is down, or going down"};
        case ENOLINK:
            return {Errc::io, error,
                    name +
                        ": no replica with good data can be reached: connect a peer that has it, "
                        "or attach a good disk"};
        case EBUSY:
            return {Errc::busy, error,
                    name +
                        ": its block device of an earlier daemon waits to be adopted; only reads "
                        "are served before"};
        default:
            return {Errc::io, error, name + ": " + std::strerror(error)};
    }
}

}  // namespace replica
