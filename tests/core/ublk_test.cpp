// SPDX-License-Identifier: Apache-2.0
// What of the ublk door needs no kernel that has it: numbers, errors, and what a node says where
// there is no ublk. The device itself is tested in a guest (tests/vm).
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/ublk_queue.hpp"
#include "engine/node/device_lineage.hpp"
#include "tests/catch.hpp"

using namespace replica;

TEST_CASE("commands have the numbers of the kernel's header") {
    CHECK(ublk::cmd_get_dev_info == 0x80207502);
    CHECK(ublk::cmd_del_dev == 0xc0207505);
    CHECK(ublk::cmd_start_dev == 0xc0207506);
    CHECK(ublk::cmd_stop_dev == 0xc0207507);
    CHECK(ublk::cmd_set_params == 0xc0207508);
    CHECK(ublk::cmd_get_params == 0x80207509);
    CHECK(ublk::cmd_start_recovery == 0xc0207510);
    CHECK(ublk::cmd_end_recovery == 0xc0207511);
    CHECK(ublk::cmd_del_dev_async == 0x80207514);
}

TEST_CASE("the block layer learns what kind of an error it is") {
    CHECK(ublk_errno(0) == 0);
    CHECK(ublk_errno(EROFS) == EBADE);
    CHECK(ublk_errno(ESHUTDOWN) == ENODEV);
    for (const int kept : {EIO, ENOSPC, ENODATA, EILSEQ, ENOLINK, ETIMEDOUT})
        CHECK(ublk_errno(kept) == kept);
    // The block layer reports EAGAIN as an error and turns an operation off at EOPNOTSUPP.
    for (const int other : {EAGAIN, EOPNOTSUPP, EINVAL, ENOMEM})
        CHECK(ublk_errno(other) == EIO);
}

TEST_CASE("a kernel without ublk is told in a sentence") {
    const auto control = UblkControl::open();
    if (control) {
        WARN("this kernel has ublk: nothing to see here");
        return;
    }
    const Error& error = control.error();
    CHECK((error.code == Errc::unsupported || error.code == Errc::permission));
    CHECK(error.message.find("ublk") != std::string::npos);
    const auto devices = ublk_devices();
    REQUIRE(devices);
    CHECK(devices.value().empty());
}

// A record without its device is removed; so "there is none" has to be known for sure.
TEST_CASE("which devices there are is known, or it is said that it is not") {
    char directory[] = "/tmp/ublk_list.XXXXXX";
    REQUIRE(::mkdtemp(directory) != nullptr);
    const std::string classes = directory, list = classes + "/ublk-char";
    CHECK(ublk_devices(classes).value().empty());  // no module, no class
    REQUIRE(::mkdir(list.c_str(), 0700) == 0);
    CHECK(ublk_devices(classes).value().empty());
    for (const char* name : {"/ublkc10", "/ublkc2", "/else"})
        REQUIRE(::mkdir((list + name).c_str(), 0700) == 0);
    CHECK(ublk_devices(classes).value() == std::vector<std::uint32_t>{2, 10});
    for (const char* name : {"/ublkc10", "/ublkc2", "/else"})
        REQUIRE(::rmdir((list + name).c_str()) == 0);
    REQUIRE(::rmdir(list.c_str()) == 0);
    REQUIRE(::symlink("ublk-char", list.c_str()) == 0);  // it can not be followed
    CHECK(ublk_devices(classes).error().code == Errc::io);
    REQUIRE(::unlink(list.c_str()) == 0);
    REQUIRE(::rmdir(directory) == 0);
    const auto absent = ublk_devices(classes);  // /sys is not there
    REQUIRE_FALSE(absent);
    CHECK(absent.error().code == Errc::io);
    CHECK(absent.error().message.find(list) == 0);
}

// ---- what may be repeated -----------------------------------------------------------------------

namespace {

constexpr Uuid noted = 0x1110, second = 0x2220, third = 0x3330;

Superblock written_by(NodeId primary, Uuid current, std::initializer_list<Uuid> history) {
    Superblock superblock;
    superblock.node_id = 0;
    superblock.current_uuid = current | uuid_primary_bit;
    superblock.extension.primary_node = primary;
    if (history.size() > 0) superblock.extension.parent_uuid = *history.begin();
    std::copy(history.begin(), history.end(), superblock.history.begin());
    return superblock;
}

}  // namespace

TEST_CASE("what waits may be repeated on data that only this node has written") {
    const Lineage same = judge_lineage(noted, written_by(0, noted, {}), false, true);
    CHECK(same == Lineage::good);
    // A generation that this node opened after the record: it lost a peer, or was promoted.
    CHECK(judge_lineage(noted, written_by(0, second, {noted}), false, true) == Lineage::good);
    CHECK(judge_lineage(noted, written_by(0, third, {second, noted}), false, false) ==
          Lineage::good);
    // Its history may have forgotten it, but not the parent.
    Superblock forgetful = written_by(0, second, {noted});
    forgetful.history = {};
    CHECK(judge_lineage(noted, forgetful, false, true) == Lineage::good);
}

TEST_CASE("what waits is never repeated where another node was primary") {
    for (const bool up_to_date : {false, true}) {
        // In a generation of its own, or in the same one, promoted while it was connected.
        for (const Uuid current : {noted, second}) {
            const Superblock theirs = written_by(1, current, {noted});
            CHECK(judge_lineage(noted, theirs, false, up_to_date) == Lineage::stale);
        }
        // It has sent writes, whatever the label says.
        CHECK(judge_lineage(noted, written_by(0, noted, {}), true, up_to_date) == Lineage::stale);
        // No generation was noted.
        CHECK(judge_lineage(0, written_by(0, noted, {}), false, up_to_date) == Lineage::stale);
    }
}

TEST_CASE("what waits is not repeated on data that has lost what came before it") {
    // This disk failed under the primary, which went on with a peer's: that has generation `noted`.
    const Superblock old = written_by(0, third, {second});
    CHECK(judge_lineage(noted, old, false, false) == Lineage::behind);
    CHECK(judge_lineage(noted, old, false, true) == Lineage::stale);
    // It comes back with the resync.
    CHECK(judge_lineage(noted, written_by(0, noted, {third}), false, true) == Lineage::good);
}
