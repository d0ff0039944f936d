// SPDX-License-Identifier: Apache-2.0
// See shared_buffers.hpp.
#include "engine/node/shared_buffers.hpp"

#include <utility>

namespace replica {

Result<std::unique_ptr<SharedBuffers>> SharedBuffers::create(Reactor& reactor, std::uint32_t small,
                                                             std::uint32_t large) {
    auto shared = std::make_unique<SharedBuffers>();
    TRY(shared->pool_, BufferPool::create(reactor, small, large));
    return shared;
}

std::byte* SharedBuffers::acquire(std::size_t bytes, BufferWaiter& waiter) {
    std::byte* const buffer = pool_->acquire(bytes);
    if (buffer != nullptr || waiter.queued) return buffer;
    waiter.queued = true;
    waiter.next = nullptr;
    *tail_ = &waiter;
    tail_ = &waiter.next;
    return nullptr;
}

// Everybody who waits looks again, in order: who needs a large buffer must not keep those waiting
// for whom a small one would do.
void SharedBuffers::release(std::byte* buffer) {
    pool_->release(buffer);
    BufferWaiter* waiter = std::exchange(first_, nullptr);
    tail_ = &first_;
    while (waiter != nullptr) {
        BufferWaiter* const next = waiter->next;
        waiter->queued = false;
        waiter->ready(*waiter);
        waiter = next;
    }
}

void SharedBuffers::forget(BufferWaiter& waiter) {
    if (!waiter.queued) return;
    for (BufferWaiter** at = &first_; *at != nullptr; at = &(*at)->next) {
        if (*at != &waiter) continue;
        *at = waiter.next;
        if (tail_ == &waiter.next) tail_ = at;
        break;
    }
    waiter.queued = false;
}

}  // namespace replica
