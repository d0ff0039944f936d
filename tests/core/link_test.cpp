// SPDX-License-Identifier: Apache-2.0
// Who may connect, and when a connection is believed to be over (docs/protocol.md, "Hello").
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "engine/core/core.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr NodeId peer = 0;  // has the lower id, so it dials

// Node 1 without a disk, and what it says about connections that come from node 0.
struct Node {
    static constexpr NodeId own = 1;
    Instant now{ns_per_s};
    CoreConfig config;
    std::vector<Effect> seen;  // since the last look
    Core core;
    std::uint64_t handle = 0;

    static CoreConfig make_config(NodeId id) {
        CoreConfig c;
        c.node_id = id;
        c.peers = NodeMask{3}.without(NodeMask::of(id));
        c.resource = "r0";
        c.limits = {4, 16, 4, 2, 65536, 4, 500 * ns_per_ms};
        c.entropy = 1;
        return c;
    }

    explicit Node(NodeId id = own) : config(make_config(id)), core(config) {
        Command c;
        c.kind = CommandKind::connect;
        core.on_command(now, c);
        look();
    }

    const std::vector<Effect>& look() {
        seen = core.effects();
        core.clear_effects();
        return seen;
    }
    std::size_t count(EffectKind kind) const {
        return static_cast<std::size_t>(std::count_if(
            seen.begin(), seen.end(), [&](const Effect& e) { return e.kind == kind; }));
    }
    bool sent(MessageType type) const {
        return std::any_of(seen.begin(), seen.end(), [&](const Effect& e) {
            return e.kind == EffectKind::send && e.message.type == type;
        });
    }

    static HelloPayload greeting(std::uint64_t session, std::uint64_t incarnation) {
        HelloPayload hello;
        hello.from = peer;
        hello.to = own;
        hello.session = session;
        hello.incarnation = incarnation;
        hello.journal_entries = 16;
        hello.io_bytes_max = io_bytes_max;
        std::memcpy(hello.resource.data(), "r0", 2);
        return hello;
    }
    // Both streams of a pair say hello.
    void greet(HelloPayload hello) {
        core.on_hello(now, ++handle, hello);
        hello.stream = Stream::control;
        core.on_hello(now, ++handle, hello);
        look();
    }
    void hear(MessageType type, std::uint32_t id) {
        Message m;
        m.type = type;
        m.id = id;
        core.on_message(now, peer, Stream::control, m, {}, {});
        look();
    }
    void connect(std::uint64_t session, std::uint64_t incarnation) {
        greet(greeting(session, incarnation));
        REQUIRE(count(EffectKind::adopt) == 1);
        hear(MessageType::ping, 1);
        REQUIRE(connected());
    }
    bool connected() const { return core.view(peer).connection == ConnectionState::connected; }
    void pass_ms(std::uint64_t ms) {
        now = now + ms * ns_per_ms;
        core.on_tick(now);
        look();
    }
};

}  // namespace

TEST_CASE("a hello that does not fit is refused with the reason") {
    struct Case {
        const char* why;
        void (*spoil)(HelloPayload&);
    };
    const Case cases[] = {
        {"no protocol version in common",
         [](HelloPayload& h) { h.version_min = h.version_max = 999; }},
        {"both ends have one node id", [](HelloPayload& h) { h.from = Node::own; }},
        {"for another node id", [](HelloPayload& h) { h.to = 5; }},
        {"not configured as a peer", [](HelloPayload& h) { h.from = 7; }},
        {"not configured as a peer", [](HelloPayload& h) { h.from = 200; }},
        {"size of a request", [](HelloPayload& h) { h.io_bytes_max /= 2; }},
        {"remembers too few writes", [](HelloPayload& h) { h.journal_entries = 7; }},
        {"different replication protocols", [](HelloPayload& h) { h.protocol = 'A'; }},
    };
    for (const Case& c : cases) {
        Node node;
        HelloPayload hello = Node::greeting(7, 70);
        c.spoil(hello);
        node.core.on_hello(node.now, 1, hello);
        node.look();
        INFO(c.why);
        REQUIRE(node.count(EffectKind::refuse) == 1);
        const auto refusal = std::find_if(node.seen.begin(), node.seen.end(), [](const Effect& e) {
            return e.kind == EffectKind::refuse;
        });
        CHECK(std::string(refusal->text).find(c.why) != std::string::npos);
        CHECK(refusal->handle == 1);
        CHECK_FALSE(node.connected());
        // A good one is welcome afterwards.
        node.connect(8, 70);
    }
}

TEST_CASE("the node with the lower id dials") {
    Node node(0);  // has dialled already
    HelloPayload hello = Node::greeting(7, 70);
    hello.from = 1;
    hello.to = 0;
    node.core.on_hello(node.now, 1, hello);
    node.look();
    CHECK(node.count(EffectKind::refuse) == 1);
}

TEST_CASE("the same process that connects anew replaces its connection at once") {
    Node node;
    node.connect(7, 70);
    node.greet(Node::greeting(8, 70));
    CHECK(node.count(EffectKind::close_link) == 1);
    CHECK(node.count(EffectKind::adopt) == 1);
    CHECK(node.count(EffectKind::refuse) == 0);
}

