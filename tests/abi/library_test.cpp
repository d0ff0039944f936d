// SPDX-License-Identifier: Apache-2.0
// The C and C++ interfaces over the stand-in node, embedded and through a socket: what each
// function asks of the node, how errors come back, and what careless callers get. The real node
// behind the same interface is tested by embedded_test and by the examples.
#include <poll.h>
#include <replica/replica.h>

#include <atomic>
#include <replica/replica.hpp>
#include <thread>

#include "tests/catch.hpp"
#include "tests/core/control_fixture.hpp"

using namespace replica::test;
namespace client = replica::client;

extern "C" int replica_header_in_c(void);

namespace {
FakeNode* fake = nullptr;  // of the embedded node that was opened last
}

replica::Result<std::unique_ptr<replica::Node>> replica::Node::create(const NodeOptions& options) {
    if (options.listen == "192.0.2.1:1") {
        return Error{Errc::busy, 98, "the address 192.0.2.1:1 is in use"};
    }
    if (options.log) options.log(6, "the stand-in starts");
    auto node = std::make_unique<FakeNode>();
    fake = node.get();
    return std::unique_ptr<Node>(std::move(node));
}

namespace {

std::string message() { return replica_last_error()->message; }

struct Embedded {
    Embedded() {
        replica_embedded_options options{};
        options.struct_size = sizeof options;
        options.name = "alpha";
        socket = directory.path() + "/control.sock";
        options.control = socket.c_str();
        const auto state = directory.path() + "/state";
        REQUIRE(replica_open_embedded(state.c_str(), &options, &node) == REPLICA_OK);
    }
    ~Embedded() { replica_close(node); }
    void create(const char* name) {
        const replica_peer peers[] = {{"beta", 2, "192.0.2.2:7000"}, {"gamma", 3, "[::1]:7000"}};
        const std::string disk = std::string("/disks/") + name;
        replica_resource_config config{};
        config.struct_size = sizeof config;
        config.name = name;
        config.node_id = 1;
        config.disk = disk.c_str();
        config.peers = peers;
        config.peer_count = 2;
        config.options = R"({"protocol":"B"})";
        REQUIRE(replica_create(node, &config) == REPLICA_OK);
    }

    TemporaryDirectory directory;
    std::string socket;
    replica_node* node = nullptr;
};

}  // namespace

TEST_CASE("versions agree everywhere", "[abi]") {
    CHECK(replica_header_in_c() == 0);
    CHECK(replica_version() ==
          (REPLICA_VERSION_MAJOR << 16 | REPLICA_VERSION_MINOR << 8 | REPLICA_VERSION_PATCH));
    CHECK(std::string(replica_version_string()) == std::to_string(REPLICA_VERSION_MAJOR) + "." +
                                                       std::to_string(REPLICA_VERSION_MINOR) + "." +
                                                       std::to_string(REPLICA_VERSION_PATCH));
    CHECK(client::version() == REPLICA_VERSION_TEXT);
    CHECK(std::string(replica_code_name(REPLICA_NO_SPACE)) == "no-space");
    CHECK(std::string(replica_code_name(99)) == "unknown");
    CHECK(std::string(replica_code_name(-1)) == "unknown");
}

