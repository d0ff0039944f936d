// SPDX-License-Identifier: Apache-2.0
// A World that is driven by hand: a script says who is killed, which message is held back, which
// I/O does not end yet, and what has to be true then. Every invariant of the random runs is checked
// as well. For situations that were found once and must never come back (regressions.cpp).
#pragma once

#include <string>

#include "tests/sim/world.hpp"

namespace replica::sim {

class Scenario {
  public:
    // Starts the nodes, promotes node 0 by force, and waits until all are UpToDate.
    Scenario(const Options& options, const Setup& setup);

    void run_ms(std::uint64_t ms);
    // Goes on until it is true. Throws Violation with `what` if that takes longer.
    void until(const std::string& what, const std::function<bool()>& condition,
               std::uint64_t ms = 20'000);
    void expect(bool condition, const std::string& what);

    const Core& core(int n) const { return *node(n).core; }
    PeerView view(int n, int peer) const { return core(n).view(static_cast<NodeId>(peer)); }
    bool connected(int n, int peer) const;
    std::uint64_t bits(int n, int peer) const { return view(n, peer).out_of_sync_bits; }

    // The application. Blocks are 4 KiB. Returns a ticket.
    std::uint64_t write(int n, std::uint64_t block, std::uint32_t blocks = 1, bool fua = false);
    std::uint64_t read(int n, std::uint64_t block, std::uint32_t blocks = 1);
    std::uint64_t flush(int n);
    bool answered(std::uint64_t ticket) const { return world_.answers_.count(ticket) != 0; }
    int result(std::uint64_t ticket) const { return world_.answers_.at(ticket); }
    void acknowledged(std::uint64_t ticket, std::uint64_t ms = 20'000);  // waits for it

    // The operator. Returns a token; ended() waits for its reply.
    std::uint32_t command(int n, CommandKind kind, int peer = -1, bool force = false,
                          bool discard = false);
    Errc ended(std::uint32_t token, std::uint64_t ms = 20'000);
    void promote(int n, bool force = false);

    // Faults.
    void kill(int n) { world_.crash(n, false); }
    void power_cut(int n) { world_.crash(n, true, SimDisk::LossMode::everything); }
    void start(int n) { world_.start(n); }
    // Nodes that are started from now on do not have `n` as a peer. -1: they have all.
    void leave_out(int n) { world_.left_out_ = n; }
    void break_disk(int n) { node(n).disk_broken = true; }
    void mend_disk(int n) { node(n).disk_broken = false; }
    void replace_disk(int n) { world_.new_disk(n); }  // of a node that is down
    void attach(int n);
    void start_without_disk(int n);  // its disk is attached later
    void room(int n);                // there is room for one extent more
    // I/O on the data of this node's disk that has this origin fails.
    void fail_io(int n, IoOrigin origin);
    void mend_io() { world_.fail_io_ = nullptr; }
    void cut(int a, int b) { world_.set_cut(a, b, true); }
    void join(int a, int b) { world_.set_cut(a, b, false); }
    // From the first message of this type on, the stream that it goes by stands still.
    void hold(int from, int to, MessageType type);
    void release_messages();
    void release_messages_to(int n);  // only what goes to n
    // I/O of this origin on this node does not end. A crash ends it like any I/O in the kernel.
    void hold_io(int n, IoOrigin origin);
    // What is held so far stays held, and nothing else.
    void hold_no_more() { world_.hold_io_ = nullptr; }
    void release_io();
    // Only the first `count` that were held; what comes of other origins is held no more.
    void release_io(std::size_t count, int n, IoOrigin still_held);

    void audit() { world_.audit_all(); }
    // Heals, demands convergence and equal bytes, and reads back everything.
    void finish();

  private:
    World::Node& node(int n) { return world_.nodes_[static_cast<std::size_t>(n)]; }
    const World::Node& node(int n) const { return world_.nodes_[static_cast<std::size_t>(n)]; }

    World world_;
};

// The table of what was found; runs all, or the one that is named. Returns how many failed.
int run_regressions(const Options& options, const std::string& name);
void list_regressions();

}  // namespace replica::sim
