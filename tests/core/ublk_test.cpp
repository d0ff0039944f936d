// SPDX-License-Identifier: Apache-2.0
// What of the ublk door needs no kernel that has it: numbers, errors, and what a node says where
// there is no ublk. The device itself is tested in a guest (tests/vm).
#include <unistd.h>

#include <cerrno>

#include "engine/frontend/ublk_control.hpp"
#include "engine/frontend/ublk_queue.hpp"
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
    CHECK(UblkControl::devices().empty());
}
