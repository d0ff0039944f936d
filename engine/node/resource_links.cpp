// SPDX-License-Identifier: Apache-2.0
// A resource's peers: dialled and accepted connections, and the messages that come by them.
#include <poll.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/crc32c.hpp"
#include "engine/node/accepted_socket.hpp"
#include "engine/node/resource_shell.hpp"

namespace replica {

void ResourceShell::make_links() {
    for (const PeerConfig& config : config_.peers) {
        auto state = std::make_unique<PeerState>();
        state->name = config.name;
        PeerLink::Config link;
        link.peer = config.node_id;
        link.address = config.address;
        link.user_timeout_ms = config_.options.request_timeout_ms;
        link.monitor = thread_.kernel_events().links();
        LinkOwner& owner = *this;
        state->link = std::make_unique<PeerLink>(reactor_, thread_.receive_buffers(), link, owner);
        peers_[config.node_id] = std::move(state);
    }
}

void ResourceShell::log_trouble(NodeId id) {
    PeerState& state = *peer(id);
    if (state.link->trouble() == state.logged) return;
    state.logged = state.link->trouble();
    log(LOG_NOTICE, "peer " + state.name + ": " + state.logged);
}

void ResourceShell::perform_link(const Effect& e) {
    if (e.kind == EffectKind::refuse) {
        if (e.peer >= 0) peer(static_cast<NodeId>(e.peer))->link->forget_trouble();
        return refuse_handle(e.handle, e.text);
    }
    PeerLink& link = *peer(static_cast<NodeId>(e.peer))->link;
    if (e.kind == EffectKind::dial) return link.dial();
    if (e.kind == EffectKind::knock) {
        std::vector<std::byte> frame(wire_header_bytes + e.message.payload_bytes);
        const auto payload = std::span(frame).subspan(wire_header_bytes);
        core_->encode_payload(e, payload);
        encode_header(e.message, crc32c(payload), HeaderBytes{frame.data(), wire_header_bytes});
        return link.knock(std::move(frame));
    }
    if (e.kind == EffectKind::close_link) return link.close(e.graceful);
    ASSERT(e.kind == EffectKind::adopt);
    const int bulk = take_handle(e.handle);
    const int control = take_handle(e.handle2);
    ASSERT(bulk >= 0 && control >= 0);
    link.forget_trouble();
    link.adopt(bulk, control);
}

void ResourceShell::on_link_dialled(NodeId id, bool ok) {
    if (!ok) log_trouble(id);
    step([&](Core& core) { core.on_dialled(now(), id, ok); });
    run_completions();
}

void ResourceShell::on_link_broken(NodeId id) {
    log_trouble(id);
    step([&](Core& core) { core.on_link_closed(now(), id); });
    run_completions();
}

void ResourceShell::on_path_found(NodeId id) {
    step([&](Core& core) { core.on_path_found(now(), id); });
    run_completions();
}

// Data payloads arrive in receive buffers. The answer to a read is copied from there: the door's
// buffer must not be in the hands of a socket that may go on writing when the core has already
// asked another peer.
BufferRef ResourceShell::place_payload(NodeId id, const Message& message,
                                       std::span<const std::byte> payload) {
    SharedBuffers& buffers = thread_.receive_buffers();
    const std::uint32_t index = buffers.index_of(payload.data());
    if (message.type != MessageType::read_reply) return {BufferKind::receive, index};
    const BufferRef wanted = core_->destination(id, message);
    if (wanted.kind == BufferKind::request) {
        std::memcpy(slots_[wanted.index].request->buffer, payload.data(), payload.size());
    }
    buffers.release(buffers.buffer(index));
    return wanted;
}

void ResourceShell::on_link_message(NodeId id, Stream stream, const Message& message,
                                    std::span<const std::byte> payload) {
    BufferRef buffer;
    const bool data = message.type == MessageType::write ||
                      message.type == MessageType::resync_data ||
                      message.type == MessageType::read_reply;
    if (data && !payload.empty()) {
        buffer = place_payload(id, message, payload);
        payload = {};
    } else if (message.type == MessageType::write_ack) {
        const std::uint32_t slot = slot_of_seq_[message.seq % slot_of_seq_.size()];
        if (slots_[slot].request != nullptr && slots_[slot].seq == message.seq) {
            slots_[slot].answered = now();
        }
    }
    step([&](Core& core) { core.on_message(now(), id, stream, message, payload, buffer); });
    run_completions();
}

void ResourceShell::tell_backlogs() {
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id]) core_->on_backlog(id, peers_[id]->link->backlog());
    }
}

// ---- accepted connections -----------------------------------------------------------------------

void ResourceShell::on_accepted(std::uint64_t handle, int fd, const HelloPayload& hello) {
    Accepted& accepted = accepted_.emplace_back();
    accepted.shell = this;
    accepted.handle = handle;
    accepted.fd = fd;
    // The peer says nothing more before it has our hello: what comes is its end, or garbage.
    accepted.poll.context = &accepted;
    accepted.poll.callback = [](Op& op, std::int32_t) {
        auto& polled = *static_cast<Accepted*>(op.context);
        polled.shell->on_handle_event(polled);
    };
    reactor_.poll(accepted.poll, fd, POLLIN | POLLRDHUP);
    step([&](Core& core) { core.on_hello(now(), handle, hello); });
    run_completions();
}

void ResourceShell::on_handle_event(Accepted& accepted) {
    const int fd = accepted.fd;
    const std::uint64_t handle = accepted.handle;
    accepted_.remove_if([&](const Accepted& a) { return &a == &accepted; });
    reactor_.defer(turn_);
    if (fd < 0) return;
    ::close(fd);
    step([&](Core& core) { core.on_handle_closed(now(), handle); });
    run_completions();
}

// The descriptor of a handle, which is the caller's from here on; -1: it has gone.
int ResourceShell::take_handle(std::uint64_t handle) {
    const auto at = std::find_if(accepted_.begin(), accepted_.end(),
                                 [&](const Accepted& a) { return a.handle == handle; });
    if (at == accepted_.end()) return -1;
    reactor_.cancel(at->poll);
    return std::exchange(at->fd, -1);
}

void ResourceShell::refuse_handle(std::uint64_t handle, const char* text) {
    const int fd = take_handle(handle);
    if (fd >= 0) reject_and_close(fd, text);
}

bool ResourceShell::follows_primary() const {
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id] && core_->view(id).role == Role::primary) return true;
    }
    return false;
}

}  // namespace replica
