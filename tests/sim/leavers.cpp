// SPDX-License-Identifier: Apache-2.0
// A node leaves the cluster: the others are restarted without it as a peer, and keep its slot. It
// comes back later, with the disk that it had or with a new one, and the others are restarted with
// it as a peer. For a while some nodes have it as a peer and some do not.
#include <algorithm>

#include "tests/sim/world.hpp"

namespace replica::sim {

void World::restart_for_peers(int n) {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!faulty_ || !node.up || n == left_out_ || node.left_out == left_out_) return;
    crash(n, false);
    start_later(n, 5 * ns_per_ms + random_.below(50 * ns_per_ms));
}

void World::tell_all_of_peers() {
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n)
        at(random_.below(ns_per_s), [this, n] { restart_for_peers(n); });
}

// An operator takes out a node that is down while a Primary counts all others as members.
bool World::can_be_taken_out(int gone) const {
    NodeMask others;
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if ((n == gone) == node.up) return false;
        if (n != gone) others.add(static_cast<NodeId>(n));
    }
    return std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
        return node.up && node.core->serves() && node.core->disk() == DiskState::up_to_date &&
               !node.core->suspended() && node.core->in_sync() == others;
    });
}

void World::take_out(int gone) {
    Node& leaver = nodes_[static_cast<std::size_t>(gone)];
    if (left_out_ >= 0 || leaving_ >= 0 || nodes_.size() < 3 || !leaver.up) return;
    if (leaver.core->role() == Role::primary) return;
    operated_ = true;
    leaving_ = gone;
    command(gone, CommandKind::down);
    leaver.down_token = token_;
    wait_to_take_out(gone, 30);
}

void World::wait_to_take_out(int gone, int looks) {
    at(100 * ns_per_ms, [this, gone, looks] {
        if (!faulty_) return;
        if (!can_be_taken_out(gone)) {
            if (looks > 0) return wait_to_take_out(gone, looks - 1);
            leaving_ = -1;
            return start_later(gone, 0);
        }
        met(Fault::left_out, gone);
        tell(gone, "is taken out of the cluster");
        leaving_ = -1;
        left_out_ = gone;
        tell_all_of_peers();
        at(ns_per_s + random_.below(6 * ns_per_s), [this, gone] { take_in(gone); });
    });
}

void World::take_in(int gone) {
    if (left_out_ != gone) return;
    left_out_ = -1;
    tell(gone, "is taken in again");
    if (!nodes_[static_cast<std::size_t>(gone)].up) {
        if (random_.below(2) == 0) new_disk(gone);
        start(gone);
    }
    tell_all_of_peers();
}

// Every node has all others as peers again.
void World::forget_nobody() {
    leaving_ = left_out_ = -1;
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        if (nodes_[static_cast<std::size_t>(n)].left_out >= 0) crash(n, false);
    }
}

}  // namespace replica::sim
