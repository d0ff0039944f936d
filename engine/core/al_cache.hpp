// SPDX-License-Identifier: Apache-2.0
// Which 4 MiB extents are in the activity log, who uses them, and which transaction makes the next
// ones durable. Pure structure: the core emits the IO. Rule I-R5: an extent is in a durable
// transaction before the first write to it is issued, and leaves only when nobody refers to it and
// the bitmap pages that describe it are on the disk.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/assert.hpp"
#include "engine/format/activity_log.hpp"

namespace replica {

class AlCache {
  public:
    enum class Hold : std::uint8_t {
        granted,  // the extent is durable in the log, and held
        pending,  // held, but wait for the transaction that brings it in
        starved,  // not held: no slot can be freed now; try again after a release
    };

    // ring_blocks: transactions that the log on the disk has room for.
    AlCache(std::uint32_t slots, std::uint32_t extents, std::uint32_t ring_blocks);

    void grow(std::uint32_t extents) { slot_of_.resize(extents, no_slot); }

    // Each granted or pending hold is given back by one release().
    Hold hold(std::uint32_t extent);
    void release(std::uint32_t extent);
    bool is_active(std::uint32_t extent) const;
    bool contains(std::uint32_t extent) const { return slot_of_[extent] != no_slot; }

    // A transaction is wanted and none is under way.
    bool wants_transaction() const { return !in_flight_ && !queued_.empty(); }
    bool transaction_in_flight() const { return in_flight_; }
    // Takes up to al_updates_max queued changes. `evicted` receives the extents that leave: their
    // dirty bitmap pages must be on the disk before the transaction is written.
    void begin_transaction(std::vector<std::uint32_t>& evicted);
    // The transaction under way as bytes go out; valid until finish_transaction().
    const AlTransaction& transaction() const { return transaction_; }
    void finish_transaction();

    // Calls f(extent) for every extent that the log on the disk may name.
    template <class F>
    void for_each(F&& f) const {
        for (const Slot& slot : slots_) {
            if (slot.extent != al_extent_free) f(slot.extent);
        }
    }
    std::uint32_t used() const { return used_; }
    std::uint32_t held() const { return held_; }
    // Nobody may hold anything. Forgets all extents and goes on with transaction number 0.
    void reset();

  private:
    static constexpr std::uint16_t no_slot = 0xffff;
    static constexpr std::uint16_t no_link = 0xffff;
    struct Slot {
        std::uint32_t extent = al_extent_free;
        std::uint32_t durable_extent = al_extent_free;  // what the disk says about this slot
        std::uint32_t refs = 0;
        std::uint16_t newer = no_link, older = no_link;  // links of the list of unheld extents
        bool active = false;
    };
    void unlink(std::uint16_t slot);
    void push_newest(std::uint16_t slot);

    std::vector<Slot> slots_;
    std::vector<std::uint16_t> slot_of_;  // by extent
    std::vector<std::uint16_t> queued_;   // slots whose change is not in a transaction yet
    std::vector<std::uint16_t> flying_;
    std::uint16_t newest_ = no_link, oldest_ = no_link;  // unheld and active extents
    std::uint32_t used_ = 0;
    std::uint32_t held_ = 0;
    bool in_flight_ = false;
    bool started_ = false;
    std::uint32_t ring_blocks_;
    std::uint16_t context_next_ = 0;
    AlTransaction transaction_;
};

}  // namespace replica
