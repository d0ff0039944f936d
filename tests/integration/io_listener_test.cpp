// SPDX-License-Identifier: Apache-2.0
// Listening and connecting on real sockets, and the troubles they meet: no descriptors, a dead
// server's socket file, a port in use, silence, refusal, a name that does not exist.
#include <dirent.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <optional>

#include "engine/io/connector.hpp"
#include "engine/io/listener.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"
#include "tests/loopback.hpp"

using namespace replica;
using namespace replica::test;

namespace {

ConnectOptions patient() {
    ConnectOptions options;
    options.timeout_ns = 100 * ns_per_s;
    return options;
}

Endpoint endpoint_of(const std::string& text) {
    auto parsed = parse_endpoint(text);
    if (!parsed) FAIL(parsed.error().message);
    return parsed.value();
}

struct Fixture : ListenerOwner {
    std::unique_ptr<Reactor> reactor;
    std::unique_ptr<Listener> listener;
    std::vector<int> accepted, troubles;
    std::function<void()> when_accepted, when_trouble;
    int closed = 0;
    Timer guard;

    Fixture() {
        ReactorOptions options;
        options.arena_bytes = 0;
        auto made = Reactor::create(options);
        if (!made) FAIL(made.error().message);
        reactor = std::move(made).value();
        guard.context = this;
        guard.callback = [](Timer& timer) {
            FAIL_CHECK("no end after 200 s");
            static_cast<Fixture*>(timer.context)->reactor->stop();
        };
        reactor->set_timer(guard, reactor->now() + 200 * ns_per_s);
    }
    virtual ~Fixture() {
        for (const int fd : accepted)
            close(fd);
    }
    Status open(const std::string& where) {
        auto opened = Listener::open(*reactor, endpoint_of(where), {}, *this);
        if (!opened) return opened.error();
        listener = std::move(opened).value();
        return ok_status();
    }
    void on_accept(int fd) override {
        accepted.push_back(fd);
        if (when_accepted) when_accepted();
    }
    void on_accept_trouble(int error) override {
        troubles.push_back(error);
        if (when_trouble) when_trouble();
    }
    void on_listener_closed() override {
        closed += 1;
        listener.reset();
        reactor->stop();
    }
    // Connects once; runs the reactor until there is an outcome.
    Result<int> connect_to(const Endpoint& endpoint, ConnectOptions options = patient(),
                           const std::function<void(Connector&)>& meanwhile = {}) {
        struct Outcome {
            Reactor& reactor;
            std::optional<Result<int>> result;
            int calls = 0;
        } outcome{*reactor, {}};
        Connector connector(*reactor);
        reactor->post([&] {
            connector.start(
                endpoint, options,
                [](void* context, Result<int> fd) {
                    auto* o = static_cast<Outcome*>(context);
                    o->calls += 1;
                    o->result = std::move(fd);
                    o->reactor.stop();
                },
                &outcome);
            CHECK(outcome.calls == 0);
            CHECK(connector.busy());
            if (meanwhile) meanwhile(connector);
        });
        reactor->run();
        REQUIRE(outcome.result);
        CHECK(outcome.calls == 1);
        CHECK_FALSE(connector.busy());
        return std::move(*outcome.result);
    }
    void close_listener() {
        reactor->post([&] {
            listener->close();
            listener->close();
            CHECK(closed == 0);
        });
        reactor->run();
        CHECK(closed == 1);
    }
};

int socket_option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    getsockopt(fd, level, name, &value, &length);
    return value;
}

}  // namespace

TEST_CASE("addresses are parsed strictly and written back") {
    for (const char* text :
         {"127.0.0.1:7790", "[::1]:7790", "host.example:0", "unix:/run/x.sock"}) {
        CHECK(endpoint_of(text).text() == text);
    }
    CHECK(endpoint_of("tcp:10.0.0.1:65535").port == 65535);
    CHECK(endpoint_of("*:80").host.empty());
    CHECK(endpoint_of(":80").host.empty());
    for (const char* text : {"", "host", "host:", "host:x", "host:70000", "host:-1", "host: 1",
                             "::1:80", "[::1:80", "unix:", "host:80x"}) {
        auto parsed = parse_endpoint(text);
        CHECK_FALSE(parsed);
        if (!parsed) CHECK(parsed.error().code == Errc::invalid);
    }
    CHECK_FALSE(parse_endpoint("unix:/" + std::string(200, 'x')));
    CHECK_FALSE(parse_endpoint(std::string_view("a\0b:80", 6)));
}

