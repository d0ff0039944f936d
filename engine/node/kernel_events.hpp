// SPDX-License-Identifier: Apache-2.0
// What the kernel tells of its own accord, heard on a reactor: the state of the network, and disks
// that go. Where it can not be heard everything works without, only later: by pings, timeouts and
// I/O that fails.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/io/reactor.hpp"
#include "netlink/link_monitor.hpp"
#include "netlink/uevents.hpp"

namespace replica {

// On the reactor's thread, or before it runs. Goes away after the reactor has stopped.
class KernelEvents {
  public:
    // What can not be heard, then or later, is logged.
    using Log = std::function<void(int level, const std::string& line)>;
    KernelEvents(Reactor& reactor, Log log);
    KernelEvents(const KernelEvents&) = delete;
    KernelEvents& operator=(const KernelEvents&) = delete;

    LinkMonitor* links() const { return links_.get(); }  // nullptr: there is none
    DiskMonitor* disks() const { return disks_.get(); }  // nullptr: there is none

  private:
    void open_links();
    void open_disks();
    void hear_links(std::int32_t result);
    void hear_disks(std::int32_t result);
    void deaf(const char* effect, const Error& why);

    Reactor& reactor_;
    Log log_;
    std::unique_ptr<LinkMonitor> links_;
    Op links_poll_;
    Timer links_look_;  // routes changed, and perhaps many
    std::unique_ptr<DiskMonitor> disks_;
    Op disks_poll_;
};

}  // namespace replica
