// SPDX-License-Identifier: Apache-2.0
// The two TCP connections to one peer: dialling them, or adopting accepted ones; frames out,
// checked frames in; closing, and breaking when the network under them is gone (docs/netlink.md).
// Decides nothing: when to dial and to close is the core's. A
// connection that was closed never speaks to the owner again, even while the kernel still has
// operations of it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/effects.hpp"
#include "engine/io/connector.hpp"
#include "engine/io/frame_socket.hpp"
#include "engine/node/shared_buffers.hpp"
#include "netlink/link_monitor.hpp"

namespace replica {

// Called on the reactor's thread, never from inside a call to the link. Every member may call the
// link.
class LinkOwner {
  public:
    // The end of dial(), unless close() came first. Not ok: trouble() says why.
    virtual void on_link_dialled(NodeId peer, bool ok) = 0;
    // Once for a connection that was not closed by close(): a stream broke, or the peer broke the
    // protocol.
    virtual void on_link_broken(NodeId peer) = 0;
    // A frame whose checksums are right. Data payloads are in a receive buffer, which is the
    // owner's from here on; structured ones live for this call only.
    virtual void on_link_message(NodeId peer, Stream stream, const Message& message,
                                 std::span<const std::byte> payload) = 0;
    // The network between here and the peer is there again, or changed: dialling may succeed now.
    virtual void on_path_found(NodeId peer) = 0;
    // Something of a closed connection is gone: quiet() may have become true.
    virtual void on_link_quiet() = 0;

  protected:
    ~LinkOwner() = default;
};

// Reactor thread only.
class PeerLink {
  public:
    struct Config {
        NodeId peer = 0;
        std::string address;                // HOST:PORT
        std::uint32_t user_timeout_ms = 0;  // TCP_USER_TIMEOUT
        LinkMonitor* monitor = nullptr;     // nullptr: there is none
    };
    PeerLink(Reactor& reactor, SharedBuffers& receive_buffers, const Config& config,
             LinkOwner& owner);
    ~PeerLink();  // only when quiet()
    PeerLink(const PeerLink&) = delete;
    PeerLink& operator=(const PeerLink&) = delete;

    void dial();
    // Connects once, sends these bytes and closes. Nobody hears how it went.
    void knock(std::vector<std::byte> frame);
    void adopt(int bulk_fd, int control_fd);  // takes the descriptors
    // graceful: what was sent goes out first, for at most a second.
    void close(bool graceful);

    // False: there is no connection, and `done` will not be called.
    bool send(Stream stream, FrameHeader header, std::span<const std::byte> payload, SendDone done);
    std::uint64_t backlog() const;  // bytes queued for the bulk stream
    // Nothing of this link is in the kernel.
    bool quiet() const;
    // What went wrong last: a refused connection, a reject of the peer. Empty since it is up.
    const std::string& trouble() const { return trouble_; }
    void forget_trouble() { trouble_.clear(); }
    void set_user_timeout(std::uint32_t ms) { config_.user_timeout_ms = ms; }

  private:
    struct Connection;
    struct End;

    void start_dialling();
    void dialled(std::size_t which, Result<int> fd);
    void knocked(Result<int> fd);
    void connect_streams(int bulk_fd, int control_fd);
    void watch_peer();
    void on_path(bool found);
    void retire();
    void broke(Connection& connection);
    void ended(Connection& connection);
    TcpOptions tcp_options() const;

    Reactor& reactor_;
    SharedBuffers& receive_buffers_;
    Config config_;
    LinkOwner& owner_;
    std::string trouble_;

    // Dialling: both connectors run; the owner is told when neither does any more. `wanted_`: the
    // owner waits for the outcome. `again_`: dial() came while a cancelled attempt was ending.
    struct Dialler {
        PeerLink* link = nullptr;
        std::unique_ptr<Connector> connector;
        int fd = -1;
    };
    std::array<Dialler, 2> diallers_;
    bool dial_failed_ = false;
    bool wanted_ = false;
    bool again_ = false;

    std::unique_ptr<Connector> knocker_;
    std::vector<std::byte> knock_;

    std::unique_ptr<Connection> current_;
    std::vector<std::unique_ptr<Connection>> closing_;
    PathWatch path_;  // of the bulk stream, or of the peer if it is not connected
    Timer path_settled_;
};

}  // namespace replica
