// SPDX-License-Identifier: Apache-2.0
// A page of one slot is a piece of the array and is copied. With more slots each slot's words are
// walked by themselves: they lie max_peers words apart in the page and side by side in memory.
#include "engine/format/bitmap_page.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/base/assert.hpp"
#include "engine/base/endian.hpp"
#include "engine/format/layout.hpp"

namespace replica {
namespace {

// The first word of `slot` in a page: `word` counts in the slot, `index` in the page.
struct Place {
    std::uint64_t word;
    std::uint64_t index;
};

Place first_place(std::uint64_t page_index, std::uint32_t max_peers, std::uint32_t slot) {
    const std::uint64_t base = page_index * bitmap_page_words;
    const std::uint64_t word = base > slot ? (base - slot + max_peers - 1) / max_peers : 0;
    return {word, word * max_peers + slot - base};
}

// Bytes of a slot's array that lie in the page, for the layout with one slot.
std::size_t plain_bytes(std::uint64_t page_index, std::uint64_t words_per_slot) {
    const std::uint64_t begin = page_index * bitmap_page_bytes;
    const std::uint64_t end = words_per_slot * 8;
    return begin < end ? std::min<std::uint64_t>(end - begin, bitmap_page_bytes) : 0;
}

std::uint32_t mask_of(std::uint64_t word, BitRange bits) {
    const std::uint64_t first = std::max(bits.first, word * 32);
    const std::uint64_t last = std::min(bits.last, word * 32 + 31);
    if (first > last) return 0;
    return (~std::uint32_t{0} >> (31 - (last - first))) << (first - word * 32);
}

}  // namespace

BitmapPageRange bitmap_pages_of_bits(std::uint64_t first_bit, std::uint64_t last_bit,
                                     std::uint32_t max_peers) {
    ASSERT(first_bit <= last_bit && max_peers > 0);
    return {bitmap_disk_word(first_bit, 0, max_peers) / bitmap_page_words,
            bitmap_disk_word(last_bit, max_peers - 1, max_peers) / bitmap_page_words};
}

void decode_bitmap_page(ConstBitmapPage page, std::uint64_t page_index, std::uint32_t max_peers,
                        std::span<std::uint64_t* const> slots, std::uint64_t words_per_slot) {
    ASSERT(max_peers > 0 && slots.size() == max_peers);
    if (max_peers == 1) {
        const std::size_t bytes = plain_bytes(page_index, words_per_slot);
        if (bytes == 0 || slots[0] == nullptr) return;
        std::memcpy(slots[0] + page_index * (bitmap_page_bytes / 8), page.data(), bytes);
        return;
    }
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        if (slots[s] == nullptr) continue;
        // A little-endian array of 64-bit words is one of 32-bit words, too.
        std::byte* const array = std::as_writable_bytes(std::span(slots[s], words_per_slot)).data();
        auto [word, index] = first_place(page_index, max_peers, s);
        for (; index < bitmap_page_words && word < 2 * words_per_slot; index += max_peers, ++word) {
            std::memcpy(array + 4 * word, &page[4 * index], 4);
        }
    }
}

void encode_bitmap_page(BitmapPage page, std::uint64_t page_index, std::uint32_t max_peers,
                        std::span<const std::uint64_t* const> slots, std::uint64_t words_per_slot) {
    ASSERT(max_peers > 0 && slots.size() == max_peers);
    if (max_peers == 1) {
        if (slots[0] == nullptr) return;
        const std::size_t bytes = plain_bytes(page_index, words_per_slot);
        if (bytes > 0) {
            std::memcpy(page.data(), slots[0] + page_index * (bitmap_page_bytes / 8), bytes);
        }
        std::memset(page.data() + bytes, 0, page.size() - bytes);
        return;
    }
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        if (slots[s] == nullptr) continue;
        const std::byte* const array = std::as_bytes(std::span(slots[s], words_per_slot)).data();
        auto [word, index] = first_place(page_index, max_peers, s);
        for (; index < bitmap_page_words; index += max_peers, ++word) {
            if (word < 2 * words_per_slot) {
                std::memcpy(&page[4 * index], array + 4 * word, 4);
            } else {
                std::memset(&page[4 * index], 0, 4);
            }
        }
    }
}

std::uint64_t set_bitmap_page_bits(BitmapPage page, std::uint64_t page_index,
                                   std::uint32_t max_peers, BitRange bits) {
    ASSERT(max_peers > 0 && bits.first <= bits.last);
    std::uint64_t fresh = 0;
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        auto [word, index] = first_place(page_index, max_peers, s);
        if (bits.first / 32 > word) {
            index += (bits.first / 32 - word) * max_peers;
            word = bits.first / 32;
        }
        for (; index < bitmap_page_words && word <= bits.last / 32; index += max_peers, ++word) {
            const auto old = load_le<std::uint32_t>(&page[4 * index]);
            const std::uint32_t mask = mask_of(word, bits);
            fresh += static_cast<std::uint64_t>(std::popcount(mask & ~old));
            store_le(&page[4 * index], old | mask);
        }
    }
    return fresh;
}

std::uint64_t count_bitmap_page(ConstBitmapPage page, std::uint64_t page_index,
                                std::uint32_t max_peers, std::uint64_t bits,
                                std::span<std::uint64_t> counts) {
    ASSERT(max_peers > 0 && counts.size() == max_peers);
    std::uint64_t beyond = 0;
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        auto [word, index] = first_place(page_index, max_peers, s);
        for (; index < bitmap_page_words; index += max_peers, ++word) {
            const auto value = load_le<std::uint32_t>(&page[4 * index]);
            const std::uint32_t valid = bits == 0 ? 0 : mask_of(word, {0, bits - 1});
            counts[s] += static_cast<std::uint64_t>(std::popcount(value & valid));
            beyond += static_cast<std::uint64_t>(std::popcount(value & ~valid));
        }
    }
    return beyond;
}

}  // namespace replica
