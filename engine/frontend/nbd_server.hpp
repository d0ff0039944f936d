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
#include "engine/io/reactor.hpp"

namespace replica {

class NbdServer {
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
    // or nothing (loopback) for HOST, and 0 for a port that the kernel chooses. Does not block.
    // Errors: invalid (the door), busy (somebody listens there), exists (a file that is no socket),
    // permission, io.
    Status start(const std::string& door);
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
    Status listen_unix(const std::string& path);
    Status listen_tcp(const std::string& host_and_port);
    void remove_socket_file();
    void accept();
    void on_accepted(std::int32_t result);
    NbdConnection* free_connection();
    void on_retry();
    void on_turn();
    void log(int level, const std::string& text) const;

    NbdConnection::Context context_;
    std::string door_;
    int fd_ = -1;
    std::string socket_path_;  // to be removed at the end...
    std::uint64_t socket_device_ = 0;
    std::uint64_t socket_inode_ = 0;  // ...if it is still ours
    Op accept_op_;
    Timer accept_timer_;  // to try again when accept has failed
    Timer retry_timer_;   // looks for buffers while a connection is starved
    Deferred turn_;
    bool released_ = false;
    std::size_t retry_first_ = 0;  // who is asked first, in turn
    std::uint64_t clients_seen_ = 0;
    std::function<void()> stopped_;  // set while stopping
    std::vector<std::unique_ptr<NbdConnection>> connections_;
};

}  // namespace replica
