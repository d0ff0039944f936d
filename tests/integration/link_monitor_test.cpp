// SPDX-License-Identifier: Apache-2.0
// The link monitor against the kernel, in a network namespace of this process (docs/netlink.md).
// Skipped, and said so, where the machine allows none.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "netlink/link_monitor.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

bool ip(const std::string& arguments) {
    return std::system(("ip " + arguments + " 2>/dev/null").c_str()) == 0;
}

constexpr std::chrono::seconds patience{100};

// Enters a namespace of its own, once; false: there can be none.
bool have_namespace() {
    static const bool entered = [] {
        if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
        return ip("link add probe0 type veth peer name probe1") && ip("link delete probe0");
    }();
    if (!entered) std::puts("SKIPPED: no network namespace can be made here, or no veth in it");
    return entered;
}

sockaddr_storage address(const std::string& text) {
    sockaddr_storage storage{};
    auto* const in = reinterpret_cast<sockaddr_in*>(&storage);
    auto* const in6 = reinterpret_cast<sockaddr_in6*>(&storage);
    if (inet_pton(AF_INET, text.c_str(), &in->sin_addr) == 1) {
        storage.ss_family = AF_INET;
    } else {
        REQUIRE(inet_pton(AF_INET6, text.c_str(), &in6->sin6_addr) == 1);
        storage.ss_family = AF_INET6;
    }
    return storage;
}

// west (10.1.0.1) and east are the two ends of a cable, spare (10.2.0.1) is one end of another.
struct Net {
    Net() {
        REQUIRE(ip("link set lo up"));
        REQUIRE(ip("link add west type veth peer name east"));
        REQUIRE(ip("link add spare type veth peer name spare1"));
        for (const char* name : {"west", "east", "spare", "spare1"})
            REQUIRE(ip(std::string("link set ") + name + " up"));
        // The kernel sees the carrier a moment later, on a busy machine much later.
        for (const char* name : {"west", "east", "spare", "spare1"}) {
            const auto end = std::chrono::steady_clock::now() + patience;
            while (!ip(std::string("-o link show dev ") + name + " | grep -q 'state UP'"))
                REQUIRE(std::chrono::steady_clock::now() < end);
        }
        REQUIRE(ip("address add 10.1.0.1/24 dev west"));
        REQUIRE(ip("address add 10.2.0.1/24 dev spare"));
    }
    ~Net() {
        ip("link delete west");
        ip("link delete spare");
    }
};

struct Watch {
    PathWatch watch;
    std::vector<bool> heard;
    std::string why;  // of the last loss

    Watch(LinkMonitor& monitor, const std::string& peer, const std::string& local = "") {
        watch.context = this;
        watch.callback = [](PathWatch& told, bool found) {
            auto& self = *static_cast<Watch*>(told.context);
            self.heard.push_back(found);
            if (!found) self.why = told.seen.why;
        };
        const sockaddr_storage to = address(peer);
        const sockaddr_storage from = local.empty() ? sockaddr_storage{} : address(local);
        monitor.start(watch, reinterpret_cast<const sockaddr*>(&to),
                      local.empty() ? nullptr : reinterpret_cast<const sockaddr*>(&from));
    }
    // What was heard since the last call.
    std::vector<bool> take() { return std::exchange(heard, {}); }
};

const std::vector<bool> nothing, lost{false}, found{true};

std::unique_ptr<LinkMonitor> open_monitor() {
    auto opened = LinkMonitor::open();
    REQUIRE(opened);
    return std::move(opened).value();
}

// Has the kernel dropped messages to any socket of this namespace?
bool messages_lost() {
    std::ifstream sockets("/proc/self/net/netlink");
    std::string line, word;
    std::getline(sockets, line);
    while (std::getline(sockets, line)) {
        std::istringstream columns(line);
        for (int column = 0; column < 9; ++column)
            columns >> word;
        if (word != "0") return true;
    }
    return false;
}

// Until no message has come for a while.
void settle(LinkMonitor& monitor, int quiet_ms = 200) {
    pollfd polled{monitor.fd(), POLLIN, 0};
    while (poll(&polled, 1, quiet_ms) > 0) {
        const auto due = monitor.read_messages();
        REQUIRE(due);
        if (due.value() != LinkMonitor::Due::nothing) monitor.look();
    }
}