TEST_CASE("connections arrive over IPv4, IPv6 and Unix sockets") {
    TempDir directory;
    for (const std::string& where :
         {own_address(0), std::string("[::1]:0"), std::string(":0"), "unix:" + (directory / "s")}) {
        Fixture f;
        auto opened = f.open(where);
        if (!opened && where == "[::1]:0") {
            WARN("SKIPPED, no IPv6 here: " << opened.error().message);
            continue;
        }
        REQUIRE(opened);
        Endpoint target = f.listener->endpoint();
        if (!target.is_unix()) CHECK(target.port != 0);
        if (target.host.empty() && !target.is_unix()) target.host = "127.0.0.1";
        ConnectOptions options = patient();
        options.tcp.user_timeout_ms = 1234;
        auto fd = f.connect_to(target, options);
        REQUIRE(fd);
        if (!target.is_unix()) {
            CHECK(socket_option(fd.value(), IPPROTO_TCP, TCP_NODELAY) == 1);
            CHECK(socket_option(fd.value(), SOL_SOCKET, SO_KEEPALIVE) == 1);
            CHECK(socket_option(fd.value(), IPPROTO_TCP, TCP_USER_TIMEOUT) == 1234);
            CHECK(peer_address(fd.value()).text() == target.text());
        } else {
            struct stat st {};
            REQUIRE(stat(target.unix_path.c_str(), &st) == 0);
            CHECK((st.st_mode & 0777) == 0600);
        }
        CHECK((fcntl(fd.value(), F_GETFD) & FD_CLOEXEC) != 0);
        close(fd.value());
        f.when_accepted = [&] { f.reactor->stop(); };
        if (f.accepted.empty()) f.reactor->run();
        CHECK(f.accepted.size() == 1);
        f.close_listener();
        if (target.is_unix()) CHECK(access(target.unix_path.c_str(), F_OK) != 0);
        auto refused = f.connect_to(target);
        CHECK_FALSE(refused);
    }
}

TEST_CASE("a port in use and an address of another machine are refused") {
    Fixture f, g;
    REQUIRE(f.open("127.0.0.1:0"));
    auto busy = g.open(f.listener->endpoint().text());
    REQUIRE_FALSE(busy);
    CHECK(busy.error().code == Errc::busy);
    auto foreign = g.open("192.0.2.1:0");
    REQUIRE_FALSE(foreign);
    CHECK(foreign.error().code == Errc::not_found);
    f.close_listener();
}

