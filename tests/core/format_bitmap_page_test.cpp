// SPDX-License-Identifier: Apache-2.0
// Bitmap pages against the definition of the format, one bit at a time: bit b of slot s is the
// on-disk bit (b & ~31) * max_peers + 32 s + (b & 31), least significant bit first.
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/format/bitmap_page.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

using Slots = std::vector<std::vector<std::uint64_t>>;

std::uint64_t disk_bit(std::uint64_t bit, std::uint32_t slot, std::uint32_t max_peers) {
    return (bit & ~std::uint64_t{31}) * max_peers + 32 * slot + (bit & 31);
}

bool get(const std::vector<std::byte>& bitmap, std::uint64_t bit) {
    return ((static_cast<unsigned>(bitmap[bit / 8]) >> (bit % 8)) & 1U) != 0;
}

struct Fixture {
    Fixture(std::uint32_t peers, std::uint64_t words, std::uint64_t seed)
        : max_peers(peers),
          words_per_slot(words),
          disk((words * 8 * peers + 4095) / 4096 * 4096),
          slots(peers) {
        Prng prng(seed);
        for (auto& slot : slots) {
            for (std::uint64_t w = 0; w < words; ++w)
                slot.push_back(prng.next() & prng.next());
        }
        for (std::uint32_t s = 0; s < peers; ++s) {
            for (std::uint64_t b = 0; b < words * 64; ++b) {
                if (((slots[s][b / 64] >> (b % 64)) & 1U) == 0) continue;
                const std::uint64_t at = disk_bit(b, s, peers);
                disk[at / 8] |= static_cast<std::byte>(1U << (at % 8));
            }
        }
    }
    std::uint64_t pages() const { return disk.size() / 4096; }
    static BitmapPage page_of(std::vector<std::byte>& bytes, std::uint64_t page) {
        return std::span(bytes).subspan(page * 4096).first<4096>();
    }

    std::uint32_t max_peers;
    std::uint64_t words_per_slot;
    std::vector<std::byte> disk;
    Slots slots;
};

}  // namespace

TEST_CASE("bitmap pages decode and encode as the format defines") {
    const std::uint32_t max_peers = GENERATE(1U, 2U, 3U, 7U, 31U);
    const std::uint64_t words = GENERATE(1U, 511U, 512U, 513U, 2000U);
    Fixture f(max_peers, words, max_peers * 10000 + words);

    Slots decoded(max_peers, std::vector<std::uint64_t>(words));
    std::vector<std::uint64_t*> out;
    std::vector<const std::uint64_t*> in;
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        out.push_back(decoded[s].data());
        in.push_back(f.slots[s].data());
    }
    std::vector<std::byte> encoded(f.disk.size(), std::byte{0xaa});
    for (std::uint64_t p = 0; p < f.pages(); ++p) {
        decode_bitmap_page(Fixture::page_of(f.disk, p), p, max_peers, out, words);
        encode_bitmap_page(Fixture::page_of(encoded, p), p, max_peers, in, words);
    }
    CHECK(decoded == f.slots);
    CHECK(encoded == f.disk);
}

TEST_CASE("slots that are not kept are neither read nor changed") {
    Fixture f(5, 700, 1);
    Slots decoded(5, std::vector<std::uint64_t>(700));
    std::vector<std::uint64_t*> out{decoded[0].data(), nullptr, decoded[2].data(), nullptr,
                                    decoded[4].data()};
    std::vector<const std::uint64_t*> in(out.begin(), out.end());
    std::vector<std::byte> disk = f.disk;
    for (std::uint64_t p = 0; p < f.pages(); ++p) {
        decode_bitmap_page(Fixture::page_of(f.disk, p), p, 5, out, 700);
    }
    CHECK(decoded[2] == f.slots[2]);
    CHECK(decoded[4] == f.slots[4]);
    for (const std::uint32_t s : {0U, 2U, 4U})
        decoded[s].assign(700, 0);
    for (std::uint64_t p = 0; p < f.pages(); ++p) {
        encode_bitmap_page(Fixture::page_of(disk, p), p, 5, in, 700);
    }
    for (std::uint64_t b = 0; b < 700 * 64; ++b) {
        for (std::uint32_t s = 0; s < 5; ++s) {
            const std::uint64_t at = disk_bit(b, s, 5);
            REQUIRE(get(disk, at) == (s % 2 == 1 && get(f.disk, at)));
        }
    }
}

