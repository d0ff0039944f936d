// SPDX-License-Identifier: Apache-2.0
// Replaying the activity log against a model: whatever the ring's shape, the numbers' wrap and the
// blocks that a crash destroyed, the extents that the slot table held are found.
#include <algorithm>
#include <set>
#include <vector>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/format/superblock.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

std::span<std::byte, al_block_bytes> block_of(std::vector<std::byte>& log, std::size_t index) {
    return std::span(log).subspan(index * al_block_bytes).first<al_block_bytes>();
}

std::vector<std::byte> fresh_log(std::size_t blocks) {
    std::vector<std::byte> log(blocks * al_block_bytes);
    for (std::size_t i = 0; i < blocks; ++i)
        encode_al_initialised(block_of(log, i));
    return log;
}

// A writer as DRBD's: the context shows the table before the transaction and rotates over it.
class Writer {
  public:
    Writer(std::uint32_t start, std::uint16_t slots, std::uint32_t stripes, std::uint32_t blocks)
        : number_(start),
          stripes_(stripes),
          stripe_blocks_(blocks),
          table_(slots, al_extent_free),
          log_(fresh_log(std::size_t{stripes} * blocks)) {}

    void write(const std::vector<AlUpdate>& updates) {
        AlTransaction t;
        t.number = number_;
        number_ = al_next_number(number_, stripes_, stripe_blocks_);
        t.slots = static_cast<std::uint16_t>(table_.size());
        t.context_start = context_;
        t.context_count = static_cast<std::uint16_t>(
            std::min<std::size_t>(al_context_max, table_.size() - context_));
        std::copy_n(table_.begin() + context_, t.context_count, t.context.begin());
        t.update_count = static_cast<std::uint16_t>(updates.size());
        std::copy(updates.begin(), updates.end(), t.updates.begin());
        for (const AlUpdate& update : updates)
            table_[update.slot] = update.extent;
        const std::size_t next = context_ + al_context_max;
        context_ = static_cast<std::uint16_t>(next < table_.size() ? next : 0);
        last_block_ = al_block_index(t.number, stripes_, stripe_blocks_);
        encode_al_transaction(t, block_of(log_, last_block_));
    }

    std::vector<std::uint32_t> hot() const {
        std::set<std::uint32_t> hot(table_.begin(), table_.end());
        hot.erase(al_extent_free);
        return {hot.begin(), hot.end()};
    }

    Result<AlReplay> replay() const { return replay_activity_log(log_, stripes_, stripe_blocks_); }

    std::uint32_t number_;
    std::uint32_t stripes_;
    std::uint32_t stripe_blocks_;
    std::uint32_t last_block_ = 0;
    std::uint16_t context_ = 0;
    std::vector<std::uint32_t> table_;
    std::vector<std::byte> log_;
};