TEST_CASE("another process waits until the connected one is known to be gone") {
    Node node;
    node.connect(7, 70);
    node.core.on_hello(node.now, 9, Node::greeting(8, 71));
    node.look();
    CHECK(node.count(EffectKind::refuse) == 1);
    CHECK(node.sent(MessageType::ping));
    CHECK(node.connected());
    const std::uint32_t ping =
        std::find_if(node.seen.begin(), node.seen.end(), [](const Effect& e) {
            return e.kind == EffectKind::send && e.message.type == MessageType::ping;
        })->message.id;

    SECTION("it answers: two nodes have one id, and the first one stays") {
        node.hear(MessageType::pong, ping);
        node.pass_ms(node.config.options.ping_timeout_ms);
        CHECK(node.connected());
        // Each further attempt is refused as the first one was.
        node.core.on_hello(node.now, 10, Node::greeting(9, 71));
        node.look();
        CHECK(node.count(EffectKind::refuse) == 1);
        CHECK(std::string(node.core.view(peer).why).find("same id") != std::string::npos);
    }
    SECTION("it does not: it was started anew, and its next attempt is accepted") {
        node.pass_ms(node.config.options.ping_timeout_ms);
        CHECK_FALSE(node.connected());
        CHECK(node.count(EffectKind::close_link) == 1);
        node.connect(9, 71);
    }
}

TEST_CASE("half a pair of connections is not kept for ever") {
    Node node;
    node.core.on_hello(node.now, 1, Node::greeting(7, 70));
    node.look();
    CHECK(node.count(EffectKind::refuse) == 0);
    node.pass_ms(4'999);
    CHECK(node.count(EffectKind::refuse) == 0);
    node.pass_ms(1);
    CHECK(node.count(EffectKind::refuse) == 1);
}

TEST_CASE("the first attempt after a failure comes soon, later ones take twice as long") {
    Node node(0);
    const std::uint64_t interval = node.config.options.connect_interval_ms;
    CHECK(node.count(EffectKind::dial) == 1);
    for (const std::uint64_t wait : {interval, 2 * interval, 2 * interval}) {
        node.core.on_dialled(node.now, 1, false);
        node.look();
        node.pass_ms(wait - 1);
        CHECK(node.count(EffectKind::dial) == 0);
        node.pass_ms(1);
        CHECK(node.count(EffectKind::dial) == 1);
    }
}

TEST_CASE("a network that is back ends the wait for the next attempt") {
    Node node(0);
    node.core.on_path_found(node.now, 1);  // the attempt under way begins anew
    node.look();
    CHECK(node.count(EffectKind::close_link) == 1);
    CHECK(node.count(EffectKind::dial) == 1);
    node.core.on_dialled(node.now, 1, false);
    node.core.on_path_found(node.now, 1);
    node.look();
    CHECK(node.count(EffectKind::close_link) == 0);
    CHECK(node.count(EffectKind::dial) == 1);
    // The next failure is the first one again.
    node.core.on_dialled(node.now, 1, false);
    node.pass_ms(node.config.options.connect_interval_ms);
    CHECK(node.count(EffectKind::dial) == 1);

    // A connection is not disturbed by it.
    node.core.on_dialled(node.now, 1, true);
    node.core.on_path_found(node.now, 1);
    node.look();
    CHECK(node.count(EffectKind::close_link) == 0);
    CHECK(node.count(EffectKind::dial) == 0);
}

TEST_CASE("who only listens knocks once, and when the network is back") {
    Node node;
    node.pass_ms(0);
    REQUIRE(node.count(EffectKind::knock) == 1);
    std::array<std::byte, hello_payload_bytes> bytes;
    CHECK(node.core.encode_payload(node.seen.front(), bytes) == bytes.size());
    const auto hello = decode_hello(bytes);
    REQUIRE(hello);
    CHECK(hello.value().from == Node::own);
    CHECK(hello.value().to == peer);
    node.pass_ms(60'000);
    CHECK(node.count(EffectKind::knock) == 0);
    node.core.on_path_found(node.now, peer);
    node.look();
    CHECK(node.count(EffectKind::knock) == 1);
    CHECK(node.count(EffectKind::dial) == 0);

    node.connect(7, 70);
    node.core.on_path_found(node.now, peer);
    node.look();
    CHECK(node.count(EffectKind::knock) == 0);

    // One that is under way ends with the wish to connect.
    Node leaving;
    leaving.pass_ms(0);
    Command c;
    c.kind = CommandKind::disconnect;
    leaving.core.on_command(leaving.now, c);
    leaving.look();
    CHECK(leaving.count(EffectKind::close_link) == 1);
}

TEST_CASE("a knock is answered by dialling, unless that is not wanted or under way") {
    HelloPayload knock = Node::greeting(0, 70);
    knock.from = 1;
    knock.to = 0;
    Node node(0);
    const auto hear = [&] {
        node.core.on_hello(node.now, ++node.handle, knock);
        node.look();
        CHECK(node.count(EffectKind::refuse) == 1);
        return node.count(EffectKind::dial);
    };
    CHECK(hear() == 0);  // it dials already
    node.core.on_dialled(node.now, 1, false);
    node.look();
    CHECK(hear() == 1);
    node.core.on_dialled(node.now, 1, true);
    CHECK(hear() == 0);
    Command c;
    c.kind = CommandKind::disconnect;
    node.core.on_command(node.now, c);
    CHECK(hear() == 0);
}

TEST_CASE("a network that is back makes nobody dial who would not") {
    Node passive;
    passive.core.on_path_found(passive.now, peer);
    passive.look();
    CHECK(passive.count(EffectKind::dial) == 0);

    Node standalone(0);
    Command c;
    c.kind = CommandKind::disconnect;
    standalone.core.on_command(standalone.now, c);
    standalone.look();
    standalone.core.on_path_found(standalone.now, 1);
    standalone.look();
    CHECK(standalone.count(EffectKind::dial) == 0);
}
