// SPDX-License-Identifier: Apache-2.0
// What replicactl prints: compared as text, because people and scripts read it.
#include "tests/catch.hpp"
#include "tools/replicactl_text.hpp"

using namespace replica;
using namespace replica::replicactl;
using control::Json;
using control::to_json;

namespace {

ResourceStatus mirror() {
    ResourceStatus status;
    status.name = "r0";
    status.node_id = 1;
    status.up = true;
    status.role = "Primary";
    status.disk = "UpToDate";
    status.size_bytes = 100U << 20;
    status.current_uuid = "8A5C3B2E11D0F7A4";
    PeerStatus peer;
    peer.name = "beta";
    peer.node_id = 2;
    peer.connection = "Connected";
    peer.role = "Secondary";
    peer.disk = "UpToDate";
    peer.replication = "Established";
    status.peers.push_back(peer);
    return status;
}

std::string text(const ResourceStatus& status, const StatusStyle& style = {}) {
    return status_text(Json::array({to_json(status)}), style);
}

}  // namespace

TEST_CASE("the usual status is short", "[replicactl]") {
    CHECK(text(mirror()) ==
          "r0 role:Primary\n"
          "  disk:UpToDate\n"
          "  beta role:Secondary\n"
          "    peer-disk:UpToDate\n"
          "\n");
    CHECK(status_text(Json::array(), {}) == "# no resource is defined\n");
}

TEST_CASE("the status says what is unusual, and why", "[replicactl]") {
    auto status = mirror();
    status.role = "Secondary";
    status.up = false;
    status.suspended = true;
    status.disk = "Diskless";
    status.why = "the disk is in use";
    status.doors = {"unix:/run/r0.sock"};
    status.peers[0].connection = "StandAlone";
    status.peers[0].why = "split brain";
    CHECK(text(status) ==
          "r0 role:Secondary down suspended:yes\n"
          "  # the disk is in use\n"
          "  disk:Diskless door:unix:/run/r0.sock\n"
          "  beta connection:StandAlone\n"
          "    # split brain\n"
          "\n");
}

TEST_CASE("a resync has a percentage and, while watched, a bar", "[replicactl]") {
    auto status = mirror();
    auto& peer = status.peers[0];
    peer.replication = "SyncSource";
    peer.disk = "Inconsistent";
    peer.resync_total_bytes = 80U << 20;
    peer.resync_done_bytes = 20U << 20;
    peer.resync_bytes_per_s = 1U << 20;
    CHECK(text(status) ==
          "r0 role:Primary\n"
          "  disk:UpToDate\n"
          "  beta role:Secondary\n"
          "    replication:SyncSource peer-disk:Inconsistent done:25.00\n"
          "\n");
    StatusStyle watch;
    watch.progress = true;
    watch.bar_columns = 20;
    CHECK(text(status, watch) ==
          "r0 role:Primary\n"
          "  disk:UpToDate\n"
          "  beta role:Secondary\n"
          "    replication:SyncSource peer-disk:Inconsistent done:25.00\n"
          "    [#####---------------]  25.0%  20.0 MiB of 80.0 MiB  1.0 MiB/s  ETA 1m00s\n"
          "\n");
}

TEST_CASE("verbose and statistics show the rest", "[replicactl]") {
    auto status = mirror();
    status.al_writes = 7;
    status.peers[0].pending = 3;
    StatusStyle style;
    style.verbose = true;
    style.statistics = true;
    CHECK(text(status, style) ==
          "r0 role:Primary node-id:1\n"
          "  volume:0 disk:UpToDate size:100.0 MiB uuid:8A5C3B2E11D0F7A4\n"
          "      size:102400 read:0 written:0 al-writes:7 bm-writes:0 md-writes:0 al-used:0\n"
          "  beta node-id:2 connection:Connected role:Secondary\n"
          "    volume:0 replication:Established peer-disk:UpToDate resync-suspended:no\n"
          "        received:0 sent:0 out-of-sync:0 pending:3 unacked:0\n"
          "\n");
}

TEST_CASE("events are lines of words", "[replicactl]") {
    CHECK(event_text(to_json(Event{4, "r0", "connection", "change", "beta", "Connecting"})) ==
          "change connection name:r0 peer:beta Connecting");
    CHECK(exists_text(Json::array({to_json(mirror())})) ==
          "exists resource name:r0 role:Primary suspended:no\n"
          "exists device name:r0 volume:0 disk:UpToDate\n"
          "exists connection name:r0 peer:beta connection:Connected role:Secondary\n"
          "exists peer-device name:r0 peer:beta volume:0 replication:Established "
          "peer-disk:UpToDate\n"
          "exists -\n");
}

TEST_CASE("latency is read from the histogram's buckets", "[replicactl]") {
    ResourceStats stats;
    auto& total = stats.write_total;
    total.counts[10] = 99;  // [1024, 2048) ns
    total.counts[20] = 1;   // [1.05, 2.1) ms
    total.total = 100;
    total.sum_ns = 99 * 1500 + 1'500'000;
    total.max_ns = 1'500'000;
    const auto lines = stats_text(to_json(stats));
    CHECK(lines.find("write-total           100    16.5us     1.5us     2.0us     1.5ms") !=
          std::string::npos);
    CHECK(lines.find("flush-total             0") != std::string::npos);
}

TEST_CASE("documents of another version do not break the text", "[replicactl]") {
    CHECK_NOTHROW(
        status_text(Json::parse(R"([{"name":1,"devices":3,"connections":[{}]},{}])"), {}));
    CHECK_NOTHROW(status_text(Json::parse(R"([7, null, []])"), {}));
    CHECK_NOTHROW(stats_text(Json::parse(R"({"write-total":{"counts-log2-ns":["x"]}})")));
    CHECK_NOTHROW(event_text(Json::parse("[]")));
}

TEST_CASE("an upgrade tells the versions and each pause", "[control]") {
    const Json report = {
        {"from", "1.0"},
        {"to", "1.1"},
        {"remarks", {"r2 is Secondary now: promote it again"}},
        {"doors",
         Json::array(
             {{{"resource", "r0"}, {"door", "ublk"}, {"adopted-ms", 300.4}, {"pause-ms", 412.7}},
              {{"resource", "r1"}, {"door", "nbd"}, {"adopted-ms", 250.0}, {"pause-ms", 0.0}}})}};
    CHECK(replicactl::upgrade_text(report) ==
          "1.0 -> 1.1\n"
          "r0, ublk: I/O paused for 413 ms\n"
          "r1, nbd: adopted after 250 ms, not used since\n"
          "# r2 is Secondary now: promote it again\n");
    CHECK(replicactl::upgrade_text(Json::object()) == " -> \n");
}
