// SPDX-License-Identifier: Apache-2.0
// The bytes that drbdmeta 9.22 writes are the golden ones: what this tree encodes has to be equal
// to them, bit for bit, and it has to read them. Our own extension is held by a dump in this
// folder; REPLICA_GOLDEN_REWRITE=1 in the environment writes it anew, and the change shows in the
// diff.
#include <openssl/sha.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/format/layout.hpp"
#include "engine/format/superblock.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t mib = 1 << 20;

std::string hex(std::span<const std::byte> bytes) {
    std::string text;
    for (const std::byte b : bytes) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(b));
        text += digits;
    }
    return text;
}

std::string sha256(std::span<const std::byte> bytes) {
    std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
    SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
    return hex(std::as_bytes(std::span(digest)));
}

std::array<std::byte, superblock_bytes> encoded(const Superblock& superblock) {
    std::array<std::byte, superblock_bytes> bytes;
    encode_superblock(superblock, bytes);
    return bytes;
}

// What `drbdmeta create-md` writes for v09.
Superblock as_created(std::uint32_t max_peers) {
    Superblock superblock;
    superblock.al_extents = 257;
    superblock.max_bio_bytes = 0;
    superblock.max_peers = max_peers;
    return superblock;
}

std::string row(std::span<const std::byte> bytes, std::size_t offset) {
    return hex(bytes.subspan(offset, 16));
}

// One line for every 16 bytes that are not all zero.
std::string dump(std::span<const std::byte> bytes) {
    std::string text;
    for (std::size_t at = 0; at < bytes.size(); at += 16) {
        const std::string line = row(bytes, at);
        if (line.find_first_not_of('0') == std::string::npos) continue;
        char offset[16];
        std::snprintf(offset, sizeof offset, "%04zu  ", at);
        text += offset + line + "\n";
    }
    return text;
}

void check_golden(const std::string& name, const std::string& actual) {
    const std::string path = std::string(REPLICA_GOLDEN_DIR) + "/" + name;
    if (std::getenv("REPLICA_GOLDEN_REWRITE") != nullptr) {
        std::ofstream(path) << actual;
    }
    std::ostringstream expected;
    expected << std::ifstream(path).rdbuf();
    CHECK(actual == expected.str());
}

AlTransaction transaction(std::uint32_t number, std::vector<AlUpdate> updates,
                          std::uint16_t context_start, std::vector<std::uint32_t> context) {
    AlTransaction t;
    t.number = number;
    t.slots = 1237;
    t.update_count = static_cast<std::uint16_t>(updates.size());
    std::copy(updates.begin(), updates.end(), t.updates.begin());
    t.context_start = context_start;
    t.context_count = static_cast<std::uint16_t>(context.size());
    std::copy(context.begin(), context.end(), t.context.begin());
    return t;
}

std::array<std::byte, al_block_bytes> encoded(const AlTransaction& t) {
    std::array<std::byte, al_block_bytes> bytes;
    encode_al_transaction(t, bytes);
    return bytes;
}

// Three transactions: slot 0 := 1, slot 1 := 5; slot 2 := 9; slot 1 := 7.
std::vector<AlTransaction> three_transactions(std::uint32_t start) {
    return {transaction(start, {{0, 1}, {1, 5}}, 0, {1, 5}),
            transaction(start + 1, {{2, 9}}, 919, {}),
            transaction(start + 2, {{1, 7}}, 0, {1, 7, 9})};
}

std::vector<std::byte> fresh_log(std::size_t blocks) {
    std::vector<std::byte> log(blocks * al_block_bytes);
    for (std::size_t i = 0; i < blocks; ++i) {
        encode_al_initialised(std::span(log).subspan(i * al_block_bytes).first<al_block_bytes>());
    }
    return log;
}

}  // namespace

TEST_CASE("internal metadata for three peers is what drbdmeta creates") {
    Superblock superblock = as_created(3);
    const auto layout = plan_layout(MetadataPlace::internal, 64 * mib, 0, superblock);
    REQUIRE(layout);
    CHECK(layout.value().superblock_offset == 67104768);
    CHECK(layout.value().al_offset == 67072000);
    CHECK(layout.value().bitmap_offset == 67063808);

    const auto bytes = encoded(superblock);
    CHECK(row(bytes, 0x30) == "0000000000000000000000808374026d");
    CHECK(row(bytes, 0x40) == "00000058ffffffc000000101ffffffb0");
    CHECK(row(bytes, 0x50) == "000010000000000000000003ffffffff");
    CHECK(row(bytes, 0x60) == "00000001000000080000000000000000");
    CHECK(sha256(bytes) == "0bde93f3c02d1f6d064636073c3f9e2e7cd5e681d7a623c11f8e37b0e85521e6");

    const auto decoded = decode_superblock(bytes);
    REQUIRE(decoded);
    CHECK(decoded.value() == superblock);
    CHECK_FALSE(decoded.value().extension.present);
}

