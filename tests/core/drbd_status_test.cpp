// SPDX-License-Identifier: Apache-2.0
// Messages of the kernel's DRBD, of 8.4 and of 9, as the drivers lay them out (docs/netlink.md),
// and what we say of them. What a real 8.4 sends is looked at in a guest:
// tests/vm/drbd_status_test.sh.
#include <arpa/inet.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <netinet/in.h>

#include <cstring>
#include <string>
#include <vector>

#include "netlink/drbd_status.hpp"
#include "tests/catch.hpp"
#include "tools/replicactl_drbd.hpp"
#include "tools/replicactl_text.hpp"

using namespace replica;

namespace {

using Bytes = std::vector<std::byte>;

template <class T>
Bytes bytes_of(const T& value) {
    Bytes bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

// An attribute; nested ones are the concatenation of what they hold.
Bytes attribute(std::uint16_t type, const Bytes& value) {
    Bytes bytes = bytes_of(nlattr{static_cast<std::uint16_t>(NLA_HDRLEN + value.size()), type});
    bytes.insert(bytes.end(), value.begin(), value.end());
    bytes.resize(NLA_ALIGN(bytes.size()));
    return bytes;
}
Bytes u32(std::uint16_t type, std::uint32_t value) { return attribute(type, bytes_of(value)); }
Bytes u64(std::uint16_t type, std::uint64_t value) { return attribute(type, bytes_of(value)); }
Bytes u8(std::uint16_t type, std::uint8_t value) { return attribute(type, bytes_of(value)); }
Bytes text(std::uint16_t type, const std::string& value) {
    Bytes bytes(value.size() + 1);
    std::memcpy(bytes.data(), value.c_str(), bytes.size());
    return attribute(type, bytes);
}
Bytes operator+(Bytes a, const Bytes& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
Bytes address(std::uint16_t type, const char* host, std::uint16_t port) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    inet_pton(AF_INET, host, &in.sin_addr);
    return attribute(type, bytes_of(in));
}

constexpr std::uint16_t context = 2, resource = 15, device = 16, connection = 17, peer_device = 18,
                        device_statistics = 20, peer_device_statistics = 22;

Bytes message(std::uint32_t minor, const Bytes& attributes) {
    const Bytes inside =
        bytes_of(genlmsghdr{30, 1, 0}) + bytes_of(minor) + bytes_of(std::uint32_t{0}) + attributes;
    nlmsghdr header{};
    header.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + inside.size());
    header.nlmsg_type = 33;
    return bytes_of(header) + inside;
}

constexpr std::uint32_t none = ~std::uint32_t{0};

// Two volumes, connected by addresses, the second one being resynced.
std::vector<Bytes> messages_84() {
    const Bytes name = text(2, "mail");
    const Bytes pair = name + address(3, "192.0.2.1", 7789) + address(4, "192.0.2.2", 7790);
    const auto volume = [](std::uint32_t number) { return u32(1, number); };
    return {
        message(none, attribute(context, name) + attribute(resource, u32(1, 1) + u8(2, 0))),
        message(7, attribute(context, volume(0) + name) + attribute(device, u32(1, 8)) +
                       attribute(device_statistics,
                                 u64(1, 2048) + u64(2, 6) + u64(3, 8) + u64(12, 0xabcd))),
        message(8, attribute(context, volume(1) + name) + attribute(device, u32(1, 8))),
        message(none, attribute(context, pair) + attribute(connection, u32(1, 9) + u32(2, 2))),
        message(7, attribute(context, volume(0) + pair) +
                       attribute(peer_device, u32(1, 10) + u32(2, 8) + u32(3, 0)) +
                       attribute(peer_device_statistics, u64(1, 2) + u64(2, 4))),
        message(8, attribute(context, volume(1) + pair) +
                       attribute(peer_device, u32(1, 16) + u32(2, 4) + u32(3, 0) + u32(4, 1)) +
                       attribute(peer_device_statistics, u64(5, 100))),
    };
}

// The same words have other numbers in 9, and peers have names. Its attributes are marked as
// mandatory by a bit in their type.
std::vector<Bytes> messages_9() {
    constexpr std::uint16_t mandatory = 1U << 14;
    const Bytes name = text(mandatory | 2, "db");
    const Bytes peer = name + u32(6, 2) + text(5, "gamma");
    return {
        message(none,
                attribute(mandatory | context, name) + attribute(resource, u32(1, 2) + u8(5, 1))),
        message(0, attribute(context, u32(1, 0) + name) +
                       attribute(device, u32(1, 6) + text(4, "/dev/vg/db"))),
        message(none, attribute(context, peer) + attribute(connection, u32(1, 8) + u32(2, 0))),
        message(0, attribute(context, u32(1, 0) + peer) +
                       attribute(peer_device, u32(1, 9) + u32(2, 7))),
    };
}

std::vector<DrbdResource> read(const std::vector<Bytes>& messages, unsigned version) {
    std::vector<DrbdResource> resources;
    for (const Bytes& each : messages)
        REQUIRE(add_drbd_message(each, version, resources));
    return resources;
}

std::string status(const std::vector<DrbdResource>& resources) {
    replicactl::StatusStyle style;
    style.volumes = true;
    return replicactl::status_text(replicactl::drbd_status_json(resources), style);
}

}  // namespace