TEST_CASE("every function reaches the node, embedded and through the socket", "[abi]") {
    Embedded embedded;
    replica_node* through_socket = nullptr;
    REQUIRE(replica_open(("unix:" + embedded.socket).c_str(), &through_socket) == REPLICA_OK);
    embedded.create("r0");
    for (replica_node* node : {embedded.node, through_socket}) {
        const auto before = fake->calls().size();
        CHECK(replica_up(node, "r0") == REPLICA_OK);
        CHECK(replica_attach(node, "r0") == REPLICA_OK);
        CHECK(replica_detach(node, "r0") == REPLICA_OK);
        CHECK(replica_connect(node, "r0", "beta", true) == REPLICA_OK);
        CHECK(replica_connect(node, "r0", nullptr, false) == REPLICA_OK);
        CHECK(replica_disconnect(node, "r0", "gamma") == REPLICA_OK);
        CHECK(replica_promote(node, "r0", true) == REPLICA_OK);
        CHECK(replica_export(node, "r0", "unix:/run/r0") == REPLICA_OK);
        CHECK(replica_unexport(node, "r0", nullptr) == REPLICA_OK);
        CHECK(replica_demote(node, "r0") == REPLICA_OK);
        CHECK(replica_invalidate(node, "r0") == REPLICA_OK);
        CHECK(replica_invalidate_remote(node, "r0", "beta") == REPLICA_OK);
        CHECK(replica_pause_sync(node, "r0", "beta") == REPLICA_OK);
        CHECK(replica_resume_sync(node, "r0", "beta") == REPLICA_OK);
        CHECK(replica_new_current_uuid(node, "r0", true) == REPLICA_OK);
        uint64_t grown = 0;
        CHECK(replica_resize(node, "r0", 1 << 20, &grown) == REPLICA_OK);
        CHECK(grown == 1 << 20);
        CHECK(replica_down(node, "r0") == REPLICA_OK);
        auto calls = fake->calls();
        calls.erase(calls.begin(), calls.begin() + static_cast<std::ptrdiff_t>(before));
        CHECK(calls == std::vector<std::string>{
                           "up r0", "attach r0", "detach r0", "connect r0 beta discard",
                           "connect r0 beta", "connect r0 gamma", "disconnect r0 gamma",
                           "promote r0 force", "export r0 unix:/run/r0", "unexport r0 ",
                           "demote r0", "invalidate r0", "invalidate-remote r0 beta",
                           "pause-sync r0 beta", "resume-sync r0 beta", "new-current-uuid r0 clear",
                           "resize r0 1048576", "down r0"});
    }
    CHECK(replica_set_options(through_socket, "r0", R"({"al-extents":128})") == REPLICA_OK);
    CHECK(fake->calls().back() == "options r0 al 128");
    CHECK(replica_remove(through_socket, "r0") == REPLICA_OK);
    CHECK(fake->calls().back() == "remove r0");
    replica_close(through_socket);
}

TEST_CASE("errors carry code, errno and text, one for each thread", "[abi]") {
    Embedded embedded;
    embedded.create("r0");
    fake->fail_next("up", replica::Error{replica::Errc::busy, 16, "the disk is in use by md0"});
    CHECK(replica_up(embedded.node, "r0") == REPLICA_BUSY);
    CHECK(replica_last_error()->code == REPLICA_BUSY);
    CHECK(replica_last_error()->os_errno == 16);
    CHECK(message() == "the disk is in use by md0");
    std::thread([] {
        CHECK(replica_last_error()->code == REPLICA_OK);
        CHECK(std::string(replica_last_error()->message).empty());
    }).join();
    CHECK(replica_up(embedded.node, "r7") == REPLICA_NOT_FOUND);
    CHECK(replica_promote(embedded.node, "../r0", false) == REPLICA_INVALID);
    CHECK(replica_wait(embedded.node, "r0", REPLICA_UNTIL_CONNECTED, nullptr, 10) ==
          REPLICA_TIMEOUT);
    CHECK(replica_wait(embedded.node, "r0", static_cast<replica_until>(7), nullptr, 10) ==
          REPLICA_INVALID);
}

