// SPDX-License-Identifier: Apache-2.0
// What there is of this folder on a machine without libnl: each door says so.
#include "netlink/drbd_status.hpp"
#include "netlink/link_monitor.hpp"
#include "netlink/nbd_device.hpp"

namespace replica {
namespace {

Error absent(const char* what) {
    return {Errc::unsupported, 0, std::string(what) + " needs libnl, and this build is without it"};
}

}  // namespace

PathWatch::~PathWatch() = default;

Result<std::unique_ptr<LinkMonitor>> LinkMonitor::open() {
    return absent("watching the network's interfaces");
}

Result<std::unique_ptr<NbdControl>> NbdControl::open() { return absent("the kernel's nbd door"); }

Result<std::vector<DrbdResource>> read_drbd_status() {
    return absent("the state of the kernel's DRBD");
}

bool add_drbd_message(std::span<const std::byte>, unsigned, std::vector<DrbdResource>&) {
    return false;
}

}  // namespace replica
