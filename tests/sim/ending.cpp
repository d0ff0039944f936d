// SPDX-License-Identifier: Apache-2.0
// The end of each run: heal, resolve what only people can resolve, and demand convergence. Then
// every replica must have the same bytes, and what was acknowledged must be among them.
#include <algorithm>

#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

constexpr std::uint64_t sectors_per_block = block_bytes / sector_bytes;

}  // namespace

// Two nodes were each made a volume of its own, by force: one of them is created anew.
void World::give_up_other_volumes(int keep) {
    const auto volume_of = [&](int n) {
        return nodes_[static_cast<std::size_t>(n)].core->superblock().extension.volume_id;
    };
    const std::array<std::uint8_t, 16> unset{};
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        if (n == keep || volume_of(n) == unset) continue;
        // Half a copy that was promoted by force has the other's volume id, and none of its data.
        const Core& core = *nodes_[static_cast<std::size_t>(n)].core;
        const std::string why = core.view(static_cast<NodeId>(keep)).why;
        if (volume_of(n) == volume_of(keep) && why.find("unrelated") == std::string::npos) continue;
        crash(n, true);
        new_disk(n);
        start(n);
    }
}

// An operator looks at what is StandAlone and decides: the primary's data stays, else the lowest
// id's.
// A write that failed and was passed on left marks; a connection anew resyncs what they say.
void World::reconnect_marked(int n) {
    const Core& core = *nodes_[static_cast<std::size_t>(n)].core;
    if (core.role() != Role::primary) return;
    for (int p = 0; p < static_cast<int>(nodes_.size()); ++p) {
        if (p == n) continue;
        const PeerView view = core.view(static_cast<NodeId>(p));
        const bool rests = view.replication == ReplicationState::established;
        if (rests && view.in_sync && view.out_of_sync_bits > 0)
            command(n, CommandKind::disconnect, p);
    }
}

void World::settle_split_brain() {
    operated_ = true;
    int keep = -1;
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        const Core& core = *nodes_[static_cast<std::size_t>(n)].core;
        const bool good = core.disk() == DiskState::up_to_date;
        if (good &&
            (keep < 0 || (core.role() == Role::primary &&
                          nodes_[static_cast<std::size_t>(keep)].core->role() != Role::primary))) {
            keep = n;
        }
    }
    if (keep >= 0) give_up_other_volumes(keep);
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        Node& node = nodes_[static_cast<std::size_t>(n)];
        if (node.core->disk() == DiskState::diskless) attach(n);
        // The volume has grown on the others while this node was not their peer.
        if (left_behind_in_size(n)) make_room(n);
        if (n != keep && node.core->role() == Role::primary) command(n, CommandKind::demote);
        command(n, CommandKind::resume_sync);
        reconnect_marked(n);
        for (int p = 0; p < static_cast<int>(nodes_.size()); ++p) {
            if (p != n)
                command(n, CommandKind::connect, p, false, keep >= 0 && n != keep && p == keep);
        }
    }
    if (keep >= 0) return;
    // Nobody is UpToDate: the one that is closest to it is told to be.
    int best = -1;
    const auto rank = [&](int n) {
        const Core& core = *nodes_[static_cast<std::size_t>(n)].core;
        const bool had_data = uuid_identity(core.superblock().current_uuid) != uuid_just_created;
        return static_cast<int>(core.disk()) + (had_data ? 100 : 0);
    };
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        if (nodes_[static_cast<std::size_t>(n)].core->disk() < DiskState::inconsistent) return;
        if (best < 0 || rank(n) > rank(best)) best = n;
    }
    command(best, CommandKind::promote, -1, true);
}

bool World::converged(std::string& why) {
    const int n_nodes = static_cast<int>(nodes_.size());
    for (int n = 0; n < n_nodes; ++n) {
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if (node.up && nodes_[0].up &&
            !uuid_equal(nodes_[0].core->superblock().current_uuid,
                        node.core->superblock().current_uuid)) {
            return why = "I-R8 the generations differ", false;
        }
        const std::string name = "n" + std::to_string(n);
        if (!node.up) return why = name + " is down", false;
        if (node.core->disk() != DiskState::up_to_date) {
            return why = name + " is " + name_of(node.core->disk()), false;
        }
        for (const AppRequest& r : node.requests) {
            if (r.used) return why = name + " has a request that does not end", false;
        }
        if (size_of(n) != size_of(0)) return why = "I-S1 the sizes differ", false;
        if (node.core->role() == Role::primary && !node.core->journal().empty()) {
            return why = name + " has writes that are not stable everywhere", false;
        }
        if (!node.core->idle()) return why = name + " is not idle", false;
        for (int p = 0; p < n_nodes; ++p) {
            if (p == n) continue;
            const PeerView v = node.core->view(static_cast<NodeId>(p));
            if (v.connection != ConnectionState::connected ||
                v.replication != ReplicationState::established || v.disk != DiskState::up_to_date) {
                return why = name + " and n" + std::to_string(p) + ": " + name_of(v.connection) +
                             " " + name_of(v.replication) + " " + name_of(v.disk) + " (" + v.why +
                             ")",
                       false;
            }
            if (v.out_of_sync_bits != 0) {
                return why = name + " has bits toward n" + std::to_string(p), false;
            }
        }
    }
    return true;
}