std::vector<AlUpdate> random_updates(Prng& prng, std::size_t slots) {
    std::vector<AlUpdate> updates;
    std::set<std::uint16_t> used;
    for (std::uint64_t i = prng.below(al_updates_max) + 1; i > 0; --i) {
        const auto slot = static_cast<std::uint16_t>(prng.below(slots));
        if (!used.insert(slot).second) continue;
        const auto extent = static_cast<std::uint32_t>(prng.below(100'000));
        updates.push_back({slot, prng.chance(100'000) ? al_extent_free : extent});
    }
    return updates;
}

void reseal(std::span<std::byte, al_block_bytes> block) {
    store_be(&block[8], std::uint32_t{0});
    store_be(&block[8], crc32c_update(0, block));
}

}  // namespace

TEST_CASE("replay finds the slot table at every point of a long run") {
    struct Shape {
        std::uint32_t stripes, blocks;
        std::uint16_t slots;
    };
    const Shape shape = GENERATE(Shape{1, 8, 1237}, Shape{1, 8, 67}, Shape{1, 8, 6433},
                                 Shape{2, 16, 1237}, Shape{3, 5, 3000}, Shape{1, 9, 1237});
    const std::uint32_t start = GENERATE(0U, 0xfffffff0U, 0x7ffffff8U);
    Prng prng(shape.slots + start);
    Writer writer(start, shape.slots, shape.stripes, shape.blocks);
    for (int i = 0; i < 60; ++i) {
        writer.write(random_updates(prng, shape.slots));
        const auto replay = writer.replay();
        REQUIRE(replay);
        REQUIRE(replay.value().extents == writer.hot());
        REQUIRE(replay.value().next_number == writer.number_);
        REQUIRE(replay.value().blocks_corrupt == 0);
        REQUIRE(replay.value().slots_ignored == 0);
    }
}

TEST_CASE("a transaction torn by the crash leaves the table before it") {
    Prng prng(21);
    Writer writer(prng.next() & 0xffffffffU, 1237, 1, 8);
    for (int i = 0; i < 50; ++i)
        writer.write(random_updates(prng, 1237));
    const auto before = writer.hot();
    const auto log_before = writer.log_;
    writer.write(random_updates(prng, 1237));
    const auto log_after = writer.log_;
    const std::size_t block = writer.last_block_ * al_block_bytes;
    for (unsigned fresh = 0; fresh < 256; ++fresh) {
        writer.log_ = log_before;
        for (std::size_t sector = 0; sector < 8; ++sector) {
            if (((fresh >> sector) & 1U) == 0) continue;
            const auto at = static_cast<std::ptrdiff_t>(block + sector * 512);
            std::copy_n(log_after.begin() + at, 512, writer.log_.begin() + at);
        }
        const auto replay = writer.replay();
        REQUIRE(replay);
        REQUIRE(replay.value().extents == (fresh == 255 ? writer.hot() : before));
    }
}

TEST_CASE("with two thirds of the ring gone the newest contexts still give the table") {
    Prng prng(22);
    Writer writer(1000, 900, 1, 8);  // one context covers all slots
    for (int i = 0; i < 40; ++i)
        writer.write(random_updates(prng, 900));
    REQUIRE(writer.number_ == 1040);
    for (std::uint32_t n = writer.number_ - 8; n != writer.number_ - 1; ++n) {
        writer.log_[al_block_index(n, 1, 8) * al_block_bytes + 500] ^= std::byte{1};
    }
    const auto replay = writer.replay();
    REQUIRE(replay);
    CHECK(replay.value().extents == writer.hot());
    CHECK(replay.value().blocks_corrupt == 7);
}

TEST_CASE("a log without any transaction is fresh, or its loss is told") {
    auto log = fresh_log(8);
    CHECK(replay_activity_log(log, 1, 8).value().extents.empty());
    log[100] ^= std::byte{1};  // the first transaction ever was torn: it goes to block 0
    CHECK(replay_activity_log(log, 1, 8).value().blocks_corrupt == 1);
    log[al_block_bytes + 100] ^= std::byte{1};
    CHECK(replay_activity_log(log, 1, 8).error().code == Errc::corrupt);
    log[100] ^= std::byte{1};  // a hole elsewhere may have been more than the first
    CHECK(replay_activity_log(log, 1, 8).error().code == Errc::corrupt);
    std::fill(log.begin(), log.end(), std::byte{0});
    const auto none = replay_activity_log(log, 1, 8);
    REQUIRE_FALSE(none);
    CHECK(none.error().message.find("none of the activity log's 8 blocks") != std::string::npos);
}

TEST_CASE("entries beyond the largest table are counted and left out") {
    auto log = fresh_log(8);
    const auto block = block_of(log, 3);
    AlTransaction t;
    t.number = 3;
    t.slots = 65534;
    t.update_count = 2;
    t.updates[0] = {65533, 11};
    t.updates[1] = {65534, 12};
    encode_al_transaction(t, block);
    store_be(&block[14], std::uint16_t{65535});  // more updates than a block can have
    store_be(&block[18], std::uint16_t{65533});  // a context that runs over the end
    store_be(&block[420], std::uint32_t{21});
    store_be(&block[424], std::uint32_t{22});
    reseal(block);
    const auto replay = replay_activity_log(log, 1, 8);
    REQUIRE(replay);
    CHECK(replay.value().extents == std::vector<std::uint32_t>{11});
    CHECK(replay.value().slots_ignored > 0);
}

TEST_CASE("a block of an unknown type counts as damaged") {
    auto log = fresh_log(8);
    Writer writer(0, 67, 1, 8);
    writer.write({{1, 5}});
    store_be(&block_of(writer.log_, 5)[12], std::uint16_t{7});
    reseal(block_of(writer.log_, 5));
    const auto replay = writer.replay();
    REQUIRE(replay);
    CHECK(replay.value().blocks_corrupt == 1);
    CHECK(replay.value().extents == std::vector<std::uint32_t>{5});
}

TEST_CASE("neighbours lie in different stripes") {
    const std::vector<std::uint32_t> expected{0, 16, 1, 17, 2};
    for (std::uint32_t n = 0; n < 5; ++n)
        CHECK(al_block_index(n, 2, 16) == expected[n]);
    CHECK(al_block_index(31, 2, 16) == 31);
    CHECK(al_block_index(32, 2, 16) == 0);
    CHECK(al_block_index(0xffffffff, 1, 8) == 7);
}

TEST_CASE("the blocks of a ring are written in turn, also where the numbers wrap") {
    const std::uint32_t stripes = GENERATE(1U, 2U, 3U, 7U);
    const std::uint32_t blocks = GENERATE(8U, 9U, 11U);
    std::uint32_t number = 0xffffff00;
    for (int i = 0; i < 1000; ++i) {
        const std::uint32_t next = al_next_number(number, stripes, blocks);
        REQUIRE(next % (stripes * blocks) ==
                (number % (stripes * blocks) + 1) % (stripes * blocks));
        REQUIRE(static_cast<std::int32_t>(next - number) > 0);
        number = next;
    }
    CHECK(number < 1000);
}

TEST_CASE("the ring's size bounds the slots as in DRBD") {
    CHECK(al_extents_limit(8) == 6433);
    CHECK(al_extents_limit(72) == 71 * 919);
    CHECK(al_extents_limit(73) == 65534);
    CHECK(al_extents_limit(std::uint64_t{4} << 20) == 65534);
}

TEST_CASE("random damage never breaks the replay") {
    Prng prng(23);
    Writer writer(7, 1237, 1, 8);
    for (int i = 0; i < 12; ++i)
        writer.write(random_updates(prng, 1237));
    const auto good = writer.log_;
    for (int i = 0; i < 300; ++i) {
        writer.log_ = good;
        for (std::uint64_t n = prng.below(40); n > 0; --n) {
            const auto block = block_of(writer.log_, prng.below(8));
            block[prng.below(al_block_bytes)] = static_cast<std::byte>(prng.next());
            if (prng.chance(700'000)) reseal(block);
        }
        const auto replay = writer.replay();
        if (replay)
            REQUIRE(std::is_sorted(replay.value().extents.begin(), replay.value().extents.end()));
    }
}
