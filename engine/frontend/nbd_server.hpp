// SPDX-License-Identifier: Apache-2.0
// An NBD export of one volume at one door: a listening socket and its clients, on the reactor that
// owns the volume. Several servers may export one volume; all their connections feed the same.
//
// A Unix socket is made with mode 0600 and removed at the end. There is no TLS: a TCP door belongs
// on loopback or on a network that is trusted.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/frontend/nbd_connection.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/listener.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

class NbdServer final : private ListenerOwner {
  public:
    // Reactor thread only, like all members (or before the reactor runs). The volume must outlive
    // the server.
    NbdServer(Reactor& reactor, Volume& volume, std::string export_name,
              NbdServerOptions options = {});
    // Only before start(), after a start() that failed, or when stop() has called back.
    ~NbdServer();
    NbdServer(const NbdServer&) = delete;
    NbdServer& operator=(const NbdServer&) = delete;

    // door: "unix:PATH", or "tcp:HOST:PORT" with a numeric address (IPv6 in brackets), "localhost"
    // or nothing (both loopback), or "*" (every address) for HOST, and 0 for a port that the kernel
    // chooses. Does not block. Errors: invalid (the door), busy (somebody listens there), exists (a
    // file that is no socket), permission, not_found (no such address or directory), limit, io.
    Status start(const std::string& door);
    // Serves a connected socket that is in the transmission phase, in place of start(); the server
    // has it from now on.
    void take(int fd);
    // As their namesakes in NbdConnection, for the socket that was taken.
    void hold(std::function<void()> held);
    void resume();
    int give();
    // Lets go of all clients at once, whatever they wait for.
    void cut_off();
    // Whoever connects is closed at once, from now on, or no more.
    void turn_away(bool away) { turns_away_ = away; }
    // Closes the door: no new clients, no new commands; what is in flight is answered. `done` is
    // called later, once, from the reactor, when nothing of it is left; the server may be destroyed
    // then, from inside too. Requests that the engine holds back hold this up, so whoever takes the
    // volume down fails them first (ESHUTDOWN).
    void stop(std::function<void()> done);

    // Where it listens, with the port that the kernel chose; empty when it does not.
    const std::string& door() const { return door_; }
    // Clients connected now, those that are still shaking hands included.
    std::uint32_t clients() const;

  private:
    void on_accept(int fd) override;
    void on_accept_trouble(int error) override;
    void on_listener_closed() override;
    NbdConnection* free_connection();
    void on_retry();
    void on_turn();
    void log(int level, const std::string& text) const;

    NbdConnection::Context context_;
    std::string door_;
    std::unique_ptr<Listener> listener_;
    Timer retry_timer_;  // looks for buffers while a connection is starved
    Deferred turn_;
    bool turns_away_ = false;
    bool released_ = false;
    bool left_ = false;            // a client
    std::size_t retry_first_ = 0;  // who is asked first, in turn
    std::uint64_t clients_seen_ = 0;
    std::function<void()> stopped_;  // set while stopping
    std::vector<std::unique_ptr<NbdConnection>> connections_;
};

}  // namespace replica
