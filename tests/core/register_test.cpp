// SPDX-License-Identifier: Apache-2.0
// The in-sync set as a register (docs/membership.md): each function over a small space of values,
// all of it. What nodes do with the register together is tests/explore/register_explore_test.cpp.
#include <algorithm>
#include <vector>

#include "engine/core/register.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr Uuid ours = 0x100, next_uuid = 0x200, other = 0x300;

InSyncSet set_of(std::uint32_t members, std::uint64_t change, std::int32_t primary = -1,
                 std::uint64_t generation = 5) {
    return InSyncSet{ours, other, {generation, change}, NodeMask{members}, primary};
}

// All sets of one generation over three nodes, three changes, and two words about who is primary.
std::vector<InSyncSet> one_generation() {
    std::vector<InSyncSet> all;
    for (std::uint32_t members = 1; members < 8; ++members)
        for (std::uint64_t change = 0; change < 3; ++change)
            for (std::int32_t primary = -1; primary < 2; ++primary)
                all.push_back(set_of(members, change, primary));
    return all;
}

bool covers(NodeMask all, NodeMask part) { return part.without(all).empty(); }

}  // namespace

TEST_CASE("numbers are ordered by generation, then by change") {
    for (std::uint64_t a = 0; a < 9; ++a)
        for (std::uint64_t b = 0; b < 9; ++b) {
            const SetNumber one{a / 3, a % 3}, two{b / 3, b % 3};
            CHECK((one < two) == (a < b));
            CHECK((one == two) == (a == b));
        }
}

TEST_CASE("a change keeps the generation and takes the next number") {
    for (const InSyncSet& set : one_generation()) {
        const InSyncSet next = changed(set, NodeMask{7});
        CHECK(next.generation == set.generation);
        CHECK(next.parent == set.parent);
        CHECK(next.primary == set.primary);
        CHECK(next.members == NodeMask{7});
        CHECK(next.number == SetNumber{set.number.generation, set.number.change + 1});
    }
}

TEST_CASE("a generation without members is a child, and later than each change of its parent") {
    for (const InSyncSet& set : one_generation())
        for (std::uint32_t lost = 0; lost < 8; ++lost) {
            const InSyncSet next = without(set, NodeMask{lost}, next_uuid, 2);
            CHECK(next.generation == next_uuid);
            CHECK(next.parent == set.generation);
            CHECK(next.primary == 2);
            CHECK(next.members == set.members.without(NodeMask{lost}));
            CHECK(next.number == SetNumber{6, 0});
            for (const InSyncSet& sister : one_generation())
                CHECK(next.number > sister.number);
        }
}

TEST_CASE("two nodes that compare their sets take the same one, with all members of both") {
    for (const InSyncSet& a : one_generation())
        for (const InSyncSet& b : one_generation()) {
            const InSyncSet both = joined(a, b);
            CHECK(both == joined(b, a));
            CHECK(both.members == (a.members | b.members));
            CHECK(both.number >= a.number);
            CHECK(both.number >= b.number);
            CHECK(both.generation == ours);
            CHECK(both.parent == other);
            CHECK((both.primary == a.primary || both.primary == b.primary));
            // Who had other members under that number, or none of it, sees that it is new.
            if (!(both.members == a.members)) CHECK(both.number > a.number);
            if (!(both.members == b.members)) CHECK(both.number > b.number);
            // The later one is kept as it is where nothing is missing in it.
            if (a.number < b.number && covers(b.members, a.members)) CHECK(both == b);
        }
}

TEST_CASE("to join again changes nothing") {
    for (const InSyncSet& a : one_generation()) {
        CHECK(joined(a, a) == a);
        for (const InSyncSet& b : one_generation()) {
            const InSyncSet both = joined(a, b);
            CHECK(joined(both, a).members == both.members);
            CHECK(joined(both, a).number == both.number);
            CHECK(joined(both, b).number == both.number);
            CHECK(joined(both, both) == both);
        }
    }
}

