// SPDX-License-Identifier: Apache-2.0
// A pool of payload buffers that everything on a reactor shares, with a queue of those who found
// none free. Receiving, resync and the doors have a pool each: a buffer that waits for a peer must
// never be what the peer's own progress waits for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/base/result.hpp"
#include "engine/io/buffer_pool.hpp"

namespace replica {

// Owned by the waiter; forget() it before it goes away.
struct BufferWaiter {
    void (*ready)(BufferWaiter& waiter) = nullptr;  // a buffer was released: try again
    void* context = nullptr;

    BufferWaiter* next = nullptr;
    bool queued = false;
};

// Reactor thread only.
class SharedBuffers {
  public:
    // Errors: no_space (the reactor's arena is used up).
    static Result<std::unique_ptr<SharedBuffers>> create(Reactor& reactor, std::uint32_t small,
                                                         std::uint32_t large);

    // A buffer of at least `bytes`, or nullptr: `waiter` is then told, once, when to try again.
    std::byte* acquire(std::size_t bytes, BufferWaiter& waiter);
    // The same for who looks again by himself.
    std::byte* try_acquire(std::size_t bytes) { return pool_->acquire(bytes); }
    void release(std::byte* buffer);
    void forget(BufferWaiter& waiter);

    std::uint32_t index_of(const std::byte* buffer) const { return pool_->index_of(buffer); }
    std::byte* buffer(std::uint32_t index) const { return pool_->buffer(index); }
    std::uint32_t count() const { return pool_->count(); }

  private:
    std::unique_ptr<BufferPool> pool_;
    BufferWaiter* first_ = nullptr;
    BufferWaiter** tail_ = &first_;
};

}  // namespace replica
