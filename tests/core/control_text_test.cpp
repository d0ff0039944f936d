// SPDX-License-Identifier: Apache-2.0
// Names, addresses, sizes and options as people write them: what is taken and what is refused.
#include "control/text.hpp"

#include "control/codec.hpp"
#include "tests/catch.hpp"
#include "tests/core/control_fixture.hpp"

using namespace replica;
using namespace replica::control;
using test::Approx;
using test::contains;

TEST_CASE("a name is short and made of characters that are safe in paths", "[control]") {
    for (const char* good : {"r0", "a", "0", "web-1.data_2", "A.B"}) {
        CHECK(check_name("resource", good));
    }
    CHECK(check_name("resource", std::string(63, 'x')));
    CHECK_FALSE(check_name("resource", std::string(64, 'x')));
    for (const std::string bad :
         {"", ".", "..", ".hidden", "-r", "_r", "a/b", "a b", "r0\n", "\xc3\xa4"}) {
        CHECK_FALSE(check_name("resource", bad));
    }
    CHECK_FALSE(check_name("resource", std::string_view("a\0b", 3)));
    CHECK_THAT(check_name("resource", "a\x1b[2Jb").error().message, contains("\\x1b"));
}

TEST_CASE("an address is a host and a port", "[control]") {
    for (const char* good : {"10.0.0.1:7000", "alpha:1", "alpha.example.org:65535", "[::1]:7000",
                             "[fe80::1%eth0]:7000"}) {
        CHECK(check_address("peer", good));
    }
    for (const char* bad : {"", "alpha", "alpha:", ":7000", "alpha:0", "alpha:65536", "alpha:-1",
                            "alpha:7000x", "::1:7000", "[::1]", "[::1:7000", "[alpha]:7000",
                            "al pha:7000", "alpha:+7", "alpha:000080"}) {
        INFO(bad);
        CHECK_FALSE(check_address("peer", bad));
    }
    CHECK(check_address("door", "127.0.0.1:0", true));
}

TEST_CASE("a path is absolute and plain", "[control]") {
    for (const char* good : {"/dev/vda", "/a/b.c/..d", "/", "/a//b", "/dev/disk/by-path/pci-0:0"}) {
        CHECK(check_path("disk", good));
    }
    for (const char* bad : {"", "dev/vda", "./a", "/a/../b", "/a/.", "/..", "/a\nb"}) {
        CHECK_FALSE(check_path("disk", bad));
    }
    CHECK_FALSE(check_path("disk", "/" + std::string(5000, 'x')));
}

TEST_CASE("a size takes binary suffixes and never overflows", "[control]") {
    CHECK(parse_size("0").value() == 0);
    CHECK(parse_size("512").value() == 512);
    CHECK(parse_size("4k").value() == 4096);
    CHECK(parse_size("10M").value() == 10U << 20);
    CHECK(parse_size("3G").value() == 3ULL << 30);
    CHECK(parse_size("2T").value() == 2ULL << 40);
    CHECK(parse_size("16383P").value() == 16383ULL << 50);
    CHECK(parse_size("18446744073709551615").value() == ~0ULL);
    for (const char* bad : {"", "K", "1X", "1KB", "-1", "+1", " 1", "1 ", "1.5G", "0x10", "16384P",
                            "18446744073709551616"}) {
        INFO(bad);
        CHECK_FALSE(parse_size(bad));
    }
    CHECK(format_size(1023) == "1023 B");
    CHECK(format_size(1536) == "1.5 KiB");
    CHECK(format_size((64U << 20) - 4096) == "63.9 MiB");
    CHECK(format_size(5ULL << 40) == "5.0 TiB");
    CHECK(format_seconds(59) == "59s");
    CHECK(format_seconds(125) == "2m05s");
    CHECK(format_seconds(7380) == "2h03m");
}

TEST_CASE("a door is a Unix socket or an address", "[control]") {
    CHECK(check_door("unix:/run/r0.sock"));
    CHECK(check_door("tcp:127.0.0.1:10809"));
    for (const char* bad : {"", "unix:r0.sock", "tcp:10809", "dev:/dev/nbd0", "/run/x"}) {
        CHECK_FALSE(check_door(bad));
    }
}

