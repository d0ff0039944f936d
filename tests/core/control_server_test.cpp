// SPDX-License-Identifier: Apache-2.0
// The control socket with clients that behave and clients that do not: garbage, half lines, endless
// lines, readers that sleep, crowds, and clients that vanish in the middle of a call.
#include "control/server.hpp"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "control/session.hpp"
#include "engine/base/prng.hpp"
#include "tests/catch.hpp"
#include "tests/core/control_fixture.hpp"

using namespace replica;
using namespace replica::control;
using namespace replica::test;

namespace {

struct TestServer {
    explicit TestServer(unsigned clients_max = 64)
        : service(directory.path()), path(directory.path() + "/run/control.sock") {
        options.path = path;
        options.clients_max = clients_max;
        options.events_queued_max = 16;
        options.output_bytes_max = 64U << 10;
        server = std::move(Server::start(service.service, options)).value();
    }
    std::unique_ptr<Client> connect() { return std::move(Client::connect(path)).value(); }

    TemporaryDirectory directory;
    TestService service;
    std::string path;
    ServerOptions options;
    std::unique_ptr<Server> server;
};

// A client that says what it likes.
class RawClient {
  public:
    explicit RawClient(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
        REQUIRE(::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                          sizeof address) == 0);
    }
    bool send(std::string_view text) {
        while (!text.empty()) {
            const auto put = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
            if (put <= 0) return false;
            text.remove_prefix(static_cast<std::size_t>(put));
        }
        return true;
    }
    void end_of_input() { ::shutdown(socket_.get(), SHUT_WR); }
    void close() { socket_.reset(); }
    // A line, or "" at the end of the stream.
    std::string line() {
        for (;;) {
            if (auto line = buffer_.next()) return *line;
            char bytes[4096];
            const auto got = ::recv(socket_.get(), bytes, sizeof bytes, 0);
            if (got <= 0) return "";
            buffer_.append(std::string_view(bytes, static_cast<std::size_t>(got)));
        }
    }

  private:
    Fd socket_;
    LineBuffer buffer_;
};

const std::string info_request = R"({"jsonrpc":"2.0","id":7,"method":"node.info"})"
                                 "\n";

template <class F>
bool soon(F condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(100);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

}  // namespace

TEST_CASE("a client gets results and errors as the service made them", "[control]") {
    TestServer test;
    struct stat found {};
    REQUIRE(::stat(test.path.c_str(), &found) == 0);
    CHECK((found.st_mode & 0777) == 0600);
    const auto client = test.connect();
    CHECK(client->call("node.info", {}).value()["name"] == "alpha");
    test.service.node.fail_next("create", Error{Errc::no_space, 28, "the disk is too small"});
    const auto refused = client->call("resource.create", {{"config", to_json(sample_config())}});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::no_space);
    CHECK(refused.error().os_errno == 28);
    CHECK(refused.error().message == "the disk is too small");
    CHECK(client->call("resource.create", {{"config", to_json(sample_config())}}));
    CHECK(client->call("no.such", {}).error().code == Errc::unsupported);
    CHECK(client->idle_and_alive());
    test.server.reset();
    CHECK_FALSE(client->idle_and_alive());
    CHECK_FALSE(client->call("node.info", {}));
    CHECK_FALSE(std::filesystem::exists(test.path));
    const auto nobody = Client::connect(test.path);
    CHECK_THAT(nobody.error().message, contains("is replicad running"));
}

