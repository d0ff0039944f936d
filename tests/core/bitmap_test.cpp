// SPDX-License-Identifier: Apache-2.0
// The bitmap against a naive model under random operations: rounding, counting, searching, and that
// a page that is not dirty always lies on the disk as it is in memory.
#include <algorithm>
#include <array>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/core/bitmap.hpp"
#include "engine/format/wire.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

using Page = std::array<std::byte, 4096>;

struct Model {
    Model(std::uint64_t bytes, std::uint32_t max_peers, std::uint32_t mask)
        : volume(bytes), bits((bytes + block_bytes - 1) / block_bytes), kept(mask) {
        slots.assign(max_peers, std::vector<bool>(bits));
    }
    bool keeps(unsigned slot) const { return (kept >> slot & 1U) != 0; }
    // Every block that the range touches.
    void set(unsigned slot, std::uint64_t offset, std::uint64_t length) {
        for (std::uint64_t b = 0; length > 0 && b < bits; ++b) {
            if (b * block_bytes < offset + length && offset < (b + 1) * block_bytes)
                slots[slot][b] = true;
        }
    }
    // Every block of which the range holds all that the volume has of it.
    void clear(unsigned slot, std::uint64_t offset, std::uint64_t length) {
        for (std::uint64_t b = 0; length > 0 && b < bits; ++b) {
            const std::uint64_t end = std::min(volume, (b + 1) * block_bytes);
            if (offset <= b * block_bytes && end <= offset + length) slots[slot][b] = false;
        }
    }
    std::uint64_t find(unsigned slot, std::uint64_t from) const {
        for (std::uint64_t b = from; b < bits; ++b) {
            if (slots[slot][b]) return b;
        }
        return Bitmap::none;
    }
    std::uint64_t run(unsigned slot, std::uint64_t from, std::uint64_t limit) const {
        std::uint64_t n = 0;
        while (n < limit && from + n < bits && slots[slot][from + n])
            ++n;
        return n;
    }

    std::uint64_t volume, bits;
    std::uint32_t kept;
    std::vector<std::vector<bool>> slots;
};

struct Shape {
    std::uint64_t bytes;
    std::uint32_t max_peers, kept;
};

// A range of whole sectors in the volume, often at block bounds or at the end.
std::pair<std::uint64_t, std::uint64_t> range(Prng& random, std::uint64_t volume) {
    const std::uint64_t sectors = volume / sector_bytes;
    std::uint64_t first = random.below(sectors);
    std::uint64_t n = 1 + random.below(random.below(4) == 0 ? sectors : 40);
    if (random.below(2) == 0) first = first / 8 * 8;
    if (random.below(2) == 0) n = (n + 7) / 8 * 8;
    if (random.below(8) == 0) n = sectors - first;
    n = std::min(n, sectors - first);
    return {first * sector_bytes, n * sector_bytes};
}

void compare(const Bitmap& bitmap, const Model& model, unsigned slot, Prng& random) {
    const auto& bits = model.slots[slot];
    REQUIRE(bitmap.count(slot) ==
            static_cast<std::uint64_t>(std::count(bits.begin(), bits.end(), true)));
    const std::uint64_t from = random.below(model.bits + 3);
    REQUIRE(bitmap.find_set(slot, from) == model.find(slot, from));
    if (from < model.bits) {
        const std::uint64_t limit = 1 + random.below(200);
        REQUIRE(bitmap.run_length(slot, from, limit) == model.run(slot, from, limit));
    }
    const auto [offset, length] = range(random, model.volume);
    const std::uint64_t first = model.find(slot, offset / block_bytes);
    REQUIRE(bitmap.any_in_bytes(slot, offset, length) ==
            (first != Bitmap::none && first * block_bytes < offset + length));
}

