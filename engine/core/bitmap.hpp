// SPDX-License-Identifier: Apache-2.0
// The out-of-sync bits of one volume in memory: one plain bit array for each slot in use, and which
// 4 KiB pages of the on-disk bitmap differ from it. Pure structure: the caller does the IO.
// A bit covers block_bytes of data. Setting rounds outwards, clearing inwards (docs/on-disk.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/assert.hpp"
#include "engine/base/units.hpp"

namespace replica {

class Bitmap {
  public:
    static constexpr std::uint64_t none = ~std::uint64_t{0};

    // `slots` says which of the on-disk slots are kept in memory (bit s for slot s).
    Bitmap(std::uint64_t volume_bytes, std::uint32_t max_peers, std::uint32_t slots);

    // The volume is larger from here on; nothing is set in what it got.
    void grow(std::uint64_t volume_bytes);

    std::uint64_t bits() const { return bits_; }
    std::uint64_t count(unsigned slot) const { return slots_[slot].count; }
    bool has_slot(unsigned slot) const { return slot < slots_.size() && slots_[slot].present; }

    // Byte ranges must lie in the volume.
    void set_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length);
    void set_bytes_all_slots(std::uint64_t offset, std::uint64_t length, unsigned except = ~0U);
    void clear_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length);
    void set_all(unsigned slot);
    void clear_all(unsigned slot);
    bool any_in_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length) const;

    // First set bit at or after `from`, or none.
    std::uint64_t find_set(unsigned slot, std::uint64_t from) const;
    // Number of set bits in a row from `from`, at most `limit`.
    std::uint64_t run_length(unsigned slot, std::uint64_t from, std::uint64_t limit) const;

    // On-disk pages. A page holds words of all slots, interleaved.
    std::uint64_t pages() const { return dirty_.size(); }
    bool page_dirty(std::uint64_t page) const { return dirty_[page] != 0; }
    std::uint64_t dirty_pages() const { return dirty_count_; }
    std::uint64_t find_dirty(std::uint64_t from) const;
    // Called when the page's bytes were taken for writing; a later set makes it dirty again.
    void page_taken(std::uint64_t page);
    void page_failed(std::uint64_t page) { mark_dirty(page); }
    void encode_page(std::uint64_t page, std::span<std::byte, 4096> out) const;
    void load_page(std::uint64_t page, std::span<const std::byte, 4096> bytes);
    // Pages that describe one activity-log extent: [first, last].
    std::uint64_t page_of_bit(std::uint64_t bit) const;

    // The wire's linear pages of one slot: 32768 bits each.
    std::uint64_t wire_pages() const { return (bits_ + wire_bits - 1) / wire_bits; }
    enum class PageKind : std::uint8_t { zeroes, ones, mixed };
    PageKind wire_page_kind(unsigned slot, std::uint64_t page) const;
    void encode_wire_page(unsigned slot, std::uint64_t page, std::span<std::byte, 4096> out) const;
    // Sets what is set in the page (a union); bits past the end are ignored.
    void merge_wire_page(unsigned slot, std::uint64_t page, std::span<const std::byte, 4096> bytes);

    std::span<const std::uint64_t> words(unsigned slot) const { return slots_[slot].words; }

  private:
    static constexpr std::uint64_t wire_bits = 32768;
    struct Slot {
        bool present = false;
        std::uint64_t count = 0;
        std::vector<std::uint64_t> words;
    };
    void set_word_bits(unsigned slot, std::uint64_t word, std::uint64_t mask);
    void clear_word_bits(unsigned slot, std::uint64_t word, std::uint64_t mask);
    template <class F>
    void for_words(std::uint64_t first, std::uint64_t end, F&& f) const;
    void mark_dirty(std::uint64_t page);

    std::uint64_t bits_;
    std::uint32_t max_peers_;
    std::vector<Slot> slots_;
    std::vector<std::uint8_t> dirty_;
    std::uint64_t dirty_count_ = 0;
};

}  // namespace replica