// Until it has happened, as late as that may be, and what follows on it as well.
void settle_after(LinkMonitor& monitor, const std::function<bool()>& happened, int quiet_ms = 200) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!happened() && std::chrono::steady_clock::now() < end)
        settle(monitor, 20);
    settle(monitor, quiet_ms);
}
std::vector<bool> heard_by(Watch& watch, LinkMonitor& monitor, int quiet_ms = 200) {
    settle_after(
        monitor, [&] { return !watch.heard.empty(); }, quiet_ms);
    return watch.take();
}

}  // namespace

TEST_CASE("a connection's way is lost with either end of its cable, and found again") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.1.0.2", "10.1.0.1"), dialled(*monitor, "10.1.0.2");
    CHECK(connected.watch.seen.usable);
    for (const char* end : {"west", "east"}) {
        INFO(end);
        REQUIRE(ip(std::string("link set ") + end + " down"));
        CHECK(heard_by(connected, *monitor) == lost);
        CHECK(connected.why == "west is down");
        CHECK(heard_by(dialled, *monitor) == lost);
        REQUIRE(ip(std::string("link set ") + end + " up"));
        CHECK(heard_by(connected, *monitor) == found);
        CHECK(heard_by(dialled, *monitor) == found);
    }
}

TEST_CASE("what happens to other interfaces is not reported") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.1.0.2", "10.1.0.1"), self(*monitor, "127.0.0.1", "127.0.0.1");
    REQUIRE(ip("link set spare1 down"));
    REQUIRE(ip("address add 10.3.0.1/24 dev spare"));
    REQUIRE(ip("link set west mtu 1400"));
    REQUIRE(ip("route add 10.9.0.0/16 via 10.1.0.9"));
    REQUIRE(ip("link delete spare"));
    settle(*monitor);
    CHECK(connected.take() == nothing);
    CHECK(self.take() == nothing);
}

TEST_CASE("a way is lost with the own address") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.1.0.2", "10.1.0.1");
    REQUIRE(ip("address add 10.1.0.7/24 dev west"));
    REQUIRE(ip("address del 10.1.0.1/24 dev west"));
    CHECK(heard_by(connected, *monitor) == lost);
    CHECK(connected.why == "the address 10.1.0.1 is gone");
    REQUIRE(ip("address add 10.1.0.1/24 dev west"));
    CHECK(heard_by(connected, *monitor) == found);
}

TEST_CASE("a way is lost with the route to the peer") {
    if (!have_namespace()) return;
    const Net net;
    REQUIRE(ip("route add 10.9.0.0/16 via 10.1.0.9"));
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.9.1.1", "10.1.0.1");
    CHECK(connected.watch.seen.usable);
    REQUIRE(ip("route delete 10.9.0.0/16"));
    CHECK(heard_by(connected, *monitor) == lost);
    CHECK(connected.why == "there is no route to 10.9.1.1");
    REQUIRE(ip("route add unreachable 10.9.0.0/16"));
    settle(*monitor);
    CHECK(connected.take() == nothing);
    REQUIRE(ip("route replace 10.9.0.0/16 via 10.1.0.9"));
    CHECK(heard_by(connected, *monitor) == found);
}

TEST_CASE("a connection that could go another way after all is not lost") {
    if (!have_namespace()) return;
    const Net net;
    // As on a host that announces its own address by two uplinks.
    REQUIRE(ip("address add 10.8.0.1/32 dev lo"));
    REQUIRE(ip("route add 10.9.0.0/16 via 10.1.0.9 metric 1"));
    REQUIRE(ip("route add 10.9.0.0/16 via 10.2.0.9 metric 2"));
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.9.1.1", "10.8.0.1"), bound(*monitor, "10.9.1.1", "10.1.0.1");
    REQUIRE(ip("link set west down"));
    CHECK(heard_by(connected, *monitor) == found);  // another way
    CHECK(heard_by(bound, *monitor) == lost);       // its own address is on the one that is down
    REQUIRE(ip("address del 10.8.0.1/32 dev lo"));
}

