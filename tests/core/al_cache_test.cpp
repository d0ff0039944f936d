// SPDX-License-Identifier: Apache-2.0
// The activity-log cache against a model, and its transactions against the replay that a restart
// does: at every moment the log on the disk names at least every extent that may be written (I-R5).
#include <algorithm>
#include <list>
#include <map>
#include <set>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/core/al_cache.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint32_t ring = 8;

// Who holds what, and in which order unheld extents may go.
struct Model {
    std::map<std::uint32_t, std::uint32_t> refs;  // of every extent in the cache
    std::set<std::uint32_t> active;
    std::list<std::uint32_t> idle;  // active and unheld, oldest first
    std::set<std::uint32_t> queued, flying;
    std::size_t slots = 0;

    AlCache::Hold hold(std::uint32_t extent) {
        const auto found = refs.find(extent);
        if (found != refs.end()) {
            if (found->second++ == 0) idle.remove(extent);
            return active.count(extent) != 0 ? AlCache::Hold::granted : AlCache::Hold::pending;
        }
        if (refs.size() == slots) {
            if (idle.empty()) return AlCache::Hold::starved;
            refs.erase(idle.front());
            active.erase(idle.front());
            idle.pop_front();
        }
        refs[extent] = 1;
        queued.insert(extent);
        return AlCache::Hold::pending;
    }
    void release(std::uint32_t extent) {
        if (--refs[extent] == 0 && active.count(extent) != 0) idle.push_back(extent);
    }
};

class Log {
  public:
    Log() : bytes_(ring * al_block_bytes) {
        for (std::size_t i = 0; i < ring; ++i)
            encode_al_initialised(block(i));
    }
    void write(const AlTransaction& t) {
        encode_al_transaction(t, block(al_block_index(t.number, 1, ring)));
    }
    std::set<std::uint32_t> replay() const {
        const auto result = replay_activity_log(bytes_, 1, ring);
        REQUIRE(result);
        REQUIRE(result.value().blocks_corrupt == 0);
        return {result.value().extents.begin(), result.value().extents.end()};
    }

  private:
    std::span<std::byte, al_block_bytes> block(std::size_t i) {
        return std::span(bytes_).subspan(i * al_block_bytes).first<al_block_bytes>();
    }
    std::vector<std::byte> bytes_;
};

bool covers(const std::set<std::uint32_t>& log, const std::set<std::uint32_t>& active) {
    return std::includes(log.begin(), log.end(), active.begin(), active.end());
}

// A transaction was begun: it takes what was queued, and names what it takes out of the log.
void check_begun(const AlCache& cache, Model& model, const Log& log,
                 const std::set<std::uint32_t>& logged, const std::vector<std::uint32_t>& evicted) {
    const AlTransaction& t = cache.transaction();
    REQUIRE(t.update_count == std::min<std::size_t>(model.queued.size(), al_updates_max));
    for (unsigned u = 0; u < t.update_count; ++u) {
        REQUIRE(model.queued.erase(t.updates[u].extent) == 1);
        model.flying.insert(t.updates[u].extent);
    }
    // Whose bits must be on the disk first: what this write takes out of the log, and what
    // it moves to another slot.
    Log after = log;
    after.write(t);
    const auto next = after.replay();
    std::set<std::uint32_t> gone(evicted.begin(), evicted.end());
    for (const std::uint32_t extent : logged)
        REQUIRE((next.count(extent) != 0 || gone.count(extent) != 0));
    for (const std::uint32_t extent : gone)
        REQUIRE((next.count(extent) == 0 || model.flying.count(extent) != 0));
}