TEST_CASE("the socket file of a dead server is replaced, of a live one not") {
    TempDir directory;
    const std::string path = directory / "s";
    const std::string where = "unix:" + path;
    {
        // Bound and closed without unlink: as after kill -9.
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::copy(path.begin(), path.end(), address.sun_path);
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
        close(fd);
    }
    Fixture f, g;
    REQUIRE(f.open(where));
    auto busy = g.open(where);
    REQUIRE_FALSE(busy);
    CHECK(busy.error().code == Errc::busy);
    // Somebody has put another socket in its place: not ours to remove.
    REQUIRE(unlink(path.c_str()) == 0);
    REQUIRE(g.open(where));
    f.close_listener();
    CHECK(access(path.c_str(), F_OK) == 0);
    g.close_listener();
    CHECK(access(path.c_str(), F_OK) != 0);

    close(open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    auto file = f.open(where);
    REQUIRE_FALSE(file);
    CHECK(file.error().code == Errc::exists);
    auto nowhere = f.open("unix:" + directory.path() + "/missing/s");
    REQUIRE_FALSE(nowhere);
    CHECK(nowhere.error().code == Errc::not_found);
}

TEST_CASE("out of descriptors, accepting waits, says so, and goes on") {
    Fixture f;
    TempDir directory;
    REQUIRE(f.open("unix:" + (directory / "s")));
    const SocketAddress address = std::move(resolve(f.listener->endpoint(), false)).value()[0];
    std::vector<int> clients;
    for (int i = 0; i < 3; ++i) {
        clients.push_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(connect(clients.back(), address.get(), address.length) == 0);
    }
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit none{static_cast<rlim_t>(clients.back() + 1), before.rlim_max};
    std::vector<int> fill;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    for (int fd = dup(0); fd >= 0; fd = dup(0))
        fill.push_back(fd);
    f.when_trouble = [&] {
        if (f.troubles.back() == 0) return;
        CHECK(f.accepted.empty());
        setrlimit(RLIMIT_NOFILE, &before);
    };
    f.when_accepted = [&] {
        if (f.accepted.size() == 3) f.reactor->stop();
    };
    f.reactor->run();
    setrlimit(RLIMIT_NOFILE, &before);
    CHECK(f.accepted.size() == 3);
    CHECK(f.troubles == std::vector<int>{EMFILE, 0});
    for (const int fd : fill)
        close(fd);
    for (const int fd : clients)
        close(fd);
}

TEST_CASE("a listener may be closed by what it calls") {
    Fixture f;
    REQUIRE(f.open("127.0.0.1:0"));
    const Endpoint target = f.listener->endpoint();
    f.when_accepted = [&] { f.listener->close(); };
    auto fd = f.connect_to(target);
    if (f.closed == 0) f.reactor->run();
    CHECK(f.closed == 1);
    if (fd) close(fd.value());
}

TEST_CASE("a name is looked up and every address of it tried") {
    addrinfo* known = nullptr;
    if (getaddrinfo("localhost", nullptr, nullptr, &known) != 0) {
        WARN("this machine does not know localhost (/etc/hosts): not tested");
        return;
    }
    freeaddrinfo(known);
    Fixture f;
    REQUIRE(f.open("127.0.0.1:0"));
    Endpoint target = f.listener->endpoint();
    target.host = "localhost";
    CHECK_FALSE(is_numeric(target));
    auto fd = f.connect_to(target);
    if (!fd) FAIL(fd.error().message);
    close(fd.value());
}

TEST_CASE("connections that can not be made end with a reason") {
    Fixture f;
    SECTION("refused") {
        REQUIRE(f.open(own_address(0)));
        const Endpoint target = f.listener->endpoint();
        f.close_listener();
        auto fd = f.connect_to(target);
        REQUIRE_FALSE(fd);
        CHECK(fd.error().code == Errc::io);
        CHECK(fd.error().os_errno == ECONNREFUSED);
    }
    SECTION("a name that nobody knows") {
        auto fd = f.connect_to(endpoint_of("no-such-host.invalid:1"), {15 * ns_per_s, {}});
        REQUIRE_FALSE(fd);
        // What a name server says, or that none answers.
        CHECK((fd.error().code == Errc::not_found || fd.error().code == Errc::io ||
               fd.error().code == Errc::timeout));
    }
    SECTION("cancelled while the name is looked up") {
        auto fd = f.connect_to(endpoint_of("no-such-host.invalid:1"), patient(),
                               [](Connector& connector) { connector.cancel(); });
        REQUIRE_FALSE(fd);
        CHECK(fd.error().code == Errc::cancelled);
    }
    SECTION("no Unix socket there") {
        auto fd = f.connect_to(endpoint_of("unix:/nonexistent/socket"));
        REQUIRE_FALSE(fd);
        CHECK(fd.error().os_errno == ENOENT);
    }
}

TEST_CASE("silence ends in a timeout, and waiting can be cancelled") {
    // A full backlog drops further connection requests on the floor, like a dead machine.
    Fixture f;
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listening, 0) == 0);
    const Endpoint target = endpoint_of(local_address(listening).text());
    std::vector<int> fillers;
    for (int i = 0; i < 4; ++i) {
        fillers.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        const SocketAddress to = local_address(listening);
        [[maybe_unused]] const int ignored = connect(fillers.back(), to.get(), to.length);
    }
    // The first one is in the backlog: from here on it is full.
    pollfd first{fillers[0], POLLOUT, 0};
    REQUIRE(poll(&first, 1, 100'000) == 1);
    const Instant before = f.reactor->now();
    auto timed_out = f.connect_to(target, {100 * ns_per_ms, {}});
    REQUIRE_FALSE(timed_out);
    CHECK(timed_out.error().code == Errc::timeout);
    CHECK(f.reactor->now().ns - before.ns < 60 * ns_per_s);  // as long as the kernel tries
    Timer later;
    Connector* waiting = nullptr;
    later.context = &waiting;
    later.callback = [](Timer& timer) {
        (*static_cast<Connector**>(timer.context))->cancel();
        (*static_cast<Connector**>(timer.context))->cancel();
    };
    auto cancelled = f.connect_to(target, patient(), [&](Connector& connector) {
        waiting = &connector;
        f.reactor->set_timer(later, f.reactor->now() + 30 * ns_per_ms);
    });
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code == Errc::cancelled);
    for (const int fd : fillers)
        close(fd);
    close(listening);
}

TEST_CASE("connecting and closing many times leaves no descriptor behind") {
    const auto open_descriptors = [] {
        int count = 0;
        DIR* directory = opendir("/proc/self/fd");
        while (readdir(directory) != nullptr)
            ++count;
        closedir(directory);
        return count;
    };
    Fixture f;
    TempDir directory;
    const int before = open_descriptors();
    for (int round = 0; round < 100; ++round) {
        REQUIRE(f.open(round % 2 == 0 ? "127.0.0.1:0" : "unix:" + (directory / "s")));
        const Endpoint target = f.listener->endpoint();
        auto fd = f.connect_to(target, patient(), [&](Connector& connector) {
            if (round % 3 == 0) connector.cancel();
        });
        if (fd) close(fd.value());
        f.closed = 0;
        f.close_listener();
        for (const int accepted : f.accepted)
            close(accepted);
        f.accepted.clear();
    }
    CHECK(open_descriptors() == before);
}
