// SPDX-License-Identifier: Apache-2.0
// A mirror whose nodes are killed with SIGKILL: no acknowledged write is lost, what comes back is
// brought up to date with what changed and nothing more, and both disks are equal in the end.
#include <csignal>
#include <memory>
#include <string>

#include "tests/integration/node_child.hpp"
#include "tests/integration/node_support.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t disk_bytes = 48U << 20;
constexpr std::uint32_t blocks = (32U << 20) / 4096;

class Mirror {
  public:
    // A child that stands still for a second is no lost peer, but where that is what is tested.
    explicit Mirror(Protocol protocol = Protocol::c, std::uint32_t patience_ms = 30'000)
        : ledger(blocks) {
        options_.connect_interval_ms = 50;
        options_.protocol = protocol;
        options_.ping_interval_ms = 500;
        options_.ping_timeout_ms = patience_ms;
        options_.request_timeout_ms = 60'000;
        for (std::uint16_t& port : ports_)
            port = free_port();
        for (int i = 0; i < 2; ++i) {
            Pair::make_file(disk(i), disk_bytes);
            start(i);
            child[i]->must("create");
        }
        for (auto& each : child)
            each->must("up");
        child[0]->must("promote-force");
        wait_synced();
        REQUIRE(std::stoull(child[0]->status()["size"]) >= blocks * std::uint64_t{4096});
    }

    std::string disk(int i) const { return dir_ / ("disk" + std::to_string(i)); }
    void start(int i) {
        NodeOptions options;
        options.name = i == 0 ? "alpha" : "beta";
        options.state_dir = dir_ / ("state" + std::to_string(i));
        options.listen = "127.0.0.1:" + std::to_string(ports_[i]);
        options.lock_memory = false;
        options.log = log_of(options.name);
        ResourceConfig config;
        config.name = "r0";
        config.node_id = static_cast<NodeId>(i);
        config.disk = disk(i);
        config.options = options_;
        config.peers.push_back({i == 0 ? "beta" : "alpha", static_cast<NodeId>(1 - i),
                                "127.0.0.1:" + std::to_string(ports_[1 - i])});
        child[i] = std::make_unique<NodeChild>(options, config, ledger);
    }
    void restart(int i) {
        start(i);
        child[i]->must("add");
        child[i]->must("up");
    }
    bool synced(int i) {
        auto s = child[i]->status();
        return s["disk"] == "UpToDate" && s["peer-disk"] == "UpToDate" &&
               s["replication"] == "Established" && s["out-of-sync"] == "0";
    }
    void wait_synced() {
        if (wait_until([this] { return synced(0) && synced(1); })) return;
        FAIL("alpha: " + child[0]->call("status") + "\nbeta: " + child[1]->call("status"));
    }
    // Waits until the load has written so many more blocks.
    void wait_writes(std::uint64_t more) {
        const std::uint64_t goal = ledger.writes() + more;
        REQUIRE(wait_until([&] { return ledger.writes() >= goal; }));
    }
    // As soon as the node has noticed that the other one is gone.
    void promote(int i) {
        std::string answer;
        wait_until([&] { return (answer = child[i]->call("promote")) == "ok"; });
        REQUIRE(answer == "ok");
    }
    void finish(int primary) {
        wait_synced();
        child[primary]->must("verify");
        const std::uint64_t bytes = std::stoull(child[primary]->status()["size"]);
        child[0]->quit();
        child[1]->quit();
        CHECK(equal_files(disk(0), disk(1), bytes));
    }

    Ledger ledger;
    std::unique_ptr<NodeChild> child[2];

  private:
    TempDir dir_;
    ResourceOptions options_;
    std::uint16_t ports_[2] = {};
};

TEST_CASE("the volume goes on without its secondary, which then gets only what changed") {
    Mirror mirror;
    NodeChild& alpha = *mirror.child[0];
    // The first resync went through beta's activity log; it starts anew here.
    mirror.child[1]->must("down");
    mirror.child[1]->must("up");
    mirror.wait_synced();
    alpha.must("write 0 512");
    mirror.child[1]->kill();
    alpha.must("write 100 64");
    alpha.must("write 5000 64");
    CHECK(alpha.status()["connection"] != "Connected");
    const std::uint64_t before = std::stoull(alpha.status()["resync-sent"]);
    mirror.restart(1);
    mirror.wait_synced();
    const std::uint64_t moved = std::stoull(alpha.status()["resync-sent"]) - before;
    // 128 blocks were written in the outage; the activity log adds extents of 4 MiB that were
    // active when the secondary was killed: the first of the volume.
    CHECK(moved >= 128 * 4096);
    CHECK(moved <= 128 * 4096 + 2 * (4U << 20));
    mirror.finish(0);
}

TEST_CASE("no acknowledged write is lost when the secondary is killed again and again") {
    const Protocol protocol = GENERATE(Protocol::c, Protocol::b, Protocol::a);
    Mirror mirror(protocol);
    mirror.child[0]->must("load");
    for (int round = 0; round < 5; ++round) {
        mirror.wait_writes(200);
        mirror.child[1]->kill();
        mirror.wait_writes(200);
        mirror.restart(1);
        if (round % 2 == 0) mirror.wait_synced();
    }
    mirror.child[0]->must("stop");
    mirror.finish(0);
}

TEST_CASE("the survivor of a killed primary has every acknowledged write") {
    Mirror mirror;
    int primary = 0;
    for (int round = 0; round < 6; ++round) {
        mirror.child[primary]->must("load");
        mirror.wait_writes(300);
        mirror.child[primary]->kill();
        primary = 1 - primary;
        mirror.promote(primary);
        mirror.child[primary]->must("verify");
        mirror.restart(1 - primary);
        mirror.wait_synced();
    }
    mirror.finish(primary);
}

TEST_CASE("a secondary that hangs is left behind, and comes back when it wakes") {
    Mirror mirror(Protocol::c, 500);
    mirror.child[0]->must("load");
    for (int round = 0; round < 2; ++round) {
        mirror.wait_writes(100);
        mirror.child[1]->signal(SIGSTOP);
        REQUIRE(wait_until([&] { return mirror.child[0]->status()["connection"] != "Connected"; }));
        mirror.wait_writes(200);
        mirror.child[1]->signal(SIGCONT);
        mirror.wait_synced();
    }
    mirror.child[0]->must("stop");
    mirror.finish(0);
}

TEST_CASE("both nodes are killed, and the primary comes back with every acknowledged write") {
    Mirror mirror;
    mirror.child[0]->must("load");
    mirror.wait_writes(300);
    mirror.child[0]->kill();
    mirror.child[1]->kill();
    mirror.restart(0);
    mirror.restart(1);
    mirror.wait_synced();
    mirror.promote(0);
    mirror.child[0]->must("verify");
    mirror.finish(0);
}

}  // namespace
}  // namespace replica::test