void World::heal() {
    faulty_ = busy_ = false;
    forget_nobody();
    for (int a = 0; a < static_cast<int>(nodes_.size()); ++a) {
        nodes_[static_cast<std::size_t>(a)].disk_broken = false;
        nodes_[static_cast<std::size_t>(a)].copy_broken = false;
        nodes_[static_cast<std::size_t>(a)].disk->mend();
        for (int b = 0; b < static_cast<int>(nodes_.size()); ++b) {
            if (a != b && cut(a, b)) set_cut(a, b, false);
        }
    }
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        if (!nodes_[static_cast<std::size_t>(n)].up) start(n);
    }
    if (!hot_blocks_.empty()) at(1, [this] { read_on(); });
    std::string why;
    const std::uint64_t begin = now_;
    std::uint64_t operator_at = now_ + 8 * ns_per_s;
    while (!converged(why)) {
        if (now_ > begin + 300 * ns_per_s) fail("I-L1 no convergence: " + why);
        if (now_ >= operator_at) {
            bool all_up = true;
            for (const Node& node : nodes_)
                all_up = all_up && node.up && node.paused_until <= now_;
            if (all_up) settle_split_brain();
            operator_at = now_ + 12 * ns_per_s;
        }
        if (!step()) now_ = operator_at;  // nothing happens by itself any more
    }
    audit_all();
    audit_sizes();
    // I-R12: byte for byte.
    for (std::size_t n = 1; n < nodes_.size(); ++n) {
        const std::uint64_t s = nodes_[0].disk->first_difference(*nodes_[n].disk, 0, size_of(0));
        if (s < size_of(0))
            fail("I-R12 n0 and n" + std::to_string(n) + " differ in sector " + std::to_string(s));
    }
    audit_model();
}

// The application goes on reading while the cluster heals. These reads are checked like any other.
void World::read_on() {
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if (!node.up || node.paused_until > now_ || node.promote_token != 0) continue;
        if (!node.core->serves() || random_.below(2) == 0) continue;
        const std::uint64_t block = hot_blocks_[random_.below(hot_blocks_.size())];
        const std::uint64_t sector = block * sectors_per_block;
        const std::uint64_t end = std::min(size_of(n), sector + sectors_per_block);
        if (sector < end)
            submit(n, IoKind::read, sector, static_cast<std::uint32_t>(end - sector), false);
    }
    at(5 * ns_per_ms + random_.below(100 * ns_per_ms), [this] { read_on(); });
}

// Every acknowledged write that nothing excuses must be there. A node that is promoted now is
// judged as at any promotion; a node that is primary already must have them all.
void World::audit_model() {
    // A promotion that an operator asked for before may end meanwhile.
    const auto serving = [&] {
        for (int n = 0; n < static_cast<int>(nodes_.size()); ++n) {
            if (nodes_[static_cast<std::size_t>(n)].core->serves()) return n;
        }
        return -1;
    };
    const int chosen = static_cast<int>(random_.below(nodes_.size()));
    const std::uint64_t patience = now_ + 30 * ns_per_s;
    std::uint64_t again = now_;
    while (serving() < 0) {
        if (now_ > patience) fail("I-L1 after all has healed nobody can be promoted");
        if (now_ >= again && nodes_[static_cast<std::size_t>(chosen)].promote_token == 0) {
            again = now_ + 2 * ns_per_s;
            command(chosen, CommandKind::promote);
        }
        if (!step()) now_ = again;
    }
    const int primary = serving();
    const Uuid generation =
        nodes_[static_cast<std::size_t>(primary)].core->superblock().current_uuid;
    if (!checker_.knows(generation)) fail("a primary without a known generation");
    for (const Node& node : nodes_) {
        const std::string wrong = checker_.missing_at_the_end(generation, *node.disk);
        if (!wrong.empty()) fail(wrong);
    }
}

}  // namespace replica::sim
