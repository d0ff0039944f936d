// SPDX-License-Identifier: Apache-2.0
#include "engine/io/buffer_pool.hpp"

#include "engine/base/assert.hpp"
#include "engine/base/text.hpp"

namespace replica {

Result<std::unique_ptr<BufferPool>> BufferPool::create(Reactor& reactor, std::uint32_t small,
                                                       std::uint32_t large) {
    const std::size_t bytes = arena_bytes(small, large);
    const auto memory = reactor.carve(bytes);
    if (memory.size() < bytes) {
        return Error{
            Errc::no_space, 0,
            text_of("%u small and %u large IO buffers need %zu bytes of the arena, which has "
                    "less left: make it larger",
                    small, large, bytes)};
    }
    return std::unique_ptr<BufferPool>(new BufferPool(memory, small, large));
}

BufferPool::BufferPool(std::span<std::byte> memory, std::uint32_t small, std::uint32_t large)
    : memory_(memory.data()), small_(small), large_(large), used_(small + large, false) {
    free_small_.reserve(small);
    free_large_.reserve(large);
    // Backwards, so that the first to be handed out is the first in memory.
    for (Index index = small + large; index > small; --index)
        free_large_.push_back(index - 1);
    for (Index index = small; index > 0; --index)
        free_small_.push_back(index - 1);
}

std::byte* BufferPool::acquire(std::size_t bytes) {
    ASSERT(bytes > 0 && bytes <= large_buffer_bytes);
    auto& list = bytes <= small_buffer_bytes && !free_small_.empty() ? free_small_ : free_large_;
    if (list.empty()) return nullptr;
    const Index index = list.back();
    list.pop_back();
    ASSERT(!used_[index]);
    used_[index] = true;
    return buffer(index);
}

void BufferPool::release(std::byte* released) {
    const Index index = index_of(released);
    ASSERT(released == buffer(index) && used_[index]);
    used_[index] = false;
    (index < small_ ? free_small_ : free_large_).push_back(index);
}

std::byte* BufferPool::buffer(Index index) const {
    ASSERT(index < count());
    if (index < small_) return memory_ + index * small_buffer_bytes;
    return memory_ + small_ * small_buffer_bytes + (index - small_) * large_buffer_bytes;
}

BufferPool::Index BufferPool::index_of(const std::byte* address) const {
    ASSERT(owns(address));
    const auto offset = static_cast<std::size_t>(address - memory_);
    const std::size_t small_bytes = small_ * small_buffer_bytes;
    if (offset < small_bytes) return static_cast<Index>(offset / small_buffer_bytes);
    return small_ + static_cast<Index>((offset - small_bytes) / large_buffer_bytes);
}

bool BufferPool::owns(const std::byte* address) const {
    const auto offset =
        reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(memory_);
    return offset < arena_bytes(small_, large_);
}

}  // namespace replica
