// SPDX-License-Identifier: Apache-2.0
// See peer_link.hpp.
#include "engine/node/peer_link.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/crc32c.hpp"
#include "engine/base/text.hpp"

namespace replica {
namespace {

// More than the core can have unanswered: journal, flushes, reads, chunks, acknowledgements.
constexpr std::uint32_t send_slots = 16384;
constexpr std::uint64_t grace_ns = 500 * ns_per_ms;
// The other end of a cable comes up some milliseconds after this one. What is sent before that is
// lost, and the kernel asks for the peer's hardware address again only a second later.
constexpr std::uint64_t path_settles_ns = 100 * ns_per_ms;
constexpr std::size_t structured_bytes_max = 4096;
static_assert(wire_bitmap_page_bytes <= structured_bytes_max);

bool carries_data(MessageType type) {
    return type == MessageType::write || type == MessageType::resync_data ||
           type == MessageType::read_reply;
}

}  // namespace

// One of the two streams of a connection.
struct PeerLink::End final : FrameOwner {
    PeerLink* link = nullptr;
    Connection* connection = nullptr;
    Stream stream = Stream::bulk;
    std::unique_ptr<FrameSocket> socket;
    Message message;  // of the frame that is arriving
    BufferWaiter waiter;
    alignas(8) std::array<std::byte, structured_bytes_max> structured;

