// SPDX-License-Identifier: Apache-2.0
// The node's listener for peers. Reads the first frame of each connection, which has to be a hello,
// and hands the connection on by the name of its resource. What stalls, is garbage or comes in
// crowds costs a bounded number of descriptors and log lines.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "engine/format/wire.hpp"
#include "engine/io/listener.hpp"
#include "engine/node/reactor_thread.hpp"

namespace replica {

class Acceptor final : private ListenerOwner {
  public:
    // Takes the descriptor of a connection whose hello has arrived. Called on the reactor's thread.
    using Route = std::function<void(int fd, const HelloPayload& hello)>;
    using Log = std::function<void(int level, const std::string& line)>;

    // Any thread. address: HOST:PORT. Errors: those of Listener::open() and resolve().
    static Result<std::unique_ptr<Acceptor>> open(ReactorThread& thread, const std::string& address,
                                                  Route route, Log log);
    // After close().
    ~Acceptor();

    // Stops listening and drops what has not said hello yet. Blocks; not from a reactor's thread.
    void close();
    std::string address() const { return address_; }

  private:
    struct Pending {
        Acceptor* acceptor = nullptr;
        int fd = -1;
        Op op;
        Timer timer;
        std::size_t have = 0;
        std::array<std::byte, wire_header_bytes + hello_payload_bytes> frame;
        bool dropped = false;
    };
    Acceptor(ReactorThread& thread, Route route, Log log);

    void on_accept(int fd) override;
    void on_accept_trouble(int error) override;
    void on_listener_closed() override;
    void receive(Pending& pending);
    void received(Pending& pending, std::int32_t result);
    void drop(Pending& pending, const std::string& why);
    void forget(Pending& pending);
    void maybe_closed();
    void complain(int fd, const std::string& why);

    ReactorThread& thread_;
    Reactor& reactor_;
    Route route_;
    Log log_;
    std::string address_;
    std::unique_ptr<Listener> listener_;
    std::list<Pending> pending_;
    bool closing_ = false, listener_closed_ = false;
    Baton closed_;
    struct Complaint {
        Instant at;
        std::uint64_t silenced = 0;
    };
    std::map<std::string, Complaint> complaints_;  // by the source's address
};

}  // namespace replica
