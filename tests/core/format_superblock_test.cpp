// SPDX-License-Identifier: Apache-2.0
// The superblock as a value: round trips, refusals, and the verdict over torn, stale, foreign and
// damaged blocks (docs/on-disk.md, "Two copies"). The property behind all of them: what comes out
// is the old block, the new block or an error, never a mix.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/format/superblock.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

using Block = std::array<std::byte, superblock_bytes>;
constexpr std::size_t sectors = superblock_bytes / sector_bytes;

Block encoded(const Superblock& superblock) {
    Block block;
    encode_superblock(superblock, block);
    return block;
}

Superblock random_superblock(Prng& prng) {
    Superblock s;
    s.effective_size_sectors = prng.below((std::uint64_t{1} << 41) + 1);
    s.current_uuid = prng.next();
    s.members = prng.next();
    s.device_uuid = prng.next();
    s.flags = static_cast<std::uint32_t>(prng.next());
    s.md_size_sectors = static_cast<std::uint32_t>(prng.next());
    s.al_offset_sectors = static_cast<std::int32_t>(prng.next());
    s.bm_offset_sectors = static_cast<std::int32_t>(prng.next());
    s.al_extents = static_cast<std::uint32_t>(1 + prng.below(65534));
    s.bytes_per_bit = std::uint32_t{4096} << prng.below(9);
    s.max_bio_bytes = static_cast<std::uint32_t>(prng.next());
    s.max_peers = static_cast<std::uint32_t>(1 + prng.below(31));
    s.node_id = static_cast<std::int32_t>(prng.below(33)) - 1;
    s.al_stripes = static_cast<std::uint32_t>(1 + prng.below(1024));
    s.al_stripe_blocks = static_cast<std::uint32_t>(8 + prng.below(4000));
    std::int32_t next_slot = 0;
    for (PeerMetadata& peer : s.peers) {
        peer.bitmap_uuid = prng.next();
        peer.bitmap_dagtag = prng.next();
        peer.flags = static_cast<std::uint32_t>(prng.next());
        if (prng.chance(300'000) && next_slot < static_cast<std::int32_t>(s.max_peers)) {
            peer.bitmap_index = next_slot++;
        }
        peer.admitting_uuid = prng.next();
    }
    for (Uuid& uuid : s.history)
        uuid = prng.next();
    SuperblockExtension& e = s.extension;
    e.present = true;
    e.write_seq = prng.next() >> 1;
    e.generation_seq = prng.next();
    e.parent_uuid = prng.next();
    e.in_sync = NodeMask{static_cast<std::uint32_t>(prng.next())};
    e.primary_node = static_cast<std::int32_t>(prng.below(33)) - 1;
    for (std::uint8_t& b : e.volume_id)
        b = static_cast<std::uint8_t>(prng.next());
    for (std::uint8_t& b : e.boot_id)
        b = static_cast<std::uint8_t>(prng.next());
    e.vote_ballot = prng.next();
    e.vote_accepted = prng.next();
    e.set_change = prng.next();
    e.vote_value = {prng.next(),
                    prng.next(),
                    prng.next(),
                    prng.next(),
                    NodeMask{static_cast<std::uint32_t>(prng.next())},
                    static_cast<std::int32_t>(prng.below(33)) - 1};
    e.promoted_at_s = prng.next();
    e.cache_losses = static_cast<std::uint32_t>(prng.next());
    e.device_bytes = prng.next();
    e.ready_bytes = prng.next();
    return s;
}

// One update in the life of a volume: few or many fields, the identity stays.
Superblock next_update(const Superblock& old, Prng& prng) {
    Superblock s = old;
    ++s.extension.write_seq;
    if (prng.chance(500'000)) s.flags ^= md_flag::primary_ind | md_flag::al_clean;
    if (prng.chance(500'000)) {
        std::rotate(s.history.begin(), s.history.end() - 1, s.history.end());
        s.history[0] = s.current_uuid;
        s.current_uuid = prng.next();
        ++s.extension.generation_seq;
    }
    if (prng.chance(500'000)) s.peers[prng.below(nodes_max)].bitmap_uuid = prng.next();
    if (prng.chance(500'000)) s.peers[prng.below(nodes_max)].admitting_uuid = prng.next();
    if (prng.chance(200'000)) s.effective_size_sectors = prng.below(1 << 30);
    return s;
}

// Sector i of the mix is the new one where bit i of `fresh` is set.
Block mix(const Block& old, const Block& fresh_block, unsigned fresh) {
    Block block = old;
    for (std::size_t i = 0; i < sectors; ++i) {
        if (((fresh >> i) & 1U) == 0) continue;
        std::copy_n(fresh_block.begin() + static_cast<std::ptrdiff_t>(i * sector_bytes),
                    sector_bytes, block.begin() + static_cast<std::ptrdiff_t>(i * sector_bytes));
    }
    return block;
}

void check_refused(const Result<Superblock>& result, Errc code, const std::string& part) {
    REQUIRE_FALSE(result);
    CHECK(result.error().code == code);
    INFO(result.error().message);
    CHECK(result.error().message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("a superblock survives encoding, with and without its extension") {
    Prng prng(3);
    for (int i = 0; i < 500; ++i) {
        Superblock s = random_superblock(prng);
        REQUIRE(decode_superblock(encoded(s)).value() == s);
        s.extension = {};
        for (PeerMetadata& peer : s.peers)
            peer.admitting_uuid = uuid_none;
        REQUIRE(decode_superblock(encoded(s)).value() == s);
    }
}

TEST_CASE("no damaged bit of a block with extension goes unseen") {
    Prng prng(4);
    const Block good = encoded(random_superblock(prng));
    for (std::size_t bit = 0; bit < 8 * superblock_bytes; ++bit) {
        Block bad = good;
        bad[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
        REQUIRE_FALSE(decode_superblock(bad));
    }
}

TEST_CASE("a field out of its range is named") {
    struct Case {
        std::size_t offset;
        std::uint32_t value;
        const char* name;
    };
    const Case c = GENERATE(
        Case{0, 0x00000300, "1 PiB"}, Case{72, 0, "al_nr_extents"},
        Case{72, 65535, "al_nr_extents"}, Case{80, 5000, "power of two"},
        Case{80, 2048, "bm_bytes_per_bit"}, Case{88, 0, "bm_max_peers"},
        Case{88, 32, "bm_max_peers"}, Case{92, 32, "node_id"}, Case{92, 0xfffffffe, "node_id"},
        Case{96, 1025, "al_stripes"}, Case{96, 0, "al_stripes"}, Case{100, 7, "al_stripe_size_4k"},
        Case{100, 0xffffffff, "al_stripe_size_4k"}, Case{112 + 20, 1, "bitmap_index"},
        Case{112 + 20, 0xfffffffe, "bitmap_index"});
    Block block = encoded(Superblock{});
    store_be(&block[c.offset], c.value);
    check_refused(decode_superblock(block), Errc::corrupt, c.name);
}

TEST_CASE("two peers can not own one bitmap slot") {
    Superblock s;
    s.peers[4].bitmap_index = 0;
    Block block = encoded(s);
    store_be(&block[112 + 32 * 9 + 20], std::uint32_t{0});
    check_refused(decode_superblock(block), Errc::corrupt, "two peers");
}

TEST_CASE("metadata older than activity-log stripes has one of eight blocks") {
    Block block = encoded(Superblock{});
    store_be(&block[96], std::uint64_t{0});
    const auto decoded = decode_superblock(block);
    REQUIRE(decoded);
    CHECK(decoded.value().al_stripes == 1);
    CHECK(decoded.value().al_stripe_blocks == 8);
}

TEST_CASE("what a newer version wrote is refused, not misread") {
    const std::size_t offset = GENERATE(24, 47, 104, 111, 112 + 24, 112 + 32 * 31 + 31);
    Block block = encoded(Superblock{});
    block[offset] = std::byte{1};
    check_refused(decode_superblock(block), Errc::unsupported, "newer");
}

TEST_CASE("other bytes are not taken for a superblock") {
    Block block{};
    check_refused(decode_superblock(block), Errc::corrupt, "no DRBD v09 superblock");
    store_be(&block[60], std::uint32_t{0x8374026a});
    check_refused(decode_superblock(block), Errc::unsupported, "v07");
}

TEST_CASE("every torn write ends in the old block, the new block or an error") {
    Prng prng(5);
    for (int i = 0; i < 40; ++i) {
        const Superblock older = random_superblock(prng);
        const Superblock newer = next_update(older, prng);
        const Block old_block = encoded(older);
        const Block new_block = encoded(newer);
        for (unsigned fresh = 0; fresh < (1U << sectors); ++fresh) {
            const Block disk = mix(old_block, new_block, fresh);
            // The copy was durable before the disk was touched: the new state is always found.
            REQUIRE(choose_superblock(disk, new_block).value() == newer);
            // Without it a mix is refused.
            const auto alone = choose_superblock(disk, {});
            REQUIRE(static_cast<bool>(alone) == (disk == old_block || disk == new_block));
            if (alone) REQUIRE((alone.value() == older || alone.value() == newer));
        }
    }
}

TEST_CASE("a torn copy leaves the disk's block in force") {
    Prng prng(6);
    const Superblock older = random_superblock(prng);
    const Superblock newer = next_update(older, prng);
    for (unsigned fresh = 0; fresh < (1U << sectors); ++fresh) {
        const Block copy = mix(encoded(older), encoded(newer), fresh);
        const auto chosen = choose_superblock(encoded(older), copy);
        REQUIRE((chosen.value() == older || chosen.value() == newer));
    }
    const Block whole = encoded(newer);
    for (const std::size_t length : {std::size_t{1}, std::size_t{512}, std::size_t{4095}}) {
        const auto part = std::span<const std::byte>(whole).first(length);
        CHECK(choose_superblock(encoded(older), part).value() == older);
    }
}

TEST_CASE(
    "the first update over a block of DRBD's tears harmlessly if it only adds the extension") {
    Prng prng(7);
    Superblock ours = random_superblock(prng);
    Superblock drbd = ours;
    drbd.extension = {};
    for (PeerMetadata& peer : drbd.peers)
        peer.admitting_uuid = uuid_none;
    const Block drbd_block = encoded(drbd);
    const Block our_block = encoded(ours);
    for (unsigned fresh = 0; fresh < (1U << sectors); ++fresh) {
        const Block disk = mix(drbd_block, our_block, fresh);
        const auto chosen = choose_superblock(disk, our_block);
        REQUIRE(chosen);
        REQUIRE((chosen.value() == ours || chosen.value() == drbd));
        const auto alone = choose_superblock(disk, {});
        if (alone) REQUIRE((alone.value() == ours || alone.value() == drbd));
    }
}

TEST_CASE("a block of DRBD's wins over the node's copy") {
    Prng prng(8);
    const Superblock ours = random_superblock(prng);
    Superblock drbd = ours;
    drbd.extension = {};
    drbd.current_uuid = 77;
    for (PeerMetadata& peer : drbd.peers)
        peer.admitting_uuid = uuid_none;
    CHECK(choose_superblock(encoded(drbd), encoded(ours)).value() == drbd);
}

TEST_CASE("of two whole blocks the one written later is taken") {
    Prng prng(9);
    const Superblock older = random_superblock(prng);
    Superblock newer = older;
    newer.flags ^= md_flag::consistent;
    newer.extension.write_seq += 1;
    CHECK(choose_superblock(encoded(older), encoded(newer)).value() == newer);
    CHECK(choose_superblock(encoded(newer), encoded(older)).value() == newer);
    CHECK(choose_superblock(encoded(newer), encoded(newer)).value() == newer);
}

TEST_CASE("a disk that is an old copy of itself is refused") {
    Prng prng(10);
    const Superblock older = random_superblock(prng);
    Superblock newer = older;
    newer.extension.write_seq += copy_lead_max + 1;
    check_refused(choose_superblock(encoded(older), encoded(newer)), Errc::corrupt, "old copy");
    Block damaged = encoded(older);
    damaged[4000] = std::byte{1};
    check_refused(choose_superblock(damaged, encoded(newer)), Errc::corrupt, "old copy");
}

TEST_CASE("two different blocks with one number mean that somebody else wrote") {
    Prng prng(11);
    const Superblock one = random_superblock(prng);
    Superblock other = one;
    other.current_uuid ^= 2;
    check_refused(choose_superblock(encoded(one), encoded(other)), Errc::corrupt, "same number");
}

TEST_CASE("a disk that is not the copy's is refused") {
    Prng prng(12);
    Superblock disk = random_superblock(prng);
    disk.node_id = 3;
    Superblock copy = disk;
    ++copy.extension.write_seq;
    SECTION("another volume") { copy.extension.volume_id[0] ^= 1; }
    SECTION("another device") { copy.device_uuid ^= 1; }
    SECTION("another device with DRBD's metadata") {
        copy.device_uuid ^= 1;
        disk.extension = {};
        for (PeerMetadata& peer : disk.peers)
            peer.admitting_uuid = uuid_none;
    }
    check_refused(choose_superblock(encoded(disk), encoded(copy)), Errc::state, "not the disk");
    Block damaged = encoded(copy);
    damaged[3000] ^= std::byte{1};
    CHECK(choose_superblock(encoded(disk), damaged).value() == disk);
    damaged = encoded(disk);
    damaged[0] ^= std::byte{1};
    CHECK(choose_superblock(damaged, encoded(copy)).error().code == Errc::corrupt);
}

TEST_CASE("a copy that names no disk, or another node's, counts for nothing") {
    Prng prng(16);
    Superblock disk = random_superblock(prng);
    disk.node_id = 3;
    Superblock copy = disk;
    ++copy.extension.write_seq;
    SECTION("node") { copy.node_id = 4; }
    SECTION("no device") { copy.device_uuid = 0; }
    SECTION("no device on the disk") { disk.device_uuid = 0; }
    CHECK(choose_superblock(encoded(disk), encoded(copy)).value() == disk);
    Block damaged = encoded(disk);
    damaged[0] ^= std::byte{1};
    check_refused(choose_superblock(damaged, encoded(copy)), Errc::corrupt, "another volume");
}

TEST_CASE("a disk without a superblock is not brought back from the copy") {
    Prng prng(13);
    const Block copy = encoded(random_superblock(prng));
    const Block blank{};
    check_refused(choose_superblock(blank, copy), Errc::corrupt, "no DRBD v09 superblock");
    Block one_sector_lost = copy;
    std::fill_n(one_sector_lost.begin(), sector_bytes, std::byte{0});
    check_refused(choose_superblock(one_sector_lost, copy), Errc::corrupt, "replaced");
}

TEST_CASE("a damaged block is not repaired from a copy that is older than it") {
    Prng prng(14);
    const Superblock older = random_superblock(prng);
    const Superblock newer = next_update(older, prng);
    Block damaged = encoded(newer);
    damaged[3000] ^= std::byte{0x10};
    check_refused(choose_superblock(damaged, encoded(older)), Errc::corrupt, "older");
    CHECK(choose_superblock(damaged, encoded(newer)).value() == newer);
}

TEST_CASE("random bytes are refused or decoded within their ranges") {
    Prng prng(15);
    for (int i = 0; i < 2000; ++i) {
        Block block = encoded(i % 2 == 0 ? Superblock{} : random_superblock(prng));
        for (int n = 0; n < 8; ++n) {
            block[prng.below(1392)] = static_cast<std::byte>(prng.next());
        }
        const auto decoded = decode_superblock(block);
        if (decoded) REQUIRE(check_superblock(decoded.value()));
    }
}
