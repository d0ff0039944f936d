// SPDX-License-Identifier: Apache-2.0
// One client of an NBD export: a socket on the reactor on one side, a splitter into the volume on
// the other, and the protocol as a value between them. All its memory is allocated when it is made;
// a server makes it once and uses it for one client after the other. Reactor thread only.
//
// What bounds a client: commands in flight (slots), bytes of engine buffers that it holds, and its
// receive buffer. Where one of them is used up the socket is not read.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/frontend/nbd_protocol.hpp"
#include "engine/frontend/splitter.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

struct NbdServerOptions {
    std::uint32_t clients_max = 64;              // more are turned away
    std::uint32_t commands_max = 128;            // of one client in flight
    std::uint32_t buffer_bytes_max = 16U << 20;  // of engine buffers that one client holds
    // A client that is not through with the handshake by then is dropped.
    std::uint64_t handshake_timeout_ns = 10 * ns_per_s;
    // How long a client that is leaving, or is asked to, may take to collect its last replies.
    std::uint64_t close_timeout_ns = 5 * ns_per_s;
    // A client that holds buffers, moves no byte for so long and keeps others waiting is dropped.
    std::uint64_t stall_timeout_ns = 30 * ns_per_s;
    std::function<void(int level, const std::string& line)> log;  // syslog levels; reactor thread
    // The last client is gone, and nobody has asked for that by stop(). Reactor thread.
    std::function<void()> deserted;
    // A client has got its first answers. Reactor thread.
    std::function<void()> answered;
};

class NbdConnection {
  public:
    // What a connection shares with its server and the other clients.
    struct Context {
        Reactor& reactor;
        Volume& volume;
        NbdServerOptions options;
        std::string export_name;
        std::uint32_t starved;  // connections that wait for a buffer of the volume
        // Called on changes; neither may call back into the connection.
        void* server;
        void (*on_starved)(void* server);   // somebody has to retry() it
        void (*on_released)(void* server);  // a buffer has become free
        void (*on_ended)(void* server);     // the connection is idle again
    };

    explicit NbdConnection(Context& context);
    ~NbdConnection();  // must be idle
    NbdConnection(const NbdConnection&) = delete;
    NbdConnection& operator=(const NbdConnection&) = delete;

    // Takes the socket over. shaken_hands: it is in the transmission phase already.
    void open(int fd, std::uint64_t client_number, bool shaken_hands = false);
    // Takes no more commands, answers those in flight, and closes.
    void finish();
    // Takes no more commands and answers none; closes when the engine is through with them.
    void cut_off() { drop(""); }
    // Of a client in the transmission phase: reads no further than to the end of a request that has
    // begun. `held` is called when all that was read is answered, or the client is gone.
    void hold(std::function<void()> held);
    void resume();
    // After `held`: gives the socket away, for somebody who reads on; -1: the client is gone.
    int give();
    // Tries again to get a buffer.
    void retry();
    // Drops a client that keeps others waiting by not moving (see stall_timeout_ns).
    void maybe_drop_stalled();

    bool idle() const { return state_ == State::idle; }
    bool starved() const { return starved_; }

  private:
    // idle: no client. open: all goes on. draining: no more input, replies still go out. closing:
    // the socket is shut down, completions are awaited and dropped.
    enum class State : std::uint8_t { idle, open, draining, closing };

    // A command from its header to its last reply.
    struct Slot {
        NbdCommand command;
        SplitRequest split;
        NbdConnection* connection = nullptr;
        Slot* next = nullptr;          // in the free list or in the reply queue
        SplitPiece* ready = nullptr;   // of a read: completed and not yet sent, by offset
        std::uint64_t sent_bytes = 0;  // of a read without structured replies
        int error = 0;
        NbdRefusal refusal = NbdRefusal::none;
        bool busy = false;
        bool queued = false;     // in the reply queue
        bool split_done = true;  // nothing of it is or will be in the engine
        bool replied = false;    // the last reply is composed
        bool streaming = false;  // the header of its simple reply is composed, not all of its data
        bool hole = false;       // a read of nothing but a hole
        bool zeroes = false;     // write-zeroes that must not leave holes: written as data
    };

