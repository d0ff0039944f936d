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

constexpr const char* pings_only = "a link that goes down is noticed by pings only";
constexpr const char* io_only = "a disk that is removed is noticed by failing I/O only";

}  // namespace

KernelEvents::KernelEvents(Reactor& reactor, Log log) : reactor_(reactor), log_(std::move(log)) {
    open_links();
    open_disks();
}

void KernelEvents::deaf(const char* effect, const Error& why) {
    log_(LOG_WARNING, std::string(effect) + ": " + why.message);
}

void KernelEvents::open_links() {
    links_poll_.context = links_look_.context = this;
    links_poll_.callback = [](Op& op, std::int32_t result) {
        static_cast<KernelEvents*>(op.context)->hear_links(result);
    };
    links_look_.callback = [](Timer& timer) {
        static_cast<KernelEvents*>(timer.context)->links_->look();
    };
    auto opened = LinkMonitor::open();
    if (!opened) return deaf(pings_only, opened.error());
    links_ = std::move(opened).value();
    reactor_.poll(links_poll_, links_->fd(), POLLIN);
}

void KernelEvents::hear_links(std::int32_t result) {
    if (result < 0) return;  // the reactor stops
    const auto due = links_->read_messages();
    if (!due) return deaf(pings_only, due.error());  // as if there were no monitor
    reactor_.poll(links_poll_, links_->fd(), POLLIN);
    if (due.value() == LinkMonitor::Due::now) {
        links_look_.clear();
        links_->look();
    } else if (due.value() == LinkMonitor::Due::soon && !links_look_.is_set()) {
        reactor_.set_timer(links_look_, reactor_.now() + routes_gather_ns);
    }
}

void KernelEvents::open_disks() {
    disks_poll_.context = this;
    disks_poll_.callback = [](Op& op, std::int32_t result) {
        static_cast<KernelEvents*>(op.context)->hear_disks(result);
    };
    auto opened = DiskMonitor::open();
    if (!opened) return deaf(io_only, opened.error());
    disks_ = std::move(opened).value();
    reactor_.poll(disks_poll_, disks_->fd(), POLLIN);
}

void KernelEvents::hear_disks(std::int32_t result) {
    if (result < 0) return;  // the reactor stops
    const Status read = disks_->read_messages();
    if (!read) return deaf(io_only, read.error());
    reactor_.poll(disks_poll_, disks_->fd(), POLLIN);
}

}  // namespace replica
