// SPDX-License-Identifier: Apache-2.0
// Makes one connection: resolves the name on a thread of its own, tries each address in turn, gives
// up after a time. Trying again later is the owner's decision.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/io/address.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

struct ConnectOptions {
    std::uint64_t timeout_ns = 5 * ns_per_s;  // for all of it: name server and every address
    TcpOptions tcp;
};

// Owned by the caller, who keeps it in place until `done` has run. Thread: the reactor's.
class Connector {
  public:
    // `done` gets the connected descriptor (the owner's to close) or an error: timeout, not_found
    // (name), io (os_errno: ECONNREFUSED...), cancelled, limit. Once for each start(), never inside
    // start() or cancel(); it may start again or destroy the connector.
    using Done = void (*)(void* context, Result<int> fd);

    explicit Connector(Reactor& reactor);
    Connector(const Connector&) = delete;
    Connector& operator=(const Connector&) = delete;
    ~Connector();  // not while busy(), unless the reactor has stopped

    void start(const Endpoint& endpoint, const ConnectOptions& options, Done done, void* context);
    void cancel();  // asks; no effect when idle
    bool busy() const { return busy_; }

  private:
    struct Lookup;
    void begin_lookup();
    void forget_lookup();
    void looked_up(Result<std::vector<SocketAddress>> addresses);
    void try_next();
    void connected(std::int32_t result);
    void give_up(Error error);
    void finish();

    Reactor& reactor_;
    Endpoint endpoint_;
    ConnectOptions options_;
    Done done_ = nullptr;
    void* context_ = nullptr;
    bool busy_ = false;
    std::vector<SocketAddress> addresses_;
    std::size_t next_ = 0;  // address to try
    int fd_ = -1;
    Op connect_op_;
    Timer timer_;
    Deferred finish_task_;
    bool failed_ = false;  // error_ is the outcome; waits for connect_op_ to come back
    Error error_;
    std::shared_ptr<Lookup> lookup_;
};

}  // namespace replica