// One operation drawn by chance, on both; or some of the dirty pages go to the disk.
void operate(Bitmap& bitmap, Model& model, std::vector<Page>& disk, unsigned slot, Prng& random) {
    const auto [offset, length] = range(random, model.volume);
    switch (random.below(16)) {
        case 0:
            bitmap.set_all(slot);
            model.set(slot, 0, model.volume);
            break;
        case 1:
            bitmap.clear_all(slot);
            model.clear(slot, 0, model.volume);
            break;
        case 2: {
            const unsigned except = random.below(2) == 0 ? ~0U : slot;
            bitmap.set_bytes_all_slots(offset, length, except);
            for (unsigned s = 0; s < model.slots.size(); ++s) {
                if (model.keeps(s) && s != except) model.set(s, offset, length);
            }
            break;
        }
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
        case 8: {
            // A resync's chunk: its end is a block's or the volume's; a write's may be neither,
            // but then it does not reach the last block.
            const std::uint64_t whole = model.bits * block_bytes;
            std::uint64_t end = offset + length;
            if (end > whole - block_bytes) end = model.volume;
            bitmap.clear_bytes(slot, offset, end - offset);
            model.clear(slot, offset, end - offset);
            break;
        }
        case 9: {  // write some dirty pages
            std::uint64_t page = bitmap.find_dirty(random.below(bitmap.pages()));
            for (int n = 0; n < 2 && page != Bitmap::none; ++n) {
                REQUIRE(bitmap.page_dirty(page));
                bitmap.encode_page(page, disk[page]);
                bitmap.page_taken(page);
                page = bitmap.find_dirty(page);
            }
            break;
        }
        default:
            bitmap.set_bytes(slot, offset, length);
            model.set(slot, offset, length);
            break;
    }
}

}  // namespace

