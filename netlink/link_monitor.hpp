// SPDX-License-Identifier: Apache-2.0
// Tells at once, by rtnetlink, when the way to an address is lost or found: its interface, the own
// address or the route. An accelerator beside pings and timeouts, never the only judge: it sees
// this end of the cable, and a way that is there may still lead nowhere. docs/netlink.md.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/result.hpp"

namespace replica {

class LinkMonitor;

// An IP address; `scope` is the interface of a link-local one. family 0: none.
struct PathAddress {
    int family = 0;
    std::array<std::uint8_t, 16> bytes{};
    int scope = 0;
    friend auto operator<=>(const PathAddress&, const PathAddress&) = default;
};

// How packets get to an address. Two ways are alike if they lead through the same interface with
// the same own address, and the interface was not down in between.
struct PathWay {
    bool usable = false;
    int interface = 0;
    std::uint32_t ups = 0;  // how often the interface came up
    PathAddress source;
    std::string why;  // what is missing, for people; empty while usable
};

// A way that is watched. Owned by the caller, who keeps it in place; it must not outlive the
// monitor. The callback runs inside LinkMonitor::look() and may start and stop any watch.
struct PathWatch {
    // found: there is a way that was not there before, or not like this. Not found: there was one,
    // and seen.why says what is gone. A way that is out of order when the watch begins is not
    // reported as lost: the monitor may just not understand it.
    void (*callback)(PathWatch& watch, bool found) = nullptr;
    void* context = nullptr;  // the caller's own

    LinkMonitor* monitor = nullptr;  // kept by the monitor, as is what follows; nullptr: none
    PathAddress peer, local;
    PathWay seen;
    bool changed = false;

    PathWatch() = default;
    ~PathWatch();
    PathWatch(const PathWatch&) = delete;
    PathWatch& operator=(const PathWatch&) = delete;
};

// One thread only.
class LinkMonitor {
  public:
    // Needs no privilege. Errors: unsupported (built without libnl), permission, io.
    static Result<std::unique_ptr<LinkMonitor>> open();
    virtual ~LinkMonitor() = default;  // when nothing is watched any more

    // Watches the way to `peer`; with `local` that of a connection which has this address here.
    // Replaces what `watch` watched before. Nothing is watched if `peer` is no IP address.
    virtual void start(PathWatch& watch, const sockaddr* peer, const sockaddr* local = nullptr) = 0;
    // The same peer without a local address: the way by which it would be dialled now.
    virtual void forget_local(PathWatch& watch) = 0;
    virtual void stop(PathWatch& watch) = 0;

    // Readable: there are messages.
    virtual int fd() const = 0;
    // Takes in what there is without blocking, some hundred messages at most. `now`: an interface
    // or an address changed, so call look(). `soon`: routes did, and thousands more may follow; so
    // call it after a moment. Errors: io (nothing more will come).
    enum class Due : std::uint8_t { nothing, soon, now };
    virtual Result<Due> read_messages() = 0;
    // Looks at every way, then runs the callbacks of those that changed.
    virtual void look() = 0;
};

}  // namespace replica
