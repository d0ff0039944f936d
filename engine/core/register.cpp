// SPDX-License-Identifier: Apache-2.0
#include "engine/core/register.hpp"

#include <algorithm>

#include "engine/base/assert.hpp"

namespace replica {

InSyncSet changed(const InSyncSet& set, NodeMask members) {
    InSyncSet next = set;
    next.members = members;
    next.number.change += 1;
    return next;
}

InSyncSet without(const InSyncSet& set, NodeMask lost, Uuid generation, std::int32_t primary) {
    ASSERT(!uuid_equal(generation, set.generation));
    InSyncSet next;
    next.generation = generation;
    next.parent = set.generation;
    next.number = {set.number.generation + 1, 0};
    next.members = set.members.without(lost);
    next.primary = primary;
    return next;
}

InSyncSet joined(const InSyncSet& a, const InSyncSet& b) {
    ASSERT(uuid_equal(a.generation, b.generation));
    InSyncSet later = a.number < b.number ? b : a;
    if (a.number == b.number) later.primary = std::max(a.primary, b.primary);
    const NodeMask both = a.members | b.members;
    const bool one_has_all =
        both == later.members && (a.number != b.number || a.members == b.members);
    return one_has_all ? later : changed(later, both);
}

void InSyncRegister::load(const InSyncSet& value, std::uint64_t version) {
    value_ = value;
    awaited_ = NodeMask{};
    version_ = version;
    recorded_ = version == 0;
}

void InSyncRegister::propose(const InSyncSet& next, NodeMask others, std::uint64_t version) {
    ASSERT(next.number > value_.number);
    ASSERT(version > 0 && version >= version_);
    value_ = next;
    awaited_ = others;
    version_ = version;
    recorded_ = false;
}

void InSyncRegister::recorded_here(std::uint64_t version) {
    if (version >= version_) recorded_ = true;
}

bool InSyncRegister::recorded_by(NodeId node, SetNumber number) {
    if (number != value_.number || !awaited_.has(node)) return false;
    awaited_.remove(node);
    return true;
}

void InSyncRegister::await(NodeId node) {
    ASSERT(value_.members.has(node));
    awaited_.add(node);
}

void InSyncRegister::excuse(NodeId node) { awaited_.remove(node); }

bool InSyncRegister::follows(const InSyncSet& next, NodeId self) const {
    if (!next.members.has(self) || next.number <= value_.number) return false;
    if (uuid_equal(next.generation, value_.generation)) return true;
    return uuid_equal(next.parent, value_.generation);
}

}  // namespace replica