TEST_CASE("whoever dials anew hears when the old way is back, also if there is another") {
    if (!have_namespace()) return;
    const Net net;
    REQUIRE(ip("route add default via 10.2.0.9"));
    const auto monitor = open_monitor();
    Watch peer(*monitor, "10.1.0.2", "10.1.0.1");
    REQUIRE(ip("link set west down"));
    CHECK(heard_by(peer, *monitor) == lost);
    monitor->forget_local(peer.watch);
    CHECK(peer.watch.seen.usable);  // by the default route, which leads nowhere
    REQUIRE(ip("link set west up"));
    CHECK(heard_by(peer, *monitor) == found);
}

TEST_CASE("an IPv6 address counts when the kernel uses it") {
    if (!have_namespace()) return;
    const Net net;
    if (!ip("address add fd00::1/64 dev west nodad")) return;
    const auto monitor = open_monitor();
    settle(*monitor, 2500);  // the link-local addresses
    Watch connected(*monitor, "fd00::2", "fd00::1"), mapped(*monitor, "::ffff:10.1.0.2");
    CHECK(connected.watch.seen.usable);
    CHECK(mapped.watch.seen.usable);
    REQUIRE(ip("link set east down"));
    CHECK(heard_by(connected, *monitor) == lost);
    CHECK(heard_by(mapped, *monitor) == lost);
    REQUIRE(ip("link set east up"));
    CHECK(heard_by(connected, *monitor, 2500) == found);
    CHECK(heard_by(mapped, *monitor) == found);
}

TEST_CASE("what is not understood is not reported as lost") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch stranger(*monitor, "10.1.0.2", "10.66.0.1"), nowhere(*monitor, "203.0.113.1");
    CHECK_FALSE(stranger.watch.seen.usable);
    REQUIRE(ip("link set west down"));
    settle(*monitor);
    CHECK(stranger.take() == nothing);
    CHECK(nowhere.take() == nothing);
    sockaddr unknown{};
    unknown.sa_family = AF_UNIX;
    monitor->start(nowhere.watch, &unknown);
    CHECK(nowhere.watch.monitor == nullptr);
}

TEST_CASE("messages that were lost are made up for") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch connected(*monitor, "10.1.0.2", "10.1.0.1");
    std::string batch;  // far more than the socket's buffer holds
    for (int i = 0; i < 12000; ++i) {
        batch += "route add 10.100." + std::to_string(i / 250) + "." + std::to_string(i % 250) +
                 " dev spare\n";
    }
    batch += "link set west down\n";
    FILE* const pipe = popen("ip -batch - 2>/dev/null", "w");
    REQUIRE(pipe != nullptr);
    REQUIRE(std::fwrite(batch.data(), 1, batch.size(), pipe) == batch.size());
    REQUIRE(pclose(pipe) == 0);
    REQUIRE(messages_lost());
    CHECK(heard_by(connected, *monitor) == lost);
    REQUIRE(ip("link set west up"));
    CHECK(heard_by(connected, *monitor) == found);
}

TEST_CASE("a callback may stop and start watches") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    Watch first(*monitor, "10.1.0.2"), second(*monitor, "10.1.0.2");
    struct Both {
        LinkMonitor& monitor;
        PathWatch &first, &second;
        int called = 0;
    } both{*monitor, first.watch, second.watch};
    first.watch.context = &both;
    first.watch.callback = [](PathWatch& watch, bool) {
        auto& b = *static_cast<Both*>(watch.context);
        ++b.called;
        b.monitor.stop(b.second);
        const sockaddr_storage to = address("10.1.0.3");
        b.monitor.start(watch, reinterpret_cast<const sockaddr*>(&to));
    };
    REQUIRE(ip("link set west down"));
    settle_after(*monitor, [&] { return both.called > 0; });
    CHECK(both.called == 1);
    CHECK(second.take() == nothing);
    REQUIRE(ip("link set west up"));
    settle_after(*monitor, [&] { return both.called > 1; });
    CHECK(both.called == 2);
}

TEST_CASE("a cable that is out again at once is noticed, too") {
    if (!have_namespace()) return;
    const Net net;
    const auto monitor = open_monitor();
    settle(*monitor);
    REQUIRE(ip("link set east down"));
    settle(*monitor);
    REQUIRE(ip("link set east up"));
    // Connected before the kernel has told of it, which it does once a second for some interfaces.
    Watch connected(*monitor, "10.1.0.2", "10.1.0.1");
    CHECK(connected.watch.seen.usable);
    REQUIRE(ip("link set east down"));
    CHECK(heard_by(connected, *monitor, 1500) == lost);
}
