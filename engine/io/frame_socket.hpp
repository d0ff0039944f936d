// SPDX-License-Identifier: Apache-2.0
// A full-duplex stream of frames over a connected TCP or Unix socket: a 64-byte header and a
// payload whose length the owner reads from the header. Knows nothing of what the bytes mean.
//
// Sending: frames queued in one turn leave in one sendmsg at its end. Receiving: many frames a
// recv; small payloads are copied from the receive buffer, the rest of a large one goes straight to
// its destination. Nothing is allocated after create().
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/io/reactor.hpp"

namespace replica {

inline constexpr std::size_t frame_header_bytes = 64;
using FrameHeader = std::span<const std::byte, frame_header_bytes>;

// Called on the reactor's thread, never inside a call to the socket. Every member may call send(),
// close(), finish() and resume_receive() of the socket, and of others.
class FrameOwner {
  public:
    // The payload's length by the header, once a frame; < 0: a protocol error, the connection is
    // closed with EPROTO.
    virtual std::int64_t payload_bytes(FrameHeader header) = 0;
    // Where a payload of that length (> 0) is to be put; nullptr: no buffer now, receiving stops
    // until resume_receive(), and then it is asked again.
    virtual std::byte* payload_buffer(FrameHeader header, std::size_t bytes) = 0;
    // A whole frame. The payload is in the buffer that payload_buffer() gave, which is the owner's
    // again from here on; the header only lives for this call.
    virtual void on_frame(FrameHeader header, std::span<std::byte> payload) = 0;
    // Instead of on_frame(): the connection ended in the middle; the buffer is the owner's again.
    virtual void on_payload_dropped(std::byte* buffer) = 0;
    // The last call, once: every send has called back, the descriptor is closed, the socket may be
    // destroyed in here. error: 0, the peer has closed in order; else a positive errno (ECONNRESET,
    // ETIMEDOUT, EPROTO...), or what close() or finish() was given.
    virtual void on_closed(int error) = 0;

  protected:
    ~FrameOwner() = default;
};

struct FrameSocketOptions {
    std::uint32_t send_slots = 1024;             // frames queued at most; a power of two
    std::uint32_t receive_bytes = 128U << 10;    // of the receive buffer, at least 4096
    std::uint64_t finish_timeout_ns = ns_per_s;  // for finish()
};

// Called once for a frame: error 0 when the kernel has taken all of it, so the payload is the
// caller's again; a positive errno when the connection ended before. In the order of send().
struct SendDone {
    void (*call)(void* context, int error) = nullptr;  // nullptr: nobody wants to know
    void* context = nullptr;
};

class FrameSocket {
  public:
    // Takes the connected descriptor. Receiving begins with start().
    FrameSocket(Reactor& reactor, int fd, const FrameSocketOptions& options, FrameOwner& owner);
    FrameSocket(const FrameSocket&) = delete;
    FrameSocket& operator=(const FrameSocket&) = delete;
    ~FrameSocket();  // before start(), after on_closed(), or when the reactor has stopped

    void start();

    // Queues a frame: the header is copied, the payload is only referred to and stays in place
    // until `done`. False, and nothing has happened: no free slot, or the connection is closing.
    [[nodiscard]] bool send(FrameHeader header, std::span<const std::byte> payload, SendDone done);
    std::uint32_t free_slots() const { return open() ? slots_ - queued() : 0; }
    std::uint64_t queued_bytes() const { return queued_bytes_; }

    void resume_receive();  // a payload buffer is free again; no effect if receiving did not stop

    // Ends the connection; asynchronous. What was not sent is dropped (its `done` gets `error`),
    // and on_closed(error) follows. error > 0. Again: no effect.
    void close(int error);
    // The same, but first sends what is queued and waits, for a time, until the peer closes too, so
    // that the last frames are not lost to a reset. Nothing is received or sent any more.
    void finish(int error);
    bool open() const { return state_ == State::open; }  // send() may work

    int fd() const { return fd_; }
    std::uint64_t sent_bytes() const { return sent_bytes_; }
    std::uint64_t received_bytes() const { return received_bytes_; }

  private:
    // open: as usual. finishing: sends the rest, drops what comes. closing: waits for the kernel to
    // give its operations back. closed: on_closed() was called.
    enum class State : std::uint8_t { open, finishing, closing, closed };

    struct Slot {
        const std::byte* payload = nullptr;
        std::size_t bytes = 0;
        SendDone done;
    };

    std::uint32_t queued() const { return tail_ - head_; }
    std::byte* header_at(std::uint32_t index) {
        return headers_.get() + (index & mask_) * frame_header_bytes;
    }
    void flush();
    void add_iovec(const std::byte* data, std::size_t bytes);
    void sent(std::int32_t result);
    void complete_sent(std::size_t bytes);
    void receive();
    void received(std::int32_t result);
    void parse_and_receive();
    bool parse_one();
    void begin_closing(int error);
    void maybe_closed();
    void finish_close();

    Reactor& reactor_;
    FrameOwner& owner_;
    FrameSocketOptions options_;
    int fd_;
    State state_ = State::open;
    int error_ = 0;  // for on_closed()

    // Sending: a ring of slots, [head_, tail_) are queued; head_offset_ bytes of the first are
    // sent.
    std::uint32_t slots_, mask_;
    std::unique_ptr<std::byte[]> headers_;
    std::unique_ptr<Slot[]> slot_;
    std::uint32_t head_ = 0, tail_ = 0;
    std::size_t head_offset_ = 0;
    std::uint64_t queued_bytes_ = 0, sent_bytes_ = 0;
    static constexpr std::size_t iovecs_max = 64;
    std::array<iovec, iovecs_max> iovecs_{};
    std::size_t iovec_count_ = 0;
    msghdr message_{};
    Op send_op_;
    Deferred flush_task_;

    // Receiving: [begin_, end_) of the buffer is not parsed yet. With a payload under way, its
    // header is in header_ and `payload_have_` bytes are in place.
    std::unique_ptr<std::byte[]> buffer_;
    std::size_t begin_ = 0, end_ = 0;
    std::array<std::byte, frame_header_bytes> header_{};
    bool in_payload_ = false;       // header_ is valid, its frame is not delivered yet
    bool into_payload_ = false;     // the recv in flight goes to the payload, not to the buffer
    bool paused_ = false;           // waits for resume_receive()
    std::byte* payload_ = nullptr;  // given by the owner
    std::size_t payload_bytes_ = 0, payload_have_ = 0;
    std::uint64_t received_bytes_ = 0;
    Op receive_op_;
    Deferred resume_task_;

    Timer finish_timer_;
    Deferred closed_task_;
};

}  // namespace replica
