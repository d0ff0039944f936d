// SPDX-License-Identifier: Apache-2.0
// Disks that grow, and volumes that grow into them: what a node does before the core may take the
// room (the metadata is moved, the room is zeroed), and what must hold of sizes.
#include <algorithm>

#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

// What lies behind the volume on a disk that nobody has zeroed: no write ever made it.
constexpr Stamp garbage = Stamp{1} << 63;

}  // namespace

std::uint64_t World::size_of(int n) const {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    if (node.up && node.core->disk() >= DiskState::inconsistent &&
        node.core->disk() != DiskState::unknown) {
        return node.core->volume_bytes() / sector_bytes;
    }
    const auto& label = node.disk->newest();
    return label ? label.value().effective_size_sectors : 0;
}

void World::fill_room(int n) {
    SimDisk& disk = *nodes_[static_cast<std::size_t>(n)].disk;
    for (std::uint64_t s = volume_sectors_; s < disk.sectors(); ++s)
        disk.write(s, {garbage + static_cast<Stamp>(n) * disk.sectors() + s}, true);
}

void World::grow_something(int n) {
    met(Fault::resize, n);
    const std::uint64_t dice = random_.below(6);
    if (dice == 0) return make_room(n);
    if (dice <= 2) {
        for (int m = 0; m < static_cast<int>(nodes_.size()); ++m)
            make_room(m);
        return;
    }
    const std::uint64_t more = max_sectors_ - volume_sectors_;
    const std::uint64_t sectors = volume_sectors_ + random_.below(more + 1);
    resize(n, dice == 3 ? 0 : sectors * sector_bytes / block_bytes * block_bytes);
}

void World::resize(int n, std::uint64_t bytes) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    Command c;
    c.kind = CommandKind::resize;
    c.token = ++token_;
    c.size_bytes = bytes;
    tell(n, "resize to %llu", static_cast<unsigned long long>(bytes));
    node.core->on_command(Instant{now_}, c);
    perform(n);
}

bool World::left_behind_in_size(int n) const {
    for (int m = 0; m < static_cast<int>(nodes_.size()); ++m) {
        if (size_of(m) > size_of(n)) return true;
    }
    return false;
}

// As a node does it: the metadata is moved behind the new end, then what lies between the volume
// and there is zeroed, then the core hears of it.
void World::make_room(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.up || node.paused_until > now_ || node.core->bitmap() == nullptr) return;
    if (node.hold_token != 0) return;  // at work already
    if (random_.below(2) == 0) return zero_room(n);
    node.hold_token = token_ + 1;  // the answer may come at once
    command(n, CommandKind::hold_metadata);
}

void World::metadata_held(int n) {
    schedule(n, disk_delay(n, true), [this, n] {
        Node& node = nodes_[static_cast<std::size_t>(n)];
        if (random_.below(4) == 0) return command(n, CommandKind::release_metadata);
        const Superblock placed = node.core->superblock();
        node.core->on_metadata_moved(Instant{now_}, ++token_, placed, max_sectors_ * sector_bytes);
        perform(n);
        if (node.up) zero_room(n);
    });
}

void World::zero_room(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const Core& core = *node.core;
    if (core.disk() < DiskState::inconsistent || core.disk() == DiskState::unknown) return;
    if (uuid_identity(core.superblock().current_uuid) == uuid_just_created) return;
    const std::uint64_t from =
        std::max(core.volume_bytes(), core.superblock().extension.ready_bytes) / sector_bytes;
    const std::uint64_t blocks = (max_sectors_ - from) * sector_bytes / block_bytes;
    const std::uint64_t until = random_.below(2) == 0
                                    ? max_sectors_
                                    : from + random_.below(blocks + 1) * block_bytes / sector_bytes;
    if (until <= from) return;
    node.hold_token = ~0U;  // one at a time, as the shell's lock has it
    schedule(n, disk_delay(n), [this, n, from, until] {
        Node& at = nodes_[static_cast<std::size_t>(n)];
        if (options_.shell_mutant != ShellMutant::room_not_zeroed)
            at.disk->write(from, std::vector<Stamp>(until - from, 0), false);
        schedule(n, disk_delay(n), [this, n, until, flushed = at.disk->begin_flush()] {
            Node& later = nodes_[static_cast<std::size_t>(n)];
            later.hold_token = 0;
            later.disk->finish_flush(flushed);
            later.core->on_room(Instant{now_}, until * sector_bytes);
            perform(n);
        });
    });
}

// The first writes behind the old end, and sometimes a crash before all is on record.
void World::grown(int n, const std::string& notice) {
    if (notice != "the volume has grown" || !faulty_) return;
    const bool power = swarm_.power_cut && (!swarm_.process_crash || random_.below(2) == 0);
    if ((power || swarm_.process_crash) && random_.below(4) == 0)
        crash_later(n, random_.below(20 * swarm_.disk_delay_ns), power);
    for (int i = 0; i < 4; ++i) {
        at(random_.below(4 * swarm_.disk_delay_ns), [this] {
            for (int m = 0; m < static_cast<int>(nodes_.size()); ++m) {
                const Node& node = nodes_[static_cast<std::size_t>(m)];
                if (!busy_ || !node.up || node.paused_until > now_) continue;
                if (node.core->serves() && node.promote_token == 0) submit(m);
            }
        });
    }
}

// A size that others count on is on record. (What holds no data yet may be told any.)
void World::audit_told_size(int n, std::span<const std::byte> state) {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto told = decode_state(state);
    const auto& label = node.disk->newest();
    if (!told || !label) fail("a state or a superblock cannot be read");
    const bool promised = (told.value().flags & state_flag::growing) == 0 &&
                          uuid_identity(told.value().current_uuid) != uuid_just_created;
    if (promised && told.value().size_bytes > label.value().effective_size_sectors * sector_bytes)
        fail("I-S2 a size is told before it is on record");
}

// What was acknowledged lies inside, and all have one size.
void World::audit_sizes() {
    const std::uint64_t size = size_of(0);
    for (int n = 1; n < static_cast<int>(nodes_.size()); ++n) {
        if (size_of(n) != size) fail("I-S1 the sizes differ at the end");
    }
    const Uuid generation = nodes_[0].core->superblock().current_uuid;
    if (checker_.knows(generation) && checker_.end_of(generation) > size)
        fail("I-S2 the volume ends before what was acknowledged");
}

}  // namespace replica::sim
