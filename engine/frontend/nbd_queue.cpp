// SPDX-License-Identifier: Apache-2.0
// See nbd_queue.hpp.
#include "engine/frontend/nbd_queue.hpp"

#include <poll.h>
#include <unistd.h>

#include <utility>

#include "engine/base/assert.hpp"

namespace replica {
namespace {

// The kernel collects its replies as long as it lives; to drop it would gain nothing.
constexpr std::uint64_t never_ns = 365 * 24 * 3600 * ns_per_s;
// Requests that the kernel gives at a time; no more of them may be in flight on a socket.
constexpr std::uint32_t commands_max = 128;

NbdServerOptions options_for(const KernelChannel::Server& server, std::function<void()> deserted) {
    NbdServerOptions options;
    options.clients_max = 1;
    options.commands_max = commands_max;
    options.stall_timeout_ns = never_ns;
    options.log = server.log;
    options.deserted = std::move(deserted);
    options.answered = server.on_answer;
    return options;
}

}  // namespace

std::uint16_t nbd_device_flags(const VolumeInfo& info) {
    constexpr std::uint16_t writable =
        nbd::flag_send_fua | nbd::flag_send_trim | nbd::flag_send_write_zeroes;
    return static_cast<std::uint16_t>(nbd::flag_has_flags | nbd::flag_send_flush |
                                      (info.writable ? writable : nbd::flag_read_only));
}

NbdChannel::~NbdChannel() {
    if (fd_ >= 0) ::close(fd_);
}

bool NbdChannel::hung_up() const {
    pollfd polled{fd_, POLLRDHUP, 0};
    return ::poll(&polled, 1, 0) == 1;
}

std::unique_ptr<KernelQueue> NbdChannel::serve(const Server& server) {
    return std::make_unique<NbdQueue>(server, std::exchange(fd_, -1));
}

NbdQueue::NbdQueue(const KernelChannel::Server& server, int fd)
    : reactor_(server.reactor),
      server_(server.reactor, server.volume, "kernel",
              options_for(server, [this, tell = server.on_lost] {
                  if (cut_) return;
                  lost_ = true;
                  tell();
              })) {
    server_.take(fd);
}

void NbdQueue::cut_off() {
    if (!std::exchange(cut_, true)) server_.cut_off();
}

void NbdQueue::when_ended(std::function<void()> done) {
    cut_off();
    reactor_.post(std::move(done));
}

void NbdQueue::when_idle(std::function<void()> done) { server_.stop(std::move(done)); }

}  // namespace replica