TEST_CASE("careless callers get an error and nothing else", "[abi]") {
    Embedded embedded;
    embedded.create("r0");
    replica_node* const node = embedded.node;
    replica_node* other = nullptr;
    CHECK(replica_open(nullptr, &other) == REPLICA_INVALID);
    CHECK(replica_open("tcp:alpha", &other) == REPLICA_INVALID);
    CHECK(replica_open("unix:/nowhere/at/all", &other) == REPLICA_NOT_FOUND);
    CHECK(replica_open("embedded:relative", &other) == REPLICA_INVALID);
    CHECK(replica_open(("embedded:" + embedded.directory.path() + "/state").c_str(), &other) ==
          REPLICA_BUSY);
    CHECK(other == nullptr);
    CHECK(replica_open("unix:/x", nullptr) == REPLICA_INVALID);
    CHECK(replica_up(nullptr, "r0") == REPLICA_INVALID);
    CHECK(replica_up(node, nullptr) == REPLICA_INVALID);
    CHECK(replica_create(node, nullptr) == REPLICA_INVALID);
    replica_resource_config config{};
    CHECK(replica_create(node, &config) == REPLICA_INVALID);
    CHECK_THAT(message(), contains("struct_size"));
    config.struct_size = sizeof config;
    config.name = "r1";
    config.disk = "/disks/r1";
    config.peer_count = 3;
    CHECK(replica_create(node, &config) == REPLICA_INVALID);
    config.peer_count = 0;
    config.options = "{\"protocol\":";
    CHECK(replica_create(node, &config) == REPLICA_INVALID);
    config.options = "{\"protocoll\":\"C\"}";
    CHECK(replica_create(node, &config) == REPLICA_INVALID);
    CHECK_THAT(message(), contains("protocoll"));
    config.options = nullptr;
    config.node_id = 300;
    CHECK(replica_create(node, &config) == REPLICA_INVALID);
    CHECK(replica_status_json(node, "r0", nullptr) == REPLICA_INVALID);
    CHECK(replica_call(node, nullptr, nullptr, nullptr) == REPLICA_INVALID);
    CHECK(replica_call(node, "status", "[", nullptr) == REPLICA_INVALID);
    CHECK(replica_call(node, "frob", nullptr, nullptr) == REPLICA_UNSUPPORTED);
    CHECK(replica_events_fd(nullptr) == -1);
    replica_volume* volume = nullptr;
    CHECK(replica_volume_open(node, "r9", &volume) == REPLICA_NOT_FOUND);
    CHECK(volume == nullptr);
    replica_close(nullptr);
    replica_events_close(nullptr);
    replica_volume_close(nullptr);
    replica_status_free(nullptr);
    replica_free(nullptr);
}

TEST_CASE("an older caller's shorter structure means zeroes", "[abi]") {
    Embedded embedded;
    replica_resource_config config{};
    config.struct_size = offsetof(replica_resource_config, force);
    config.name = "r0";
    config.disk = "/disks/r0";
    config.force = true;  // beyond what this caller claims to know
    REQUIRE(replica_create(embedded.node, &config) == REPLICA_OK);
    CHECK(fake->calls().back() == "create r0");
    CHECK(replica_remove(embedded.node, "r0") == REPLICA_OK);
    config.struct_size = sizeof config + 64;  // a newer caller
    std::byte room[sizeof config + 64] = {};
    std::memcpy(room, &config, sizeof config);
    REQUIRE(replica_create(embedded.node, reinterpret_cast<replica_resource_config*>(room)) ==
            REPLICA_OK);
    CHECK(fake->calls().back() == "create r0 force");
}

TEST_CASE("the status is a structure and JSON", "[abi]") {
    Embedded embedded;
    embedded.create("r0");
    REQUIRE(replica_up(embedded.node, "r0") == REPLICA_OK);
    fake->change("r0", [](auto& s) {
        s.role = "Primary";
        s.written_bytes = 12345;
        s.peers[1].connection = "Connected";
        s.peers[1].out_of_sync_bytes = 4096;
    });
    replica_status* status = nullptr;
    REQUIRE(replica_status_get(embedded.node, "r0", &status) == REPLICA_OK);
    CHECK(std::string(status->name) == "r0");
    CHECK(status->up);
    CHECK(std::string(status->role) == "Primary");
    CHECK(status->written_bytes == 12345);
    REQUIRE(status->peer_count == 2);
    CHECK(std::string(status->peers[0]->name) == "beta");
    CHECK(std::string(status->peers[1]->connection) == "Connected");
    CHECK(status->peers[1]->out_of_sync_bytes == 4096);
    replica_status_free(status);
    char* json = nullptr;
    REQUIRE(replica_status_json(embedded.node, nullptr, &json) == REPLICA_OK);
    CHECK(replica::control::Json::parse(json)[0]["devices"][0]["written"] == 12);
    replica_free(json);
    REQUIRE(replica_stats_json(embedded.node, "r0", &json) == REPLICA_OK);
    CHECK(replica::control::Json::parse(json)["write-total"]["total"] == 3);
    replica_free(json);
}