void run(std::uint32_t slots, std::uint32_t extents, int steps) {
    Prng random(slots * 31 + extents);
    AlCache cache(slots, extents, ring);
    Model model;
    model.slots = slots;
    Log log;
    std::set<std::uint32_t> logged;
    std::vector<std::uint32_t> holds;
    std::vector<std::uint32_t> evicted;
    int transactions = 0, starved = 0;
    for (int i = 0; i < steps; ++i) {
        const std::uint64_t dice = random.below(8);
        if (dice < 3) {
            const auto extent = static_cast<std::uint32_t>(random.below(extents));
            const AlCache::Hold got = cache.hold(extent);
            REQUIRE(got == model.hold(extent));
            if (got == AlCache::Hold::starved) {
                ++starved;
            } else {
                holds.push_back(extent);
            }
        } else if (dice < 6 && !holds.empty()) {
            std::swap(holds[random.below(holds.size())], holds.back());
            cache.release(holds.back());
            model.release(holds.back());
            holds.pop_back();
        } else if (cache.wants_transaction()) {
            evicted.clear();
            cache.begin_transaction(evicted);
            ++transactions;
            check_begun(cache, model, log, logged, evicted);
        } else if (cache.transaction_in_flight()) {
            log.write(cache.transaction());
            logged = log.replay();
            REQUIRE(covers(logged, model.active));
            cache.finish_transaction();
            const AlTransaction& t = cache.transaction();
            for (unsigned u = 0; u < t.update_count; ++u) {
                const std::uint32_t extent = t.updates[u].extent;
                model.active.insert(extent);
                if (model.refs.at(extent) == 0) model.idle.push_back(extent);
            }
            model.flying.clear();
        }
        if (slots > 100 && i % 64 != 0) continue;
        REQUIRE(covers(logged, model.active));
        REQUIRE(cache.used() == model.refs.size());
        REQUIRE(cache.held() == static_cast<std::size_t>(
                                    std::count_if(model.refs.begin(), model.refs.end(),
                                                  [](const auto& r) { return r.second > 0; })));
        const auto extent = static_cast<std::uint32_t>(random.below(extents));
        REQUIRE(cache.is_active(extent) == (model.active.count(extent) != 0));
        REQUIRE(cache.contains(extent) == (model.refs.count(extent) != 0));
        REQUIRE(cache.transaction_in_flight() == !model.flying.empty());
    }
    CHECK(transactions > 3 * static_cast<int>(ring));  // the ring wrapped, and wrapped again
    CHECK((starved > 0) == (slots < 5));
}

}  // namespace

TEST_CASE("the cache follows its model and the log names every active extent") {
    SECTION("one slot") { run(1, 3, 4000); }
    SECTION("two slots") { run(2, 5, 4000); }
    SECTION("three slots") { run(3, 4, 4000); }
    SECTION("the default table") { run(1237, 1500, 6'000); }
    SECTION("a table of several contexts") { run(6433, 9000, 12'000); }
}

TEST_CASE("more changes than one transaction takes go out in the next") {
    AlCache cache(200, 200, ring);
    for (std::uint32_t e = 0; e < 150; ++e)
        CHECK(cache.hold(e) == AlCache::Hold::pending);
    std::vector<std::uint32_t> evicted;
    std::set<std::uint32_t> seen;
    Log log;
    for (const unsigned expected : {64U, 64U, 22U}) {
        REQUIRE(cache.wants_transaction());
        cache.begin_transaction(evicted);
        CHECK_FALSE(cache.wants_transaction());
        CHECK(cache.transaction().update_count == expected);
        log.write(cache.transaction());
        cache.finish_transaction();
    }
    CHECK_FALSE(cache.wants_transaction());
    CHECK(evicted.empty());
    CHECK(log.replay().size() == 150);
    cache.for_each([&](std::uint32_t e) { seen.insert(e); });
    CHECK(seen.size() == 150);
    for (std::uint32_t e = 0; e < 150; ++e)
        cache.release(e);
    cache.reset();
    CHECK(cache.used() == 0);
    CHECK_FALSE(cache.contains(0));
    CHECK(cache.hold(7) == AlCache::Hold::pending);
    cache.begin_transaction(evicted);
    CHECK(cache.transaction().number == 0);
}