TEST_CASE("malformed lines get an error and the next line is heard", "[control]") {
    TestServer test;
    RawClient client(test.path);
    const auto answer = [&](const std::string& line) {
        REQUIRE(client.send(line + "\n"));
        return Json::parse(client.line());
    };
    CHECK(answer("hello")["error"]["code"] == rpc_parse_error);
    CHECK(answer("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":")["error"]["code"] == rpc_parse_error);
    CHECK(answer("\xff\xfe\x01\x02")["error"]["code"] == rpc_parse_error);
    CHECK(answer(std::string("\0\0\0", 3))["error"]["code"] == rpc_parse_error);
    CHECK(answer(std::string(100'000, '['))["error"]["code"] == rpc_parse_error);
    CHECK(answer("[]")["error"]["code"] == rpc_invalid_request);
    CHECK(answer("{}")["error"]["code"] == rpc_invalid_request);
    CHECK(answer(R"({"jsonrpc":"1.0","id":1,"method":"status"})")["error"]["code"] ==
          rpc_invalid_request);
    CHECK(answer(R"({"jsonrpc":"2.0","id":{},"method":"status"})")["error"]["code"] ==
          rpc_invalid_request);
    CHECK(answer(R"({"jsonrpc":"2.0","id":3,"method":9})")["error"]["code"] == rpc_invalid_request);
    const Json unknown = answer(R"({"jsonrpc":"2.0","id":"x","method":"frob"})");
    CHECK(unknown["error"]["code"] == rpc_method_not_found);
    CHECK(unknown["id"] == "x");
    const Json params = answer(R"({"jsonrpc":"2.0","id":4,"method":"status","params":[1]})");
    CHECK(params["error"]["code"] == rpc_error_base - 1);
    // No id, no answer; empty lines and carriage returns do not matter.
    REQUIRE(client.send("\n\r\n{\"jsonrpc\":\"2.0\",\"method\":\"status\"}\r\n" + info_request));
    CHECK(Json::parse(client.line())["id"] == 7);
}

TEST_CASE("random bytes never harm the server", "[control]") {
    TestServer test;
    Prng random(20240611);
    for (int round = 0; round < 50; ++round) {
        RawClient client(test.path);
        std::string bytes = round % 2 == 0 ? info_request + info_request : std::string(3000, ' ');
        for (auto& byte : bytes) {
            if (round % 2 != 0 || random.chance(30'000)) byte = static_cast<char>(random.next());
        }
        client.send(bytes);
        client.end_of_input();
        while (!client.line().empty())
            continue;
    }
    CHECK(test.connect()->call("node.info", {}));
}

TEST_CASE("a line without an end is refused at 1 MiB", "[control]") {
    TestServer test;
    RawClient client(test.path);
    const std::string chunk(1U << 16, 'x');
    for (int i = 0; i < 40 && client.send(chunk); ++i)
        continue;
    const Json answer = Json::parse(client.line());
    CHECK(answer["error"]["code"] == rpc_invalid_request);
    CHECK_THAT(answer["error"]["message"].get<std::string>(), contains("1048576"));
    CHECK(client.line().empty());
    CHECK(test.connect()->call("node.info", {}));
}

TEST_CASE("a whole line of 1 MiB is heard", "[control]") {
    TestServer test;
    RawClient client(test.path);
    std::string line = R"({"jsonrpc":"2.0","id":1,"method":"node.info","pad":")";
    line += std::string(line_bytes_max - line.size() - 2, 'x') + "\"}";
    REQUIRE(line.size() == line_bytes_max);
    REQUIRE(client.send(line + "\n"));
    CHECK(Json::parse(client.line()).contains("result"));
}

TEST_CASE("half a line does nothing and whole lines before the end are answered", "[control]") {
    TestServer test;
    test.service.create("r0");
    RawClient client(test.path);
    REQUIRE(client.send(info_request + info_request +
                        R"({"jsonrpc":"2.0","id":1,"method":"resource.up",)"
                        R"("params":{"name":"r0"}})"));
    client.end_of_input();
    CHECK(Json::parse(client.line())["id"] == 7);
    CHECK(Json::parse(client.line())["id"] == 7);
    CHECK(client.line().empty());
    CHECK(test.service.node.calls().back() == "create r0");
}

TEST_CASE("a client that vanishes during a wait is noticed", "[control]") {
    TestServer test;
    test.service.create("r0");
    RawClient client(test.path);
    REQUIRE(client.send(R"({"jsonrpc":"2.0","id":1,"method":"resource.wait",)"
                        R"("params":{"name":"r0","until":"primary"}})"
                        "\n"));
    REQUIRE(soon([&] { return test.service.node.listener_count() == 1; }));
    client.close();
    CHECK(soon([&] { return test.service.node.listener_count() == 0; }));
}

TEST_CASE("a call that takes long does not hold up others, and a stop ends waits", "[control]") {
    TestServer test;
    test.service.create("r0");
    test.service.node.hold("promote");
    // Catch2's checks are for one thread only.
    bool promoted = false, waited = true;
    std::thread slow([&] {
        promoted = static_cast<bool>(test.connect()->call("resource.promote", {{"name", "r0"}}));
    });
    REQUIRE(soon([&] { return test.service.node.calls().back() == "promote r0"; }));
    CHECK(test.connect()->call("status", {}).value().size() == 1);
    test.service.node.release();
    slow.join();
    CHECK(promoted);
    std::thread waiting([&] {
        waited = static_cast<bool>(
            test.connect()->call("resource.wait", {{"name", "r0"}, {"until", "synced"}}));
    });
    REQUIRE(soon([&] { return test.service.node.listener_count() == 1; }));
    test.server.reset();
    waiting.join();
    CHECK_FALSE(waited);
}

TEST_CASE("one client too many is told so", "[control]") {
    TestServer test(3);
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 3; ++i) {
        clients.push_back(test.connect());
        REQUIRE(clients.back()->call("node.info", {}));
    }
    const auto refused = test.connect()->call("node.info", {});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::limit);
    clients.pop_back();
    CHECK(soon([&] { return static_cast<bool>(test.connect()->call("node.info", {})); }));
}

TEST_CASE("clients come and go by the hundred", "[control]") {
    TestServer test;
    std::vector<std::thread> threads;
    std::atomic<int> answered = 0;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 50; ++i) {
                if (test.connect()->call("node.info", {})) ++answered;
            }
        });
    }
    for (auto& thread : threads)
        thread.join();
    CHECK(answered == 400);
}

TEST_CASE("events are pushed to those who subscribed, with what there is first", "[control]") {
    TestServer test;
    test.service.create("r0");
    test.service.create("r1");
    const auto all = test.connect();
    const auto one = test.connect();
    CHECK(all->call("events.subscribe", {}).value()["status"].size() == 2);
    CHECK(one->call("events.subscribe", {{"name", "r1"}}).value()["status"].size() == 1);
    CHECK(one->call("events.subscribe", {{"name", "nix"}}).error().code == Errc::not_found);
    test.service.must("resource.promote", {{"name", "r0"}});
    test.service.must("resource.promote", {{"name", "r1"}});
    auto first = all->next_notification(100'000).value();
    REQUIRE(first);
    CHECK((*first)["method"] == "event");
    CHECK((*first)["params"]["resource"] == "r0");
    CHECK(event_from_json((*first)["params"]).action == "change");
    CHECK((*all->next_notification(100'000).value())["params"]["resource"] == "r1");
    CHECK((*one->next_notification(100'000).value())["params"]["resource"] == "r1");
    // Answers and events share the line; both arrive.
    CHECK(one->call("node.info", {}));
    CHECK(one->call("events.unsubscribe", {}));
    test.service.must("resource.demote", {{"name", "r1"}});
    CHECK_FALSE(one->next_notification(50).value());
    CHECK((*all->next_notification(100'000).value())["params"]["resource"] == "r1");
}

TEST_CASE("a slow reader of events loses the oldest and is told how many", "[control]") {
    TestServer test;
    test.service.create("r0");
    const auto client = test.connect();
    REQUIRE(client->call("events.subscribe", {}));
    constexpr std::uint64_t sent = 20'000;
    for (std::uint64_t i = 0; i < sent; ++i)
        test.service.node.emit("r0", "change");
    std::uint64_t heard = 0;
    std::uint64_t missed = 0;
    std::uint64_t last_seq = 0;
    while (heard + missed < sent) {
        const auto next = client->next_notification(100'000).value();
        REQUIRE(next);
        if ((*next)["method"] == "events.gap") {
            missed += (*next)["params"]["missed"].get<std::uint64_t>();
            continue;
        }
        const auto event = event_from_json((*next)["params"]);
        REQUIRE(event.seq > last_seq);
        last_seq = event.seq;
        ++heard;
    }
    CHECK(missed > 0);
    CHECK(heard > 0);
    CHECK(client->call("node.info", {}));
}

TEST_CASE("a client that asks and never reads holds up only itself", "[control]") {
    TestServer test;
    test.service.create("r0");
    RawClient deaf(test.path);
    std::thread asking([&] {
        for (int i = 0; i < 5000; ++i) {
            if (!deaf.send(R"({"jsonrpc":"2.0","id":1,"method":"status"})"
                           "\n"))
                break;
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK(test.connect()->call("node.info", {}));
    test.server.reset();  // which ends the sending, too
    asking.join();
}

TEST_CASE("a socket that nobody serves is replaced, one that is served is not", "[control]") {
    const TemporaryDirectory directory;
    TestService service(directory.path());
    ServerOptions options;
    options.path = directory.path() + "/control.sock";
    const pid_t child = ::fork();
    if (child == 0) {  // leaves its socket behind, as a killed daemon does
        const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, options.path.c_str(), options.path.size() + 1);
        ::_exit(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0
                                                                                             : 1);
    }
    int left = 0;
    REQUIRE(::waitpid(child, &left, 0) == child);
    REQUIRE(left == 0);
    const auto first = Server::start(service.service, options);
    REQUIRE(first);
    const auto second = Server::start(service.service, options);
    REQUIRE_FALSE(second);
    CHECK(second.error().code == Errc::busy);
    options.path = directory.path() + "/file";
    write_file(options.path, "precious");
    CHECK_FALSE(Server::start(service.service, options));
    CHECK(read_file(options.path) == "precious");
    options.path = "/tmp/" + std::string(120, 'x');
    CHECK(Server::start(service.service, options).error().code == Errc::invalid);
    options.path = "relative.sock";
    CHECK(Server::start(service.service, options).error().code == Errc::invalid);
}

TEST_CASE("another user is refused with a clear text", "[control]") {
    if (::geteuid() != 0) {
        WARN("SKIPPED: needs root to become another user");
        return;
    }
    TestServer test;
    ::chmod(test.directory.path().c_str(), 0755);
    ::chmod(test.path.c_str(), 0666);  // so that the file mode is not what refuses
    int pipe_fds[2];
    REQUIRE(::pipe(pipe_fds) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        std::string text = "no setuid";
        if (::setgid(65534) == 0 && ::setuid(65534) == 0) {
            auto client = Client::connect(test.path);
            auto result =
                client ? client.value()->call("node.info", {}) : Result<Json>(client.error());
            text = result ? "served" : result.error().message;
        }
        (void)!::write(pipe_fds[1], text.data(), text.size());
        ::_exit(0);
    }
    ::close(pipe_fds[1]);
    char buffer[512] = {};
    CHECK(::read(pipe_fds[0], buffer, sizeof buffer - 1) > 0);
    ::close(pipe_fds[0]);
    ::waitpid(child, nullptr, 0);
    test.server.reset();
    CHECK_THAT(std::string(buffer), contains("uid 65534 may not control this node"));
    const std::lock_guard lock(test.service.log_mutex);
    CHECK_THAT(test.service.log, contains("65534"));
}

TEST_CASE("without free descriptors clients wait and are then served", "[control]") {
    TestServer test;
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    RawClient waiting(test.path);
    REQUIRE(waiting.send(info_request));
    REQUIRE(Json::parse(waiting.line())["id"] == 7);
    Fd last(::socket(AF_UNIX, SOCK_STREAM, 0));
    REQUIRE(last);
    rlimit tight = before;
    tight.rlim_cur =
        static_cast<rlim_t>(last.get()) + 1;  // the highest descriptor in use is `last`
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &tight) == 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, test.path.c_str(), test.path.size() + 1);
    REQUIRE(::connect(last.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
            0);
    REQUIRE(::send(last.get(), info_request.data(), info_request.size(), 0) > 0);
    char buffer[1024];
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    const auto early = ::recv(last.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(early < 0);
    CHECK(::recv(last.get(), buffer, sizeof buffer, 0) > 0);
}

TEST_CASE("a node that accepts nobody, or answers nothing, is not waited for without end",
          "[control]") {
    const TemporaryDirectory directory;
    const std::string path = directory.path() + "/silent";
    const Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
            0);
    REQUIRE(::listen(listener.get(), 0) == 0);
    auto client = Client::connect(path, 100);
    REQUIRE(client);
    CHECK(client.value()->node_pid() == ::getpid());
    const auto silence = client.value()->call("node.info", Json::object(), 100);
    REQUIRE_FALSE(silence);
    CHECK(silence.error().code == Errc::timeout);
    CHECK_THAT(silence.error().message, contains("does not answer in 0.1 s"));
    const auto crowd = Client::connect(path, 100);  // the backlog has room for one
    REQUIRE_FALSE(crowd);
    CHECK(crowd.error().code == Errc::timeout);
}

TEST_CASE("the answer of a call that was given up is not taken for that of the next", "[control]") {
    TestServer test;
    test.service.create("r0");
    test.service.node.hold("up r0");
    const auto client = test.connect();
    const auto late = client->call("resource.up", {{"name", "r0"}}, 100);
    REQUIRE_FALSE(late);
    CHECK(late.error().code == Errc::timeout);
    test.service.node.release();
    const auto info = client->call("node.info", Json::object(), 100'000);
    REQUIRE(info);
    CHECK(info.value()["name"] == "alpha");
}
