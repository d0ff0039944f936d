// SPDX-License-Identifier: Apache-2.0
// The methods of the control protocol over a stand-in node: what reaches the node, what is
// remembered over a restart, and what is refused with which error.
#include "control/service.hpp"

#include <thread>

#include "tests/catch.hpp"
#include "tests/core/control_fixture.hpp"

using namespace replica;
using namespace replica::control;
using namespace replica::test;

TEST_CASE("each method reaches the node with its arguments", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    const Json r0 = {{"name", "r0"}};
    const auto with = [&](const char* key, const Json& value) {
        Json params = r0;
        params[key] = value;
        return params;
    };
    test.must("resource.up", r0);
    test.must("resource.attach", r0);
    test.must("resource.detach", r0);
    test.must("resource.connect", with("peer", "beta"));
    test.must("resource.connect", with("discard-my-data", true));
    test.must("resource.disconnect", with("peer", "gamma"));
    test.must("resource.promote", with("force", true));
    test.must("resource.export", with("door", "unix:/run/r0.sock"));
    test.must("resource.unexport", r0);
    test.must("resource.demote", r0);
    test.must("resource.invalidate", r0);
    test.must("resource.invalidate-remote", with("peer", "beta"));
    test.must("resource.pause-sync", with("peer", "beta"));
    test.must("resource.resume-sync", r0);
    test.must("resource.resize", with("size-bytes", "1M"));
    test.must("resource.new-current-uuid", with("clear-bitmap", true));
    test.must("resource.options", with("options", {{"al-extents", 100}}));
    test.must("resource.down", r0);
    test.must("resource.down", with("force", true));
    test.must("resource.remove", r0);
    test.must("resource.add", {{"config", to_json(sample_config("r0"))}});
    test.must("resource.remove", r0);
    CHECK(test.node.calls() == std::vector<std::string>{"create r0",
                                                        "up r0",
                                                        "attach r0",
                                                        "detach r0",
                                                        "connect r0 beta",
                                                        "connect r0 beta discard",
                                                        "connect r0 gamma discard",
                                                        "disconnect r0 gamma",
                                                        "promote r0 force",
                                                        "export r0 unix:/run/r0.sock",
                                                        "unexport r0 ",
                                                        "demote r0",
                                                        "invalidate r0",
                                                        "invalidate-remote r0 beta",
                                                        "pause-sync r0 beta",
                                                        "resume-sync r0 beta",
                                                        "resume-sync r0 gamma",
                                                        "resize r0 1048576",
                                                        "new-current-uuid r0 clear",
                                                        "options r0 al 100",
                                                        "down r0",
                                                        "down r0 force",
                                                        "remove r0",
                                                        "adopt r0",
                                                        "remove r0"});
    CHECK(test.must("status", {}).empty());
    CHECK_THAT(test.log, contains("test: resource.promote r0: done"));
}

TEST_CASE("a request with something wrong in it changes nothing", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    const auto calls = test.node.calls().size();
    const auto refused = [&](const char* method, const Json& params, Errc code, const char* why) {
        INFO(method << " " << params.dump());
        const auto result = test.call(method, params);
        REQUIRE_FALSE(result);
        CHECK(result.error().code == code);
        CHECK_THAT(result.error().message, contains(why));
    };
    refused("resource.frob", {}, Errc::unsupported, "no method");
    refused("resource.up", {}, Errc::invalid, "\"name\" is missing");
    refused("resource.up", Json::array({"r0"}), Errc::invalid, "object");
    refused("resource.up", {{"name", 7}}, Errc::invalid, "string");
    refused("resource.up", {{"name", "../../etc"}}, Errc::invalid, "refused");
    refused("resource.up", {{"name", "r1"}}, Errc::not_found, "no resource \"r1\"");
    refused("resource.promote", {{"name", "r0"}, {"forse", true}}, Errc::invalid, "\"forse\"");
    refused("resource.promote", {{"name", "r0"}, {"force", "yes"}}, Errc::invalid, "true or false");
    refused("resource.connect", {{"name", "r0"}, {"peer", "delta"}}, Errc::not_found,
            "it has beta, gamma");
    refused("resource.invalidate-remote", {{"name", "r0"}}, Errc::invalid, "several peers");
    refused("resource.export", {{"name", "r0"}, {"door", "file:x"}}, Errc::invalid, "unix:PATH");
    refused("node.upgrade", {{"program", "replicad"}}, Errc::invalid, "program");
    refused("node.upgrade", Json::object(), Errc::unsupported, "only replicad is upgraded");
    refused("resource.wait", {{"name", "r0"}, {"until", "later"}}, Errc::invalid, "connected");
    refused("resource.create", {{"config", to_json(sample_config("r0"))}}, Errc::exists,
            "exists already");
    refused("resource.create", {{"config", nullptr}}, Errc::invalid, "missing");
    refused("resource.options", {{"name", "r0"}, {"options", {{"al-extents", 1}}}}, Errc::invalid,
            "67..6433");
    CHECK(test.node.calls().size() == calls);
}

