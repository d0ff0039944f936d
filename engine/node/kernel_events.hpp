// SPDX-License-Identifier: Apache-2.0
// What the kernel tells of its own accord, heard on a reactor: the state of the network. Where it
// can not be heard everything works without, only later: by pings and timeouts.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/io/reactor.hpp"
#include "netlink/link_monitor.hpp"

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

  private:
    void hear_links(std::int32_t result);
    void deaf_to_links(const Error& why);

    Reactor& reactor_;
    Log log_;
    std::unique_ptr<LinkMonitor> links_;
    Op links_poll_;
    Timer links_look_;  // routes changed, and perhaps many
};

}  // namespace replica
