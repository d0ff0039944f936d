// SPDX-License-Identifier: Apache-2.0
// The in-sync set S as a register: one value, a total order of all values of a lineage, and one way
// to a new one. propose() names it; the label has it (recorded_here()); those that must record it
// say that they have (recorded_by()); then it is in force, and only then is anything acknowledged
// under it. What another node says is learnt by rules that look at the order, never by its role
// alone. Pure: no I/O, no clock. docs/membership.md has the protocol and the reasons.
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include "engine/base/units.hpp"
#include "engine/format/superblock.hpp"

namespace replica {

// The place of a set in the order of those of its lineage. A generation without some members has
// the next `generation` and begins with change 0; each change within a generation is one more.
struct SetNumber {
    std::uint64_t generation = 0;
    std::uint64_t change = 0;
    friend auto operator<=>(const SetNumber&, const SetNumber&) = default;
};

// As messages carry it.
constexpr std::array<std::uint32_t, 2> low_number(const SetNumber& n) {
    return {static_cast<std::uint32_t>(n.generation), static_cast<std::uint32_t>(n.change)};
}

struct InSyncSet {
    Uuid generation = uuid_just_created;
    Uuid parent = uuid_none;  // the generation that it was opened from
    SetNumber number;
    NodeMask members;
    std::int32_t primary = -1;  // of the generation, the last one; -1: nobody
    friend bool operator==(const InSyncSet&, const InSyncSet&) = default;
};

// The same generation with other members.
InSyncSet changed(const InSyncSet& set, NodeMask members);
// A new generation without `lost`.
InSyncSet without(const InSyncSet& set, NodeMask lost, Uuid generation, std::int32_t primary);
// Of two sets of one generation, what both sides take who compare them: all members of both. Where
// that is neither of the two it gets a number behind both.
InSyncSet joined(const InSyncSet& a, const InSyncSet& b);

class InSyncRegister {
  public:
    // The latest value that this node took, whether or not it is in force yet.
    const InSyncSet& value() const { return value_; }
    SetNumber number() const { return value_.number; }
    NodeMask members() const { return value_.members; }

    // Takes a value as it is: from a label, or of another lineage whose data this node holds now.
    // `version`: of the label that has it; 0: it is on the disk.
    void load(const InSyncSet& value, std::uint64_t version);
    // The next value of this lineage. `others` must record it, besides this node. Replaces a
    // proposal that is under way: those who were awaited for that are not any more.
    void propose(const InSyncSet& next, NodeMask others, std::uint64_t version);
    // A word about it that is no change: who is primary.
    void note_primary(std::int32_t node) { value_.primary = node; }

    // The label of this version, or one after it, is on the disk.
    void recorded_here(std::uint64_t version);
    // `node` has recorded the value with this number. False: it was not awaited for that one.
    bool recorded_by(NodeId node, SetNumber number);
    // One more has to record the value that is there: a member that never got it.
    void await(NodeId node);
    // `node` is lost. It is awaited no more; a value without it is proposed by who lost it.
    void excuse(NodeId node);
    void excuse_all() { awaited_ = NodeMask{}; }

    NodeMask awaited() const { return awaited_; }
    bool is_recorded_here() const { return recorded_; }
    std::uint64_t version() const { return version_; }
    // Acknowledgements may be given under it. Here a majority of voters can stand one day where now
    // all that are awaited have to answer.
    bool in_force() const { return recorded_ && awaited_.empty(); }

    // Whether a value that a primary proposes, on its link and in the order of its stream, is the
    // next one here: it names this node, is later in the order, and follows what is here.
    bool follows(const InSyncSet& next, NodeId self) const;

  private:
    InSyncSet value_;
    NodeMask awaited_;
    std::uint64_t version_ = 0;
    bool recorded_ = true;
};

}  // namespace replica
