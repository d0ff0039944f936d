// SPDX-License-Identifier: Apache-2.0
#include "engine/core/al_cache.hpp"

#include <algorithm>

namespace replica {

AlCache::AlCache(std::uint32_t slots, std::uint32_t extents, std::uint32_t ring_blocks)
    : ring_blocks_(ring_blocks) {
    ASSERT(slots >= 1 && slots < no_slot);
    slots_.resize(slots);
    slot_of_.assign(extents, no_slot);
    queued_.reserve(slots);
    flying_.reserve(al_updates_max);
    reset();
}

void AlCache::reset() {
    ASSERT(held_ == 0);
    std::fill(slot_of_.begin(), slot_of_.end(), no_slot);
    for (Slot& slot : slots_)
        slot = Slot{};
    queued_.clear();
    flying_.clear();
    newest_ = oldest_ = no_link;
    used_ = 0;
    in_flight_ = false;
    context_next_ = 0;
    transaction_ = AlTransaction{};
    started_ = false;  // the first one is number 0
}

void AlCache::unlink(std::uint16_t slot) {
    Slot& s = slots_[slot];
    (s.newer == no_link ? newest_ : slots_[s.newer].older) = s.older;
    (s.older == no_link ? oldest_ : slots_[s.older].newer) = s.newer;
    s.newer = s.older = no_link;
}

void AlCache::push_newest(std::uint16_t slot) {
    Slot& s = slots_[slot];
    s.older = newest_;
    s.newer = no_link;
    (newest_ == no_link ? oldest_ : slots_[newest_].newer) = slot;
    newest_ = slot;
}

AlCache::Hold AlCache::hold(std::uint32_t extent) {
    ASSERT(extent < slot_of_.size());
    std::uint16_t slot = slot_of_[extent];
    if (slot != no_slot) {
        Slot& s = slots_[slot];
        if (s.refs++ == 0) {
            ++held_;
            if (s.active) unlink(slot);
        }
        return s.active ? Hold::granted : Hold::pending;
    }
    if (used_ < slots_.size()) {
        slot = static_cast<std::uint16_t>(used_++);
        ASSERT(slots_[slot].extent == al_extent_free);
    } else if (oldest_ != no_link) {
        slot = oldest_;
        unlink(slot);
        slot_of_[slots_[slot].extent] = no_slot;
    } else {
        return Hold::starved;
    }
    Slot& s = slots_[slot];
    s.extent = extent;
    s.refs = 1;
    s.active = false;
    slot_of_[extent] = slot;
    queued_.push_back(slot);
    ++held_;
    return Hold::pending;
}

void AlCache::release(std::uint32_t extent) {
    const std::uint16_t slot = slot_of_[extent];
    ASSERT(slot != no_slot);
    Slot& s = slots_[slot];
    ASSERT(s.refs > 0);
    if (--s.refs > 0) return;
    --held_;
    if (s.active) push_newest(slot);  // else finish_transaction() does it
}

bool AlCache::is_active(std::uint32_t extent) const {
    const std::uint16_t slot = slot_of_[extent];
    return slot != no_slot && slots_[slot].active;
}

void AlCache::begin_transaction(std::vector<std::uint32_t>& evicted) {
    ASSERT(wants_transaction());
    const std::size_t n = std::min<std::size_t>(queued_.size(), al_updates_max);
    flying_.assign(queued_.begin(), queued_.begin() + static_cast<std::ptrdiff_t>(n));
    queued_.erase(queued_.begin(), queued_.begin() + static_cast<std::ptrdiff_t>(n));
    in_flight_ = true;

    AlTransaction& t = transaction_;
    // From the second lap on numbers skip what a wrap would map onto blocks that replay still
    // needs.
    t.number = started_ ? al_next_number(t.number, 1, ring_blocks_) : 0;
    started_ = true;
    t.slots = static_cast<std::uint16_t>(slots_.size());
    t.update_count = static_cast<std::uint16_t>(n);
    t.updates = {};
    for (std::size_t i = 0; i < n; ++i) {
        Slot& s = slots_[flying_[i]];
        t.updates[i] = {flying_[i], s.extent};
        if (s.durable_extent != al_extent_free) evicted.push_back(s.durable_extent);
    }
    t.context_start = context_next_;
    t.context_count = static_cast<std::uint16_t>(
        std::min<std::size_t>(al_context_max, slots_.size() - context_next_));
    for (std::uint16_t i = 0; i < t.context_count; ++i) {
        t.context[i] = slots_[static_cast<std::size_t>(context_next_ + i)].durable_extent;
    }
    const unsigned next = context_next_ + al_context_max;
    context_next_ = next >= slots_.size() ? std::uint16_t{0} : static_cast<std::uint16_t>(next);
}

void AlCache::finish_transaction() {
    ASSERT(in_flight_);
    in_flight_ = false;
    for (const std::uint16_t slot : flying_) {
        Slot& s = slots_[slot];
        s.durable_extent = s.extent;
        s.active = true;
        if (s.refs == 0) push_newest(slot);
    }
    flying_.clear();
}

}  // namespace replica
