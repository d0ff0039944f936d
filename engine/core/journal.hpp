// SPDX-License-Identifier: Apache-2.0
// The writes that are not known to be stable on every replica that got them: on a primary its own,
// on a secondary the primary's. When a peer is lost, what it may lack is read off here and marked
// in its bitmap slot. A bounded ring of consecutive sequence numbers; pure structure.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/assert.hpp"
#include "engine/base/units.hpp"

namespace replica {

struct JournalEntry {
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    std::uint64_t sent_order = 0;
    std::uint32_t request = 0;   // slot + 1 of the application request still waiting for it, or 0
    NodeMask unwritten;          // peers that got it and have not said that it is written
    NodeMask unreceived;         // protocol B: peers that have not said that it arrived
    bool local_pending = false;  // this node's disk has not finished it
    bool al_held = false;        // holds its extent in the activity log
};

class Journal {
  public:
    explicit Journal(std::uint32_t entries) : ring_(entries) { ASSERT(entries > 0); }

    std::uint64_t head() const { return head_; }  // oldest sequence number kept
    std::uint64_t tail() const { return tail_; }  // next sequence number
    std::uint64_t size() const { return tail_ - head_; }
    bool empty() const { return head_ == tail_; }
    bool full() const { return size() == ring_.size(); }
    std::size_t capacity() const { return ring_.size(); }
    bool has(std::uint64_t seq) const { return seq >= head_ && seq < tail_; }

    JournalEntry& at(std::uint64_t seq) {
        ASSERT(has(seq));
        return ring_[seq % ring_.size()];
    }
    const JournalEntry& at(std::uint64_t seq) const {
        ASSERT(has(seq));
        return ring_[seq % ring_.size()];
    }
    std::uint64_t push(const JournalEntry& entry) {
        ASSERT(!full());
        ring_[tail_ % ring_.size()] = entry;
        return tail_++;
    }
    void pop() {
        ASSERT(!empty());
        ring_[head_ % ring_.size()] = JournalEntry{};
        ++head_;
    }
    // Starts over at `next`; only when empty.
    void restart(std::uint64_t next) {
        ASSERT(empty());
        head_ = tail_ = next;
    }

  private:
    std::vector<JournalEntry> ring_;
    std::uint64_t head_ = 1;
    std::uint64_t tail_ = 1;
};

}  // namespace replica
