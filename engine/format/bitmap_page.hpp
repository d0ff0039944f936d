// SPDX-License-Identifier: Apache-2.0
// The 4 KiB pages of the on-disk bitmap, whose 32-bit words are interleaved over the slots: word w
// of slot s is the bitmap's word w * max_peers + s. In memory a slot is one plain array of 64-bit
// words, bit b at words[b / 64] bit b % 64; with one slot the disk's bytes are that array. Bytes
// only: no IO, no allocation. Layout: docs/on-disk.md, "Bitmap".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/units.hpp"

namespace replica {

inline constexpr std::size_t bitmap_page_bytes = 4096;
inline constexpr std::uint64_t bitmap_page_words = bitmap_page_bytes / 4;

using BitmapPage = std::span<std::byte, bitmap_page_bytes>;
using ConstBitmapPage = std::span<const std::byte, bitmap_page_bytes>;

// A closed range of page numbers, counted from the bitmap's start.
struct BitmapPageRange {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    friend bool operator==(const BitmapPageRange&, const BitmapPageRange&) = default;
};

// A closed range of bits of every slot. first <= last.
struct BitRange {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
};

// The pages that hold these bits of any slot.
BitmapPageRange bitmap_pages_of_bits(std::uint64_t first_bit, std::uint64_t last_bit,
                                     std::uint32_t max_peers);

// Copies what the page holds of each slot into slots[s][0..words_per_slot). slots.size() is
// max_peers; a null entry is a slot that is not kept. Words beyond words_per_slot are ignored.
void decode_bitmap_page(ConstBitmapPage page, std::uint64_t page_index, std::uint32_t max_peers,
                        std::span<std::uint64_t* const> slots, std::uint64_t words_per_slot);

// The inverse. Words of kept slots beyond words_per_slot become zero. Words of slots that are not
// kept stay as they are in `page`: give the page as it is on the disk where DRBD may have left
// something in them (the bits of peers that this node does not know), zeroes elsewhere.
void encode_bitmap_page(BitmapPage page, std::uint64_t page_index, std::uint32_t max_peers,
                        std::span<const std::uint64_t* const> slots, std::uint64_t words_per_slot);

// Sets the range in all slots, as far as it lies in this page, and returns how many bits were clear
// before. For replaying the activity log without the bitmap in memory.
std::uint64_t set_bitmap_page_bits(BitmapPage page, std::uint64_t page_index,
                                   std::uint32_t max_peers, BitRange bits);

// Adds the set bits of each slot below `bits` to counts[slot] (max_peers entries), and returns how
// many are set at or beyond it, where there must be none.
std::uint64_t count_bitmap_page(ConstBitmapPage page, std::uint64_t page_index,
                                std::uint32_t max_peers, std::uint64_t bits,
                                std::span<std::uint64_t> counts);

}  // namespace replica
