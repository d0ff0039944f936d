// SPDX-License-Identifier: Apache-2.0
// The journal against a deque.
#include <deque>

#include "engine/base/prng.hpp"
#include "engine/core/journal.hpp"
#include "tests/catch.hpp"

using namespace replica;

TEST_CASE("the journal is a bounded queue of consecutive numbers") {
    const std::uint32_t capacity = GENERATE(1U, 2U, 7U, 8U);
    Journal journal(capacity);
    std::deque<std::uint64_t> model;
    std::uint64_t next = 1;
    Prng random(capacity);
    for (int i = 0; i < 5000; ++i) {
        if (random.below(2) == 0 && !journal.full()) {
            JournalEntry entry;
            entry.offset = next * 8;
            entry.unwritten.add(static_cast<NodeId>(next % 32));
            REQUIRE(journal.push(entry) == next);
            model.push_back(next++);
        } else if (!journal.empty()) {
            journal.pop();
            model.pop_front();
        }
        if (model.empty() && random.below(10) == 0) {
            next += random.below(100);
            journal.restart(next);
        }
        REQUIRE(journal.size() == model.size());
        REQUIRE(journal.empty() == model.empty());
        REQUIRE(journal.full() == (model.size() == capacity));
        REQUIRE(journal.capacity() == capacity);
        REQUIRE(journal.tail() == next);
        REQUIRE(journal.head() == (model.empty() ? next : model.front()));
        REQUIRE_FALSE(journal.has(journal.head() - 1));
        REQUIRE_FALSE(journal.has(next));
        for (const std::uint64_t seq : model) {
            REQUIRE(journal.has(seq));
            REQUIRE(journal.at(seq).offset == seq * 8);
            REQUIRE(journal.at(seq).unwritten == NodeMask::of(static_cast<NodeId>(seq % 32)));
        }
    }
}