TEST_CASE("random operations give what a naive bitmap gives") {
    const Shape shape =
        GENERATE(Shape{5 * 4096, 1, 1}, Shape{64 * 4096, 1, 1}, Shape{65 * 4096 - 512, 2, 3},
                 Shape{300 * 4096 + 512, 3, 5}, Shape{40'000 * 4096ULL - 1024, 2, 3},
                 Shape{2000 * 4096, 31, 0x40000011}, Shape{512, 4, 15});
    Prng random(shape.bytes + shape.max_peers);
    Bitmap bitmap(shape.bytes, shape.max_peers, shape.kept);
    Model model(shape.bytes, shape.max_peers, shape.kept);
    REQUIRE(bitmap.bits() == model.bits);
    std::vector<Page> disk(bitmap.pages());
    std::vector<unsigned> kept;
    for (unsigned s = 0; s < shape.max_peers; ++s) {
        REQUIRE(bitmap.has_slot(s) == model.keeps(s));
        if (model.keeps(s)) kept.push_back(s);
    }
    REQUIRE_FALSE(bitmap.has_slot(shape.max_peers));
    const int rounds = model.bits > 10'000 ? 300 : 1500;
    for (int i = 0; i < rounds; ++i) {
        const unsigned slot = kept[random.below(kept.size())];
        operate(bitmap, model, disk, slot, random);
        for (const unsigned s : kept)
            compare(bitmap, model, s, random);
        if (i % 8 != 0) continue;
        std::uint64_t dirty = 0;
        for (std::uint64_t page = 0; page < bitmap.pages(); ++page) {
            dirty += bitmap.page_dirty(page) ? 1 : 0;
            if (bitmap.page_dirty(page)) continue;
            Page now{};
            bitmap.encode_page(page, now);
            REQUIRE(now == disk[page]);
        }
        REQUIRE(bitmap.dirty_pages() == dirty);
    }
}

TEST_CASE("what is written to the disk is what a restart reads") {
    const Shape shape = GENERATE(Shape{100 * 4096, 1, 1}, Shape{33'000 * 4096ULL - 512, 3, 5},
                                 Shape{5'000 * 4096, 31, 0x7fffffff});
    Prng random(9);
    Bitmap written(shape.bytes, shape.max_peers, shape.kept);
    Bitmap read(shape.bytes, shape.max_peers, shape.kept);
    for (int i = 0; i < 200; ++i) {
        const auto [offset, length] = range(random, shape.bytes);
        const auto slot = static_cast<unsigned>(random.below(shape.max_peers));
        if (written.has_slot(slot))
            written.set_bytes(slot, offset, std::min<std::uint64_t>(length, 99 * 4096));
    }
    for (std::uint64_t page = 0; page < written.pages(); ++page) {
        Page bytes{};
        written.encode_page(page, bytes);
        read.load_page(page, bytes);
    }
    for (unsigned s = 0; s < shape.max_peers; ++s) {
        if (!written.has_slot(s)) continue;
        REQUIRE(read.count(s) == written.count(s));
        REQUIRE(std::ranges::equal(read.words(s), written.words(s)));
    }
    // Reading does not make anything dirty, and garbage past the volume's end is not ours.
    CHECK(read.dirty_pages() == 0);
    Page ones;
    ones.fill(std::byte{0xff});
    for (std::uint64_t page = 0; page < read.pages(); ++page)
        read.load_page(page, ones);
    for (unsigned s = 0; s < shape.max_peers; ++s) {
        if (read.has_slot(s)) REQUIRE(read.count(s) == read.bits());
    }
}

TEST_CASE("each bit lies in the page that its number gives") {
    const std::uint32_t max_peers = GENERATE(1U, 3U, 31U);
    const std::uint64_t bits = 70'000;
    Bitmap bitmap(bits * block_bytes, max_peers, (1U << max_peers) - 1U);
    Prng random(max_peers);
    for (int i = 0; i < 500; ++i) {
        const std::uint64_t bit = random.below(bits);
        const auto slot = static_cast<unsigned>(random.below(max_peers));
        Page before{}, after{};
        const std::uint64_t first = bitmap.page_of_bit(bit);
        // A slot's word may lie in the next page: the caller takes both.
        const std::uint64_t page = ((bit >> 5) * max_peers + slot) * 4 / 4096;
        REQUIRE((page == first || page == first + 1));
        bitmap.clear_bytes(slot, bit * block_bytes, block_bytes);
        bitmap.encode_page(page, before);
        bitmap.page_taken(page);
        bitmap.set_bytes(slot, bit * block_bytes, 1);
        REQUIRE(bitmap.page_dirty(page));
        bitmap.encode_page(page, after);
        REQUIRE(before != after);
    }
}

TEST_CASE("pages of the wire merge as a union") {
    const std::uint64_t bits = GENERATE(1U, 32768U, 32769U, 100'000U);
    const std::uint64_t bytes = bits * block_bytes - (bits > 1 ? 1024 : 0);
    Prng random(bits);
    Bitmap from(bytes, 3, 2), to(bytes, 2, 1);
    Model model(bytes, 1, 1);
    for (int i = 0; i < 40; ++i) {
        const auto [a, a_length] = range(random, bytes);
        const auto [b, b_length] = range(random, bytes);
        from.set_bytes(1, a, std::min<std::uint64_t>(a_length, 3000 * 4096));
        to.set_bytes(0, b, std::min<std::uint64_t>(b_length, 3000 * 4096));
        model.set(0, a, std::min<std::uint64_t>(a_length, 3000 * 4096));
        model.set(0, b, std::min<std::uint64_t>(b_length, 3000 * 4096));
    }
    REQUIRE(from.wire_pages() == (bits + wire_bits_per_page - 1) / wire_bits_per_page);
    for (std::uint64_t page = 0; page < from.wire_pages(); ++page) {
        Page wire{};
        from.encode_wire_page(1, page, wire);
        to.merge_wire_page(0, page, wire);
    }
    compare(to, model, 0, random);
    for (std::uint64_t b = 0; b < bits; ++b)
        REQUIRE((to.words(0)[b / 64] >> (b % 64) & 1U) == (model.slots[0][b] ? 1U : 0U));
    // Bits past the end are ignored, and the kind of each page is told.
    Bitmap full(bytes, 1, 1);
    Page ones;
    ones.fill(std::byte{0xff});
    for (std::uint64_t page = 0; page < full.wire_pages(); ++page) {
        CHECK(full.wire_page_kind(0, page) == Bitmap::PageKind::zeroes);
        full.merge_wire_page(0, page, ones);
        CHECK(full.wire_page_kind(0, page) == Bitmap::PageKind::ones);
    }
    CHECK(full.count(0) == bits);
    if (bits > 1) {
        full.clear_bytes(0, 0, block_bytes);
        CHECK(full.wire_page_kind(0, 0) == Bitmap::PageKind::mixed);
    }
}
