// SPDX-License-Identifier: Apache-2.0
// See submissions.hpp.
#include "engine/node/submissions.hpp"

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

}  // namespace replica
