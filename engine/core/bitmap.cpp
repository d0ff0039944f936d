// SPDX-License-Identifier: Apache-2.0
#include "engine/core/bitmap.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/base/endian.hpp"

namespace replica {

Bitmap::Bitmap(std::uint64_t volume_bytes, std::uint32_t max_peers, std::uint32_t slots)
    : bits_((volume_bytes + block_bytes - 1) / block_bytes), max_peers_(max_peers) {
    ASSERT(max_peers >= 1 && max_peers <= 31);
    const std::uint64_t words = (bits_ + 63) / 64;
    slots_.resize(max_peers);
    for (unsigned s = 0; s < max_peers; ++s) {
        if (((slots >> s) & 1U) == 0) continue;
        slots_[s].present = true;
        slots_[s].words.resize(words);
    }
    const std::uint64_t bytes = words * 8 * max_peers;
    dirty_.resize((bytes + 4095) / 4096);
}

void Bitmap::grow(std::uint64_t volume_bytes) {
    const std::uint64_t bits = (volume_bytes + block_bytes - 1) / block_bytes;
    ASSERT(bits >= bits_);
    bits_ = bits;
    const std::uint64_t words = (bits_ + 63) / 64;
    for (Slot& slot : slots_) {
        if (slot.present) slot.words.resize(words);
    }
    dirty_.resize((words * 8 * max_peers_ + 4095) / 4096);
}

template <class F>
void Bitmap::for_words(std::uint64_t first, std::uint64_t end, F&& f) const {
    while (first < end) {
        const std::uint64_t word = first / 64;
        const std::uint64_t from = first % 64;
        const std::uint64_t to = std::min<std::uint64_t>(64, end - word * 64);
        const std::uint64_t high = to == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << to) - 1;
        f(word, high & ~((std::uint64_t{1} << from) - 1));
        first = word * 64 + to;
    }
}

void Bitmap::mark_dirty(std::uint64_t page) {
    if (dirty_[page] == 0) ++dirty_count_;
    dirty_[page] = 1;
}

void Bitmap::page_taken(std::uint64_t page) {
    if (dirty_[page] != 0) --dirty_count_;
    dirty_[page] = 0;
}

std::uint64_t Bitmap::page_of_bit(std::uint64_t bit) const {
    return (bit >> 5) * max_peers_ * 4 / 4096;
}

void Bitmap::set_word_bits(unsigned slot, std::uint64_t word, std::uint64_t mask) {
    Slot& s = slots_[slot];
    const std::uint64_t added = mask & ~s.words[word];
    if (added == 0) return;
    s.words[word] |= added;
    s.count += static_cast<std::uint64_t>(std::popcount(added));
    mark_dirty((word * 2 * max_peers_ + slot) * 4 / 4096);
    mark_dirty(((word * 2 + 1) * max_peers_ + slot) * 4 / 4096);
}

void Bitmap::clear_word_bits(unsigned slot, std::uint64_t word, std::uint64_t mask) {
    Slot& s = slots_[slot];
    const std::uint64_t removed = mask & s.words[word];
    if (removed == 0) return;
    s.words[word] &= ~removed;
    s.count -= static_cast<std::uint64_t>(std::popcount(removed));
    mark_dirty((word * 2 * max_peers_ + slot) * 4 / 4096);
    mark_dirty(((word * 2 + 1) * max_peers_ + slot) * 4 / 4096);
}

void Bitmap::set_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length) {
    ASSERT(has_slot(slot));
    const std::uint64_t end = std::min(bits_, (offset + length + block_bytes - 1) / block_bytes);
    for_words(offset / block_bytes, end,
              [&](std::uint64_t word, std::uint64_t mask) { set_word_bits(slot, word, mask); });
}

void Bitmap::set_bytes_all_slots(std::uint64_t offset, std::uint64_t length, unsigned except) {
    for (unsigned s = 0; s < slots_.size(); ++s) {
        if (slots_[s].present && s != except) set_bytes(s, offset, length);
    }
}

void Bitmap::clear_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length) {
    ASSERT(has_slot(slot));
    const std::uint64_t first = (offset + block_bytes - 1) / block_bytes;
    std::uint64_t end = (offset + length) / block_bytes;
    // The volume's last block may be shorter than a block; covering it to the end covers it.
    if ((offset + length + block_bytes - 1) / block_bytes == bits_) end = bits_;
    for_words(first, std::min(end, bits_),
              [&](std::uint64_t word, std::uint64_t mask) { clear_word_bits(slot, word, mask); });
}

void Bitmap::set_all(unsigned slot) {
    for_words(0, bits_,
              [&](std::uint64_t word, std::uint64_t mask) { set_word_bits(slot, word, mask); });
}

void Bitmap::clear_all(unsigned slot) {
    if (slots_[slot].count == 0) return;
    for_words(0, bits_,
              [&](std::uint64_t word, std::uint64_t mask) { clear_word_bits(slot, word, mask); });
}