TEST_CASE("internal metadata for one peer is what drbdmeta creates") {
    Superblock superblock = as_created(1);
    const auto layout = plan_layout(MetadataPlace::internal, 64 * mib, 0, superblock);
    REQUIRE(layout);
    CHECK(layout.value().bitmap_offset == 67067904);
    CHECK(superblock.md_size_sectors == 0x50);
    CHECK(superblock.bm_offset_sectors == -72);
}

TEST_CASE("striped activity logs lie where drbdmeta puts them") {
    Superblock superblock = as_created(1);
    superblock.al_stripes = 2;
    superblock.al_stripe_blocks = 16;
    const auto layout = plan_layout(MetadataPlace::internal, 64 * mib, 0, superblock);
    REQUIRE(layout);
    CHECK(row(encoded(superblock), 0x40) == "00000110ffffff0000000101fffffef8");
    CHECK(layout.value().al_offset == 66973696);
    CHECK(layout.value().bitmap_offset == 66969600);
}

TEST_CASE("external metadata is what drbdmeta creates") {
    Superblock superblock = as_created(3);
    REQUIRE(plan_layout(MetadataPlace::external, 1 << 30, 64 * mib, superblock));
    CHECK(row(encoded(superblock), 0x40) == "00020000000000080000010100000048");
    CHECK(row(encoded(superblock), 0x50) == "000010000000000000000003ffffffff");
    REQUIRE(plan_layout(MetadataPlace::external, 1 << 30, mib, superblock));
    CHECK(row(encoded(superblock), 0x40) == "00000800000000080000010100000048");
}

TEST_CASE("generation ids lie where drbdmeta set-gi writes them") {
    Superblock superblock = as_created(1);
    superblock.node_id = -1;
    superblock.current_uuid = 0x1122334455667788;
    superblock.flags = md_flag::consistent | md_flag::was_up_to_date | md_flag::crashed_primary;
    superblock.peers[1].bitmap_uuid = 0x99aabbccddeeff00;
    superblock.peers[1].flags = md_peer_flag::connected;
    superblock.history[0] = 0x0102030405060708;
    superblock.history[1] = 0x1112131415161718;
    const auto bytes = encoded(superblock);
    CHECK(hex(std::span(bytes).subspan(8, 8)) == "1122334455667788");
    CHECK(hex(std::span(bytes).subspan(56, 4)) == "00000051");
    CHECK(row(bytes, 144) == "99aabbccddeeff000000000000000000");
    CHECK(row(bytes, 160) == "00000001ffffffff0000000000000000");
    CHECK(row(bytes, 1136) == "01020304050607081112131415161718");
}

TEST_CASE("a v08 superblock is named and refused with the way out") {
    std::array<std::byte, superblock_bytes> bytes{};
    store_be(&bytes[8], std::uint64_t{4});
    const std::array<std::uint32_t, 10> words{0x80,       0x8374026b, 0x50, 0xffffffc0, 0x101,
                                              0xffffffb8, 0x1000,     0,    1,          8};
    for (std::size_t i = 0; i < words.size(); ++i)
        store_be(&bytes[56 + 4 * i], words[i]);
    REQUIRE(sha256(bytes) == "525a7dd3f54ba9ea27f7984f95eb52df2e702b069691ecb74bd11666a999ed1a");
    for (const std::uint32_t magic : {0x8374026bU, 0x8374026cU}) {
        store_be(&bytes[60], magic);
        const auto decoded = decode_superblock(bytes);
        REQUIRE_FALSE(decoded);
        CHECK(decoded.error().code == Errc::unsupported);
        CHECK(decoded.error().message.find("v08") != std::string::npos);
        CHECK(decoded.error().message.find("create-md") != std::string::npos);
    }
}

TEST_CASE("a fresh activity log is what drbdmeta creates") {
    const auto log = fresh_log(8);
    CHECK(row(log, 0) == "69cb65a200000000709cc651ffff0000");
    CHECK(sha256(log) == "1a1159a975d565f7888d1322cbc0c45f96652ba4de1f27bb797ce7745ede7d94");
    const auto replay = replay_activity_log(log, 1, 8);
    REQUIRE(replay);
    CHECK(replay.value().extents.empty());
    CHECK(replay.value().next_number == 0);
}