TEST_CASE("configuration and up-ness survive a restart, roles do not", "[control]") {
    const TemporaryDirectory directory;
    {
        TestService test(directory.path());
        for (const char* name : {"r0", "r1", "r2"})
            test.create(name);
        test.must("resource.up", {{"name", "r0"}});
        test.must("resource.promote", {{"name", "r0"}});
        test.must("resource.options", {{"name", "r0"}, {"options", {{"protocol", "A"}}}});
        test.must("resource.up", {{"name", "r1"}});
        test.must("resource.down", {{"name", "r1"}});
    }
    TestService test(directory.path());
    REQUIRE(test.service.restore());
    CHECK(test.node.calls() == std::vector<std::string>{"add r0", "up r0", "add r1", "add r2"});
    const Json status = test.must("status", {});
    REQUIRE(status.size() == 3);
    CHECK(status[0]["up"] == true);
    CHECK(status[0]["role"] == "Secondary");
    CHECK(status[1]["up"] == false);
    CHECK(test.must("resource.get", {{"name", "r0"}})["options"]["protocol"] == "A");
}

TEST_CASE("what the node refuses is not remembered", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.node.fail_next("create", Error{Errc::exists, 0, "the disk holds an ext4 file system"});
    const auto created = test.call("resource.create", {{"config", to_json(sample_config("r0"))}});
    REQUIRE_FALSE(created);
    CHECK(created.error().code == Errc::exists);
    CHECK(test.store->load().value().resources.empty());
    test.create("r0");
    test.node.fail_next("up", Error{Errc::busy, 16, "the disk is in use"});
    CHECK(test.call("resource.up", {{"name", "r0"}}).error().os_errno == 16);
    CHECK_FALSE(test.store->load().value().resources.at(0).up);
    test.node.fail_next("options", Error{Errc::state, 0, "not now"});
    CHECK_FALSE(test.call("resource.options", {{"name", "r0"}, {"options", {{"protocol", "A"}}}}));
    CHECK(test.store->load().value().resources.at(0).config == sample_config("r0"));
}

TEST_CASE("a resource whose disk is missing at the start is told and can come up later",
          "[control]") {
    const TemporaryDirectory directory;
    {
        TestService test(directory.path());
        for (const char* name : {"r0", "r1"}) {
            test.create(name);
            test.must("resource.up", {{"name", name}});
        }
    }
    TestService test(directory.path());
    test.node.fail_next("add r0", Error{Errc::not_found, 2, "/disks/r0 is not there"});
    REQUIRE(test.service.restore());
    const Json status = test.must("status", {});
    CHECK(status[0]["why"] == "/disks/r0 is not there");
    CHECK(status[0]["up"] == false);
    CHECK(status[1]["up"] == true);
    test.node.fail_next("add r0", Error{Errc::not_found, 2, "still not there"});
    CHECK_THAT(test.call("resource.promote", {{"name", "r0"}}).error().message,
               contains("still not there"));
    test.must("resource.up", {{"name", "r0"}});
    CHECK(test.must("status", {})[0]["up"] == true);
}

TEST_CASE("what was done but can not be remembered is told as that", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    std::filesystem::remove_all(directory.path() + "/state/resources");
    const auto up = test.call("resource.up", {{"name", "r0"}});
    REQUIRE_FALSE(up);
    CHECK_THAT(up.error().message, contains("r0 is up now, but a restart of the node will bring it "
                                            "down: can not store"));
    CHECK(test.must("status", {})[0]["up"] == true);
    test.must("resource.down", {{"name", "r0"}});  // which is what is remembered
    CHECK(test.must("status", {})[0]["up"] == false);
}

