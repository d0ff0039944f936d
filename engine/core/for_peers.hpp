// SPDX-License-Identifier: Apache-2.0
// Iteration over a Core's configured peers in the order of their node ids. For engine/core/*.cpp
// only.
#pragma once

#include <bit>

#include "engine/core/core.hpp"

namespace replica {

// Calls f(peer, id) for each configured peer, ascending: the order is part of determinism.
template <class F>
void Core::for_peers(F&& f) {
    for (std::uint32_t rest = config_.peers.bits; rest != 0; rest &= rest - 1) {
        const auto id = static_cast<NodeId>(std::countr_zero(rest));
        f(peers_[id], id);
    }
}

template <class F>
void Core::for_peers(F&& f) const {
    for (std::uint32_t rest = config_.peers.bits; rest != 0; rest &= rest - 1) {
        const auto id = static_cast<NodeId>(std::countr_zero(rest));
        f(peers_[id], id);
    }
}

}  // namespace replica
