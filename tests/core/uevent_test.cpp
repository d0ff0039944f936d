// SPDX-License-Identifier: Apache-2.0
// What a uevent says about a disk. Messages as the kernel sends them, with NULs between the lines.
#include <sys/sysmacros.h>

#include <string>

#include "netlink/uevents.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

// Lines are divided by newlines here.
std::optional<BlockUevent> parse(std::string text) {
    for (char& c : text) {
        if (c == '\n') c = '\0';
    }
    return parse_uevent(text);
}

const std::string sdb =
    "DEVPATH=/devices/pci0000:00/0000:00:05.0/host2/target2:0:0/2:0:0:0/block/sdb\n"
    "SUBSYSTEM=block\nMAJOR=8\nMINOR=16\nDEVNAME=sdb\nDEVTYPE=disk\nDISKSEQ=12\nSEQNUM=1807\n";

}  // namespace

TEST_CASE("a disk that was removed is told by its number") {
    const auto event = parse("remove@/devices/x/block/sdb\nACTION=remove\n" + sdb);
    REQUIRE(event);
    CHECK(event->change == DiskChange::removed);
    CHECK(event->device == makedev(8, 16));
}

TEST_CASE("a disk that has another size or became read-only is told") {
    auto event = parse("change@/devices/x/block/sdb\nACTION=change\nRESIZE=1\n" + sdb);
    REQUIRE(event);
    CHECK(event->change == DiskChange::resized);
    event = parse("change@/devices/x/block/sdb\nACTION=change\nDISK_RO=1\n" + sdb);
    REQUIRE(event);
    CHECK(event->change == DiskChange::read_only);
    CHECK_FALSE(parse("change@/devices/x/block/sdb\nACTION=change\nDISK_RO=0\n" + sdb));
}

TEST_CASE("other messages tell of nothing") {
    CHECK_FALSE(parse(""));
    CHECK_FALSE(parse("remove@/devices/x/block/sdb\n"));
    CHECK_FALSE(parse("add@/devices/x/block/sdb\nACTION=add\n" + sdb));
    CHECK_FALSE(parse("change@/devices/x/block/sdb\nACTION=change\n" + sdb));
    CHECK_FALSE(
        parse("remove@/devices/x/net/eth0\nACTION=remove\nSUBSYSTEM=net\nMAJOR=8\n"
              "MINOR=16\n"));
    CHECK_FALSE(parse("remove@/x\nACTION=remove\nSUBSYSTEM=block\nDEVNAME=sdb\n"));
    CHECK_FALSE(parse(std::string("libudev\0\xfe\xed\xca\xfe", 12)));
}