TEST_CASE("why a resource did not come up stays in its status until it does", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    test.node.fail_next("up", Error{Errc::not_found, 2, "/disks/r0 is not there"});
    CHECK_FALSE(test.call("resource.up", {{"name", "r0"}}));
    CHECK(test.must("status", {})[0]["why"] == "/disks/r0 is not there");
    const Json until = {{"name", "r0"}, {"until", "uptodate"}, {"timeout-ms", 1}};
    CHECK_THAT(test.call("resource.wait", until).error().message, contains("is not there"));
    test.must("resource.up", {{"name", "r0"}});
    CHECK(test.must("status", {})[0]["why"] == "");
}

TEST_CASE("a broken file is told by name, and its resource's name is not handed out in silence",
          "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    write_file(directory.path() + "/state/resources/r0.json", "{\"half");
    REQUIRE(test.service.restore());
    const Json problems = test.must("node.info", {})["problems"];
    REQUIRE(problems.size() == 1);
    CHECK(problems[0]["resource"] == "r0");
    CHECK_THAT(test.call("resource.up", {{"name", "r0"}}).error().message,
               contains("r0.json.corrupt"));
    CHECK_THAT(test.log, contains("cut short"));
}

TEST_CASE("wait ends when the state is there, at its timeout, or when the caller has gone",
          "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    const Json until = {{"name", "r0"}, {"until", "connected"}, {"timeout-ms", 100'000}};
    CHECK_THAT(
        test.call("resource.wait", {{"name", "r0"}, {"until", "connected"}, {"timeout-ms", 1}})
            .error()
            .message,
        contains("the resource is down"));
    test.must("resource.up", {{"name", "r0"}});
    std::string text;  // Catch2's checks are for one thread only
    std::thread later([&] {
        for (const std::size_t peer : {0U, 1U})
            test.node.change("r0", [&](auto& s) { s.peers[peer].connection = "Connected"; });
        const Json soon = {{"name", "r0"}, {"until", "connected"}, {"timeout-ms", 10}};
        const auto unknown = test.call("resource.wait", soon);
        text = unknown ? "" : unknown.error().message;
        for (const std::size_t peer : {0U, 1U})
            test.node.change("r0", [&](auto& s) { s.peers[peer].replication = "Established"; });
    });
    const bool connected = static_cast<bool>(test.call("resource.wait", until));
    later.join();
    CHECK(connected);
    CHECK_THAT(text, contains("beta is connected, its state not known yet"));
    const auto synced =
        test.call("resource.wait", {{"name", "r0"}, {"until", "synced"}, {"timeout-ms", 10}});
    REQUIRE_FALSE(synced);
    CHECK(synced.error().code == Errc::timeout);
    CHECK_THAT(synced.error().message, contains("beta is Established, its disk DUnknown"));
    test.node.change("r0", [](auto& s) {
        for (auto& peer : s.peers)
            peer.disk = "UpToDate";
    });
    CHECK(test.call("resource.wait", {{"name", "r0"}, {"until", "synced"}}));
    CHECK(test.call("resource.wait", {{"name", "r0"}, {"until", "uptodate"}}));
    const auto gone = test.service.call("resource.wait", {{"name", "r0"}, {"until", "primary"}},
                                        {"test", [] { return true; }});
    CHECK(gone.error().code == Errc::cancelled);
    CHECK(test.node.listener_count() == 0);
}

TEST_CASE("two clients that change one resource take turns", "[control]") {
    const TemporaryDirectory directory;
    TestService test(directory.path());
    test.create("r0");
    test.create("r1");
    test.node.hold("up r0");
    std::thread up([&] { test.must("resource.up", {{"name", "r0"}}); });
    while (test.node.calls().back() != "up r0")
        std::this_thread::yield();
    std::thread down([&] { test.must("resource.down", {{"name", "r0"}}); });
    test.must("resource.up", {{"name", "r1"}});  // is not held up
    CHECK(test.node.calls().back() == "up r1");
    test.node.release();
    up.join();
    down.join();
    CHECK(test.node.calls().back() == "down r0");
    CHECK_FALSE(test.store->load().value().resources.at(0).up);
}
