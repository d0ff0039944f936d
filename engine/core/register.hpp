// SPDX-License-Identifier: Apache-2.0
// The in-sync set S as a register: one value, and a total order of all values of a lineage.
// propose() names the next value. recorded_here() says that this node's label has it, recorded_by()
// that another node that must record it has done so. When all have, the value is in force, and only
// then is anything acknowledged under it. A value of another node is accepted by its place in the
// order, never by the sender's role alone. Pure: no I/O, no clock. docs/membership.md has the
// protocol and the reasons.
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include "engine/base/units.hpp"
#include "engine/format/superblock.hpp"

namespace replica {

// The place of a set in the order of its lineage. A new generation has the next `generation` and
// begins with change 0; each change within a generation adds 1 to `change`.
struct SetNumber {
    std::uint64_t generation = 0;
    std::uint64_t change = 0;
    friend auto operator<=>(const SetNumber&, const SetNumber&) = default;
};

// The low halves, as messages carry them.
constexpr std::array<std::uint32_t, 2> low_number(const SetNumber& n) {
    return {static_cast<std::uint32_t>(n.generation), static_cast<std::uint32_t>(n.change)};
}

struct InSyncSet {
    Uuid generation = uuid_just_created;
    Uuid parent = uuid_none;  // the generation that it was opened from
    SetNumber number;
    NodeMask members;
    std::int32_t primary = -1;  // the last one in this generation; -1: nobody
    friend bool operator==(const InSyncSet&, const InSyncSet&) = default;
};

// The same generation with other members.
InSyncSet changed(const InSyncSet& set, NodeMask members);
// A new generation without `lost`.
InSyncSet without(const InSyncSet& set, NodeMask lost, Uuid generation, std::int32_t primary);
// All members of two sets of one generation: what both nodes take when they compare their sets. If
// neither set has all of these members, the result gets a number later than both.
InSyncSet joined(const InSyncSet& a, const InSyncSet& b);

class InSyncRegister {
  public:
    // The latest value that this node took, whether or not it is in force yet.
    const InSyncSet& value() const { return value_; }
    SetNumber number() const { return value_.number; }
    NodeMask members() const { return value_.members; }

    // Takes a value as it is: from a label, or from another node. `version` is that of the label
    // that will have the value; 0: it is on the disk already.
    void load(const InSyncSet& value, std::uint64_t version);
    // The next value of this lineage. `others` must record it, besides this node. It replaces a
    // proposal that is under way, and the nodes that were awaited for that one.
    void propose(const InSyncSet& next, NodeMask others, std::uint64_t version);
    // Notes which node is primary. That is no new value: the number stays.
    void note_primary(std::int32_t node) { value_.primary = node; }

    // The label of this version, or one after it, is on the disk.
    void recorded_here(std::uint64_t version);
    // `node` has recorded the value with this number. False if it was not awaited for this number.
    bool recorded_by(NodeId node, SetNumber number);
    // One more node has to record the current value: a member that has not got it yet.
    void await(NodeId node);
    // `node` is lost and no longer awaited. The caller proposes a value without it.
    void excuse(NodeId node);
    void excuse_all() { awaited_ = NodeMask{}; }

    NodeMask awaited() const { return awaited_; }
    bool is_recorded_here() const { return recorded_; }
    std::uint64_t version() const { return version_; }
    // Acknowledgements may be given under the value. Today all that are awaited have to answer;
    // with quorum a majority of voters will be enough.
    bool in_force() const { return recorded_ && awaited_.empty(); }

    // Whether this node may take a value that a primary proposes on its link: the value names this
    // node, has a later number, and is of this generation or of a child of it.
    bool follows(const InSyncSet& next, NodeId self) const;

  private:
    InSyncSet value_;
    NodeMask awaited_;
    std::uint64_t version_ = 0;
    bool recorded_ = true;
};

}  // namespace replica