bool Bitmap::any_in_bytes(unsigned slot, std::uint64_t offset, std::uint64_t length) const {
    const std::uint64_t end = std::min(bits_, (offset + length + block_bytes - 1) / block_bytes);
    const std::uint64_t bit = find_set(slot, offset / block_bytes);
    return bit != none && bit < end;
}

std::uint64_t Bitmap::find_set(unsigned slot, std::uint64_t from) const {
    const Slot& s = slots_[slot];
    if (from >= bits_ || s.count == 0) return none;
    std::uint64_t word = from / 64;
    std::uint64_t value = s.words[word] & ~((std::uint64_t{1} << (from % 64)) - 1);
    while (value == 0) {
        if (++word == s.words.size()) return none;
        value = s.words[word];
    }
    return word * 64 + static_cast<std::uint64_t>(std::countr_zero(value));
}

std::uint64_t Bitmap::run_length(unsigned slot, std::uint64_t from, std::uint64_t limit) const {
    const Slot& s = slots_[slot];
    std::uint64_t n = 0;
    while (n < limit && from + n < bits_) {
        const std::uint64_t bit = from + n;
        const std::uint64_t rest = ~(s.words[bit / 64] >> (bit % 64));
        const auto ones = static_cast<std::uint64_t>(std::countr_zero(rest));
        const std::uint64_t in_word = 64 - bit % 64;
        n += std::min(ones, in_word);
        if (ones < in_word) break;
    }
    return std::min({n, limit, bits_ - from});
}

std::uint64_t Bitmap::find_dirty(std::uint64_t from) const {
    if (dirty_count_ == 0) return none;
    for (std::uint64_t page = from; page < dirty_.size(); ++page) {
        if (dirty_[page] != 0) return page;
    }
    return none;
}

void Bitmap::encode_page(std::uint64_t page, std::span<std::byte, 4096> out) const {
    for (std::uint64_t i = 0; i < 1024; ++i) {
        const std::uint64_t disk_word = page * 1024 + i;
        const Slot& s = slots_[disk_word % max_peers_];
        const std::uint64_t word32 = disk_word / max_peers_;
        std::uint32_t value = 0;
        if (s.present && word32 / 2 < s.words.size()) {
            value = static_cast<std::uint32_t>(s.words[word32 / 2] >> (32 * (word32 % 2)));
        }
        store_le(out.data() + i * 4, value);
    }
}

void Bitmap::load_page(std::uint64_t page, std::span<const std::byte, 4096> bytes) {
    for (std::uint64_t i = 0; i < 1024; ++i) {
        const auto value = load_le<std::uint32_t>(bytes.data() + i * 4);
        if (value == 0) continue;
        const std::uint64_t disk_word = page * 1024 + i;
        Slot& s = slots_[disk_word % max_peers_];
        const std::uint64_t word32 = disk_word / max_peers_;
        if (!s.present || word32 * 32 >= bits_) continue;
        std::uint64_t mask = std::uint64_t{value} << (32 * (word32 % 2));
        if (const std::uint64_t tail = bits_ - word32 / 2 * 64; tail < 64) {
            mask &= (std::uint64_t{1} << tail) - 1;  // bits past the end are not ours
        }
        const std::uint64_t added = mask & ~s.words[word32 / 2];
        s.words[word32 / 2] |= added;
        s.count += static_cast<std::uint64_t>(std::popcount(added));
    }
}

Bitmap::PageKind Bitmap::wire_page_kind(unsigned slot, std::uint64_t page) const {
    const Slot& s = slots_[slot];
    const std::uint64_t first = page * wire_bits;
    const std::uint64_t end = std::min(bits_, first + wire_bits);
    bool zero = true;
    bool one = true;
    for_words(first, end, [&](std::uint64_t word, std::uint64_t mask) {
        zero = zero && (s.words[word] & mask) == 0;
        one = one && (s.words[word] & mask) == mask;
    });
    return zero ? PageKind::zeroes : one ? PageKind::ones : PageKind::mixed;
}

void Bitmap::encode_wire_page(unsigned slot, std::uint64_t page,
                              std::span<std::byte, 4096> out) const {
    std::memset(out.data(), 0, out.size());
    const Slot& s = slots_[slot];
    const std::uint64_t first = page * wire_bits / 64;
    const std::uint64_t n = std::min<std::uint64_t>(wire_bits / 64, s.words.size() - first);
    for (std::uint64_t i = 0; i < n; ++i)
        store_le(out.data() + i * 8, s.words[first + i]);
}

void Bitmap::merge_wire_page(unsigned slot, std::uint64_t page,
                             std::span<const std::byte, 4096> bytes) {
    const std::uint64_t first = page * wire_bits;
    ASSERT(first < bits_);
    for_words(first, std::min(bits_, first + wire_bits),
              [&](std::uint64_t word, std::uint64_t mask) {
                  const auto value = load_le<std::uint64_t>(bytes.data() + (word - first / 64) * 8);
                  set_word_bits(slot, word, value & mask);
              });
}

}  // namespace replica
