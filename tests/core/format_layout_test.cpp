// SPDX-License-Identifier: Apache-2.0
// Places and sizes against the numbers that drbdmeta gave for many devices, and the refusals.
#include <string>

#include "engine/base/prng.hpp"
#include "engine/format/layout.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t kib = 1024;
constexpr std::uint64_t mib = 1024 * kib;
constexpr std::uint64_t gib = 1024 * mib;
constexpr std::uint64_t tib = 1024 * gib;

Superblock with_peers(std::uint32_t max_peers) {
    Superblock superblock;
    superblock.max_peers = max_peers;
    return superblock;
}

Result<MetadataLayout> plan(MetadataPlace place, std::uint64_t data, std::uint64_t metadata,
                            Superblock superblock) {
    return plan_layout(place, data, metadata, superblock);
}

void check_refused(const Result<MetadataLayout>& result, Errc code) {
    REQUIRE_FALSE(result);
    INFO(result.error().message);
    CHECK(result.error().code == code);
}

}  // namespace

TEST_CASE("internal metadata takes as many sectors as with drbdmeta") {
    struct Case {
        std::uint64_t device;
        std::uint32_t peers, md_size;
    };
    const Case c =
        GENERATE(Case{16 * mib, 1, 80}, Case{16 * mib, 7, 80}, Case{16 * mib, 31, 104},
                 Case{64 * mib, 1, 80}, Case{64 * mib, 3, 88}, Case{gib, 1, 136}, Case{gib, 7, 520},
                 Case{gib, 31, 2056}, Case{10 * gib, 1, 712}, Case{10 * gib, 7, 4552},
                 Case{10 * gib, 31, 19912}, Case{100 * gib, 1, 6472}, Case{100 * gib, 7, 44872},
                 Case{100 * gib, 31, 198472}, Case{tib, 1, 65608}, Case{tib, 7, 458824},
                 Case{tib, 31, 2031688}, Case{gib + 3072, 1, 144});
    Superblock superblock = with_peers(c.peers);
    const auto layout = plan_layout(MetadataPlace::internal, c.device, 0, superblock);
    REQUIRE(layout);
    CHECK(superblock.md_size_sectors == c.md_size);
    CHECK(superblock.al_offset_sectors == -64);
    CHECK(superblock.bm_offset_sectors == 8 - static_cast<std::int32_t>(c.md_size));
    CHECK(layout.value().data_bytes_max == layout.value().bitmap_offset);
    CHECK(layout.value().bitmap_offset + layout.value().bitmap_bytes == layout.value().al_offset);
    CHECK(check_layout(MetadataPlace::internal, c.device, 0, superblock));
}

TEST_CASE("on a device of an odd size the superblock is in the last aligned block") {
    Superblock superblock = with_peers(1);
    const auto layout = plan_layout(MetadataPlace::internal, gib + 3072, 0, superblock);
    REQUIRE(layout);
    CHECK(layout.value().superblock_offset == 1073737728);
    CHECK(layout.value().al_offset == 1073704960);
    CHECK(layout.value().bitmap_offset == 1073668096);
}