TEST_CASE("more members on one side are never fewer in the result") {
    for (const InSyncSet& a : one_generation())
        for (const InSyncSet& b : one_generation())
            for (std::uint32_t more = 0; more < 8; ++more) {
                const InSyncSet larger = changed(a, a.members | NodeMask{more});
                CHECK(covers(joined(larger, b).members, joined(a, b).members));
                CHECK(joined(larger, b).number >= joined(a, b).number);
            }
}

TEST_CASE("in which order three nodes compare their sets decides the number, not the members") {
    for (std::uint32_t a = 1; a < 8; ++a)
        for (std::uint32_t b = 1; b < 8; ++b)
            for (std::uint32_t c = 1; c < 8; ++c)
                for (std::uint64_t change = 0; change < 8; ++change) {
                    const InSyncSet one = set_of(a, change & 1U), two = set_of(b, change >> 1 & 1U),
                                    three = set_of(c, change >> 2);
                    const InSyncSet left = joined(joined(one, two), three);
                    const InSyncSet right = joined(one, joined(two, three));
                    CHECK(left.members == right.members);
                    // One more comparison brings all of them to one value.
                    CHECK(joined(left, right).members == left.members);
                    CHECK(joined(left, right).number == std::max(left.number, right.number));
                }
}

TEST_CASE("a value follows only if it names this node, is later, and is of this lineage") {
    for (const InSyncSet& here : one_generation())
        for (const InSyncSet& said : one_generation())
            for (NodeId self = 0; self < 3; ++self) {
                InSyncRegister reg;
                reg.load(here, 0);
                const bool named = said.members.has(self);
                CHECK(reg.follows(said, self) == (named && said.number > here.number));

                const InSyncSet child = without(here, NodeMask{}, next_uuid, 0);
                CHECK(reg.follows(child, self) == here.members.has(self));
                // The child of a child was told of between; a generation that was passed over is
                // another lineage as far as this node can know.
                const InSyncSet grandchild = without(child, NodeMask{}, other, 0);
                CHECK_FALSE(reg.follows(grandchild, self));
                InSyncSet stranger = child;
                stranger.parent = other;
                CHECK_FALSE(reg.follows(stranger, self));
                // Its own parent's generation is behind, whatever number it claims.
                InSyncSet behind = said;
                behind.generation = other;
                behind.parent = 0x400;
                CHECK_FALSE(reg.follows(behind, self));
            }
}

TEST_CASE("a name's bit for the primary is no part of it") {
    InSyncRegister reg;
    reg.load(set_of(3, 0), 0);
    InSyncSet next = changed(set_of(3, 0), NodeMask{7});
    next.generation |= uuid_primary_bit;
    CHECK(reg.follows(next, 1));
    CHECK(joined(set_of(3, 0), next) == next);
    InSyncSet child = without(next, NodeMask{4}, next_uuid, 0);
    CHECK(child.parent == (ours | uuid_primary_bit));
    CHECK(reg.follows(child, 1));
}

TEST_CASE("a proposal is in force when it is recorded here and by everybody who was asked") {
    for (std::uint32_t others = 0; others < 8; ++others)
        for (std::uint32_t answered = 0; answered < 8; ++answered)
            for (int own = 0; own < 2; ++own) {
                InSyncRegister reg;
                reg.load(set_of(7, 0), 0);
                CHECK(reg.in_force());
                const InSyncSet next = changed(reg.value(), NodeMask{15});
                reg.propose(next, NodeMask{others}, 3);
                CHECK(reg.value() == next);
                CHECK(reg.number() == next.number);
                CHECK(reg.members() == next.members);
                CHECK_FALSE(reg.in_force());
                if (own == 1) reg.recorded_here(3);
                for (NodeId node = 0; node < 3; ++node) {
                    if (!NodeMask{answered}.has(node)) continue;
                    CHECK(reg.recorded_by(node, next.number) == NodeMask{others}.has(node));
                    CHECK_FALSE(reg.recorded_by(node, next.number));  // the same word again
                }
                CHECK(reg.awaited() == NodeMask{others}.without(NodeMask{answered}));
                CHECK(reg.in_force() == (own == 1 && reg.awaited().empty()));
            }
}

