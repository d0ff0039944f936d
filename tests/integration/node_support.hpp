// SPDX-License-Identifier: Apache-2.0
// What the tests of a whole node share: pairs of nodes on loopback with files as disks, waiting for
// a state, comparing disks.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/node.hpp"
#include "tests/integration/io_support.hpp"

namespace replica::test {

#define REQUIRE_OK(expression)                                     \
    do {                                                           \
        const auto status_of_call = (expression);                  \
        if (!status_of_call) FAIL(status_of_call.error().message); \
    } while (false)

inline std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
    std::vector<std::byte> data(bytes);
    fill_pattern(data, seed);
    return data;
}

// A TCP port that was free a moment ago, and is none of those that the kernel gives to connections
// (from 32768 on, ip(7)): it stays free while a node is down.
inline std::uint16_t free_port() {
    std::random_device random;
    for (int tries = 0; tries < 1000; ++tries) {
        const auto port = static_cast<std::uint16_t>(10'000 + random() % 22'000);
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(fd >= 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons(port);
        const bool is_free =
            bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
        close(fd);
        if (is_free) return port;
    }
    FAIL("no free TCP port on 127.0.0.1");
    return 0;
}

// The limit is for machines that are busy with other things: a wait that passes takes no longer.
inline bool wait_until(const std::function<bool()>& reached, int seconds = 100) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (!reached()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

// The first `bytes` of two files.
inline bool equal_files(const std::string& a, const std::string& b, std::uint64_t bytes) {
    std::vector<char> left(1 << 20), right(1 << 20);
    std::ifstream one(a, std::ios::binary), two(b, std::ios::binary);
    for (std::uint64_t at = 0; at < bytes; at += left.size()) {
        const auto n =
            static_cast<std::streamsize>(std::min<std::uint64_t>(left.size(), bytes - at));
        one.read(left.data(), n);
        two.read(right.data(), n);
        if (!one || !two || !std::equal(left.begin(), left.begin() + n, right.begin()))
            return false;
    }
    return true;
}

inline std::string describe(Node& node, const std::string& name) {
    const auto status = node.status(name);
    if (!status) return status.error().message;
    const ResourceStatus& s = status.value();
    std::string text = s.role + "/" + s.disk + " " + s.why + " gen " + s.current_uuid;
    for (const PeerStatus& peer : s.peers) {
        text += " | " + peer.name + " " + peer.connection + " " + peer.role + "/" + peer.disk +
                " " + peer.replication + " oos " + std::to_string(peer.out_of_sync_bytes) + " " +
                peer.why;
    }
    return text;
}

// The log of a node goes to standard error when REPLICA_TEST_LOG is set.
inline std::function<void(int, const std::string&)> log_of(const std::string& name) {
    if (std::getenv("REPLICA_TEST_LOG") == nullptr) return {};
    return [name](int level, const std::string& line) {
        std::fprintf(stderr, "%s <%d> %s\n", name.c_str(), level, line.c_str());
    };
}

// Nodes alpha (id 0) and beta (id 1), each with a file, and a resource r0 between them.
class Pair {
  public:
    explicit Pair(ResourceOptions options = fast_options()) : options_(options) {
        for (int i = 0; i < 2; ++i) {
            ports_[i] = free_port();
            disks_[i] = dir_ / (std::string("disk") + std::to_string(i));
            start(i);
        }
    }
    static ResourceOptions fast_options() {
        ResourceOptions options;
        options.connect_interval_ms = 100;
        // A thread that stands still for a second is no lost peer here.
        options.ping_timeout_ms = 30'000;
        options.request_timeout_ms = 60'000;
        return options;
    }

    std::unique_ptr<Node> a, b;
    std::unique_ptr<Node>& node(int i) { return i == 0 ? a : b; }

    void start(int i, unsigned reactors = 1) {
        NodeOptions options;
        options.reactors = reactors;
        options.name = names_[i];
        options.state_dir = dir_ / (std::string("state") + std::to_string(i));
        options.listen = "127.0.0.1:" + std::to_string(ports_[i]);
        options.lock_memory = false;
        options.log = log_of(options.name);
        auto made = Node::create(options);
        if (!made) FAIL(made.error().message);
        node(i) = std::move(made).value();
    }
    ResourceConfig config(int i) const {
        ResourceConfig config;
        config.name = "r0";
        config.node_id = static_cast<NodeId>(i);
        config.disk = disks_[i];
        config.options = options_;
        PeerConfig peer;
        peer.name = names_[1 - i];
        peer.node_id = static_cast<NodeId>(1 - i);
        peer.address = "127.0.0.1:" + std::to_string(ports_[1 - i]);
        config.peers.push_back(peer);
        return config;
    }
    // Before it is created: a block device in place of its file.
    void use_disk(int i, const std::string& path) { disks_[i] = path; }
    void create(std::uint64_t bytes) {
        for (int i = 0; i < 2; ++i) {
            if (!disks_[i].starts_with("/dev/")) make_file(disks_[i], bytes);
            REQUIRE_OK(node(i)->create_resource(config(i), {}));
        }
    }
    static void make_file(const std::string& path, std::uint64_t bytes) {
        { std::ofstream touch(path); }
        REQUIRE(truncate(path.c_str(), static_cast<off_t>(bytes)) == 0);
    }
    void up() {
        REQUIRE_OK(a->up("r0"));
        REQUIRE_OK(b->up("r0"));
    }
    void down() {
        REQUIRE_OK(a->down("r0"));
        REQUIRE_OK(b->down("r0"));
    }
    ResourceStatus status(int i) {
        auto status = node(i)->status("r0");
        if (!status) FAIL(status.error().message);
        return status.value();
    }
    bool synced(int i) {
        const ResourceStatus s = status(i);
        return s.disk == "UpToDate" && s.peers[0].disk == "UpToDate" &&
               s.peers[0].replication == "Established" && s.peers[0].out_of_sync_bytes == 0;
    }
    void wait(const std::function<bool()>& reached, int seconds = 100) {
        if (wait_until(reached, seconds)) return;
        FAIL("alpha: " + (a ? describe(*a, "r0") : "gone") +
             "\nbeta: " + (b ? describe(*b, "r0") : "gone"));
    }
    void wait_synced(int seconds = 100) {
        wait([this] { return synced(0) && synced(1); }, seconds);
    }
    // Both volumes, byte for byte; both nodes down.
    bool same_content() { return equal_files(disks_[0], disks_[1], size_); }
    void remember_size() { size_ = status(0).size_bytes; }
    const std::string& disk(int i) const { return disks_[i]; }
    std::uint16_t port(int i) const { return ports_[i]; }
    TempDir& dir() { return dir_; }

  private:
    static constexpr const char* names_[2] = {"alpha", "beta"};
    TempDir dir_;
    ResourceOptions options_;
    std::uint16_t ports_[2] = {};
    std::string disks_[2];
    std::uint64_t size_ = 0;
};

}  // namespace replica::test
