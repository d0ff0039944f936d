// SPDX-License-Identifier: Apache-2.0
// See kernel_events.hpp.
#include "engine/node/kernel_events.hpp"

#include <poll.h>
#include <syslog.h>

#include <utility>

namespace replica {
namespace {

// A routing daemon may change thousands of routes at a time: they are looked at together.
constexpr std::uint64_t routes_gather_ns = 50 * ns_per_ms;

}  // namespace

KernelEvents::KernelEvents(Reactor& reactor, Log log) : reactor_(reactor), log_(std::move(log)) {
    links_poll_.context = links_look_.context = this;
    links_poll_.callback = [](Op& op, std::int32_t result) {
        static_cast<KernelEvents*>(op.context)->hear_links(result);
    };
    links_look_.callback = [](Timer& timer) {
        static_cast<KernelEvents*>(timer.context)->links_->look();
    };
    auto opened = LinkMonitor::open();
    if (!opened) {
        deaf_to_links(opened.error());
        return;
    }
    links_ = std::move(opened).value();
    reactor_.poll(links_poll_, links_->fd(), POLLIN);
}

void KernelEvents::deaf_to_links(const Error& why) {
    log_(LOG_WARNING, "a link that goes down is noticed by pings only: " + why.message);
}

void KernelEvents::hear_links(std::int32_t result) {
    if (result < 0) return;  // the reactor stops
    const auto due = links_->read_messages();
    if (!due) return deaf_to_links(due.error());  // as if there were no monitor
    reactor_.poll(links_poll_, links_->fd(), POLLIN);
    if (due.value() == LinkMonitor::Due::now) {
        links_look_.clear();
        links_->look();
    } else if (due.value() == LinkMonitor::Due::soon && !links_look_.is_set()) {
        reactor_.set_timer(links_look_, reactor_.now() + routes_gather_ns);
    }
}

}  // namespace replica