TEST_CASE("events come by descriptor and by call, embedded and through the socket", "[abi]") {
    Embedded embedded;
    embedded.create("r0");
    replica_node* through_socket = nullptr;
    REQUIRE(replica_open(("unix:" + embedded.socket).c_str(), &through_socket) == REPLICA_OK);
    for (replica_node* node : {embedded.node, through_socket}) {
        replica_events* events = nullptr;
        CHECK(replica_events_open(node, "r9", &events) == REPLICA_NOT_FOUND);
        REQUIRE(replica_events_open(node, "r0", &events) == REPLICA_OK);
        const replica_event* event = nullptr;
        CHECK(replica_events_next(events, 0, &event) == REPLICA_TIMEOUT);
        CHECK(replica_events_next(events, 10, &event) == REPLICA_TIMEOUT);
        REQUIRE(replica_promote(embedded.node, "r0", false) == REPLICA_OK);
        pollfd fd{replica_events_fd(events), POLLIN, 0};
        REQUIRE(::poll(&fd, 1, 5000) == 1);
        REQUIRE(replica_events_next(events, 0, &event) == REPLICA_OK);
        CHECK(std::string(event->resource) == "r0");
        CHECK(std::string(event->action) == "change");
        CHECK(event->missed == 0);
        CHECK(replica_events_next(events, 0, &event) == REPLICA_TIMEOUT);
        for (int i = 0; i < 10'000; ++i)
            fake->emit("r0", "change");
        std::uint64_t heard = 0;
        while (heard < 10'000) {
            REQUIRE(replica_events_next(events, 5000, &event) == REPLICA_OK);
            heard += event->missed > 0 ? event->missed : 1;
        }
        CHECK(heard == 10'000);
        replica_events_close(events);
    }
    replica_close(through_socket);
}

TEST_CASE("handles keep an embedded node alive until the last is closed", "[abi]") {
    TemporaryDirectory directory;
    const auto url = "embedded:" + directory.path();
    replica_node* node = nullptr;
    REQUIRE(replica_open(url.c_str(), &node) == REPLICA_OK);
    replica_events* events = nullptr;
    REQUIRE(replica_events_open(node, nullptr, &events) == REPLICA_OK);
    replica_close(node);
    CHECK(replica_open(url.c_str(), &node) == REPLICA_BUSY);
    const replica_event* event = nullptr;
    CHECK(replica_events_next(events, 0, &event) == REPLICA_TIMEOUT);
    replica_events_close(events);
    REQUIRE(replica_open(url.c_str(), &node) == REPLICA_OK);
    replica_close(node);
}

TEST_CASE("volumes pass their IO on, and only for embedded nodes", "[abi]") {
    Embedded embedded;
    embedded.create("r0");
    replica_volume* volume = nullptr;
    REQUIRE(replica_volume_open(embedded.node, "r0", &volume) == REPLICA_OK);
    std::byte buffer[512] = {};
    CHECK(replica_write(volume, buffer, sizeof buffer, 0, REPLICA_FUA) == REPLICA_OK);
    CHECK(replica_write(volume, buffer, sizeof buffer, 0, 8) == REPLICA_INVALID);
    CHECK(replica_write(volume, nullptr, sizeof buffer, 0, 0) == REPLICA_INVALID);
    CHECK(replica_read(volume, buffer, sizeof buffer, 0) == REPLICA_OK);
    CHECK(replica_flush(volume) == REPLICA_OK);
    CHECK(replica_discard(volume, 0, 4096) == REPLICA_OK);
    CHECK(replica_write_zeroes(volume, 0, 4096) == REPLICA_OK);
    std::atomic<int> completed = -1;
    replica_io io{};
    io.struct_size = sizeof io;
    io.kind = REPLICA_IO_WRITE;
    io.length = sizeof buffer;
    CHECK(replica_submit(volume, &io) == REPLICA_INVALID);
    io.buffer = buffer;
    CHECK(replica_submit(volume, &io) == REPLICA_INVALID);
    io.done = [](void* context, int error) { *static_cast<std::atomic<int>*>(context) = error; };
    io.context = &completed;
    CHECK(replica_submit(volume, &io) == REPLICA_OK);
    CHECK(completed == 0);
    std::uint64_t size = 0;
    CHECK(replica_volume_size(volume, &size) == REPLICA_OK);
    CHECK(size == 1U << 20);
    replica_volume_close(volume);
    replica_node* through_socket = nullptr;
    REQUIRE(replica_open(("unix:" + embedded.socket).c_str(), &through_socket) == REPLICA_OK);
    CHECK(replica_volume_open(through_socket, "r0", &volume) == REPLICA_UNSUPPORTED);
    CHECK_THAT(message(), contains("NBD"));
    replica_close(through_socket);
}

TEST_CASE("a socket handle is used by many threads and survives a restart", "[abi]") {
    TemporaryDirectory directory;
    const auto state = directory.path() + "/state";
    const auto socket = directory.path() + "/control.sock";
    client::EmbeddedOptions options;
    options.control = socket;
    std::optional<client::Node> daemon = client::Node::embed(state, options);
    client::Node node = client::Node::open("unix:" + socket);
    std::vector<std::thread> threads;
    std::atomic<int> answers = 0;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (int k = 0; k < 50; ++k)
                answers += node.status_json() == "[]" ? 1 : 0;
        });
    }
    for (auto& thread : threads)
        thread.join();
    CHECK(answers == 200);
    daemon.reset();
    CHECK_THROWS_AS(node.status_json(), client::Error);
    daemon = client::Node::embed(state, options);
    CHECK(node.status_json() == "[]");
}