    End(PeerLink& owner, Connection& parent, Stream which, int fd);
    ~End() { link->receive_buffers_.forget(waiter); }
    std::int64_t payload_bytes(FrameHeader header) override;
    std::byte* payload_buffer(FrameHeader header, std::size_t bytes) override;
    void on_frame(FrameHeader header, std::span<std::byte> payload) override;
    void on_payload_dropped(std::byte* buffer) override;
    void on_closed(int error) override;
    void fail(const std::string& what);
};

struct PeerLink::Connection {
    std::array<std::unique_ptr<End>, 2> ends;
    bool speaks = true;  // the owner has not closed it, and does not know that it broke
    Timer grace;         // one stream has ended in order, the other may bring a last word
    bool closed(std::size_t which) const { return ends[which]->socket == nullptr; }
};

PeerLink::End::End(PeerLink& owner, Connection& parent, Stream which, int fd)
    : link(&owner), connection(&parent), stream(which) {
    FrameSocketOptions options;
    options.send_slots = send_slots;
    socket = std::make_unique<FrameSocket>(owner.reactor_, fd, options, *this);
    waiter.context = this;
    waiter.ready = [](BufferWaiter& w) {
        End& end = *static_cast<End*>(w.context);
        if (end.socket) end.socket->resume_receive();
    };
}

void PeerLink::End::fail(const std::string& what) {
    if (connection->speaks) link->trouble_ = what;
    socket->close(EPROTO);
}

std::int64_t PeerLink::End::payload_bytes(FrameHeader header) {
    auto decoded = decode_header(header);
    if (!decoded) {
        fail("a damaged or foreign frame arrived: " + decoded.error().message);
        return -1;
    }
    message = decoded.value();
    return message.payload_bytes;
}

std::byte* PeerLink::End::payload_buffer(FrameHeader, std::size_t bytes) {
    if (!carries_data(message.type)) return structured.data();
    return link->receive_buffers_.acquire(bytes, waiter);
}

void PeerLink::End::on_payload_dropped(std::byte* buffer) {
    if (buffer != structured.data()) link->receive_buffers_.release(buffer);
}

void PeerLink::End::on_frame(FrameHeader header, std::span<std::byte> payload) {
    if (!connection->speaks) {
        if (!payload.empty()) on_payload_dropped(payload.data());
        return;
    }
    const std::uint32_t expected = header_payload_crc(header);
    if ((payload.empty() ? 0 : crc32c(payload)) != expected) {
        if (!payload.empty()) on_payload_dropped(payload.data());
        return fail("the payload of a frame fails its checksum");
    }
    if (message.type == MessageType::reject) {
        const auto* const text = reinterpret_cast<const char*>(payload.data());
        std::string why(text, strnlen(text, payload.size()));
        std::replace_if(
            why.begin(), why.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
        return fail("the peer refuses the connection: " + why);
    }
    link->owner_.on_link_message(link->config_.peer, stream, message, payload);
}

void PeerLink::End::on_closed(int error) {
    if (connection->speaks && link->trouble_.empty()) {
        link->trouble_ = error == 0 ? "the peer closed the connection"
                                    : text_of("the connection broke: %s", std::strerror(error));
    }
    PeerLink& owner = *link;
    Connection& ours = *connection;
    socket.reset();
    const bool wait = error == 0 && (!ours.closed(0) || !ours.closed(1));
    if (ours.speaks && wait) {
        // A goodbye may still be on its way by the other stream.
        owner.reactor_.set_timer(ours.grace, owner.reactor_.now() + grace_ns);
        return;
    }
    owner.broke(ours);
    owner.ended(ours);
}

PeerLink::PeerLink(Reactor& reactor, SharedBuffers& receive_buffers, const Config& config,
                   LinkOwner& owner)
    : reactor_(reactor), receive_buffers_(receive_buffers), config_(config), owner_(owner) {
    for (Dialler& dialler : diallers_) {
        dialler.link = this;
        dialler.connector = std::make_unique<Connector>(reactor);
    }
    knocker_ = std::make_unique<Connector>(reactor);
    path_.context = path_settled_.context = this;
    path_.callback = [](PathWatch& watch, bool found) {
        static_cast<PeerLink*>(watch.context)->on_path(found);
    };
    path_settled_.callback = [](Timer& timer) {
        auto& link = *static_cast<PeerLink*>(timer.context);
        if (!link.current_) link.owner_.on_path_found(link.config_.peer);
    };
}

PeerLink::~PeerLink() { ASSERT(quiet()); }

// A peer that is given by its name is watched from the first connection on.
void PeerLink::watch_peer() {
    if (config_.monitor == nullptr || path_.monitor != nullptr) return;
    const auto endpoint = parse_endpoint(config_.address);
    if (!endpoint || !is_numeric(endpoint.value())) return;
    const auto addresses = resolve(endpoint.value(), false);
    if (addresses) config_.monitor->start(path_, addresses.value().front().get());
}

void PeerLink::on_path(bool found) {
    if (found) return reactor_.set_timer(path_settled_, reactor_.now() + path_settles_ns);
    path_settled_.clear();
    if (!current_ || !current_->speaks) return;
    trouble_ = "the network under the connection is gone: " + path_.seen.why;
    broke(*current_);
}

TcpOptions PeerLink::tcp_options() const {
    TcpOptions options;
    options.user_timeout_ms = config_.user_timeout_ms;
    return options;
}

void PeerLink::dial() {
    ASSERT(!wanted_);
    wanted_ = true;
    watch_peer();
    again_ = diallers_[0].connector->busy() || diallers_[1].connector->busy();
    if (!again_) start_dialling();
}

void PeerLink::start_dialling() {
    dial_failed_ = false;
    auto endpoint = parse_endpoint(config_.address);
    ConnectOptions options;
    options.tcp = tcp_options();
    for (Dialler& dialler : diallers_) {
        // The address was checked when the resource was configured.
        dialler.connector->start(
            endpoint ? endpoint.value() : Endpoint{}, options,
            [](void* context, Result<int> fd) {
                Dialler& ended = *static_cast<Dialler*>(context);
                const auto which = static_cast<std::size_t>(&ended - ended.link->diallers_.data());
                ended.link->dialled(which, std::move(fd));
            },
            &dialler);
    }
}

void PeerLink::dialled(std::size_t which, Result<int> fd) {
    if (fd) {
        diallers_[which].fd = fd.value();
    } else {
        if (!dial_failed_ && wanted_ && !again_) trouble_ = fd.error().message;
        dial_failed_ = true;
        diallers_[1 - which].connector->cancel();
    }
    if (diallers_[0].connector->busy() || diallers_[1].connector->busy()) return;
    const int bulk = std::exchange(diallers_[0].fd, -1);
    const int control = std::exchange(diallers_[1].fd, -1);
    const bool ok = !dial_failed_ && wanted_ && !again_;
    if (!ok) {
        if (bulk >= 0) ::close(bulk);
        if (control >= 0) ::close(control);
    }
    if (!wanted_) return owner_.on_link_quiet();
    if (std::exchange(again_, false)) return start_dialling();
    wanted_ = false;
    if (ok) trouble_.clear();
    if (ok) connect_streams(bulk, control);
    owner_.on_link_dialled(config_.peer, ok);
}

void PeerLink::knock(std::vector<std::byte> frame) {
    watch_peer();
    const auto endpoint = parse_endpoint(config_.address);
    if (!endpoint || knocker_->busy()) return;
    knock_ = std::move(frame);
    ConnectOptions options;
    options.tcp = tcp_options();
    knocker_->start(
        endpoint.value(), options,
        [](void* context, Result<int> fd) {
            static_cast<PeerLink*>(context)->knocked(std::move(fd));
        },
        this);
}

// What is sent on a new connection has room in it, and goes out before the end does.
void PeerLink::knocked(Result<int> fd) {
    if (fd) {
        static_cast<void>(
            ::send(fd.value(), knock_.data(), knock_.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
        ::close(fd.value());
    }
    owner_.on_link_quiet();
}

void PeerLink::adopt(int bulk_fd, int control_fd) {
    configure_tcp(bulk_fd, tcp_options());
    configure_tcp(control_fd, tcp_options());
    connect_streams(bulk_fd, control_fd);
}

void PeerLink::connect_streams(int bulk_fd, int control_fd) {
    ASSERT(!current_);
    current_ = std::make_unique<Connection>();
    current_->grace.context = this;
    current_->grace.callback = [](Timer& timer) {
        auto& link = *static_cast<PeerLink*>(timer.context);
        link.broke(*link.current_);
    };
    if (config_.monitor != nullptr) {
        config_.monitor->start(path_, peer_address(bulk_fd).get(), local_address(bulk_fd).get());
    }
    current_->ends[0] = std::make_unique<End>(*this, *current_, Stream::bulk, bulk_fd);
    current_->ends[1] = std::make_unique<End>(*this, *current_, Stream::control, control_fd);
    for (const auto& end : current_->ends)
        end->socket->start();
}

bool PeerLink::send(Stream stream, FrameHeader header, std::span<const std::byte> payload,
                    SendDone done) {
    if (!current_ || !current_->speaks) return false;
    FrameSocket* const socket = current_->ends[static_cast<std::size_t>(stream)]->socket.get();
    if (socket == nullptr || !socket->open()) return false;
    if (socket->send(header, payload, done)) return true;
    // More than can be outstanding: the peer does not read, and answers things it was not asked.
    current_->ends[static_cast<std::size_t>(stream)]->fail("too many frames wait to be sent");
    return false;
}

std::uint64_t PeerLink::backlog() const {
    return current_ && !current_->closed(0) ? current_->ends[0]->socket->queued_bytes() : 0;
}

void PeerLink::close(bool graceful) {
    knocker_->cancel();
    // The owner ends what did not end by itself, and has the reason.
    if (wanted_ || current_) trouble_.clear();
    if (wanted_) {
        wanted_ = again_ = false;
        for (Dialler& dialler : diallers_)
            dialler.connector->cancel();
    }
    if (!current_) return;
    Connection& connection = *current_;
    connection.speaks = false;
    connection.grace.clear();
    retire();
    for (const auto& end : connection.ends) {
        if (!end->socket) continue;
        if (graceful) {
            end->socket->finish(ESHUTDOWN);
        } else {
            end->socket->close(ESHUTDOWN);
        }
    }
}

// The connection is over, though the kernel may have something of it still.
void PeerLink::retire() {
    closing_.push_back(std::move(current_));
    if (config_.monitor != nullptr) config_.monitor->forget_local(path_);
}

// One stream is gone, so the other has to go too, and the owner hears of it once.
void PeerLink::broke(Connection& connection) {
    if (!connection.speaks) {
        // A graceful end drains both streams on its own time.
        return;
    }
    connection.speaks = false;
    connection.grace.clear();
    ASSERT(current_.get() == &connection);
    retire();
    for (const auto& end : connection.ends) {
        if (end->socket) end->socket->close(ECONNRESET);
    }
    owner_.on_link_broken(config_.peer);
}

void PeerLink::ended(Connection& connection) {
    if (!connection.closed(0) || !connection.closed(1)) return;
    const auto at = std::find_if(closing_.begin(), closing_.end(),
                                 [&](const auto& held) { return held.get() == &connection; });
    ASSERT(at != closing_.end());
    closing_.erase(at);
    owner_.on_link_quiet();
}

bool PeerLink::quiet() const {
    return !current_ && closing_.empty() && !diallers_[0].connector->busy() &&
           !diallers_[1].connector->busy() && !knocker_->busy();
}

}  // namespace replica