TEST_CASE("the bitmap always has room for the largest volume that is promised") {
    Prng prng(31);
    for (int i = 0; i < 3000; ++i) {
        Superblock superblock = with_peers(static_cast<std::uint32_t>(1 + prng.below(31)));
        superblock.bytes_per_bit = std::uint32_t{4096} << prng.below(9);
        const std::uint64_t data = 512 * prng.below(std::uint64_t{1} << (20 + prng.below(12)));
        const std::uint64_t metadata = 512 * prng.below(std::uint64_t{1} << (6 + prng.below(14)));
        const auto place = prng.chance(500'000) ? MetadataPlace::internal : MetadataPlace::external;
        const auto layout = plan_layout(place, data, metadata, superblock);
        if (!layout) {
            REQUIRE(layout.error().code == Errc::no_space);
            continue;
        }
        const MetadataLayout& l = layout.value();
        REQUIRE(l.data_bytes_max > 0);
        REQUIRE(l.data_bytes_max % 512 == 0);
        REQUIRE(l.data_bytes_max <= data);
        const std::uint64_t needed =
            bitmap_bytes_for(l.data_bytes_max, superblock.bytes_per_bit, superblock.max_peers);
        REQUIRE(needed <= l.bitmap_bytes);
        if (place == MetadataPlace::external) {
            REQUIRE(l.bitmap_offset + l.bitmap_bytes <= metadata);
        }
        superblock.effective_size_sectors = l.data_bytes_max / 512;
        REQUIRE(check_layout(place, data, metadata, superblock));
        ++superblock.effective_size_sectors;
        check_refused(check_layout(place, data, metadata, superblock), Errc::no_space);
    }
}

TEST_CASE("external metadata bounds the volume by its bitmap") {
    const auto layout =
        plan(MetadataPlace::external, 100 * gib, 4096 + 32 * kib + 64 * kib, with_peers(1));
    REQUIRE(layout);
    CHECK(layout.value().data_bytes_max == 2 * gib);  // 64 KiB of bits
    CHECK(layout.value().bitmap_bytes == 64 * kib);
    CHECK(plan(MetadataPlace::external, 100 * gib, 100 * mib, with_peers(1)).value().bitmap_bytes ==
          3200 * kib);
}

TEST_CASE("devices that are too small or too large are refused") {
    const Superblock one = with_peers(1);
    check_refused(plan(MetadataPlace::internal, 0, 0, one), Errc::no_space);
    check_refused(plan(MetadataPlace::internal, 4095, 0, one), Errc::no_space);
    check_refused(plan(MetadataPlace::internal, 40 * kib, 0, one), Errc::no_space);
    check_refused(plan(MetadataPlace::external, gib, 36 * kib, one), Errc::no_space);
    check_refused(plan(MetadataPlace::external, 511, mib, one), Errc::no_space);
    check_refused(plan(MetadataPlace::internal, 4096 * tib, 0, one), Errc::limit);
    check_refused(plan(MetadataPlace::external, gib, 2 * tib, one), Errc::limit);
    CHECK(plan(MetadataPlace::internal, 48 * kib, 0, one));
    CHECK(plan(MetadataPlace::internal, 1025 * tib, 0, with_peers(31)));
    check_refused(plan(MetadataPlace::internal, gib, 0, with_peers(32)), Errc::invalid);
}

TEST_CASE("metadata that does not fit its device is refused as DRBD does") {
    Superblock superblock = with_peers(2);
    REQUIRE(plan_layout(MetadataPlace::internal, gib, 0, superblock));
    check_refused(check_layout(MetadataPlace::internal, 2 * gib, 0, superblock), Errc::corrupt);
    check_refused(check_layout(MetadataPlace::external, gib, gib, superblock), Errc::corrupt);
    Superblock bad = superblock;
    SECTION("log") { bad.al_offset_sectors -= 8; }
    SECTION("bitmap") { bad.bm_offset_sectors += 8; }
    SECTION("size") { bad.md_size_sectors += 8; }
    check_refused(check_layout(MetadataPlace::internal, gib, 0, bad), Errc::corrupt);
}

TEST_CASE("a metadata device that shrank is refused") {
    Superblock superblock = with_peers(1);
    REQUIRE(plan_layout(MetadataPlace::external, gib, mib, superblock));
    CHECK(check_layout(MetadataPlace::external, gib, mib, superblock));
    check_refused(check_layout(MetadataPlace::external, gib, mib - 4096, superblock),
                  Errc::no_space);
    // What it has grown by is left alone.
    const auto grown = check_layout(MetadataPlace::external, gib, 2 * mib, superblock);
    REQUIRE(grown);
    CHECK(grown.value().data_bytes_max ==
          check_layout(MetadataPlace::external, gib, mib, superblock).value().data_bytes_max);
}

TEST_CASE("metadata of a disk that has grown is where it was placed") {
    Superblock superblock = with_peers(2);
    const auto planned = plan_layout(MetadataPlace::internal, gib, 0, superblock);
    REQUIRE(planned);
    superblock.extension.present = true;
    superblock.extension.device_bytes = gib;
    const auto grown = check_layout(MetadataPlace::internal, 2 * gib, 0, superblock);
    REQUIRE(grown);
    CHECK(grown.value().superblock_offset == planned.value().superblock_offset);
    CHECK(grown.value().data_bytes_max == planned.value().data_bytes_max);
    check_refused(check_layout(MetadataPlace::internal, gib - 4096, 0, superblock), Errc::no_space);
}