TEST_CASE("the C++ face throws what was refused and hands out values", "[abi]") {
    TemporaryDirectory directory;
    std::string log;
    client::EmbeddedOptions options;
    options.log = [&](int, std::string_view line) { log += std::string(line) + "\n"; };
    options.listen = "192.0.2.1:1";
    try {
        client::Node::embed(directory.path(), options);
        FAIL("an address in use was accepted");
    } catch (const client::Error& error) {
        CHECK(error.code() == REPLICA_BUSY);
        CHECK(error.os_errno() == 98);
        CHECK_THAT(error.what(), contains("192.0.2.1:1"));
    }
    options.listen.clear();
    client::Node node = client::Node::embed(directory.path(), options);
    CHECK_THAT(log, contains("the stand-in starts"));
    client::ResourceConfig config;
    config.name = "r0";
    config.node_id = 1;
    config.disk = "/disks/r0";
    config.peers = {{"beta", 2, "192.0.2.2:7000"}};
    node.create(config);
    CHECK_THROWS_AS(node.create(config), client::Error);
    auto events = node.events("r0");
    node.up("r0");
    CHECK(events.next(std::chrono::seconds(100))->resource == "r0");
    node.promote("r0");
    node.wait("r0", client::Until::primary, std::chrono::seconds(100));
    const auto status = node.status("r0");
    CHECK(status.role == "Primary");
    CHECK(status.peers.at(0).name == "beta");
    auto volume = node.open_volume("r0");
    std::vector<std::byte> data(4096);
    volume.write(data, 0, true);
    volume.read(data, 0);
    volume.flush();
    std::atomic<int> completions = 0;
    volume.submit_write(data, 0, false, [&](int error) { completions += error == 0 ? 1 : 100; });
    volume.submit_read(data, 0, [&](int error) { completions += error == 0 ? 1 : 100; });
    volume.submit_flush([&](int error) { completions += error == 0 ? 1 : 100; });
    CHECK(completions == 3);
    fake->fail_next("submit", replica::Error{replica::Errc::state, 0, "not Primary"});
    CHECK_THROWS_AS(volume.submit_discard(0, 4096, [](int) {}), client::Error);
    client::Node moved = std::move(node);
    node = std::move(moved);
    CHECK(node.call("node.info").find("\"r0\"") != std::string::npos);
}