TEST_CASE("the pages of a range of bits are those that hold them") {
    CHECK(bitmap_pages_of_bits(0, 0, 1) == BitmapPageRange{0, 0});
    CHECK(bitmap_pages_of_bits(32767, 32768, 1) == BitmapPageRange{0, 1});
    // 31 slots: 33 words of each slot in a page, and one word more.
    CHECK(bitmap_pages_of_bits(0, 1023, 31) == BitmapPageRange{0, 0});
    CHECK(bitmap_pages_of_bits(33 * 32, 33 * 32, 31) == BitmapPageRange{0, 1});
    Prng prng(2);
    for (int i = 0; i < 1000; ++i) {
        const auto peers = static_cast<std::uint32_t>(1 + prng.below(31));
        const std::uint64_t first = prng.below(1 << 20);
        const std::uint64_t last = first + prng.below(1 << 16);
        const BitmapPageRange range = bitmap_pages_of_bits(first, last, peers);
        REQUIRE(range.first == disk_bit(first, 0, peers) / 32768);
        REQUIRE(range.last == disk_bit(last, peers - 1, peers) / 32768);
    }
}

TEST_CASE("setting a range in a page's bytes sets it in every slot") {
    const std::uint32_t max_peers = GENERATE(1U, 2U, 3U, 31U);
    Prng prng(max_peers);
    for (int i = 0; i < 20; ++i) {
        Fixture f(max_peers, 300, prng.next());
        const std::uint64_t first = prng.below(300 * 64);
        const BitRange range{first, first + prng.below(300 * 64 - first)};
        std::vector<std::byte> disk = f.disk;
        std::uint64_t fresh = 0;
        for (std::uint64_t p = 0; p < f.pages(); ++p) {
            fresh += set_bitmap_page_bits(Fixture::page_of(disk, p), p, max_peers, range);
        }
        std::uint64_t expected_fresh = 0;
        for (std::uint64_t b = 0; b < 300 * 64; ++b) {
            for (std::uint32_t s = 0; s < max_peers; ++s) {
                const std::uint64_t at = disk_bit(b, s, max_peers);
                const bool inside = b >= range.first && b <= range.last;
                REQUIRE(get(disk, at) == (inside || get(f.disk, at)));
                expected_fresh += inside && !get(f.disk, at) ? 1 : 0;
            }
        }
        REQUIRE(fresh == expected_fresh);
    }
}

TEST_CASE("set bits are counted by slot, and those behind the end apart") {
    const std::uint32_t max_peers = GENERATE(1U, 3U, 31U);
    Fixture f(max_peers, 300, 77);
    const std::uint64_t bits = 250 * 64 + 17;
    std::vector<std::uint64_t> counts(max_peers), expected(max_peers);
    std::uint64_t beyond = 0, expected_beyond = 0;
    for (std::uint64_t p = 0; p < f.pages(); ++p) {
        beyond += count_bitmap_page(Fixture::page_of(f.disk, p), p, max_peers, bits, counts);
    }
    for (std::uint32_t s = 0; s < max_peers; ++s) {
        for (std::uint64_t b = 0; b < 300 * 64; ++b) {
            if (!get(f.disk, disk_bit(b, s, max_peers))) continue;
            ++(b < bits ? expected[s] : expected_beyond);
        }
    }
    CHECK(counts == expected);
    CHECK(beyond == expected_beyond);
}