TEST_CASE("every option survives JSON and refuses what is out of range", "[control]") {
    ResourceOptions options;
    for (const auto& field : option_fields()) {
        INFO(field.key);
        ResourceOptions copy = options;
        apply_options(copy, Json{{field.key, field.get(options)}});
        CHECK(copy == options);
        CHECK_THROWS_AS(apply_options(copy, Json{{field.key, "nonsense"}}), Refused);
        CHECK_THROWS_AS(apply_options(copy, Json{{field.key, -1}}), Refused);
        CHECK_THROWS_AS(apply_options(copy, Json{{field.key, nullptr}}), Refused);
    }
    apply_options(options, {{"al-extents", "67"}, {"resync-rate-max", "10M"}, {"protocol", "A"}});
    CHECK(options.al_extents == 67);
    CHECK(options.resync_rate_max == 10U << 20);
    CHECK(options.protocol == Protocol::a);
    CHECK_THROWS_WITH(apply_options(options, {{"al-extents", 66}}), contains("67..6433"));
    CHECK_THROWS_WITH(apply_options(options, {{"al-extent", 67}}), contains("no option"));
    CHECK_THROWS_WITH(apply_options(options, {{"protocol", "D"}}), contains("A, B, C"));
}

TEST_CASE("a configuration survives JSON and contradictions are refused", "[control]") {
    const auto config = test::sample_config();
    const Json json = to_json(config);
    CHECK(config_from_json(json) == config);
    const auto refused = [&](const std::function<void(Json&)>& edit, const char* why) {
        Json copy = json;
        edit(copy);
        CHECK_THROWS_WITH(config_from_json(copy), contains(why));
    };
    refused([](Json& j) { j["peers"][0]["node-id"] = 1; }, "taken already");
    refused([](Json& j) { j["peers"][1]["node-id"] = 2; }, "taken already");
    refused([](Json& j) { j["peers"][1]["name"] = "beta"; }, "twice");
    refused([](Json& j) { j["peers"][0]["adress"] = "x:1"; }, "no parameter \"adress\"");
    refused([](Json& j) { j["node-id"] = 32; }, "0..31");
    refused([](Json& j) { j["name"] = "../r0"; }, "refused");
    refused([](Json& j) { j["name"] = std::string("r\0", 2); }, "NUL");
    refused([](Json& j) { j["disk"] = "r0.img"; }, "absolute");
    refused([](Json& j) { j["metadata"] = j["disk"]; }, "internal metadata");
    refused([](Json& j) { j.erase("disk"); }, "\"disk\" is missing");
    refused([](Json& j) { j["surprise"] = 1; }, "no parameter");
}

TEST_CASE("the status carries DRBD's field names", "[control]") {
    ResourceStatus status;
    status.name = "r0";
    status.node_id = 1;
    status.up = true;
    status.role = "Primary";
    status.disk = "UpToDate";
    status.size_bytes = 8U << 20;
    PeerStatus peer;
    peer.name = "beta";
    peer.node_id = 2;
    peer.connection = "Connected";
    peer.role = "Secondary";
    peer.disk = "Inconsistent";
    peer.replication = "PausedSyncS";
    peer.out_of_sync_bytes = 2U << 20;
    peer.resync_total_bytes = 4U << 20;
    peer.resync_done_bytes = 1U << 20;
    peer.resync_bytes_per_s = 1U << 20;
    status.peers.push_back(peer);
    const Json json = to_json(status);
    CHECK(json["name"] == "r0");
    CHECK(json["devices"][0]["size"] == 8192);
    CHECK(json["devices"][0]["disk-state"] == "UpToDate");
    const Json& connection = json["connections"][0];
    CHECK(connection["peer-node-id"] == 2);
    CHECK(connection["connection-state"] == "Connected");
    const Json& device = connection["peer_devices"][0];
    CHECK(device["replication-state"] == "PausedSyncS");
    CHECK(device["resync-suspended"] == "user");
    CHECK(device["out-of-sync"] == 2048);
    CHECK(device["percent-in-sync"] == Approx(75.0));
    CHECK(device["done"] == Approx(25.0));
    CHECK(device["estimated-seconds-to-finish"] == 3);
}

TEST_CASE("bytes that are not UTF-8 do not break a line", "[control]") {
    CHECK_NOTHROW(dump_line("bad \xff byte"));
    CHECK(nesting_is_sane("{\"a\":[1,\"[[[[\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]}"));
    CHECK_FALSE(nesting_is_sane(std::string(1000, '[')));
}