TEST_CASE("the state of DRBD 8.4 is read from its messages") {
    const auto resources = read(messages_84(), 1);
    CHECK(status(resources) ==
          "mail role:Primary\n"
          "  volume:0 disk:UpToDate door:/dev/drbd7\n"
          "  volume:1 disk:UpToDate door:/dev/drbd8\n"
          "  192.0.2.2:7790 role:Secondary\n"
          "    volume:0 peer-disk:UpToDate\n"
          "    volume:1 replication:SyncSource peer-disk:Inconsistent resync-suspended:yes\n"
          "\n");
    REQUIRE(resources.size() == 1);
    const DrbdDevice& first = resources[0].devices.at(0);
    CHECK(first.size_bytes == 1 << 20);
    CHECK(first.read_bytes == 3072);
    CHECK(first.written_bytes == 4096);
    CHECK(first.current_uuid == 0xabcd);
    const DrbdConnection& peer = resources[0].connections.at(0);
    CHECK(peer.local == "192.0.2.1:7789");
    CHECK(peer.devices.at(0).received_bytes == 1024);
    CHECK(peer.devices.at(0).sent_bytes == 2048);
    CHECK(peer.devices.at(1).out_of_sync_bytes == 51200);
}

TEST_CASE("the state of DRBD 9 is read from its messages") {
    const auto resources = read(messages_9(), 2);
    CHECK(status(resources) ==
          "db role:Secondary suspended:yes\n"
          "  volume:0 disk:Outdated door:/dev/drbd0\n"
          "  gamma connection:Connecting\n"
          "\n");
    REQUIRE(resources.size() == 1);
    CHECK(resources[0].devices.at(0).backing == "/dev/vg/db");
    CHECK(resources[0].connections.at(0).peer_node_id == 2);
    CHECK(resources[0].connections.at(0).devices.at(0).replication == "Off");
    CHECK(resources[0].connections.at(0).devices.at(0).disk == "DUnknown");
}

TEST_CASE("a message that tells of no resource is passed over") {
    std::vector<DrbdResource> resources;
    CHECK_FALSE(add_drbd_message({}, 1, resources));
    CHECK_FALSE(add_drbd_message(message(0, {}), 1, resources));
    CHECK_FALSE(add_drbd_message(message(0, attribute(context, u32(1, 0))), 1, resources));
    CHECK_FALSE(add_drbd_message(message(0, attribute(context, text(2, "x"))), 1, resources));
    CHECK(resources.empty());
}

TEST_CASE("a message that is cut off anywhere is read without harm") {
    for (const auto& [messages, version] :
         {std::pair{messages_84(), 1U}, std::pair{messages_9(), 2U}}) {
        for (const Bytes& whole : messages) {
            for (std::size_t length = 0; length <= whole.size(); ++length) {
                Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
                std::vector<DrbdResource> resources;
                CHECK(add_drbd_message(part, version, resources) == (length == whole.size()));
                // With a header that fits, so that the attributes themselves are cut.
                if (length < sizeof(nlmsghdr)) continue;
                const auto told = static_cast<std::uint32_t>(length);
                std::memcpy(part.data(), &told, sizeof told);
                static_cast<void>(add_drbd_message(part, version, resources));
            }
        }
    }
}
