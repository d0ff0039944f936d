// SPDX-License-Identifier: Apache-2.0
// A listening socket on the reactor: TCP (IPv4, IPv6) or Unix. Accepts until it is closed, and goes
// on by itself after it ran out of descriptors or memory.
#pragma once

#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/io/address.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

class ListenerOwner {
  public:
    // A new connection; the descriptor is the owner's to close. TcpOptions are set already.
    virtual void on_accept(int fd) = 0;
    // Accepting fails for now (EMFILE, ENFILE, ENOBUFS, ENOMEM...) and is tried again ten times a
    // second. Once for each spell of trouble; error 0: it is over.
    virtual void on_accept_trouble(int error) = 0;
    // After close(), as the last call: the listener may be destroyed in here.
    virtual void on_listener_closed() = 0;

  protected:
    ~ListenerOwner() = default;
};

struct ListenerOptions {
    int backlog = 128;
    TcpOptions tcp;  // for accepted connections
};

// Thread: the reactor's, but open() (any, before the reactor runs or on its thread).
class Listener {
  public:
    // Binds and starts to accept. A Unix socket gets mode 0600; the file of a dead server is
    // replaced, that of a live one is not. Errors: busy (somebody listens there), permission,
    // invalid, not_found (no such address or directory), limit.
    static Result<std::unique_ptr<Listener>> open(Reactor& reactor, const Endpoint& endpoint,
                                                  const ListenerOptions& options,
                                                  ListenerOwner& owner);
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    ~Listener();  // only after on_listener_closed(), or when the reactor has stopped

    // Stops accepting; asynchronous. A Unix socket's file is removed at once, if it is still ours.
    // Connections that were accepted are not touched. Again: no effect.
    void close();

    // Where it listens: with the port that the kernel has chosen, if 0 was asked for.
    Endpoint endpoint() const { return endpoint_; }

  private:
    Listener(Reactor& reactor, const ListenerOptions& options, ListenerOwner& owner);
    Status bind_unix(const std::string& path);
    Status bind_tcp(const Endpoint& endpoint);
    void accept_next();
    void accepted(std::int32_t result);
    void maybe_closed();

    Reactor& reactor_;
    ListenerOptions options_;
    ListenerOwner& owner_;
    Endpoint endpoint_;
    int fd_ = -1;
    Op accept_op_;
    Timer retry_timer_;
    Deferred closed_task_;
    int trouble_ = 0;  // the errno of the present spell
    bool closing_ = false;
    bool closed_ = false;
    std::uint64_t unix_device_ = 0, unix_inode_ = 0;  // of the socket file that we made
};

}  // namespace replica
