// SPDX-License-Identifier: Apache-2.0
// See scenario.hpp.
#include "tests/sim/scenario.hpp"

#include <algorithm>

namespace replica::sim {
namespace {

constexpr std::uint64_t sectors_per_block = block_bytes / sector_bytes;

}  // namespace

Scenario::Scenario(const Options& options, const Setup& setup) : world_(options, setup) {
    const int count = static_cast<int>(setup.nodes);
    for (int n = 0; n < count; ++n)
        world_.start(n);
    const auto all = [&](const auto& holds) {
        for (int n = 0; n < count; ++n) {
            if (!holds(n)) return false;
        }
        return true;
    };
    until("nodes connect", [&] {
        return all([&](int n) { return n == 0 || (connected(0, n) && connected(n, 0)); });
    });
    until("disks attach",
          [&] { return all([&](int n) { return core(n).disk() == DiskState::inconsistent; }); });
    promote(0, true);
    until("everybody is UpToDate", [&] {
        return all([&](int n) {
            return core(n).disk() == DiskState::up_to_date && (n == 0 || bits(0, n) == 0) &&
                   core(0).in_sync().has(static_cast<NodeId>(n));
        });
    });
    run_ms(2'000);
}

void Scenario::run_ms(std::uint64_t ms) {
    const std::uint64_t end = world_.now_ + ms * ns_per_ms;
    bool reached = false;
    world_.at(ms * ns_per_ms, [&] { reached = true; });
    while (!reached && world_.now_ <= end && world_.step()) {
    }
}

void Scenario::until(const std::string& what, const std::function<bool()>& condition,
                     std::uint64_t ms) {
    const std::uint64_t end = world_.now_ + ms * ns_per_ms;
    while (!condition()) {
        if (world_.now_ > end || !world_.step()) world_.fail("it did not come to pass: " + what);
    }
}

void Scenario::expect(bool condition, const std::string& what) {
    if (!condition) world_.fail("not true: " + what);
}

bool Scenario::connected(int n, int peer) const {
    return node(n).up && view(n, peer).connection == ConnectionState::connected;
}

std::uint64_t Scenario::write(int n, std::uint64_t block, std::uint32_t blocks, bool fua) {
    return world_.submit(n, IoKind::write, block * sectors_per_block,
                         static_cast<std::uint32_t>(blocks * sectors_per_block), fua);
}

std::uint64_t Scenario::read(int n, std::uint64_t block, std::uint32_t blocks) {
    return world_.submit(n, IoKind::read, block * sectors_per_block,
                         static_cast<std::uint32_t>(blocks * sectors_per_block), false);
}

std::uint64_t Scenario::flush(int n) { return world_.submit(n, IoKind::flush, 0, 0, false); }

void Scenario::acknowledged(std::uint64_t ticket, std::uint64_t ms) {
    until(
        "a request is answered", [&] { return answered(ticket); }, ms);
    expect(world_.answers_.at(ticket) == 0, "a request succeeds");
}

std::uint32_t Scenario::command(int n, CommandKind kind, int peer, bool force, bool discard) {
    world_.command(n, kind, peer, force, discard);
    return world_.token_;
}

Errc Scenario::ended(std::uint32_t token, std::uint64_t ms) {
    until(
        "a command ends", [&] { return world_.replies_.count(token) != 0; }, ms);
    return world_.replies_.at(token);
}

void Scenario::promote(int n, bool force) {
    expect(ended(command(n, CommandKind::promote, -1, force)) == Errc::ok, "a node is promoted");
}

void Scenario::attach(int n) {
    node(n).disk_broken = false;
    world_.attach(n);
}

void Scenario::start_without_disk(int n) {
    world_.no_attach_ = true;
    world_.start(n);
    world_.no_attach_ = false;
}

void Scenario::room(int n) {
    const std::uint64_t end = node(n).core->volume_bytes() / sector_bytes;
    node(n).disk->write(end, std::vector<Stamp>(extent_bytes / sector_bytes, 0), true);
    node(n).core->on_room(Instant{world_.now_}, node(n).core->volume_bytes() + extent_bytes);
    world_.perform(n);
}

void Scenario::release_messages_to(int n) {
    auto earlier = world_.hold_message_;
    world_.hold_message_ = [earlier, n](int f, int t, MessageType m) {
        return t != n && earlier && earlier(f, t, m);
    };
    for (auto& [id, c] : world_.connections_) {
        for (std::size_t side = 0; side < 2; ++side) {
            if (c.node[1 - side] == n) c.held[side] = false;
        }
        if (!world_.cut(c.node[0], c.node[1])) world_.set_cut(c.node[0], c.node[1], false);
    }
}

void Scenario::hold(int from, int to, MessageType type) {
    world_.hold_message_ = [earlier = world_.hold_message_, from, to, type](int f, int t,
                                                                            MessageType m) {
        return (f == from && t == to && m == type) || (earlier && earlier(f, t, m));
    };
}

void Scenario::release_messages() {
    world_.hold_message_ = nullptr;
    for (auto& [id, c] : world_.connections_) {
        c.held = {};
        if (!world_.cut(c.node[0], c.node[1])) world_.set_cut(c.node[0], c.node[1], false);
    }
}

void Scenario::hold_io(int n, IoOrigin origin) {
    world_.hold_io_ = [earlier = world_.hold_io_, n, origin](int at, IoOrigin o) {
        return (at == n && o == origin) || (earlier && earlier(at, o));
    };
}

void Scenario::fail_io(int n, IoOrigin origin) {
    world_.fail_io_ = [n, origin](int at, IoOrigin o) { return at == n && o == origin; };
}

void Scenario::release_io() {
    world_.hold_io_ = nullptr;
    std::vector<World::HeldIo> held;
    held.swap(world_.held_io_);
    for (World::HeldIo& io : held) {
        if (node(io.node).incarnation == io.incarnation) {
            world_.schedule(io.node, 1, std::move(io.task));
        }
    }
}

void Scenario::release_io(std::size_t count, int n, IoOrigin still_held) {
    world_.hold_io_ = nullptr;
    hold_io(n, still_held);
    for (; count > 0 && !world_.held_io_.empty(); --count) {
        World::HeldIo io = std::move(world_.held_io_.front());
        world_.held_io_.erase(world_.held_io_.begin());
        world_.schedule(io.node, 1, std::move(io.task));
    }
}

void Scenario::finish() {
    release_messages();
    release_io();
    world_.heal();
    const auto primary =
        std::find_if(world_.nodes_.begin(), world_.nodes_.end(),
                     [](const World::Node& node) { return node.core->role() == Role::primary; });
    const int n = static_cast<int>(primary - world_.nodes_.begin());
    const int reader = primary == world_.nodes_.end() ? 0 : n;
    if (primary == world_.nodes_.end()) promote(reader);
    const std::uint64_t blocks_per_read = 128;
    for (std::uint64_t b = 0; b < world_.volume_sectors_ / sectors_per_block; b += blocks_per_read)
        acknowledged(read(reader, b, blocks_per_read));
}

}  // namespace replica::sim