TEST_CASE("an answer under another number counts for nothing") {
    for (std::uint64_t generation = 4; generation < 8; ++generation)
        for (std::uint64_t change = 0; change < 4; ++change) {
            InSyncRegister reg;
            reg.load(set_of(7, 1), 0);
            reg.propose(changed(reg.value(), NodeMask{7}), NodeMask{2}, 1);
            reg.recorded_here(1);
            const SetNumber said{generation, change};
            CHECK(reg.recorded_by(1, said) == (said == SetNumber{5, 2}));
            CHECK(reg.in_force() == (said == SetNumber{5, 2}));
        }
}

TEST_CASE("what was answered for a proposal that was replaced does not count for the next") {
    InSyncRegister reg;
    reg.load(set_of(7, 0), 0);
    const InSyncSet first = without(reg.value(), NodeMask{4}, next_uuid, 0);
    reg.propose(first, NodeMask{2}, 1);
    const InSyncSet second = without(first, NodeMask{}, other, 0);
    reg.propose(second, NodeMask{2}, 2);
    reg.recorded_here(1);  // the label of the first: the second is not in it
    CHECK_FALSE(reg.is_recorded_here());
    CHECK_FALSE(reg.recorded_by(1, first.number));
    CHECK(reg.awaited() == NodeMask{2});
    reg.recorded_here(2);
    CHECK_FALSE(reg.in_force());
    CHECK(reg.recorded_by(1, second.number));
    CHECK(reg.in_force());
}

TEST_CASE("a label counts from the version on that has the value") {
    for (std::uint64_t version = 1; version < 5; ++version)
        for (std::uint64_t written = 0; written < 8; ++written) {
            InSyncRegister proposed, taken;
            proposed.propose(set_of(1, 0), NodeMask{}, version);
            proposed.recorded_here(written);
            CHECK(proposed.is_recorded_here() == (written >= version));
            CHECK(proposed.in_force() == (written >= version));
            CHECK(proposed.version() == version);
            taken.load(set_of(1, 0), version);
            CHECK_FALSE(taken.is_recorded_here());
            taken.recorded_here(written);
            CHECK(taken.is_recorded_here() == (written >= version));
        }
}

TEST_CASE("a value of the label is recorded, and nobody is awaited for it") {
    InSyncRegister reg;
    reg.load(set_of(3, 0), 0);
    reg.propose(changed(reg.value(), NodeMask{7}), NodeMask{2}, 9);
    reg.load(set_of(3, 0), 0);
    CHECK(reg.in_force());
    CHECK(reg.version() == 0);
    CHECK_FALSE(reg.recorded_by(1, SetNumber{5, 1}));
}

TEST_CASE("a lost node is awaited no more, and a member that never got the value is") {
    InSyncRegister reg;
    reg.load(set_of(7, 0), 0);
    reg.propose(changed(reg.value(), NodeMask{7}), NodeMask{6}, 1);
    reg.recorded_here(1);
    reg.excuse(1);
    CHECK(reg.awaited() == NodeMask{4});
    CHECK_FALSE(reg.recorded_by(1, reg.number()));
    reg.excuse_all();
    CHECK(reg.in_force());
    reg.await(1);
    CHECK_FALSE(reg.in_force());
    CHECK(reg.recorded_by(1, reg.number()));
    CHECK(reg.in_force());
}

TEST_CASE("who is primary is a word about the value, not another value") {
    InSyncRegister reg;
    reg.load(set_of(3, 0), 0);
    reg.note_primary(1);
    CHECK(reg.value().primary == 1);
    CHECK(reg.number() == SetNumber{5, 0});
    CHECK(reg.in_force());
}