    // Commands (nbd_connection.cpp).
    void on_turn();
    void process();
    bool process_step();
    void begin_command(const NbdCommand& command, NbdRefusal refusal);
    void begin_split(Slot& slot, IoKind kind);
    bool take_payload();
    void abandon_payload();
    void release_payload_buffer();
    Slot& take_slot();
    void maybe_free(Slot& slot);
    std::byte* acquire(const Slot& slot);
    void release(const Slot& slot, std::byte* buffer);
    std::byte* on_buffer(Slot& slot, std::uint64_t offset, std::uint32_t length);
    bool on_piece_done(Slot& slot, SplitPiece& piece, int error);
    void on_split_done(Slot& slot, int error);

    // Replies (nbd_connection_send.cpp).
    void maybe_queue(Slot& slot);
    bool sendable(const Slot& slot) const;
    void flush();
    void compose();
    bool batch_has_room() const;
    void compose_slot(Slot& slot);
    void compose_read(Slot& slot);
    void compose_ordered_read(Slot& slot);
    void compose_error(Slot& slot);
    std::span<std::byte> staging();
    void add_staged(std::size_t bytes);
    void add_piece(SplitPiece& piece);
    void send();
    void on_sent(std::int32_t result);
    void batch_sent();

    // The socket (nbd_connection.cpp).
    void receive();
    std::size_t rest_of_request() const;
    void maybe_held();
    void on_received(std::int32_t result);
    void set_starved(bool starved);
    void schedule() { context_.reactor.defer(turn_); }
    void drain();
    void drop(const char* reason);
    void drop_commands();
    void maybe_end();
    void on_timer();
    void log(int level, const char* text) const;

    static Slot& slot_of(SplitRequest& request) { return *static_cast<Slot*>(request.context); }
    static const SplitHooks hooks_;

    Context& context_;
    State state_ = State::idle;
    int fd_ = -1;
    std::uint64_t client_number_ = 0;
    NbdSession session_;
    Splitter splitter_;
    Deferred turn_;
    Timer timer_;
    Instant progress_;      // when a byte last moved
    bool starved_ = false;  // the volume had no buffer
    bool need_input_ = false;
    bool holding_ = false;
    bool answered_ = false;
    std::function<void()> held_;

    std::vector<Slot> slots_;
    Slot* free_ = nullptr;
    std::uint32_t busy_slots_ = 0;
    std::uint64_t held_bytes_ = 0;  // of engine buffers

    // Receiving. rx_ holds bytes [rx_begin_, rx_end_) that are not consumed.
    Op recv_op_;
    std::vector<std::byte> rx_;
    std::size_t rx_begin_ = 0;
    std::size_t rx_end_ = 0;
    bool recv_direct_ = false;  // the operation in flight fills payload_buffer_

    // The write whose payload is next in the stream, and the piece of it that is being filled.
    Slot* payload_ = nullptr;
    std::uint32_t payload_taken_ = 0;         // bytes of the command in earlier pieces
    std::byte* payload_buffer_ = nullptr;     // of the present piece
    std::uint32_t payload_buffer_bytes_ = 0;  // what it counts for in held_bytes_
    std::uint32_t payload_length_ = 0;        // of the present piece
    std::uint32_t payload_filled_ = 0;
    bool payload_ready_ = false;  // filled, and the splitter has not taken it yet
    // The write failed while the kernel was filling payload_buffer_: so many bytes of it, counted
    // from payload_filled_, are then dropped.
    std::uint64_t payload_abandoned_ = 0;

    // Sending: one batch at a time. What completes meanwhile waits in the reply queue.
    Op send_op_;
    msghdr message_{};
    std::array<iovec, 64> iov_{};
    std::size_t iov_count_ = 0;
    std::size_t iov_sent_ = 0;
    std::vector<std::byte> staging_;
    std::size_t staged_ = 0;
    SplitPiece* batch_pieces_ = nullptr;  // whose buffers are in the batch
    std::vector<std::byte> handshake_out_;
    bool handshake_in_batch_ = false;
    Slot* replies_ = nullptr;
    Slot** replies_tail_ = &replies_;
    Slot* streaming_ = nullptr;  // its data must follow without anything between
};

}  // namespace replica