TEST_CASE("activity log transactions are those that drbdmeta replays") {
    const auto t = three_transactions(5);
    const auto first = encoded(t[0]);
    CHECK(row(first, 0) == "69cb65a20000000523199df800000002");
    CHECK(row(first, 16) == "04d50000000000000000000000000000");
    CHECK(sha256(first) == "87f408f6b20c3f951b4295a022b7a50fced300a47cf398bde3ea293faaee7f3b");
    CHECK(sha256(encoded(t[1])) ==
          "6d031d6b9781a8c8b6135218b30351327178b9e360503cfd685ba2ec50883899");
    CHECK(sha256(encoded(t[2])) ==
          "44144380ccf614087418b72c2dde59b05fded182b0cefec371de6bbbdb93b800");
}

TEST_CASE("the extents that drbdmeta marks are those that the replay finds, also over the wrap") {
    const std::uint32_t start = GENERATE(0U, 5U, 0xfffffffeU);
    auto log = fresh_log(8);
    for (const AlTransaction& t : three_transactions(start)) {
        const std::size_t block = al_block_index(t.number, 1, 8);
        encode_al_transaction(
            t, std::span(log).subspan(block * al_block_bytes).first<al_block_bytes>());
    }
    const auto replay = replay_activity_log(log, 1, 8);
    REQUIRE(replay);
    CHECK(replay.value().extents == std::vector<std::uint32_t>{1, 7, 9});
    CHECK(replay.value().next_number == start + 3);
    CHECK(replay.value().blocks_corrupt == 0);
}

namespace {

// The bytes that dump() wrote into a golden file.
std::array<std::byte, superblock_bytes> undump(const std::string& name) {
    std::array<std::byte, superblock_bytes> bytes{};
    std::ifstream file(std::string(REPLICA_GOLDEN_DIR) + "/" + name);
    std::size_t at = 0;
    std::string line;
    while (file >> at >> line) {
        REQUIRE(line.size() == 32);
        for (std::size_t i = 0; i < 16; ++i)
            bytes.at(at + i) =
                static_cast<std::byte>(std::stoul(line.substr(2 * i, 2), nullptr, 16));
    }
    REQUIRE(at > 0);
    return bytes;
}

}  // namespace

TEST_CASE("the extension keeps its bytes") {
    Superblock superblock;
    superblock.effective_size_sectors = 130968;
    superblock.current_uuid = 0x1122334455667789;
    superblock.members = 7;
    superblock.device_uuid = 0x0123456789abcdef;
    superblock.flags = md_flag::consistent | md_flag::was_up_to_date | md_flag::primary_ind;
    superblock.max_peers = 3;
    superblock.node_id = 2;
    superblock.peers[0] = {0xaabb, 0xccdd, md_peer_flag::node_exists, 1, 0x5566778899aabbcc};
    superblock.peers[31] = {0x1234, 0, md_peer_flag::outdated, 2, 0xfedcba9876543210};
    superblock.history = {0x3030, 0x2020, 0x1010};
    superblock.extension.present = true;
    superblock.extension.write_seq = 0x0a0b0c;
    superblock.extension.generation_seq = 41;
    superblock.extension.parent_uuid = 0x3030;
    superblock.extension.in_sync = NodeMask{0x80000005};
    superblock.extension.primary_node = 2;
    for (std::uint8_t i = 0; i < 16; ++i) {
        superblock.extension.volume_id[i] = static_cast<std::uint8_t>(0xa0 + i);
        superblock.extension.boot_id[i] = static_cast<std::uint8_t>(0xb0 + i);
    }
    superblock.extension.vote_ballot = 0x77;
    superblock.extension.vote_accepted = 0x76;
    superblock.extension.set_change = 5;
    superblock.extension.vote_value = {0x4040, 0x3030, 42, 6, NodeMask{0x80000004}, 2};
    superblock.extension.promoted_at_s = 0x6a5b4c3d;
    REQUIRE(plan_layout(MetadataPlace::internal, 64 * mib, 0, superblock));

    const auto bytes = encoded(superblock);
    check_golden("superblock_extension.hex", dump(bytes));
    const auto decoded = decode_superblock(bytes);
    REQUIRE(decoded);
    CHECK(decoded.value() == superblock);

    // As the version before wrote it: everything but what it did not have.
    const auto older = decode_superblock(undump("superblock_extension_v1.hex"));
    REQUIRE(older);
    superblock.extension.set_change = 0;
    superblock.extension.vote_value = VotedSet{};
    CHECK(older.value() == superblock);
}
