// SPDX-License-Identifier: Apache-2.0
// The state of the protocol in which a fault hit a node. A pair of fault and state that never meets
// is not tested, and --coverage names it.
#include <algorithm>
#include <cstdio>
#include <iterator>

#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

constexpr const char* state_names[] = {
    "down",     "attaching", "promoting", "recording", "diskless-primary",
    "diskless", "handshake", "bitmaps",   "target",    "source",
    "held",     "alone",     "primary",   "secondary",
};
static_assert(std::size(state_names) == protocol_states);

}  // namespace

// The first state that fits: a node may be in several.
ProtocolState World::state_of(int n) const {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.up || !node.core) return ProtocolState::down;
    const Core& core = *node.core;
    if (core.disk() == DiskState::attaching) return ProtocolState::attaching;
    if (node.promote_token != 0) return ProtocolState::promoting;
    if (core.role() == Role::primary && core.suspended()) return ProtocolState::recording;
    if (core.disk() < DiskState::inconsistent) {
        return core.role() == Role::primary ? ProtocolState::diskless_primary
                                            : ProtocolState::diskless;
    }
    bool connected = false, handshake = false, bitmaps = false, target = false, source = false;
    for (std::size_t p = 0; p < nodes_.size(); ++p) {
        if (static_cast<int>(p) == n) continue;
        const PeerView view = core.view(static_cast<NodeId>(p));
        const bool up = view.connection == ConnectionState::connected;
        connected = connected || up;
        handshake = handshake || (up && view.replication == ReplicationState::off);
        bitmaps = bitmaps || is_exchanging_bitmaps(view.replication);
        target = target || is_target(view.replication);
        source = source || is_source(view.replication);
    }
    if (handshake) return ProtocolState::handshake;
    if (bitmaps) return ProtocolState::bitmaps;
    if (target) return ProtocolState::target;
    if (source) return ProtocolState::source;
    if (core.metadata_is_held()) return ProtocolState::held;
    if (!connected) return ProtocolState::alone;
    return core.role() == Role::primary ? ProtocolState::primary : ProtocolState::secondary;
}

void World::met(Fault fault, int n) {
    ++stats_.of(fault);
    const auto state = static_cast<std::size_t>(dying_in_.value_or(state_of(n)));
    ++stats_.met_in[static_cast<std::size_t>(fault)][state];
}

void print_coverage(const Stats& stats) {
    std::printf("%-22s%9s", "fault", "all");
    for (const char* name : state_names)
        std::printf(" %.9s", name);
    std::printf("\n");
    for (std::size_t f = 0; f < fault_kinds; ++f) {
        std::printf("%-22s%9llu", name_of(static_cast<Fault>(f)),
                    static_cast<unsigned long long>(stats.met[f]));
        for (std::size_t s = 0; s < protocol_states; ++s) {
            const auto width =
                static_cast<int>(std::min<std::size_t>(9, std::strlen(state_names[s])));
            std::printf(" %*llu", width, static_cast<unsigned long long>(stats.met_in[f][s]));
        }
        std::printf("\n");
    }
    for (std::size_t f = 0; f < fault_kinds; ++f) {
        std::string empty;
        for (std::size_t s = 0; s < protocol_states; ++s) {
            if (stats.met_in[f][s] == 0) empty += std::string(" ") + state_names[s];
        }
        if (!empty.empty())
            std::printf("never: %s in%s\n", name_of(static_cast<Fault>(f)), empty.c_str());
    }
}

}  // namespace replica::sim
